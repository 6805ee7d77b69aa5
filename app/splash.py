"""The page that answers while the app is still starting: a tiny server on its port, with live steps.

    splash = Splash(host, port, record=file)  # port None: 7860, or the next free one of the hundred after it
    splash.start()                    # listens at once; SplashError, a sentence, when the port is taken
    splash.step("importing torch")
    splash.step("fetching the model", fraction=0.43)    # the same text again moves its bar
    splash.stop()                     # the port is free when this returns: launch the app on splash.port

Every path answers 200 with splash.html, except the files that the app's first page will take, which that page
has fetched meanwhile (see `ahead`), and `.../__loading`, the JSON that it asks for: {"state": "loading" |
"failed", "error", "elapsed", "expected": how long the last start took, as `record` keeps it, "steps":
[{"text", "state": "running" | "done" | "failed", "fraction", "elapsed"}]}, times in seconds. When another
server answers in its place the page reloads itself, path and query kept. After `fail("sentence")` the page
shows the sentence until `stop`.

The standard library only, so that it can listen before anything slow is imported.
"""

import contextlib
import errno
import html
import json
import os
import re
import socket
import socketserver
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from app.ahead import Ahead

DEFAULT_PORT = 7860
TRIES = 101
PAGE = Path(__file__).with_name("splash.html")
CLIENT_TIMEOUT_S = 10
FIRST_START_S = 30.0  # expected where no start was timed before


class SplashError(OSError):
    """The port cannot be listened on; the message says what to type."""


class Splash:
    """A loading page on `host` and `port`; see the module's docstring."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = None,
        record: Path | None = None,
        ahead: Ahead | None = None,
    ):
        self.host, self.port, self.record = host.strip("[]"), port, record
        self.ahead = ahead or Ahead()
        self.expected = _recorded(record)
        self._template = re.split("<!--(?:ahead|steps|error)-->", PAGE.read_text(encoding="utf-8"))
        self._began = time.monotonic()
        self._steps: list[dict] = []
        self._error = ""
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{name}]:{self.port}/" if ":" in name else f"http://{name}:{self.port}/"

    def start(self) -> None:
        """Listen; `port` is then the port in use. SplashError when that cannot be."""
        if self._server:
            return
        self._server = self._listening()
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="splash", daemon=True
        )
        self._thread.start()

    def step(self, text: str, fraction: float | None = None) -> None:
        """Say what is being done; `fraction`, 0 to 1, where it is known how far."""
        if fraction is not None:
            fraction = min(max(float(fraction), 0.0), 1.0) if fraction == fraction else None
        with self._lock:
            if not self._steps or self._steps[-1]["text"] != text:
                self._end("done")
                self._steps.append(
                    {"text": text, "state": "running", "fraction": None, "began": time.monotonic()}
                )
            self._steps[-1]["fraction"] = fraction

    def fail(self, sentence: str) -> None:
        """Show that the start has ended with `sentence`."""
        with self._lock:
            self._end("failed")
            self._error = sentence

    def stop(self) -> None:
        """Close every connection and free the port; does nothing when nothing listens."""
        server, self._server = self._server, None
        if server is None:
            return
        if self.record and not self._error:
            with contextlib.suppress(OSError):  # a cache that cannot be written: the next estimate is a guess
                self.record.parent.mkdir(parents=True, exist_ok=True)
                self.record.write_text(json.dumps({"seconds": round(time.monotonic() - self._began, 1)}))
        server.end()
        self._thread.join()

    def status(self) -> dict:
        """What `/__loading` answers."""
        now = time.monotonic()
        with self._lock:
            steps = [
                {
                    "text": step["text"],
                    "state": step["state"],
                    "fraction": step["fraction"],
                    "elapsed": round(step.get("ended", now) - step["began"], 2),
                }
                for step in self._steps
            ]
            state = "failed" if self._error else "loading"
            return {
                "state": state,
                "error": self._error,
                "elapsed": round(now - self._began, 2),
                "expected": self.expected,
                "steps": steps,
            }

    def page(self) -> str:
        """The page with the steps so far written in, for a browser without scripts too."""
        status = self.status()
        steps = "".join(
            f'<li class="{step["state"]}"><span class="text">{html.escape(step["text"])}</span></li>'
            for step in status["steps"]
        )
        files = "".join(map(_fetched, self.ahead.urls))
        head, before, middle, after = self._template
        return head + files + before + steps + middle + html.escape(status["error"]) + after

    def _end(self, state: str) -> None:
        if self._steps and self._steps[-1]["state"] == "running":
            self._steps[-1] |= {"state": state, "ended": time.monotonic()}

    def _listening(self) -> "_Server":
        ports = range(DEFAULT_PORT, DEFAULT_PORT + TRIES) if self.port is None else (self.port,)
        for port in ports:
            try:
                return _Server(self.host, port, self)
            except (OSError, OverflowError) as error:
                problem = error
                if getattr(error, "errno", None) != errno.EADDRINUSE:
                    break
        raise SplashError(_sentence(self.host, ports, problem))


class _Server(socketserver.TCPServer):
    """One short-lived thread per connection; all of them can be ended at once."""

    allow_reuse_address = os.name == "posix"  # elsewhere it would let two programs share the port
    request_queue_size = 64

    def __init__(self, host: str, port: int, splash: Splash):
        if not 0 <= port <= 65535:  # getaddrinfo would wrap it around
            raise OverflowError(port)
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        self.splash = splash
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Answer)

    def process_request(self, request: socket.socket, client_address: tuple) -> None:
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="splash-answer", daemon=True
        )
        with self._lock:
            self._open[request] = thread
        thread.start()

    def _serve(self, request: socket.socket, client_address: tuple) -> None:
        with contextlib.suppress(OSError):  # the browser has gone, or `stop` was called
            self.finish_request(request, client_address)
        with self._lock:
            self._open.pop(request, None)
        self.shutdown_request(request)

    def end(self) -> None:
        """Stop listening, end every connection and wait for its thread."""
        self.shutdown()
        self.server_close()
        with self._lock:
            still = dict(self._open)
        for request in still:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        for thread in still.values():
            thread.join()


class _Answer(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        file = self.server.splash.ahead.read(self.path)
        if file is not None:
            kind = "text/css" if self.path.partition("?")[0].endswith(".css") else "text/javascript"
            self._send(file, f"{kind}; charset=utf-8", "public, max-age=31536000, immutable")
        elif self.path.partition("?")[0].endswith("/__loading"):
            self._send(json.dumps(self.server.splash.status()).encode(), "application/json")
        else:
            page = self.server.splash.page().encode("utf-8", "replace")
            self._send(page, "text/html; charset=utf-8")

    do_HEAD = do_GET

    def _send(self, body: bytes, kind: str, kept: str = "no-store") -> None:
        self.send_response(200)
        headers = {
            "Content-Type": kind,
            "Content-Length": len(body),
            "Cache-Control": kept,
            "Connection": "close",
        }
        for name, value in (headers | {"X-Quept-Loading": "1"}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "quept"

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal shows the steps, not the browser's questions."""


def _fetched(url: str) -> str:
    """The element that has a browser fetch a file; modules are parsed too."""
    if url.partition("?")[0].endswith(".css") and not url.startswith("/gradio_api"):
        how = 'rel="preload" as="style"'
    elif url.startswith("/assets") or url.partition("?")[0].endswith("/widget.js"):
        how = 'rel="modulepreload"'
    else:
        how = 'rel="preload" as="fetch"'
    return f'<link {how} crossorigin href="{html.escape(url.lstrip("/"))}">'


def _recorded(record: Path | None) -> float:
    """Seconds that the last start took; a guess for the first one."""
    try:
        return max(1.0, float(json.loads(record.read_text())["seconds"])) if record else FIRST_START_S
    except (OSError, ValueError, TypeError, KeyError):
        return FIRST_START_S


def _sentence(host: str, ports: Sequence[int], problem: Exception) -> str:
    number = getattr(problem, "errno", None)
    if isinstance(problem, OverflowError):
        return f"there is no port {ports[0]}; choose one from 1 to 65535, such as --port {DEFAULT_PORT}"
    if number == errno.EADDRINUSE and len(ports) > 1:
        return f"the ports {ports[0]} to {ports[-1]} are all in use; choose a free one with --port"
    if number == errno.EADDRINUSE:
        return (
            f"port {ports[0]} is in use by another program; stop that one or choose another port with --port"
        )
    if number == errno.EACCES:
        return f"port {ports[0]} needs more rights; choose one above 1023, such as --port {DEFAULT_PORT}"
    if isinstance(problem, socket.gaierror) or number == errno.EADDRNOTAVAIL:
        return f"{host!r} is not an address of this machine; use --host 127.0.0.1, or 0.0.0.0 for all of them"
    return f"cannot listen on {host}, port {ports[0]}: {problem}"
