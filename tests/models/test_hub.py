"""The hub path, offline: a local server that speaks as much of the hub's protocol as a download needs."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quept.models import load
from tests.tiny import save_tiny, save_tiny_vision

pytestmark = pytest.mark.slow

REPO = "some-org/tiny-llama"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys, quept
from quept.models import LoadError
try:
    print("loaded", quept.load(sys.argv[1]).fingerprint)
except LoadError as error:
    print("refused", error)
"""


class Hub(ThreadingHTTPServer):
    """Serves one folder as one repository, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        for prefix in (f"/{REPO}/resolve/main/", f"/{REPO}/resolve/{COMMIT}/"):
            if path.startswith(prefix) and path.removeprefix(prefix) in self.server.files:
                return self.send(200, self.server.files[path.removeprefix(prefix)])
        api = f"/api/models/{REPO}"
        listing = [{"rfilename": name} for name in self.server.files]
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            return self.send(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": listing}).encode())
        if path.startswith(f"{api}/tree/"):
            under = path.removeprefix(f"{api}/tree/").partition("/")[2]
            files = [
                {"type": "file", "path": n, "size": len(b), "oid": "0" * 40}
                for n, b in self.server.files.items()
            ]
            return self.send(200, json.dumps(files).encode()) if not under else self.missing("EntryNotFound")
        self.missing("EntryNotFound" if path.startswith(f"/{REPO}/") else "RepoNotFound")

    def missing(self, code: str) -> None:
        self.send(404, b"", ("x-error-code", code), ("x-error-message", "not here"))

    def send(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("etag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("x-repo-commit", COMMIT)
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("hub") / "tiny-llama")


@pytest.fixture
def hub(folder):
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run(source: str, hub: Hub, home: Path, **settings: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        **settings,
    }
    command = [sys.executable, "-c", PROGRAM, source]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_a_hub_id_loads_the_same_model_as_its_folder_and_again_from_the_cache(hub, folder, tmp_path):
    expected = f"loaded {load(folder).fingerprint}"
    assert run(REPO, hub, tmp_path) == expected
    assert f"/{REPO}/resolve/{COMMIT}/model.safetensors" in hub.asked
    hub.asked.clear()
    assert run(REPO, hub, tmp_path, HF_HUB_OFFLINE="1") == expected
    assert not hub.asked


def test_a_classifier_of_timm_is_told_by_its_config(tmp_path):
    folder = save_tiny_vision("vit", tmp_path / "vit")
    server = Hub(folder)
    server.files["pytorch_model.bin"] = b"a pickle"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        expected = f"loaded {load(folder).fingerprint}"
        assert run(REPO, server, tmp_path / "home") == expected
        fetched = {path.rsplit("/", 1)[1] for path in server.asked if "/resolve/" in path}
        assert fetched == {"config.json", "model.safetensors"}
        assert run(REPO, server, tmp_path / "home", HF_HUB_OFFLINE="1") == expected
        del server.files["model.safetensors"]
        answer = run(REPO, server, tmp_path / "another")
        assert answer.startswith(f"refused cannot load {REPO!r}") and "model.safetensors" in answer
        assert not any(path.endswith(".bin") and "/resolve/" in path for path in server.asked)
    finally:
        server.shutdown()
        server.server_close()


def test_a_repository_that_is_not_there_is_refused_in_words(hub, tmp_path):
    answer = run("some-org/nothing", hub, tmp_path)
    assert answer.startswith("refused cannot load 'some-org/nothing'") and "Traceback" not in answer


def test_pickled_weights_on_the_hub_are_not_even_fetched(hub, tmp_path):
    hub.files["pytorch_model.bin"] = hub.files.pop("model.safetensors")
    answer = run(REPO, hub, tmp_path)
    assert answer.startswith(f"refused cannot load {REPO!r}")
    assert not any(path.endswith(".bin") for path in hub.asked)
