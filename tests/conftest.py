"""What every test gets: a quiet, modest process, the real SmolLM2 where asked for, and Chromium by one rule.

The rule: without Chromium a browser test skips and says what to install; with CI set it fails, so that CI
never passes by leaving the browser out.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Read when torch, gradio and the hub client are imported, so set before anything else is. Processes that run
# tests side by side have one thread each: more would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the process that started this one has set its own
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# The hub path is tested in processes of its own, against a local server.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest

hypothesis.settings.register_profile("quept", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("quept")

PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
# The first, which draws for no screen, does the same in two thirds of the time.
CHROMIUM_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--process-per-site",  # see `contexts` of tests/browser
]
BROWSER_FIXTURES = {"browser", "chromium_path"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a browser. Alone it runs last: playwright leaves an event loop running in the main
    thread; in parallel it runs first, and then files with slow tests, so that no process ends long after the
    others."""
    for item in items:
        if BROWSER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("browser")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    if PARALLEL:
        items.sort(key=lambda item: (item.get_closest_marker("browser") is None, item.path not in slow))
    else:
        items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: without this every full collection looks through all of it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Processes take file by file, so that the fixtures of a file are made once; all of tests/browser is one
    file in this, since two browsers would wait for each other."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "browser" if "/browser/" in file else file

    return ByFile(config, log) if config.getvalue("dist") != "load" else None


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real SmolLM2-135M-Instruct, fetched into the ordinary cache the first time."""
    from quept import zoo

    return zoo.model_folder("smollm2-135m")


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The Chromium on this machine, or playwright's own."""
    found = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None) or _of_playwright()
    if found is None:
        reason = "no Chromium: `apt-get install chromium` as root, or `.venv/bin/playwright install chromium`"
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(reason)
        pytest.fail(f"{reason}; with CI set the browser tests must run", pytrace=False)
    return found


def _of_playwright() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator:
    """A headless Chromium for one file of tests; make a context or a page of your own in it. Not for longer:
    playwright keeps an event loop running in the main thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()
