"""The whole story, in Chromium, on the real app and the real SmolLM2: drag, keyboard, preset, undo, link,
chart, chat, stop.

The app runs as a stranger starts it, in a process of its own; the page must load nothing from outside and log
no error.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

ROOT = Path(__file__).parents[2]
MEASURED = re.compile(r"Measured (earlier )?on 4,\d+ tokens")
SLIDERS = '#equalizer [role="slider"]'


@pytest.fixture(scope="module")
def app_url(smollm2) -> Iterator[str]:
    """The app on a free port, answering with its pages."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT)
    url = f"http://127.0.0.1:{port}/"
    try:
        end = time.monotonic() + 240
        while not _serves_pages(url):
            assert process.poll() is None, f"the app ended with code {process.returncode}"
            assert time.monotonic() < end, "the app did not come up within 240 s"
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _serves_pages(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}config", timeout=5) as answer:
            return answer.headers.get_content_type() == "application/json"
    except OSError:
        return False


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(contexts, app_url: str, request) -> Iterator[Page]:
    """A fresh visitor's page. After the test: no error was logged and nothing outside this machine was asked
    for."""
    width, height = request.param
    context = contexts(viewport={"width": width, "height": height}, has_touch=width < 500)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda r: wrong.append(r.url) if not r.url.startswith((app_url, "data:", "blob:")) else None,
    )
    page.goto(app_url)
    expect(page.locator(SLIDERS).first).to_be_visible(timeout=60_000)
    yield page
    met = list(wrong)  # before closing, which breaks off whatever is still streaming
    page.close()
    assert met == []


def bits(page: Page, block: int) -> int:
    return int(page.locator(SLIDERS).nth(block).get_attribute("aria-valuenow"))


def status(page: Page):
    return page.locator("#numbers [data-status-line]")


def test_drag_keyboard_preset_undo_link_and_chart(page: Page, app_url: str):
    expect(status(page)).to_contain_text("Measured", timeout=90_000)

    page.locator("#preset-W8").click()
    expect(page.locator(SLIDERS).first).to_have_attribute("aria-valuenow", "8", timeout=15_000)
    memory = page.locator('#numbers [data-value="memory"]')
    at_eight = memory.text_content()

    slider = page.locator(SLIDERS).nth(2)
    slider.scroll_into_view_if_needed()
    slider.focus()
    page.keyboard.press("3")
    expect(slider).to_have_attribute("aria-valuenow", "3")
    page.keyboard.press("ArrowUp")
    expect(slider).to_have_attribute("aria-valuenow", "4")
    expect(memory).not_to_have_text(at_eight)

    first, last = page.locator(SLIDERS).nth(0).bounding_box(), page.locator(SLIDERS).nth(4).bounding_box()
    page.mouse.move(first["x"] + first["width"] / 2, first["y"] + first["height"] * 0.75)
    page.mouse.down()
    page.mouse.move(last["x"] + last["width"] / 2, last["y"] + last["height"] * 0.75, steps=15)
    page.mouse.up()
    painted = [bits(page, i) for i in range(5)]
    assert len(set(painted)) == 1 and painted[0] < 8, painted
    expect(status(page)).to_have_text(re.compile(r"Measured (earlier )?on [\d,]+"), timeout=90_000)

    page.locator(SLIDERS).nth(0).focus()
    page.keyboard.press("Control+z")
    expect(page.locator(SLIDERS).nth(0)).to_have_attribute("aria-valuenow", "8")
    page.keyboard.press("Control+Shift+z")
    expect(page.locator(SLIDERS).nth(0)).to_have_attribute("aria-valuenow", str(painted[0]))

    page.wait_for_function("() => location.search.includes('w=')")
    left = [bits(page, block) for block in range(30)]
    restored = page.context.new_page()
    restored.goto(page.url)
    expect(restored.locator(SLIDERS).nth(29)).to_have_attribute("aria-valuenow", "8", timeout=60_000)
    assert [bits(restored, block) for block in range(30)] == left

    restored.close()
    page.locator('#tabs [role="tab"][data-tab-id="compare"]').click()
    load = page.locator("#plan-table").get_by_role("button", name="Load W3", exact=True)
    load.scroll_into_view_if_needed()
    load.click()
    expect(page.locator(SLIDERS).nth(29)).to_have_attribute("aria-valuenow", "3", timeout=15_000)
    expect(status(page)).to_have_text(MEASURED, timeout=120_000)


def test_two_answers_stream_side_by_side_and_stop_stops_both(page: Page):
    page.get_by_role("tab", name="Chat").click()
    prompt = page.locator("#chat-prompt textarea")
    prompt.fill("What is the capital of France?")
    prompt.press("Enter")
    for side in ("#chat-left", "#chat-right"):
        expect(page.locator(side)).to_contain_text("Paris", timeout=120_000)
    expect(page.locator("#chat-send")).to_be_visible(timeout=60_000)
    prompt.fill("Tell me a long story about a dragon, a village and a wizard.")
    prompt.press("Enter")
    stop = page.locator("#chat-stop")
    expect(stop).to_be_visible(timeout=20_000)
    stop.click()
    for side in ("left", "right"):
        expect(page.locator(f"#chat-status-{side}")).to_contain_text("Stopped", timeout=20_000)
    expect(page.locator("#chat-send")).to_be_visible(timeout=20_000)


FIRST_PLAN = re.compile(r"W mixed [\d.]+ · A16 · E[\d.]+ · KV16")  # the best at 5 bits


@pytest.mark.parametrize("query", ["w=zzz", "m=other&w=AAAA", "w=%3Cscript%3E", "kv=99"])
def test_a_malformed_link_is_refused_in_words_and_the_page_works(contexts, app_url: str, query: str):
    page = contexts(viewport={"width": 1280, "height": 900}, has_touch=False).new_page()
    page.goto(f"{app_url}?{query}")
    expect(page.get_by_text("The link was not restored").first).to_be_visible(timeout=60_000)
    expect(page.locator("#numbers [data-widths]")).to_have_text(FIRST_PLAN)
    assert "Traceback" not in page.content()
    page.close()


def test_a_plan_file_comes_back_as_it_went_and_a_bad_one_is_refused(contexts, app_url: str, tmp_path: Path):
    page = contexts(viewport={"width": 1280, "height": 900}, has_touch=False).new_page()
    page.goto(app_url)
    page.locator("#preset-W6").click(timeout=60_000)  # at once: what the page restores must not undo it
    expect(page.locator(SLIDERS).first).to_have_attribute("aria-valuenow", "6", timeout=15_000)
    page.wait_for_timeout(500)
    with page.expect_download() as download:
        page.locator('[data-action="download"]').click()
    saved = tmp_path / "plan.json"
    download.value.save_as(saved)
    page.locator("#preset-W3").click()
    expect(page.locator(SLIDERS).first).to_have_attribute("aria-valuenow", "3", timeout=15_000)
    chooser = page.locator("#planbar [data-file]")
    chooser.set_input_files(saved)
    expect(page.locator(SLIDERS).first).to_have_attribute("aria-valuenow", "6", timeout=15_000)
    bad = tmp_path / "bad.json"
    bad.write_bytes(bytes(range(256)) * 4000)
    chooser.set_input_files(bad)
    expect(page.get_by_text("The plan was not loaded").first).to_be_visible(timeout=15_000)
    expect(page.locator(SLIDERS).first).to_have_attribute("aria-valuenow", "6")
    page.close()
