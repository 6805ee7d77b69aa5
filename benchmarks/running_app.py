"""The app as a separate process, and Chromium to look at it: for the benchmarks that drive pages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from quept.zoo import cache_dir

ROOT = Path(__file__).parent.parent
ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
]


@contextmanager
def without_results() -> Iterator[Path]:
    """A cache folder with links to what is in the ordinary one, except for what was measured: a plan that
    an earlier run measured would be looked up, not measured."""
    with tempfile.TemporaryDirectory() as folder:
        for path in cache_dir().iterdir():
            if not path.name.startswith("results."):
                (Path(folder) / path.name).symlink_to(path)
        yield Path(folder)


@contextmanager
def app(
    *options: str, cache: Path | None = None, root: Path = ROOT
) -> Iterator[tuple[str, float, subprocess.Popen]]:
    """Start `app.py` of a checkout on a free port, with another cache folder if one is given: (its URL, when
    it was started, the process). Killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.perf_counter()
    command = [sys.executable, "app.py", "--port", str(port), *options]
    env = os.environ | {"QUEPT_CACHE": str(cache or cache_dir()), "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=root, env=env)
    try:
        yield f"http://127.0.0.1:{port}/", start, process
    finally:
        process.terminate()
        process.wait(20)


def wait_for(url: str, seconds: float, text: str = "") -> float:
    """Time at which `url` first answers with `text` in it; TimeoutError after `seconds`."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if text in answer.read().decode():
                    return time.perf_counter()
        except OSError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{url} did not answer within {seconds} s")


@contextmanager
def chromium() -> Iterator[Browser]:
    names = "chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()
