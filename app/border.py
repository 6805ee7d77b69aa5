"""What every request passes before Gradio sees it, and every answer after.

Host     a page of another site must not reach an app on this machine by a name of its own (DNS rebinding):
         addresses, localhost and the machine's own names are known, others only where the app is public
Size     of a request, not only of a file; of all uploads of a while
Uploads  each has a folder of its own with a name nobody can guess, is called by a path within the folder of
         uploads (the browser learns nothing of the disk), and goes after KEPT_S seconds
Turns    calls that skip the queue: a few at once of each page, and of all pages of a machine; a page that the
         queue had no room for is not heard for DEAF_S seconds, which costs nothing
Closed   what Gradio serves and no page of ours asks for: it keeps files, runs ffmpeg, fetches other hosts
Headers  what a browser may do with the answers: no sniffing, no referrer elsewhere, no framing but by this
         app's own pages and, on a Space, by the hub's
Words    of Gradio's own refusals are shown as text
Log      one line for a request that Gradio did not understand; a traceback only where our own code failed

`app_kwargs(...)` gives what `Blocks.launch(app_kwargs=...)` takes.
"""

from __future__ import annotations

import atexit
import ipaddress
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, deque
from pathlib import Path
from typing import Any

from gradio import queueing, route_utils, routes, utils
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse

from app.gate import CLIENT, Client
from app.toast import error_payload

KEPT_S = 120
MOST_UPLOADED = 10_500_000  # bytes of a request with files
MOST_SENT = 4_000_000  # of any other
DIGITS = 12  # of a length that may be one
MOST_KEPT = 1_000_000_000  # of all uploads within KEPT_S; a fifth of it for one machine
TRACEBACKS = 10  # a minute
DEAF_S = 1.0
AT_ONCE = 8  # calls of one page that skip the queue
BY_MACHINE = 64  # of all pages of one machine
ALIAS = "uploads"
SPACE = "https://huggingface.co https://*.huggingface.co https://*.hf.space"
CLOSED = tuple(
    f"/gradio_api/{name}"
    for name in (
        "deep_link",
        "dev/",
        "process_recording",
        "proxy=",
        "run-history",
        "runs",
        "undo-vibe-edit",
        "vibe-",
    )
)
SESSION = re.compile(rb'"session_hash"\s*:\s*"(\w{1,64})"')

logger = logging.getLogger(__name__)


def app_kwargs(host: str, public: bool) -> dict[str, Any]:
    """Prepares Gradio's uploads and log; returns the `app_kwargs` of a launch on `host`."""
    folder = tempfile.mkdtemp(prefix="quept-uploads-", dir=os.environ.get("GRADIO_TEMP_DIR"))
    os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    route_utils.GradioUploadFile = _Upload
    queueing.traceback = routes.traceback = _Brief()
    queueing.error_payload = utils.error_payload = error_payload
    logging.getLogger("uvicorn.error").addFilter(_brief_record)
    known = None if public else {"localhost", socket.gethostname().lower(), host.strip("[]").lower()}
    return {"middleware": [Middleware(Border, folder=os.path.realpath(folder), known=known)]}


class _Upload(route_utils.GradioUploadFile):
    """Gradio names the folder of an upload after its content: two visitors with one picture would share it,
    and the one who is done first would remove it from under the other."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sha.update(secrets.token_bytes(16))


class Border:
    """ASGI middleware; see the module's docstring. folder: of the uploads. known: names of this host besides
    addresses; None: any."""

    def __init__(self, app, folder: str, known: set[str] | None = None):
        self.app, self.folder, self.known = app, folder, known
        frames = f"frame-ancestors 'self' {SPACE}" if "SPACE_ID" in os.environ else "frame-ancestors 'self'"
        self.headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"x-quept", b"1"),  # by which the loading page knows that the app is there
            (b"content-security-policy", frames.encode()),
        ]
        self._arrived: deque[tuple[float, str, int]] = deque()
        self._under_way: Counter[tuple[str, bytes]] = Counter()
        self._deaf: dict[bytes, float] = {}  # pages, until when

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"])

        async def answer(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.headers]
            await send(message)

        async def refuse(status: int, sentence: str) -> None:
            await PlainTextResponse(sentence, status)(scope, receive, answer)

        if not self._knows(given.get(b"host", b"").decode("latin-1")):
            await refuse(421, "This host name is not known here: start the app with --public to allow it.")
            return
        if scope["path"].startswith(CLOSED):
            await refuse(404, "There is nothing here.")
            return
        if scope["method"] == "HEAD" and scope["path"] == "/":  # Gradio would draw the whole page
            await HTMLResponse()(scope, receive, answer)
            return
        if scope["path"].startswith(f"/gradio_api/file={ALIAS}/"):
            scope = self._located(scope)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, answer)
            return
        address, length = (scope.get("client") or ("",))[0], given.get(b"content-length", b"")
        upload = scope["path"].rstrip("/").endswith("/upload")
        most = MOST_UPLOADED if upload else MOST_SENT
        if not length.isdigit() or len(length) > DIGITS:
            await refuse(411, "A request says its length.")
        elif int(length) > most:
            await refuse(413, f"This request has {int(length):,} bytes; at most {most:,} are taken.")
        elif upload and not self._room(address, int(length)):
            await refuse(503, "There is no room for uploads at the moment: try again in two minutes.")
        elif upload:
            await self.app(scope, receive, _Renamed(answer, self.folder))
        else:
            body = await _whole(receive)
            session = (SESSION.search(body) or [b"", b""])[1]
            direct = "/run/" in scope["path"] or "/api/" in scope["path"].removeprefix("/gradio_api")
            page, machine = ("page", session), ("machine", address.encode())
            if direct and (self._under_way[page] >= AT_ONCE or self._under_way[machine] >= BY_MACHINE):
                await refuse(429, "This page has asked for many things at once: let one of them end first.")
                return
            joins = scope["path"].endswith("/queue/join")
            if joins and self._deaf.get(session, 0.0) > time.monotonic():
                full = JSONResponse({"detail": "This page has filled its line: try again in a second."}, 503)
                await full(scope, receive, answer)
                return
            CLIENT.set(Client(address, session.decode()))
            counted = (page, machine) if direct else ()
            self._under_way.update(counted)
            try:
                await self.app(
                    scope,
                    _replay(self._named(body), receive),
                    self._noting(session, answer) if joins else answer,
                )
            finally:
                self._under_way.subtract(counted)
                self._under_way = +self._under_way  # without the zeros

    def _noting(self, session: bytes, send):
        """`send` that notes where the queue had no room for a page."""

        async def noting(message):
            if message.get("status") == 503:
                now = time.monotonic()
                self._deaf = {page: until for page, until in self._deaf.items() if until > now}
                self._deaf[session] = now + DEAF_S
            await send(message)

        return noting

    def _knows(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        if self.known is None or name in self.known or name.removesuffix(".local") in self.known:
            return True
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return name.endswith(".localhost")

    def _located(self, scope) -> dict:
        """The request for an uploaded file, with the path that Gradio knows it by."""
        path = scope["path"].replace(f"={ALIAS}/", f"={self.folder}/", 1)
        return {**scope, "path": path, "raw_path": path.encode()}

    def _named(self, body: bytes) -> bytes:
        """A body whose uploaded files are called by the paths that Gradio knows."""
        if b"gradio.FileData" not in body:
            return body
        try:
            return json.dumps(_replaced(json.loads(body), f"{ALIAS}/", f"{self.folder}/")).encode()
        except (ValueError, RecursionError):
            return body  # Gradio says that this is no JSON

    def _room(self, address: str, length: int) -> bool:
        """Whether there is room for another upload; what has lain too long goes."""
        now = time.time()
        while self._arrived and self._arrived[0][0] < now - KEPT_S:
            self._arrived.popleft()
        kept = Counter()
        for _, whose, size in self._arrived:
            kept.update({whose: size, None: size})
        if kept[None] + length > MOST_KEPT or kept[address] + length > MOST_KEPT // 5:
            return False
        self._arrived.append((now, address, length))
        threading.Thread(target=sweep, args=(self.folder, now - KEPT_S), daemon=True).start()
        return True


def sweep(folder: str | Path, before: float) -> None:
    """Remove files older than `before` (seconds since 1970), also those of broken uploads, and their
    folders."""
    for path in sorted(Path(folder).rglob("*"), reverse=True):  # what is in a folder comes before it
        try:
            if path.is_dir():
                if path.stat().st_mtime < before:
                    path.rmdir()
            elif path.lstat().st_mtime < before:
                path.unlink()
        except OSError:
            continue  # not empty, or gone


class _Renamed:
    """`send` for the answer to an upload: a list of paths, called by what they are within the folder."""

    def __init__(self, send, folder: str):
        self._send, self._folder, self._start, self._body = send, folder, None, b""

    async def __call__(self, message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = self._body.replace(f'"{self._folder}/'.encode(), f'"{ALIAS}/'.encode())
        headers = [h for h in self._start["headers"] if h[0].lower() != b"content-length"]
        length = (b"content-length", str(len(body)).encode())
        await self._send({**self._start, "headers": [*headers, length]})
        await self._send({"type": "http.response.body", "body": body})


def _replaced(value: Any, old: str, new: str) -> Any:
    """JSON whose files ({"path", "meta"}) have another beginning of their path."""
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    if not isinstance(value, dict):
        return value
    path = value.get("path")
    if "meta" in value and isinstance(path, str) and path.startswith(old):
        return value | {"path": new + path.removeprefix(old)}
    return {key: _replaced(item, old, new) for key, item in value.items()}


async def _whole(receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive):
    """`receive` that gives the body once, then what comes."""
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again():
        return next(given, None) or await receive()

    return again


class _Brief:
    """Stands in for Python's `traceback` in Gradio's queue and routes."""

    def __init__(self) -> None:
        self._told: deque[float] = deque(maxlen=TRACEBACKS)

    def __getattr__(self, name: str):
        return getattr(traceback, name)

    def print_exc(self, *_args, **_options) -> None:
        error, now = sys.exception(), time.monotonic()
        often = len(self._told) == TRACEBACKS and now - self._told[0] < 60
        if often or not _is_ours(error):
            logger.warning("%s", _line(error))
        else:
            self._told.append(now)
            logger.error("a handler failed", exc_info=error)


def _brief_record(record: logging.LogRecord) -> bool:
    """A filter for uvicorn's log: one line for what failed outside of our code."""
    if record.exc_info and not _is_ours(record.exc_info[1]):
        record.msg, record.args, record.exc_info = "%s", (_line(record.exc_info[1]),), None
    return True


def _is_ours(error: BaseException | None) -> bool:
    """Whether it passed through the app or the library, and is not Gradio's about what it was sent."""
    root = Path(__file__).parents[1]
    own = (f"{root / 'app'}{os.sep}", f"{root / 'quept'}{os.sep}")
    frames = traceback.extract_tb(error.__traceback__) if error else ()
    return any(f.filename.startswith(own) and f.filename != __file__ for f in frames)


def _line(error: BaseException | None) -> str:
    said = f"{type(error).__name__}: {error}"
    return "a request was not understood: " + ascii(said[:160])[1:-1]
