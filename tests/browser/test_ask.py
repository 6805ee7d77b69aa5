"""The Ask page in Chromium, on the real app over a tiny vision-language model: suggestions, follow-ups,
drawing with mouse and finger, pictures of one's own, stop, links, and a phone."""

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

from app.gate import Gate
from app.pages import ask_answers
from app.serve import build_app, look
from app.service import Service
from quept import ElasticModel
from quept.data.easy_vqa import save_questions
from quept.evaluate import Results, Sample
from quept.plan import QUANTIZED_BITS
from tests.app.test_ask import stored
from tests.app.tiny import tiny_elastic
from tests.tiny_vlm import save_tiny_vlm

CANVAS, CHIPS, TURNS = "#ask-easel canvas", "#ask-easel .chips button", "#ask-talk article"
QUESTION, DONE = "#ask-question textarea", re.compile("^(Done|Cut)")


class SlowGate(Gate):
    """Lets a step last long enough to be watched, where a test asks for it."""

    seconds = 0.0

    def __exit__(self, *_) -> None:
        time.sleep(self.seconds)
        super().__exit__(*_)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ask")
    save_tiny_vlm("llava", folder / "llava")
    save_questions(folder / "llava" / "questions.safetensors", stored())
    models = {
        "tiny": tiny_elastic(),
        "llava": ElasticModel.open(folder / "llava", device="cpu", dtype=torch.float32),
    }
    text = "The quick brown fox jumps over the lazy dog. " * 40
    sample = Sample(text, "foxes", tokens=256, context=64)
    service = Service(models, sample, Results.open(folder / "results.sqlite"), folder)
    service.gate = SlowGate()
    seen = service.opened["llava"]
    places = {key: seen.description[key] for key in ("blocks", "roles", "kv_blocks", "layers")}
    costs = [[2.0**-bits for bits in QUANTIZED_BITS] for _ in places["layers"]]
    seen.heat = places | {"bits": list(QUANTIZED_BITS), "sensitivity": costs, "conditions": "foxes"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask_answers, "LONGEST_ANSWER", 24)
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
        yield address
        demo.close()
        gr.close_all()


def visit(contexts, address: str, query: str = "?p=ask&m=llava", width: int = 1280) -> Page:
    context = contexts(viewport={"width": width, "height": 844}, has_touch=width < 500)
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto(address + query)
    expect(page.locator(CHIPS).first).to_be_visible(timeout=60_000)
    return page


@pytest.fixture
def page(contexts, address: str) -> Iterator[Page]:
    page = visit(contexts, address)
    yield page
    page.close()
    assert page.wrong == []


def answered(page: Page, turns: int) -> None:
    """Wait until as many questions have both their answers."""
    expect(page.locator(TURNS)).to_have_count(turns, timeout=30_000)
    for side in ("left", "right"):
        expect(page.locator(f"#ask-status-{side} .words")).to_have_text(DONE, timeout=60_000)
    expect(page.locator("#ask-send")).to_be_visible(timeout=15_000)


def test_a_suggestion_is_answered_on_both_sides_and_followed_up(page: Page):
    expect(page.locator(CHIPS)).to_have_count(3)
    page.locator(CHIPS).first.click()
    answered(page, 1)
    turn = page.locator(TURNS).first
    expect(turn.locator("h3")).to_have_text("what shape is present?")
    expect(turn.locator(".side")).to_have_count(2)
    expect(turn.locator(".line")).to_contain_text("answers")
    assert turn.locator("mark").count() > 0 and turn.locator(".wrong").count() == 2
    page.locator(QUESTION).fill("is there a dog?")
    page.keyboard.press("Enter")
    answered(page, 2)
    expect(page.locator(QUESTION)).to_have_value("")
    newest = page.locator(TURNS).first
    expect(newest.locator("h3")).to_have_text("is there a dog?")
    expect(newest.locator(".note")).to_contain_text("a guess")
    page.locator("#ask-plan-right select").select_option("W8")
    page.locator("#ask-again").click()
    expect(newest.locator(".label").last).to_have_text(re.compile("^W8"), timeout=30_000)
    answered(page, 2)
    page.locator("#ask-clear").click()
    expect(page.locator("#ask-talk .empty")).to_be_visible()


def test_what_is_missing_is_said(page: Page):
    page.locator("#ask-send").click()
    expect(page.get_by_text("Type a question about the picture").first).to_be_visible(timeout=15_000)
    page.get_by_role("radio", name="Draw", exact=True).click()
    page.locator(QUESTION).fill("what is it?")
    page.locator("#ask-send").click()
    expect(page.get_by_text("There is no picture to ask about yet").first).to_be_visible(timeout=15_000)
    expect(page.locator(QUESTION)).to_have_value("what is it?")


def test_a_drawing_is_asked_about_and_can_be_undone(page: Page):
    page.get_by_role("radio", name="Draw", exact=True).click()
    expect(page.locator("#ask-picture")).to_be_hidden()
    page.get_by_role("radio", name="circle", exact=True).click()
    page.get_by_role("radio", name="blue", exact=True).click()
    box = page.locator(CANVAS).bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 140, box["y"] + 140, steps=5)
    page.mouse.up()
    expect(page.locator(CANVAS)).to_have_attribute("aria-label", re.compile("blue circle"))
    page.locator(CHIPS).first.click()
    answered(page, 1)
    assert page.locator(f"{TURNS} .head img").get_attribute("src").startswith("data:image/")
    page.locator(CANVAS).focus()
    page.keyboard.press("Enter")
    expect(page.locator(CANVAS)).to_have_attribute("aria-label", re.compile("blue circle, blue circle"))
    page.keyboard.press("Control+z")
    page.locator("#ask-easel").get_by_role("button", name="Undo").click()
    expect(page.locator(CANVAS)).to_have_attribute("aria-label", re.compile("empty"))
    expect(page.locator("#ask-easel").get_by_role("button", name="Undo")).to_be_disabled()


def test_an_answer_can_be_stopped(page: Page, monkeypatch):
    monkeypatch.setattr(SlowGate, "seconds", 0.4)
    page.locator(CHIPS).first.click()
    page.locator("#ask-stop").click(timeout=15_000)
    expect(page.locator("#ask-status-left .words")).to_have_text(re.compile("^Stopped"), timeout=15_000)
    expect(page.locator("#ask-send")).to_be_visible(timeout=15_000)


def test_a_picture_of_ones_own_is_nobody_elses(page: Page, browser: Browser, address: str, tmp_path: Path):
    Image.new("RGB", (300, 500), "teal").save(tmp_path / "own.jpg")
    field = page.locator('#ask-picture input[type="file"]')
    field.set_input_files(tmp_path / "own.jpg")
    own = page.locator('#ask-easel .strip button[title="Your picture"]')
    expect(own).to_have_attribute("aria-pressed", "true", timeout=30_000)
    page.locator(CHIPS).first.click()
    answered(page, 1)
    other = visit(browser.new_context, address)
    assert other.locator('#ask-easel .strip button[title="Your picture"]').count() == 0
    other.context.close()
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    field.set_input_files(tmp_path / "drawing.svg")
    expect(page.get_by_text("no picture that can be read").first).to_be_visible(timeout=15_000)
    expect(own).to_have_count(1)


def test_pasted_pictures_are_taken_one_at_a_time(page: Page):
    page.evaluate("""async () => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 40 });
      canvas.getContext("2d").fillRect(5, 5, 20, 30);
      const blob = await new Promise((done) => canvas.toBlob(done));
      const clipboardData = new DataTransfer();
      for (const name of ["a.png", "b.png"]) {
        clipboardData.items.add(new File([blob], name, { type: "image/png" }));
      }
      document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
    }""")
    own = page.locator('#ask-easel .strip button[title="Your picture"]')
    expect(own).to_have_attribute("aria-pressed", "true", timeout=30_000)
    expect(own).to_have_count(1)
    expect(page.locator("#ask-easel .note")).to_contain_text("the first was taken")


def test_a_link_restores_the_page_and_its_precisions(page: Page, contexts, address: str):
    page.locator("#ask-plan-left select").select_option("W3")
    page.wait_for_function("() => location.search.includes('l=W3') && location.search.includes('m=llava')")
    restored = visit(contexts, address, page.url.removeprefix(address.rstrip("/")).lstrip("/"))
    expect(restored.locator("#ask-plan-left select")).to_have_value("W3", timeout=60_000)
    expect(restored.get_by_role("tab", name="Chat")).to_be_enabled()
    assert restored.wrong == []
    restored.close()


def test_a_phone_draws_with_a_finger_and_scrolls_nowhere_sideways(contexts, address: str):
    page = visit(contexts, address, width=390)
    page.get_by_role("radio", name="Draw", exact=True).click()
    page.locator(CANVAS).tap()
    expect(page.locator(CANVAS)).to_have_attribute("aria-label", re.compile("red rectangle"))
    page.locator(CHIPS).first.click()
    answered(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.wrong == []
    page.close()


def test_the_heat_map_has_room_for_blocks_that_lack_a_layer(page: Page):
    page.locator('#tabs [role="tab"][data-tab-id="layers"]').click()
    rows = page.locator("#heatmap tbody tr")
    expect(rows.first).to_be_visible(timeout=15_000)
    cells = set(rows.evaluate_all("rows => rows.map((row) => row.children.length)"))
    assert cells == {1 + page.locator("#heatmap thead th").count()}
    expect(page.locator("#heatmap table")).not_to_contain_text("undefined")
