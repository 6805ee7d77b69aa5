"""What the first page takes besides itself, scripts and styles of Gradio's and of our own, handed to the
browser while the app still starts: it then has them, parsed, when the page comes.

    ahead = Ahead(record)       # `record` keeps what the page of the last start asked for
    ahead.urls                  # for the loading page to fetch, of those that there still are
    ahead.read("/assets/x.js")  # such a file; None for any other path
    ahead.noting(app)           # an ASGI app that notes what the first page asks for, for the next start

The standard library only: Gradio is found by its place, not imported.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote

COMPONENTS = Path(__file__).parent / "components"
NAME = re.compile(r"[\w.-]+\.(?:js|css)")
QUERY = re.compile(r"\w{0,32}")  # what a script or style of ours holds, in short
MOST = 400
PAGE_S = 5.0  # in which a page has asked for what it takes


class Ahead:
    """See the module's docstring. record: None keeps nothing."""

    def __init__(self, record: Path | None = None):
        self.record = record
        self._folders = {f"/gradio_api/file={COMPONENTS.as_posix()}/": COMPONENTS}
        gradio = find_spec("gradio")
        if gradio and gradio.origin:
            self._folders["/assets/"] = Path(gradio.origin).parent / "templates" / "frontend" / "assets"
        self._known: dict[str, str] = {}  # URLs by path
        for url in _kept(record):
            self._note(url)
        self.urls = list(self._known.values())

    def read(self, url: str) -> bytes | None:
        """The bytes of a file that the first page takes; None where this is no such path."""
        file = self._file(url)
        return file.read_bytes() if file else None

    def noting(self, app: Callable) -> Callable:
        """The ASGI app, with a note of every such file that is asked for, written down after a while."""
        begun: list[threading.Timer] = []

        async def noted(scope: Mapping, receive: Callable, send: Callable) -> None:
            if scope["type"] == "http" and scope["path"].startswith(tuple(self._folders)):
                query = scope["query_string"].decode("latin-1")
                self._note(quote(scope["path"], safe="/=") + (f"?{query}" if query else ""))
                if not begun:
                    begun.append(threading.Timer(PAGE_S, self._keep))
                    begun[0].daemon = True
                    begun[0].start()
            await app(scope, receive, send)

        return noted

    def _keep(self) -> None:
        if self.record and list(self._known.values()) != self.urls:
            self.urls = list(self._known.values())
            with contextlib.suppress(OSError):  # a cache that cannot be written: fetched later, as ever
                self.record.write_text(json.dumps(self.urls))

    def _note(self, url: str) -> None:
        if self._file(url) and len(self._known) < MOST:
            self._known[url.partition("?")[0]] = url

    def _file(self, url: str) -> Path | None:
        path, _, query = url.partition("?")
        path = unquote(path)
        for start, folder in self._folders.items():
            name = path.removeprefix(start)
            sound = path.startswith(start) and NAME.fullmatch(name) and QUERY.fullmatch(query)
            if sound and (folder / name).is_file():
                return folder / name
        return None


def _kept(record: Path | None) -> list[str]:
    try:
        urls = json.loads(record.read_text()) if record else []
    except (OSError, ValueError):
        return []
    return [url for url in urls if isinstance(url, str)] if isinstance(urls, list) else []
