"""The hub path, offline: a local server that speaks as much of the hub's protocol as a download needs."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quept.models import load
from tests.tiny import save_tiny, save_tiny_vision

pytestmark = pytest.mark.slow

LLAMA, VIT, NOTHING = "some-org/tiny-llama", "some-org/tiny-vit", "some-org/nothing"
PICKLED = {LLAMA: "some-org/pickled-llama", VIT: "some-org/pickled-vit"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys, quept
from quept.models import LoadError
for source in sys.argv[1:]:
    try:
        print("loaded", quept.load(source).fingerprint)
    except LoadError as error:
        print("refused", *str(error).split())
"""


class Hub(ThreadingHTTPServer):
    """Serves repositories, files by name, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = repositories
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        files = self.server.repositories.get(repo)
        if files is None:
            return self.missing("RepoNotFound")
        for prefix in (f"/{repo}/resolve/main/", f"/{repo}/resolve/{COMMIT}/"):
            if path.startswith(prefix) and path.removeprefix(prefix) in files:
                return self.send(200, files[path.removeprefix(prefix)])
        api = f"/api/models/{repo}"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            listing = [{"rfilename": name} for name in files]
            return self.send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": listing}).encode())
        if path.startswith(f"{api}/tree/") and not path.removeprefix(f"{api}/tree/").partition("/")[2]:
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files.items()
            ]
            return self.send(200, json.dumps(listing).encode())
        self.missing("EntryNotFound")

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


@dataclass(frozen=True)
class Visit:
    """What a process that loads some repositories says of each, and all that it asked the hub."""

    said: dict[str, str]
    asked: list[str]

    def fetched(self, repo: str) -> set[str]:
        """Names of the files that were asked for."""
        return {path.rsplit("/", 1)[1] for path in self.asked if path.startswith(f"/{repo}/resolve/")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {LLAMA: save_tiny("llama", root / "llama"), VIT: save_tiny_vision("vit", root / "vit")}


@pytest.fixture(scope="module")
def visits(folders, tmp_path_factory) -> Iterator[tuple[Visit, Visit]]:
    """One with the network and an empty cache, and then one of what it loaded, without the network."""
    served = {name: {p.name: p.read_bytes() for p in folder.iterdir()} for name, folder in folders.items()}
    served[VIT]["pytorch_model.bin"] = b"a pickle"
    for name, pickled in PICKLED.items():
        served[pickled] = {n: content for n, content in served[name].items() if n != "model.safetensors"}
        served[pickled]["pytorch_model.bin"] = b"a pickle"
    hub = Hub(served)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSF"))}
    settings |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }

    def visit(*repositories: str, **more: str) -> Visit:
        hub.asked.clear()
        command = [sys.executable, "-c", PROGRAM, *repositories]
        options = {"capture_output": True, "text": True, "timeout": 120, "cwd": Path(__file__).parents[2]}
        done = subprocess.run(command, env=settings | more, **options)
        assert done.returncode == 0, done.stderr[-3000:]
        return Visit(dict(zip(repositories, done.stdout.splitlines(), strict=True)), list(hub.asked))

    try:
        yield visit(LLAMA, VIT, *PICKLED.values(), NOTHING), visit(LLAMA, VIT, HF_HUB_OFFLINE="1")
    finally:
        hub.shutdown()
        hub.server_close()


@pytest.mark.parametrize("repo", [LLAMA, VIT])
def test_a_hub_id_loads_the_same_model_as_its_folder_and_again_from_the_cache(visits, folders, repo):
    first, offline = visits
    expected = f"loaded {load(folders[repo]).fingerprint}"
    assert first.said[repo] == offline.said[repo] == expected
    assert "model.safetensors" in first.fetched(repo) and not offline.asked


def test_of_a_classifier_its_config_and_its_weights_are_fetched(visits):
    assert visits[0].fetched(VIT) == {"config.json", "model.safetensors"}


def test_a_repository_that_is_not_there_is_refused_in_words(visits):
    answer = visits[0].said[NOTHING]
    assert answer.startswith(f"refused cannot load {NOTHING!r}") and "Traceback" not in answer


@pytest.mark.parametrize("repo", PICKLED.values())
def test_pickled_weights_on_the_hub_are_not_even_fetched(visits, repo):
    assert visits[0].said[repo].startswith(f"refused cannot load {repo!r}")
    assert "pytorch_model.bin" not in visits[0].fetched(repo)


def test_a_classifier_without_weights_that_can_be_read_says_which_are_missing(visits):
    assert "model.safetensors" in visits[0].said[PICKLED[VIT]]
