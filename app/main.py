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
from collections.abc import Callable, Sequence
from importlib import import_module

from app.ahead import Ahead
from app.hub import HUB, HUB_GB, public_hub
from app.proxies import settle_proxies
from app.space import settle
from app.splash import Splash
from app.stubs import leave_out_stubs
from quept.brief import brief
from quept.cli.terminal import forgiving

DEFAULTS = ("smollm2-135m", "efficientnet-lite0", "fashion-vit", "easy-vqa")
PRESETS = ("built-in", "hub")
LAST_WORDS = 2.0  # seconds
Progress = Callable[[str, float | None], None]


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
    p.add_argument(
        "--preset",
        choices=PRESETS,
        help="which models where none are named: those built in, or DeiT, ViT-S, Swin-T, SmolVLM-256M and "
        f"Qwen2.5-0.5B of the Hugging Face hub, which downloads about {HUB_GB} GB once (default: built-in; "
        "on a Space hub, where the hub answers)",
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


def bundled_sources(progress: Progress | None = None) -> tuple[list[str], list[str]]:
    """The built-in models, opened where nobody asks for another, each with each of its artifacts; and those
    of them that wait until a page is open or somebody chooses them: all but the first. One that cannot be
    fetched is left away, but for the first."""
    from quept import zoo
    from quept.artifact import variants

    names = []
    for name in DEFAULTS:
        try:
            if names:
                zoo.model_folder(name, progress)
            names.append(name)
        except zoo.SourceError as error:
            print(f"quept app: going on without {name}: {error}", file=sys.stderr)
    further = {name: [f"{name}:{variant}" for variant in variants(name)[1:]] for name in names}
    sources = [source for name in names for source in (name, *further[name])]
    return sources, sources[1:]


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
    leave_out_stubs()
    gc.disable()  # a fifth of the time that imports take; `launch` turns it on again
    from quept.zoo.cache import cache_dir

    ahead = Ahead(cache_dir() / "first-page.json")
    splash = Splash(host, port, cache_dir() / "start.json", ahead)
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
        budget = int((options.budget or (2.0 if missing() else 0.4)) * 1e9)
        service = None
        if not asked and (options.preset == "hub" or (options.preset is None and public_hub())):
            try:
                service = open_service(HUB, budget, splash.step, (), "cpu" if note else None)
            except Exception as error:
                if options.preset:
                    raise
                print(f"quept app: going on with the built-in models: {error}", file=sys.stderr)
        if service is None:
            sources, later = (asked, []) if asked else bundled_sources(splash.step)
            service = open_service(sources, budget, splash.step, later, "cpu" if note else None)
        splash.step("Importing gradio and drawing the pages")
        pages.join()
        from app.serve import launch
    except Exception as error:
        splash.fail(brief(error))
        print(f"quept app: {brief(error)}", file=sys.stderr)
        time.sleep(
            LAST_WORDS
        )  # an open loading page asks again within this time, and then shows the sentence
        splash.stop()
        return 1
    launch(service, splash, host, public)
    return 0


if __name__ == "__main__":
    sys.exit(main())
