"""The Classify page in Chromium, on the real app over two tiny models: answers that follow the faders,
accuracy after release, pictures of one's own, links, and a phone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from app.serve import build_app, look
from app.service import Service
from quept import ElasticModel
from quept.data.images import save_images
from quept.evaluate import Results, Sample
from tests.app.tiny import tiny_elastic
from tests.tiny import save_tiny_vision

COUNT = 120
FADERS = '#equalizer [role="slider"]'
HERE = "?p=classify&m=vit"
FIRST = "#classify-pictures .strip button"
STATUS = "#numbers [data-status-line]"


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """(the app's address, the folder of its uploads)."""
    folder = tmp_path_factory.mktemp("classify")
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (COUNT, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (COUNT,), generator=generator)
    save_tiny_vision("vit", folder / "vit")
    save_images(folder / "vit" / "images.safetensors", "noise", pixels, labels)
    models = {
        "tiny": tiny_elastic(),
        "vit": ElasticModel.open(folder / "vit", device="cpu", dtype=torch.float32),
    }
    text = "The quick brown fox jumps over the lazy dog. " * 40
    sample = Sample(text, "foxes", tokens=256, context=64)
    service = Service(models, sample, Results.open(folder / "results.sqlite"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        demo = build_app(service)
        _, address, _ = demo.launch(
            **look(),
            prevent_thread_lock=True,
            ssr_mode=False,
            quiet=True,
            server_name="127.0.0.1",
            max_file_size="10mb",
            show_error=False,
        )
        yield address, folder / "uploads"
        demo.close()
        gr.close_all()


def visit(contexts, address: str, width: int = 1280, height: int = 900) -> Page:
    context = contexts(viewport={"width": width, "height": height}, has_touch=width < 500)
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on(
        "request",
        lambda r: (
            page.wrong.append(r.url) if not r.url.startswith((address[:20], "data:", "blob:")) else None
        ),
    )
    page.goto(address)
    return page


@pytest.fixture
def page(contexts, app) -> Iterator[Page]:
    page = visit(contexts, app[0] + HERE)
    expect(page.locator(FIRST).first).to_be_visible(timeout=60_000)
    yield page
    page.close()
    assert page.wrong == []


def answers(page: Page) -> list[str]:
    return page.locator(f"{FIRST} .words").all_text_contents()


def chosen(page: Page) -> str:
    return page.locator(f'{FIRST}[aria-pressed="true"]').get_attribute("data-id")


def paint(page: Page, share: float, release: bool = True) -> None:
    """Draw across all faders at this share of their height."""
    boxes = [page.locator(FADERS).nth(i).bounding_box() for i in range(page.locator(FADERS).count())]
    places = [(b["x"] + b["width"] / 2, b["y"] + b["height"] * (1 - share)) for b in boxes]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[-1], steps=15)
    if release:
        page.mouse.up()


def test_answers_and_accuracy_follow_the_faders_when_they_are_let_go(page: Page):
    expect(page.locator(f"{FIRST} .words").first).not_to_be_empty(timeout=30_000)
    expect(page.locator(STATUS)).to_contain_text(f"on {COUNT} pictures", timeout=60_000)
    page.locator("#preset-Full").click()
    expect(page.locator("#classify-pictures .gist")).to_contain_text("as full precision does", timeout=30_000)
    before = answers(page)
    page.locator(FADERS).first.scroll_into_view_if_needed()
    paint(page, 0.02, release=False)
    expect(page.locator(STATUS)).to_contain_text("Predicted; measured when you let go")
    assert answers(page) == before  # nothing is asked for while a fader moves
    page.mouse.up()
    expect(page.locator("#classify-pictures .gist")).to_contain_text("changes the answer", timeout=30_000)
    assert answers(page) != before and page.locator(f"{FIRST}.changed").count() > 0
    expect(page.locator(STATUS)).to_have_text(re.compile("^Measured (earlier )?on"), timeout=60_000)
    accuracy = page.locator('#numbers [data-error="top1"]')
    expect(accuracy).to_have_text(re.compile(r"^[\d.]+–[\d.]+$"))
    rows = page.locator("#classify-flips tbody tr")
    expect(rows.last).to_contain_text(str(COUNT))
    changed = page.locator("#classify-changed .strip button")
    changed.first.click()
    expect(page.locator("#classify-status-right .line")).to_contain_text("The answers differ", timeout=30_000)
    page.locator(FADERS).first.focus()
    page.keyboard.press("Control+z")
    expect(page.locator(FADERS).first).to_have_attribute("aria-valuenow", "16")
    expect(page.locator("#classify-status-right .line")).to_contain_text("Both sides say", timeout=30_000)


def test_pictures_are_chosen_with_the_keyboard_and_sides_with_their_menus(page: Page):
    expect(page.locator("#classify-status-right .choice")).to_have_count(5, timeout=30_000)
    first = chosen(page)
    page.locator(f'{FIRST}[aria-pressed="true"]').focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(FIRST).nth(1)).to_have_attribute("aria-pressed", "true")
    assert chosen(page) != first
    page.locator("#classify-plan-left select").select_option("W2")
    expect(page.locator("#classify-status-left .words")).to_contain_text("W2", timeout=30_000)


def test_a_picture_of_ones_own_is_answered_and_no_file_of_it_stays(
    page: Page, browser: Browser, app, tmp_path: Path
):
    address, uploads = app
    expect(page.locator(f"{FIRST} .words").first).not_to_be_empty(timeout=30_000)
    picture = Image.new("RGB", (300, 500), "teal")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "own.jpg", exif=exif)
    field = page.locator('#classify-picture input[type="file"]')
    field.set_input_files(tmp_path / "own.jpg")
    expect(page.locator(FIRST).first).to_have_attribute("data-id", re.compile("^own:"), timeout=30_000)
    expect(page.locator("#classify-status-right .choice")).to_have_count(5)
    expect(page.locator("#classify-pictures .seen img")).to_be_visible()
    shape = page.locator("#classify-pictures .main").evaluate(
        "image => [image.naturalWidth, image.naturalHeight]"
    )
    assert shape[0] > shape[1], "turned as the camera says"
    own = page.locator(FIRST).first.get_attribute("data-id")

    other = visit(browser.new_context, address + HERE)
    expect(other.locator(FIRST).first).to_be_visible(timeout=60_000)
    assert own not in other.content()
    other.context.close()

    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    field.set_input_files(tmp_path / "drawing.svg")
    expect(page.get_by_text("no picture that can be read").first).to_be_visible(timeout=15_000)
    expect(page.locator(FIRST).first).to_have_attribute("data-id", own)
    end = time.monotonic() + 10
    while left := [p for p in uploads.rglob("*") if p.is_file()]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_a_pasted_picture_is_taken(page: Page):
    expect(page.locator(f"{FIRST} .words").first).not_to_be_empty(timeout=30_000)
    page.evaluate("""async () => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 40 });
      canvas.getContext("2d").fillRect(5, 5, 20, 30);
      const blob = await new Promise((done) => canvas.toBlob(done));
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([blob], "pasted.png", { type: "image/png" }));
      document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
    }""")
    expect(page.locator(FIRST).first).to_have_attribute("data-id", re.compile("^own:"), timeout=30_000)


def test_a_link_restores_the_page_its_plan_and_its_picture(page: Page, contexts):
    expect(page.locator(f"{FIRST} .words").first).not_to_be_empty(timeout=30_000)
    page.locator("#preset-W3").click()
    expect(page.locator(FADERS).first).to_have_attribute("aria-valuenow", "3", timeout=30_000)
    page.locator(FIRST).nth(4).click()
    picture = chosen(page)
    page.wait_for_function("() => location.search.includes('i=') && location.search.includes('p=classify')")
    restored = visit(contexts, page.url)
    expect(restored.locator(FADERS).first).to_have_attribute("aria-valuenow", "3", timeout=60_000)
    expect(restored.locator(f'{FIRST}[aria-pressed="true"]')).to_have_attribute("data-id", picture)
    assert restored.wrong == []
    restored.close()


def test_a_phone_shows_everything_without_scrolling_sideways(contexts, app):
    page = visit(contexts, app[0] + HERE, 390, 844)
    expect(page.locator("#classify-status-right .choice")).to_have_count(5, timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.wrong == []
    page.close()
