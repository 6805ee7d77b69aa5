"""A start as on a Hugging Face Space: its environment, a home that cannot be written, no compiler, caches in
/tmp."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import space
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_space_starts_as_it_is_and_writes_to_its_cache_alone(tmp_path):
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    cache.mkdir()
    home.chmod(0o500)
    model = save_tiny("llama", tmp_path / "model")
    port = 8123 + os.getpid() % 500
    given = {"PATH": str(home), "PYTHONPATH": str(ROOT), "HOME": str(home)}
    space = {
        "SPACE_ID": "somebody/quept",
        "SYSTEM": "spaces",
        "SPACE_HOST": "somebody-quept.hf.space",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port),
        "QUEPT_CACHE": str(cache / "quept"),
        "XDG_CACHE_HOME": str(cache),
        "HF_HOME": str(cache / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "app.py", str(model)]
    process = subprocess.Popen(command, cwd=ROOT, env=given | space, stderr=subprocess.PIPE, text=True)
    try:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/config", headers={"Host": "somebody-quept.hf.space"}
        )
        page = b""
        for _ in range(900):
            try:
                answer = urllib.request.urlopen(asked, timeout=5)
                page = answer.read()
            except OSError:
                page = b""
            if b'"components"' in page:
                break
            assert process.poll() is None, process.stderr.read()[-2000:]
            time.sleep(0.1)
        assert b'"components"' in page and len(page) < 300_000
        assert "huggingface.co" in answer.headers["content-security-policy"]
        assert not list(home.iterdir()) and (cache / "quept").is_dir()
    finally:
        process.terminate()
        process.wait(20)


def test_zero_gpu_is_told_apart_and_spaces_is_imported_only_where_it_is(monkeypatch):
    assert not space.on_zero({"SPACE_ID": "a/b"}) and not space.on_zero({"SPACES_ZERO_GPU": "true"})
    assert space.settle() == "" and "spaces" not in sys.modules
    lent = []
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lent.append, __spec__=object()))
    monkeypatch.setenv("SPACE_ID", "a/b")
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert "computes on the CPU" in space.settle() and len(lent) == 1
    monkeypatch.setitem(sys.modules, "spaces", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert space.settle() == space.ON_ZERO and len(lent) == 1
