"""The loading page, over real sockets: there at once, truthful, and gone when the app comes."""

import json
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.splash import Splash, SplashError

HOST = "127.0.0.1"


@pytest.fixture
def splash():
    splash = Splash(HOST, 0)  # 0: any free port
    splash.start()
    yield splash
    splash.stop()


def ask(splash: Splash, path: str = "/", method: str = "GET"):
    connection = HTTPConnection(HOST, splash.port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def status(splash: Splash) -> dict:
    return json.loads(ask(splash, "/__loading")[1])


@pytest.mark.parametrize("path", ["/", "/?m=toy&w=Q4A", "/chat", "/config", "/favicon.ico", "//x", "/%00"])
def test_every_path_answers_with_the_page(splash, path):
    answer, body = ask(splash, path)
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Quept-Loading"] == "1"
    assert answer.headers.get_content_type() == "text/html"
    assert "Loading…" in body


def test_a_health_check_may_ask_for_the_head_only(splash):
    answer, body = ask(splash, method="HEAD")
    assert answer.status == 200
    assert body == ""


def test_the_page_asks_nothing_of_other_hosts(splash):
    assert "//" not in ask(splash)[1].replace("  // ", "")


def test_steps_are_told_as_they_happen(splash):
    splash.step("importing torch")
    splash.step("fetching the model")
    splash.step("fetching the model", fraction=0.43)
    told = status(splash)
    assert told["state"] == "loading"
    assert [(s["text"], s["state"], s["fraction"]) for s in told["steps"]] == [
        ("importing torch", "done", None),
        ("fetching the model", "running", 0.43),
    ]
    assert 0 <= told["steps"][1]["elapsed"] <= told["elapsed"]


@pytest.mark.parametrize(("given", "told"), [(1.7, 1.0), (-1, 0.0), (float("nan"), None), (None, None)])
def test_a_fraction_stays_between_none_and_all(splash, given, told):
    splash.step("fetching", fraction=given)
    assert status(splash)["steps"][-1]["fraction"] == told


def test_a_failure_is_shown_as_its_sentence(splash):
    splash.step("fetching the model")
    splash.fail("there is no network")
    told = status(splash)
    assert (told["state"], told["error"], told["steps"][-1]["state"]) == (
        "failed",
        "there is no network",
        "failed",
    )
    assert "there is no network" in ask(splash)[1]


def test_texts_are_escaped(splash):
    splash.step("<script>alert(1)</script>")
    splash.fail("<!--steps--> & <b>")
    page = ask(splash)[1]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;!--steps--&gt; &amp; &lt;b&gt;" in page


def test_stop_frees_the_port_though_browsers_hold_on(splash):
    silent = socket.create_connection((HOST, splash.port))
    ask(splash)
    time.sleep(0.05)
    began = time.monotonic()
    splash.stop()
    assert time.monotonic() - began < 1
    with socket.socket() as app:  # as uvicorn binds
        app.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        app.bind((HOST, splash.port))
        app.listen()
    assert not [t for t in threading.enumerate() if t.name.startswith("splash")]
    silent.close()
    splash.stop()  # twice is harmless


def test_it_can_be_started_again_after_stop(splash):
    splash.stop()
    splash.start()
    assert ask(splash)[0].status == 200


def test_a_taken_port_is_a_sentence():
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SplashError, match=f"port {port} is in use by another program.*--port"):
            Splash(HOST, port).start()


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [(HOST, 70000, "no port 70000"), ("203.0.113.9", 0, "not an address of this machine.*--host")],
)
def test_an_impossible_address_is_a_sentence(host, port, words):
    with pytest.raises(SplashError, match=words):
        Splash(host, port).start()


def test_without_a_port_the_next_free_one_is_taken(monkeypatch):
    with socket.create_server((HOST, 0)) as other:
        monkeypatch.setattr("app.splash.DEFAULT_PORT", other.getsockname()[1])
        splash = Splash(HOST)
        splash.start()
        try:
            assert other.getsockname()[1] < splash.port <= other.getsockname()[1] + 100
            assert ask(splash)[0].status == 200
        finally:
            splash.stop()


def test_many_ask_at_once(splash):
    splash.step("opening")
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(status(splash))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 40


class App(BaseHTTPRequestHandler):
    """What comes after: a page that says where it was asked for; it knows nothing of `__loading`."""

    def do_GET(self) -> None:
        self.send_response(404 if self.path.endswith("__loading") else 200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f"<h1>the app at {self.path}</h1>".encode())

    def log_message(self, *_: object) -> None:
        pass


def test_the_open_page_becomes_the_app_and_keeps_its_link(splash, browser):
    asked = []
    page = browser.new_page(viewport={"width": 390, "height": 700})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{splash.url}chat?m=toy&w=Q4A")
    splash.step("fetching <b>the model</b>", fraction=0.5)
    page.get_by_text("fetching <b>the model</b>").wait_for()
    assert page.locator("progress:not(.all)").evaluate("bar => bar.value") == 0.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    splash.stop()
    app = ThreadingHTTPServer((HOST, splash.port), App)
    threading.Thread(target=app.serve_forever, daemon=True).start()
    try:
        page.get_by_text("the app at /chat?m=toy&w=Q4A").wait_for(timeout=10_000)
        assert all(url.startswith((splash.url, "data:")) for url in asked)
    finally:
        page.close()
        app.shutdown()
        app.server_close()


def test_it_imports_nothing_heavy():
    code = "import sys, app.splash; print(*{name.partition('.')[0] for name in sys.modules})"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not set(found.stdout.split()) & {"torch", "transformers", "gradio", "numpy", "quept", "uvicorn"}


def test_the_share_is_of_the_time_that_the_last_start_took(tmp_path):
    record = tmp_path / "cache" / "start.json"
    first = Splash(HOST, 0, record)
    assert first.expected == 30
    first.start()
    first.stop()
    assert Splash(HOST, 0, record).expected == 1  # never less
    record.write_text('{"seconds": 12.5}')
    again = Splash(HOST, 0, record)
    again.start()
    assert status(again)["expected"] == 12.5
    again.fail("no")
    again.stop()
    assert Splash(HOST, 0, record).expected == 12.5, "a start that failed is not timed"
    record.write_text("[")
    assert Splash(HOST, 0, record).expected == 30
