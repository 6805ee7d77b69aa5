"""Models of the hub are the default only on a Space that reaches it."""

import http.server
import threading

import pytest

from app import hub, main
from quept import zoo


@pytest.fixture
def endpoint():
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == f"/api/models/{hub.HUB[0]}" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_on_a_space_alone(endpoint):
    assert hub.public_hub({"SPACE_ID": "somebody/quept", "HF_ENDPOINT": endpoint})
    assert not hub.public_hub({"HF_ENDPOINT": endpoint})
    assert not hub.public_hub({"SPACE_ID": "somebody/quept", "HF_ENDPOINT": "http://127.0.0.1:9"})


def test_a_preset_is_one_of_two():
    assert main.parser().parse_args(["--preset", "hub"]).preset == "hub"
    with pytest.raises(SystemExit):
        main.parser().parse_args(["--preset", "all"])


def test_a_built_in_model_that_cannot_be_fetched_is_left_away(monkeypatch, capsys):
    def folder(name, progress=None):
        if name == "efficientnet-lite0":
            raise zoo.SourceError("no network")

    monkeypatch.setattr(zoo, "model_folder", folder)
    sources, _ = main.bundled_sources()
    assert "smollm2-135m" in sources and not any("efficientnet" in source for source in sources)
    assert "going on without efficientnet-lite0: no network" in capsys.readouterr().err
