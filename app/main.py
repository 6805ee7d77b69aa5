"""The app's command: shows a loading screen at once, opens the models, then serves the pages on the same
port.

Run as `python app.py`, `python -m app.main` or `quept app`. Models are chosen here, by whoever starts the
app, and never by a visitor.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from app.proxies import settle_proxies
from app.space import settle
from app.splash import Splash
from quept.cli.terminal import forgiving

DEFAULTS = ("smollm2-135m", "fashion-vit", "easy-vqa")
LAST_WORDS = 2.0  # seconds


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="quept app", description="Open the precision explorer in a browser.")
    p.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="built-in name, artifact or model folder, GGUF file, or hub id, of a language model, a "
        f"classifier of pictures or a vision-language model (default: {', '.join(DEFAULTS)}, with each of "
        "the artifacts that come with them)",
    )
    p.add_argument(
        "--model", action="append", default=[], metavar="SOURCE", help="the same; repeat for several"
    )
    p.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine alone)")
    p.add_argument(
        "--public",
        action="store_true",
        help="serve other machines too, under whatever name they call this one (listens on all addresses "
        "unless --host says which)",
    )
    p.add_argument(
        "--port", type=int, default=None, help="port to listen on (default: 7860, or the next free one)"
    )
    p.add_argument(
        "--budget",
        type=float,
        metavar="GB",
        help="memory for quantized weights kept ready, shared out over the models (default 0.4, or 2 where "
        "there is no C compiler to multiply them packed)",
    )
    return p


def opened_to_others(host: str, public: bool) -> str:
    """What whoever reaches this address can do, as a sentence; "" for this machine alone."""
    if host.strip("[]") in ("localhost", "::1") or host.startswith("127."):
        return ""
    named = "under any name" if public else "by its address (by a name of its own: --public)"
    return (
        f"whoever reaches {host} can use this machine {named}: run the opened models, send pictures of up to "
        "10 MB and plans, read what is measured here. There is no password and no encryption; put a proxy "
        "with both in front, or leave --host and --public away to serve this machine alone"
    )


def bundled_sources() -> tuple[list[str], list[str]]:
    """The built-in models, opened where nobody asks for another, each with each of its artifacts; and those
    of them that can wait until somebody chooses them."""
    from quept import zoo
    from quept.artifact import variants

    sources = {name: zoo.MODELS[name].source for name in DEFAULTS}
    names = [name for name, source in sources.items() if not isinstance(source, Path) or source.is_dir()]
    rest = {name: [f"{name}:{variant}" for variant in variants(name)[1:]] for name in names}
    sources = [source for name in names for source in (name, *rest[name])]
    return sources, [source for name in names for source in rest[name]]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    forgiving()
    options = parser().parse_args(argv)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    port = options.port or (
        int(os.environ["GRADIO_SERVER_PORT"]) if "GRADIO_SERVER_PORT" in os.environ else None
    )
    public = options.public or "SPACE_ID" in os.environ
    host = options.host or os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if public else "127.0.0.1")
    if opens := opened_to_others(host, public):
        print(f"quept app: {opens}", file=sys.stderr)
    if note := settle():
        print(f"quept app: {note}", file=sys.stderr)
    gc.disable()  # a fifth of the time that imports take; `open_service` turns it on again
    from quept.zoo.cache import cache_dir

    splash = Splash(host, port, record=cache_dir() / "start.json")
    try:
        splash.start()
        for proxy in settle_proxies(host):
            print(f"quept app: going on without the proxy {proxy}, of an unknown kind", file=sys.stderr)
        splash.step("Importing torch and transformers")
        from app.opening import open_service  # heavy imports happen behind the loading screen
        from quept.kernels import missing

        pages = threading.Thread(target=import_module, args=("app.serve",), daemon=True)
        pages.start()  # gradio is imported while weights are read and checked
        asked = [*options.sources, *options.model]
        sources, later = (asked, []) if asked else bundled_sources()
        budget = options.budget or (2.0 if missing() else 0.4)
        service = open_service(sources, int(budget * 1e9), splash.step, later, "cpu" if note else None)
        splash.step("Importing gradio and drawing the pages")
        pages.join()
        from app.serve import launch
    except Exception as error:
        splash.fail(str(error))
        print(f"quept app: {error}", file=sys.stderr)
        time.sleep(
            LAST_WORDS
        )  # an open loading page asks again within this time, and then shows the sentence
        splash.stop()
        return 1
    launch(service, splash, host, public)
    return 0


if __name__ == "__main__":
    sys.exit(main())
