"""What every request passes: the host's name, sizes, uploads, headers, and the log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from pathlib import Path

import gradio as gr
import pytest
from gradio import queueing, utils
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.testclient import TestClient

from app import border
from app.border import ALIAS, AT_ONCE, BY_MACHINE, MOST_SENT, Border, app_kwargs, sweep
from app.fair_queue import share_out
from app.main import opened_to_others
from app.toast import refusal


async def echo(scope, receive, send):
    """Answers with what reached it: the path, the body and the content of the upload folder's file."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    sent = [f"{scope['folder']}/abc/cat.png"] if scope["path"].endswith("/upload") else body.decode()
    await JSONResponse({"path": scope["path"], "sent": sent} if isinstance(sent, str) else sent)(
        scope, receive, send
    )


def client(tmp_path: Path, known: set[str] | None = None) -> TestClient:
    async def app(scope, receive, send):
        await echo({**scope, "folder": str(tmp_path)}, receive, send)

    return TestClient(Border(app, str(tmp_path), {"localhost"} if known is None else known))


@pytest.mark.parametrize(
    "host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "192.168.1.7:80", "a.localhost"]
)
def test_addresses_and_own_names_are_known(tmp_path, host: str):
    assert client(tmp_path).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["elsewhere.example", "localhost.else.example:80", "", "127.0.0.1.nip.io"])
def test_another_name_is_refused_in_words(tmp_path, host: str):
    answer = client(tmp_path).get("/", headers={"host": host})
    assert answer.status_code == 421 and "--public" in answer.text


def test_a_public_app_takes_any_name(tmp_path):
    assert TestClient(Border(echo, str(tmp_path), None)).get("/", headers={"host": "a.example"}).is_success


def test_every_answer_says_what_a_browser_may_do(tmp_path, monkeypatch):
    headers = client(tmp_path).get("/", headers={"host": "localhost"}).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["content-security-policy"] == "frame-ancestors 'self'"
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    assert (
        "https://*.hf.space"
        in client(tmp_path).get("/", headers={"host": "localhost"}).headers["content-security-policy"]
    )


@pytest.mark.parametrize(
    "path", ["deep_link?session_hash=a", "process_recording", "run-history/connect", "runs/"]
)
def test_what_gradio_serves_and_no_page_asks_for_is_closed(tmp_path, path):
    """A recording that is sent stays on the disk, and so does a page's state, each time it is asked for."""
    for method in ("GET", "POST"):
        answer = client(tmp_path).request(method, f"/gradio_api/{path}", headers={"host": "localhost"})
        assert answer.status_code == 404 and "nothing here" in answer.text


def test_whoever_asks_whether_the_page_is_there_has_it_not_drawn(tmp_path):
    async def drawn(scope, receive, send):
        raise AssertionError("drawn")

    http = TestClient(Border(drawn, str(tmp_path), {"localhost"}))
    assert http.head("/", headers={"host": "localhost"}).status_code == 200


def test_a_request_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    answer = client(tmp_path).post("/x", content=b"a" * (MOST_SENT + 1), headers={"host": "localhost"})
    assert answer.status_code == 413
    answer = client(tmp_path).post("/x", headers={"host": "localhost", "content-length": "9" * 5000})
    assert answer.status_code == 411


def test_a_page_whose_line_is_full_is_refused_at_once_for_a_second_and_no_other_is(tmp_path, monkeypatch):
    asked: list[str] = []

    async def full(scope, receive, send):
        asked.append(scope["path"])
        await JSONResponse({"detail": "full"}, 503)(scope, receive, send)

    http, at = TestClient(Border(full, str(tmp_path), {"localhost"})), {"host": "localhost"}

    def join(page: str):
        return http.post("/gradio_api/queue/join", json={"session_hash": page}, headers=at)

    assert [join("greedy").status_code for _ in range(5)] == [503] * 5 and len(asked) == 1
    assert "again in a second" in join("greedy").json()["detail"]
    join("other")
    monkeypatch.setattr(border, "DEAF_S", 0.0)
    assert len(asked) == 2
    http.app._deaf.clear()
    join("greedy"), join("greedy")
    assert len(asked) == 4


def test_calls_that_skip_the_queue_are_a_few_at_once_of_a_page_and_of_a_machine(tmp_path):
    async def statuses(callers: list[tuple[str, str]]) -> list[int]:
        found, go = [], asyncio.Event()

        async def busy(scope, receive, send):
            await go.wait()
            await PlainTextResponse("done")(scope, receive, send)

        edge = Border(busy, str(tmp_path), {"localhost"})

        async def call(page: str, machine: str) -> None:
            body = json.dumps({"session_hash": page}).encode()
            headers = [(b"host", b"localhost"), (b"content-length", str(len(body)).encode())]
            scope = {"type": "http", "method": "POST", "path": "/gradio_api/run/x", "headers": headers}

            async def receive():
                return {"type": "http.request", "body": body}

            async def send(message):
                found.extend([message["status"]] if "status" in message else [])

            await edge(scope | {"client": (machine, 1)}, receive, send)

        calls = [asyncio.ensure_future(call(*caller)) for caller in callers]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*calls)
        assert not edge._under_way
        return sorted(found)

    one_page = [("greedy", "10.0.0.1")] * (AT_ONCE + 3)
    assert asyncio.run(statuses([*one_page, ("other", "10.0.0.1")])) == [200] * (AT_ONCE + 1) + [429] * 3
    forged = [(f"page{i}", "10.0.0.1") for i in range(BY_MACHINE + 5)]
    assert asyncio.run(statuses([*forged, ("other", "10.0.0.2")])) == [200] * (BY_MACHINE + 1) + [429] * 5


def test_an_upload_is_called_by_its_place_in_the_folder(tmp_path):
    http, at = client(tmp_path), {"host": "localhost"}
    assert http.post("/gradio_api/upload", content=b"x", headers=at).json() == [f"{ALIAS}/abc/cat.png"]
    file = {"path": f"{ALIAS}/abc/cat.png", "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [f"{ALIAS}/typed", file]})
    sent = json.loads(http.post("/gradio_api/queue/join", content=body, headers=at).json()["sent"])
    assert sent["data"][0] == f"{ALIAS}/typed" and sent["data"][1]["path"] == f"{tmp_path}/abc/cat.png"
    assert (
        http.get(f"/gradio_api/file={ALIAS}/abc/c.png", headers=at)
        .json()["path"]
        .endswith(f"={tmp_path}/abc/c.png")
    )


def test_uploads_of_a_while_have_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(border, "MOST_KEPT", 50)
    http, at = client(tmp_path), {"host": "localhost"}
    assert http.post("/gradio_api/upload", content=b"12345678", headers=at).status_code == 200
    assert http.post("/gradio_api/upload", content=b"12345678", headers=at).status_code == 503


def test_what_has_lain_too_long_goes_with_its_folder(tmp_path):
    old, new = tmp_path / "old" / "cat.png", tmp_path / "new" / "cat.png"
    for path in (old, new):
        path.parent.mkdir()
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    sweep(tmp_path, time.time() - 100)
    assert not old.exists() and new.exists()
    os.utime(old.parent, (1, 1))
    sweep(tmp_path, time.time() - 100)
    assert not old.parent.exists() and new.exists()


def test_the_log_has_one_line_for_what_was_not_understood_and_a_traceback_for_our_own_fault(caplog):
    brief = border._Brief()
    try:
        json.loads("{" * 3 + "\x1b[31m")
    except ValueError:
        brief.print_exc()
    assert caplog.records[-1].exc_info is None and "\x1b" not in caplog.text
    try:
        opened_to_others(None, True)
    except AttributeError:
        brief.print_exc()
    assert caplog.records[-1].exc_info and caplog.records[-1].levelno == logging.ERROR


def test_whoever_opens_the_app_to_others_is_told():
    assert opened_to_others("127.0.0.1", False) == opened_to_others("localhost", False) == ""
    assert "--public" in opened_to_others("0.0.0.0", False)
    assert "no password" in opened_to_others("0.0.0.0", True)


def test_gradios_own_refusals_are_text(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    app_kwargs("127.0.0.1", False)
    evil = "<img src=//elsewhere.example/x> [a](javascript:b)"
    for payload in (queueing.error_payload, utils.error_payload):
        said = payload(gr.Error(f"Value: {evil} is not in the list of choices", title=evil), False)
        assert "<" not in said["error"] + said["title"] and "](" not in said["error"]
        ours = payload(refusal("a < b"), False)
        assert ours["error"] == "a &lt; b"
        assert payload(ValueError(evil), False)["error"] is None


def test_two_visitors_with_one_picture_have_a_file_each(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ.get("TMPDIR", "/tmp"))
    options = app_kwargs("127.0.0.1", False)
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.Button()
    demo.queue()
    share_out(demo)
    _, url, _ = demo.launch(
        prevent_thread_lock=True, quiet=True, ssr_mode=False, app_kwargs=options, enable_monitoring=False
    )
    try:
        http = TestClient(demo.app, base_url="http://127.0.0.1")
        files = {"files": ("cat.png", b"the same picture")}
        first, second = (http.post("/gradio_api/upload", files=files).json()[0] for _ in range(2))
        assert first != second and first.startswith(f"{ALIAS}/")
        assert http.get(f"/gradio_api/file={first}").content == b"the same picture"
    finally:
        demo.close()
