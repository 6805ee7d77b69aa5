"""The workbench in Chromium, on the real app over three tiny models, one of each kind: what stays in sight,
what a plan goes through, Back, words that explain themselves, and axe-core on every tab."""

from __future__ import annotations

import re
from collections.abc import Iterator

import gradio as gr
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from app.pages import PAGES
from app.serve import build_app, look
from app.service import Service
from quept import ElasticModel
from quept.data.easy_vqa import save_questions
from quept.data.images import save_images
from quept.evaluate import Results, Sample
from tests.app.test_ask import stored
from tests.app.tiny import tiny_elastic, tiny_table
from tests.tiny import save_tiny_vision
from tests.tiny_vlm import save_tiny_vlm

STATUS = "#numbers [data-status-line]"
VIOLATIONS = {"resultTypes": ["violations"]}
COLORS = {
    "runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
}  # other in the dark
DEMOS = {"chat": "tiny", "classify": "vit", "ask": "llava"}  # the model that each is for


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("shell")
    save_tiny_vision("vit", folder / "vit")
    draw = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (60, 16, 16), dtype=torch.uint8, generator=draw)
    save_images(
        folder / "vit" / "images.safetensors", "noise", pixels, torch.randint(0, 10, (60,), generator=draw)
    )
    save_tiny_vlm("llava", folder / "llava")
    save_questions(folder / "llava" / "questions.safetensors", stored())
    tiny = tiny_elastic()
    seeing = {n: ElasticModel.open(folder / n, device="cpu", dtype=torch.float32) for n in ("vit", "llava")}
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    service = Service({"tiny": tiny, **seeing}, sample, Results.open(folder / "r.sqlite"), folder)
    service.opened["tiny"].sensitivity = tiny_table(tiny)
    demo = build_app(service)
    options = {"prevent_thread_lock": True, "ssr_mode": False, "quiet": True, "footer_links": []}
    _, address, _ = demo.launch(**look(), **options, server_name="127.0.0.1", show_error=False)
    yield address
    demo.close()
    gr.close_all()


@pytest.fixture
def visit(contexts, address: str):
    """Opens the page at any size; nothing is logged as an error or a warning, nothing is missing."""
    opened, wrong = [], []

    def open_page(width: int = 1440, height: int = 900, query: str = "") -> Page:
        size = {"width": width, "height": height}
        page = contexts(viewport=size, has_touch=width < 500).new_page()
        opened.append(page)
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.goto(address + query)
        expect(page.locator("#equalizer .fader").first).to_be_visible(timeout=30_000)
        expect(page.locator(STATUS)).to_contain_text("Measured", timeout=60_000)
        return page

    yield open_page
    met = list(wrong)
    for page in opened:
        page.close()
    assert met == []


@pytest.fixture
def page(visit) -> Page:
    return visit()


def tab(page: Page, name: str):
    return page.locator(f'#tabs [role="tab"][data-tab-id="{name}"]')


def model(page: Page, name: str) -> None:
    page.locator("#model select").select_option(name)
    expect(page.locator(f'#equalizer .equalizer[data-model="{name}"]')).to_be_visible(timeout=30_000)
    expect(page.locator(STATUS)).to_contain_text("Measured", timeout=60_000)


def spot(page: Page, block: int, height: float) -> tuple[float, float]:
    box = page.locator(f'.fader[data-block="{block}"]').bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] * height


def test_a_part_of_the_page_that_cannot_be_drawn_says_so(browser: Browser, address: str):
    context = browser.new_context()
    page = context.new_page()
    page.route("**/equalizer.js?*", lambda route: route.fulfill(body="throw new Error('another version');"))
    page.goto(address)
    expect(page.locator("#equalizer")).to_contain_text("could not be shown: reload the page", timeout=30_000)
    context.close()


def test_numbers_and_plot_are_of_what_the_menu_says_that_quality_is_measured_by(page: Page):
    menu, on = page.locator("#task select"), page.locator("#numbers .conditions")
    expect(on).to_contain_text("foxes")
    menu.select_option("german")
    expect(on).to_contain_text("German prose", timeout=60_000)
    expect(page.locator(STATUS)).to_contain_text("Measured", timeout=60_000)
    menu.select_option("text")
    expect(on).to_contain_text("foxes")
    model(page, "vit")
    expect(menu).to_be_hidden()


def test_another_model_begins_with_names_and_without_a_history(page: Page):
    undo = page.locator("#planbar [data-action=undo]")
    expect(undo).to_be_disabled()
    page.locator("#preset-W3").click()
    expect(undo).to_be_enabled()
    for name in ("vit", "tiny"):
        model(page, name)
        expect(page.locator(f'#equalizer .equalizer[data-model="{name}"]')).to_be_visible(timeout=30_000)
        expect(page.locator(STATUS)).to_contain_text("Measured", timeout=60_000)
        expect(undo).to_be_disabled()
    expect(page.locator("#task label")).to_have_text("Quality by")


def test_a_link_opens_without_a_history(page: Page, visit):
    page.locator("#preset-W3").click()
    page.wait_for_url("**w=**")
    opened = visit(query="?" + page.url.partition("?")[2])
    expect(opened.locator("#preset-W3")).to_have_attribute("aria-pressed", "true")
    expect(opened.locator("#planbar [data-action=undo]")).to_be_disabled()


@pytest.mark.parametrize("name", list(DEMOS))
def test_plot_and_numbers_answer_a_drag_in_sight_and_nothing_is_asked_for(page: Page, rest, name: str):
    if name != "chat":
        model(page, DEMOS[name])
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith("data:") else None)
    tab(page, name).click()
    page.locator("#equalizer [data-faders]").scroll_into_view_if_needed()
    rest(page)
    while asked:  # what the switch of model and tab asks for comes first
        asked.clear()
        page.wait_for_timeout(1000)
    star = page.locator("#chart .star, #chart .guide >> visible=true").first
    memory = page.locator('#numbers [data-value="memory"]')
    before = (memory.text_content(), star.bounding_box()["x"])
    page.mouse.move(*spot(page, 0, 0.5))
    page.mouse.down()
    page.mouse.move(*spot(page, 1, 0.97), steps=15)
    rest(page)
    for part in ("#chart .plot", "#equalizer [data-faders]"):
        expect(page.locator(part)).to_be_in_viewport(ratio=0.95)
    expect(page.locator("#numbers .tiles, #numbers .state-line.seen").first).to_be_in_viewport()
    assert memory.text_content() != before[0] and star.bounding_box()["x"] != before[1]
    assert asked == []
    page.mouse.up()
    expect(page.locator(STATUS)).to_contain_text("Measured", timeout=60_000)
    assert asked


def test_a_demo_that_a_model_cannot_do_says_why_and_names_one_that_can(page: Page):
    tab(page, "classify").click()
    words = page.get_by_text("Classify is for classifiers of pictures").first
    expect(words).to_be_visible()
    expect(page.locator("#classify")).to_be_hidden()
    model(page, "vit")
    expect(page.locator("#classify")).to_be_visible()
    expect(words).to_be_hidden()
    tab(page, "chat").click()
    expect(page.get_by_text("Chat is for language models").first).to_be_visible()


def test_back_goes_from_tab_to_tab_and_model_to_model_and_the_plan_goes_along(page: Page):
    start = page.url
    tab(page, "layers").click()
    page.wait_for_url("**p=layers**")
    page.locator("#preset-W3").click()
    expect(page.locator("#preset-W3")).to_have_attribute("aria-pressed", "true")
    tab(page, "about").click()
    page.wait_for_url("**p=about**")
    page.go_back()
    expect(tab(page, "layers")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#preset-W3")).to_have_attribute("aria-pressed", "true")
    model(page, "vit")
    page.wait_for_url("**m=vit**")
    page.go_back()
    expect(page.locator('#equalizer .equalizer[data-model="tiny"]')).to_be_visible(timeout=30_000)
    expect(page.locator("#model select")).to_have_value("tiny")
    expect(page.locator("#preset-W3")).to_have_attribute("aria-pressed", "true", timeout=15_000)
    page.go_back()
    expect(tab(page, "chat")).to_have_attribute("aria-selected", "true")
    assert page.url.split("?")[0] == start.split("?")[0]


def test_the_pressed_name_is_that_of_the_plan_whatever_led_to_it(page: Page):
    pressed = page.locator('#planbar [aria-pressed="true"]')
    page.locator("#preset-W5").click()
    expect(pressed).to_have_attribute("id", "preset-W5")
    page.mouse.move(*spot(page, 0, 0.95))
    page.mouse.down()
    page.mouse.up()
    expect(pressed).to_have_count(0)
    page.locator("#preset-W5").focus()
    page.keyboard.press("Control+z")  # from wherever the focus is
    expect(pressed).to_have_attribute("id", "preset-W5")
    expect(page.locator("#numbers [data-widths]")).to_contain_text("W5 · A16")


def test_a_plan_file_comes_back_as_it_went(page: Page, tmp_path):
    page.locator("#preset-W6").click()
    with page.expect_download() as download:
        page.locator('[data-action="download"]').click()
    assert download.value.suggested_filename == "tiny-W6.json"
    download.value.save_as(tmp_path / "plan.json")
    page.locator("#preset-W3").click()
    page.locator("#planbar [data-file]").set_input_files(tmp_path / "plan.json")
    expect(page.locator("#preset-W6")).to_have_attribute("aria-pressed", "true", timeout=15_000)
    (tmp_path / "bad.json").write_bytes(bytes(range(256)) * 4000)
    page.locator("#planbar [data-file]").set_input_files(tmp_path / "bad.json")
    expect(page.get_by_text("The plan was not loaded").first).to_be_visible(timeout=15_000)


def test_a_card_of_the_plan_is_a_picture(page: Page):
    page.locator("#preset-W6").click()
    expect(page.locator("#preset-W6")).to_have_attribute("aria-pressed", "true")
    with page.expect_download() as download:
        page.locator('[data-action="card"]').click()
    assert download.value.suggested_filename == "tiny-W6-A16-E16-KV16.png"
    picture = Image.open(download.value.path())
    assert picture.size == (1200, 630) and len(picture.getcolors(maxcolors=2**20)) > 20


def test_the_numbers_are_one_line_once_they_are_scrolled_away(page: Page):
    line = page.locator("#numbers [data-state-line]")
    expect(line).to_be_hidden()
    page.locator("#tabs").evaluate("node => node.scrollIntoView()")
    page.mouse.wheel(0, 600)
    expect(line).to_be_visible()
    expect(line).to_contain_text("Mean KL")
    assert line.bounding_box()["height"] <= 36


def test_every_result_between_measured_plans_is_announced(page: Page):
    live = page.locator('#numbers [role="status"]')
    said = set()
    for name in ("W3", "W5", "W3"):
        before = live.text_content()
        page.locator(f"#preset-{name}").click()
        expect(live).not_to_have_text(before, timeout=60_000)
        expect(live).to_contain_text("perplexity", timeout=60_000)
        said.add(live.text_content())
    assert len(said) == 2


def test_the_three_buttons_lead_to_states_worth_seeing_and_back(page: Page):
    tries, note = page.locator("#planbar .try"), page.locator("#planbar .note")
    page.locator("#preset-W6").click()
    expect(note).to_be_hidden()
    tries.nth(1).click()
    expect(page.locator("#preset-W3")).to_have_attribute("aria-pressed", "true")
    expect(tab(page, "chat")).to_have_attribute("aria-selected", "true")
    expect(note).to_contain_text("3 bits against full” replaced the plan on the faders")
    expect(note).to_contain_text("every layer at 3 bits, embeddings at 16 (")
    page.locator("#tabs").evaluate("node => node.scrollIntoView()")
    page.locator("[data-state-line]").get_by_role("button", name="Back to the plan before").click()
    expect(page.locator("#preset-W6")).to_have_attribute("aria-pressed", "true")
    expect(note).to_be_hidden()
    for words in ("replaced the plan", "is on the faders already"):  # pressed again, it says so
        tries.nth(0).click()
        kl = re.compile("(predicted|measured) KL")
        expect(page.locator("#budget [data-words]")).to_contain_text(kl, timeout=15_000)
        expect(note).to_contain_text(words)
        expect(tries.nth(0)).to_have_attribute("aria-pressed", "true")
    note.get_by_role("button").click()
    expect(page.locator("#preset-W6")).to_have_attribute("aria-pressed", "true")
    page.locator("#preset-W5").click()
    expect(note).to_be_hidden()
    tries.nth(2).click()
    expect(page.locator("#heatmap table")).to_be_in_viewport(ratio=0.5)
    expect(page.locator("#heatmap")).to_contain_text("Most fragile layer at 3 bits")


def test_what_was_tried_leaves_a_trail_in_the_plot(page: Page):
    for name in ("W3", "W5"):
        page.locator(f"#preset-{name}").click()
        expect(page.locator(STATUS)).to_contain_text("Measured", timeout=60_000)
    expect(page.locator("#chart .legend")).to_contain_text("your trail", timeout=15_000)


def test_a_word_explains_itself_by_tap_and_every_tab_is_in_reach_on_a_phone(visit):
    page = visit(390, 844)
    word = page.locator('#numbers [data-term="kl"]')
    word.tap()
    card = page.locator(".term-card:popover-open")
    expect(card).to_contain_text("how far the model's next-word probabilities")
    box = card.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.touchscreen.tap(200, 20)
    expect(card).to_have_count(0)
    for entry in PAGES:
        tab(page, entry.id).tap()
        expect(tab(page, entry.id)).to_have_attribute("aria-selected", "true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_on_any_tab_light_or_dark(visit, rest, width: int):
    page = visit(width)
    page.evaluate(Axe().axe_script)
    found: dict[str, list[str]] = {}
    for entry in PAGES:
        wanted = DEMOS.get(entry.id)
        if wanted and page.locator("#model select").input_value() != wanted:
            model(page, wanted)
        tab(page, entry.id).click()
        for theme, asked in (("light", {}), ("dark", COLORS)):  # nothing else differs in the dark
            page.emulate_media(color_scheme=theme)
            expect(page.locator("body.dark")).to_have_count(int(theme == "dark"))
            rest(page)
            for broken in page.evaluate("options => axe.run(options)", asked | VIOLATIONS)["violations"]:
                if broken["impact"] in ("serious", "critical"):
                    nodes = [node["html"][:160] for node in broken["nodes"][:4]]
                    found.setdefault(f"{entry.id}, {theme}: {broken['id']}", nodes)
    assert found == {}
