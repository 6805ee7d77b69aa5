"""What the first page takes is fetched while the app starts: the last start named it, the splash gives it."""

import asyncio
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

import pytest

from app.ahead import COMPONENTS, Ahead
from app.splash import Splash

ASSETS = Path(find_spec("gradio").origin).parent / "templates" / "frontend" / "assets"
SCRIPT = f"/assets/{min(path.name for path in ASSETS.glob('*.js'))}"
WIDGET = f"/gradio_api/file={COMPONENTS}/widget.js"
OTHERS = [
    "/config",
    f"{WIDGET}?<script>",
    f"{WIDGET}?{'1' * 99}",
    "/assets/none.js",
    "/assets/../index.html",
    f"/gradio_api/file={COMPONENTS}/widget.py",
]


@pytest.fixture
def record(tmp_path) -> Path:
    """After a start whose page asked for two files, twice, and for what is none of them."""
    ahead, passed = Ahead(tmp_path / "first-page.json"), []

    async def app(scope, receive, send):
        passed.append(scope["path"])

    noted = ahead.noting(app)
    for path, query in [(SCRIPT, b""), (WIDGET, b"1"), (WIDGET, b"2"), *((path, b"") for path in OTHERS)]:
        asyncio.run(noted({"type": "http", "path": path, "query_string": query}, None, None))
    assert len(passed) == 3 + len(OTHERS) and ahead.urls == []
    ahead._keep()
    return ahead.record


def test_the_loading_page_fetches_what_the_page_of_the_last_start_asked_for(record):
    splash = Splash("127.0.0.1", 0, ahead=Ahead(record))
    assert splash.ahead.urls == [SCRIPT, f"{WIDGET}?2"]
    page = splash.page()
    assert f'<link rel="modulepreload" crossorigin href="{SCRIPT[1:]}">' in page
    assert f'<link rel="modulepreload" crossorigin href="{WIDGET[1:]}?2">' in page
    splash.start()
    connection = HTTPConnection("127.0.0.1", splash.port, timeout=5)
    connection.request("GET", SCRIPT)
    answer = connection.getresponse()
    assert answer.read() == (ASSETS.parent / SCRIPT[1:]).read_bytes()
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.headers.get_content_type() == "text/javascript"
    connection.close()
    splash.stop()


@pytest.mark.parametrize("path", OTHERS)
def test_no_other_file_is_given(path):
    assert Ahead().read(path) is None


@pytest.mark.parametrize("text", ["", "{", "7", '["/assets/gone.js", 7, "/etc/passwd"]'])
def test_a_record_that_is_damaged_or_of_another_version_names_nothing(text, tmp_path):
    record = tmp_path / "first-page.json"
    record.write_text(text)
    assert Ahead(record).urls == []
