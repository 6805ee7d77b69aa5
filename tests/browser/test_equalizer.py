"""The equaliser and the numbers in a real browser: a model of 30 blocks of 7 layers, driven by hand."""

from __future__ import annotations

import json
import threading
import time
import uuid
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

from app import link
from app.components.equalizer import Equalizer
from app.components.numbers import Numbers
from app.components.planbar import PlanBar
from quept.evaluate import TextTask

BITS = [2, 3, 4, 5, 6, 7, 8, 16]
EMBEDDING_BITS = [4, 6, 8, 16]
SHAPES = {
    "q": (576, 576),
    "k": (192, 576),
    "v": (192, 576),
    "o": (576, 576),
    "gate": (1536, 576),
    "up": (1536, 576),
    "down": (576, 1536),
}
START = {"w": [4] * 210, "a": [16] * 210, "kv": 16, "e": 16}
MIXED = [(4, 4, 8, 5, 3, 3, 6)[i % 7] for i in range(210)]
FIXED = 2 * 28_311_552 + 70_000  # embeddings at 16 bits, and what no plan touches
HARM = {2: 9.9, 3: 1.14, 4: 0.3, 5: 0.075, 6: 0.018, 7: 0.004, 8: 0.001, 16: 0.0}
EVIL = "<img src=x onerror=\"document.title='owned'\">${document.title='owned'}{{this}}"


def described(
    blocks: int = 30, model: str = "big", roles: tuple[str, ...] = tuple(SHAPES), **changes
) -> dict:
    """A description with the shapes of a 135M model."""
    layers, sizes = [], []
    for block in range(blocks):
        for role, name in enumerate(roles):
            params = SHAPES[name][0] * SHAPES[name][1]
            layers.append(
                {"name": f"model.layers.{block}.{name}", "block": block, "role": role, "params": params}
            )
            sizes.append([params * bits // 8 + (params // 64 * 3 if bits < 16 else 0) for bits in BITS])
    return {
        "model": model,
        "title": model,
        "blocks": [str(block) for block in range(blocks)],
        "roles": list(roles),
        "layers": layers,
        "bits": BITS,
        "activation_bits": [4, 5, 6, 7, 8, 16],
        "kv_bits": [2, 3, 4, 8, 16],
        "kv_blocks": list(range(blocks)),
        "embedding_bits": EMBEDDING_BITS,
        "embedding_names": ["model.embed_tokens"],
        "embedding_bytes": [28_311_552 * bits // 8 for bits in EMBEDDING_BITS],
        "sizes": sizes,
        "fixed_bytes": 70_000,
        "params": 134_515_008,
        "prediction": {
            "sensitivity": [[HARM[bits] / len(layers) for bits in BITS] for _ in layers],
            "score": "ppl",
            "curve": {
                "sum": [0.001, 0.018, 0.075, 0.3, 1.14, 9.9],
                "kl": [0.001, 0.018, 0.075, 0.3, 1.14, 9.9],
                "ppl": [27.62, 28.2, 30.1, 34.3, 76.7, 5.8e5],
                "same_top": [0.985, 0.94, 0.88, 0.77, 0.55, 0.06],
            },
            "reference": {"ppl": 27.6},
            "conditions": "made up",
        },
    } | changes


def measured(plan: dict, model: str, tokens: int, status: str) -> dict:
    estimate = {"tokens": 4096, "ppl": 31.24, "ppl_se": 0.4, "ppl_ref": 27.6, "ppl_ratio_se": 0.01}
    estimate |= {"kl": 0.212, "kl_se": 0.01, "same_top": 0.8}
    return {
        "status": status,
        "progress": tokens / 4096,
        "done": tokens,
        "total": 4096,
        "unit": "tokens",
        "estimate": estimate,
        "metrics": [metric.to_dict() for metric in TextTask(None).metrics(estimate)],
        "headline": "kl",
        "uniform": {"label": "uniform W3", "kl": 0.3, "ppl": 34.3},
        "full_bytes": 269_000_000,
        "resident_bytes": 641_000_000,
        "switch_ms": 38.4,
        "switch_kind": "cold",
        "conditions": "BoolQ passages, 4,096 tokens, context 512",
        "link": link.encode(plan, model),
    }


@pytest.fixture(scope="module")
def site():
    """A page with both components; `site.commits` collects what Python was sent by the visit that the cookie
    `site.visit` names (what an earlier page sent may be handled late), `site.hold` delays the measurement."""
    commits: list[dict] = []
    hold = threading.Event()
    hold.set()
    seen = SimpleNamespace(commits=commits, hold=hold, visit="")
    tiny = described(6, "tiny", ("q", "v", "o"), prediction=None, activation_bits=[])
    sections = [
        {"name": name, "from": i, "to": i + 2} for i, name in enumerate(("Vision", "", "Language")) if name
    ]
    seeing = described(4, "seeing", ("q", "v"), prediction=None, sections=sections)
    evil = described(3, "evil", ("q", "v"))
    evil["blocks"][0] = EVIL
    evil["layers"][0]["name"] = EVIL

    def measure(plan: dict, request: gr.Request):
        if request.cookies.get("visit") == seen.visit:
            commits.append(plan)
        yield {"status": "queued", "position": 2, "progress": 0}
        hold.wait(20)
        if len(plan["w"]) == 210:
            yield measured(plan, "big", 1024, "measuring")
            time.sleep(0.2)
            yield measured(plan, "big", 4096, "done")

    with gr.Blocks() as demo:
        blank = [metric.to_dict() for metric in TextTask(None).metrics({})]
        PlanBar(plans={"model": "big", "plans": [], "tries": []})
        numbers = Numbers({"status": "idle", "metrics": blank, "headline": "kl"})
        equalizer = Equalizer(START, description=described())
        preset = gr.Button("preset", elem_id="preset")
        mixed = gr.Button("mixed", elem_id="mixed")
        small = gr.Button("tiny", elem_id="tiny")
        sees = gr.Button("seeing", elem_id="seeing")
        bad = gr.Button("evil", elem_id="evil")
        fault = gr.Button("fault", elem_id="fault")
        gr.Markdown("\n\n".join(["room to scroll"] * 40))
        equalizer.commit(measure, equalizer, numbers, show_progress="hidden", trigger_mode="multiple")
        quiet = {"show_progress": "hidden", "inputs": None}
        preset.click(lambda: {"w": [3] * 210}, outputs=equalizer, **quiet)
        mixed.click(lambda: {"w": MIXED, "kv": 8}, outputs=equalizer, **quiet)
        small.click(lambda: Equalizer(description=tiny, value={"w": [8] * 18}), outputs=equalizer, **quiet)
        sees.click(lambda: Equalizer(description=seeing, value={"w": [8] * 8}), outputs=equalizer, **quiet)
        bad.click(lambda: Equalizer(description=evil, value={"w": [8] * 6}), outputs=equalizer, **quiet)
        fault.click(lambda: {"status": "error", "message": EVIL}, outputs=numbers, **quiet)
    _, url, _ = demo.launch(prevent_thread_lock=True, ssr_mode=False, quiet=True, show_error=True)
    seen.url = url
    yield seen
    demo.close()


@pytest.fixture
def visit(contexts, site):
    """Open the page, at any size; no error on the console and no request to another host, in any test."""
    opened, complaints = [], []

    def open_page(query: str = "", **options) -> Page:
        site.visit = uuid.uuid4().hex
        site.commits.clear()
        context = contexts(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.add_cookies([{"name": "visit", "value": site.visit, "url": site.url}])
        page = context.new_page()
        opened.append(page)
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda request: complaints.append(request.url) if not is_local(request.url) else None
        )
        page.goto(site.url + query)
        expect(page.locator("#equalizer .cell").last).to_be_visible()
        return page

    yield open_page
    site.hold.set()
    for page in opened:
        page.close()
    assert complaints == []


@pytest.fixture
def page(visit) -> Page:
    return visit()


def is_local(url: str) -> bool:
    return url.startswith(("data:", "blob:")) or urlsplit(url).hostname in ("127.0.0.1", "localhost")


def shown(page: Page) -> list[int]:
    """The bits in the map's cells, in plan order."""
    cells = page.locator("#equalizer .cell").evaluate_all(
        "all => all.map(c => [+c.dataset.block, +c.dataset.row, +c.innerText])"
    )
    return [bits for _, _, bits in sorted(cells)]


def spot(page: Page, block: float, level: int) -> tuple[float, float]:
    """Where on the screen a block's fader has a level, as an index into the bits."""
    box = page.locator("[data-faders]").bounding_box()
    blocks, levels = page.locator(".fader").count(), page.locator(".scale span").count()
    return (
        box["x"] + box["width"] * (block + 0.5) / blocks,
        box["y"] + box["height"] * (1 - (level + 0.5) / levels),
    )


def paint(page: Page, *spots: tuple[float, int], release: bool = True, steps: int = 15) -> None:
    page.locator("[data-faders]").scroll_into_view_if_needed()
    page.mouse.move(*spot(page, *spots[0]))
    page.mouse.down()
    for place in spots[1:]:
        page.mouse.move(*spot(page, *place), steps=steps)
    if release:
        page.mouse.up()


def fader(page: Page, block: int):
    return page.locator(f'.fader[data-block="{block}"]')


def cell(page: Page, row: int, col: int):
    return page.locator(f'#equalizer .map [data-row="{row}"][data-col="{col}"]')


def settled(site, count: int) -> None:
    """Wait for exactly `count` commits."""
    deadline = time.monotonic() + 10
    while len(site.commits) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.25)
    assert len(site.commits) == count


def frame(page: Page) -> None:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_a_drag_paints_many_asks_for_nothing_and_commits_once(page, site, rest):
    rest(page)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    paint(page, (2, 6), (20, 0), release=False, steps=40)
    expect(cell(page, 0, 2)).to_have_text("8")
    expect(cell(page, 6, 20)).to_have_text("2")
    rest(page)
    assert requests == []
    assert site.commits == []
    page.mouse.up()
    settled(site, 1)
    painted = [shown(page)[7 * block] for block in range(30)]
    assert painted[:2] == [4, 4]
    assert painted[21:] == [4] * 9
    assert painted[2:21] == sorted(painted[2:21], reverse=True)
    assert {2, 3, 4, 5, 6, 7, 8} == set(painted[2:21])
    assert site.commits[0] == {"w": shown(page), "a": [16] * 210, "kv": 16, "e": 16}


def test_a_stroke_too_fast_for_events_skips_no_block(page, site):
    paint(page, (0, 4), (29, 4), steps=1)
    settled(site, 1)
    assert set(shown(page)) == {6}


def median_frame(page: Page, work) -> float:
    """Milliseconds between frames while `work` runs, the median."""
    page.evaluate(
        """() => { window.gaps = []; window.counting = true; let last = performance.now();
            const tick = () => { const now = performance.now(); gaps.push(now - last); last = now;
                if (counting) requestAnimationFrame(tick); };
            requestAnimationFrame(tick); }"""
    )
    work()
    return page.evaluate("() => { counting = false; return gaps.sort((a, b) => a - b)[gaps.length >> 1]; }")


def test_painting_keeps_the_frame_rate(page):
    idle = median_frame(page, lambda: page.wait_for_timeout(600))
    painting = median_frame(page, lambda: paint(page, (0, 7), (29, 0), (0, 7), (29, 0), (0, 7), steps=30))
    assert painting < max(20, 1.5 * idle)


def test_escape_takes_a_stroke_back(page, site):
    paint(page, (3, 0), (9, 0), release=False)
    expect(cell(page, 0, 9)).to_have_text("2")
    page.keyboard.press("Escape")
    expect(cell(page, 0, 9)).to_have_text("4")
    page.mouse.move(*spot(page, 15, 0), steps=5)
    page.mouse.up()
    settled(site, 0)
    assert shown(page) == START["w"]


def test_a_role_filter_leaves_the_other_roles(page, site):
    page.get_by_role("radio", name="down", exact=True).click()
    paint(page, (0, 6), (29, 6))
    settled(site, 1)
    assert shown(page) == [8 if i % 7 == 6 else 4 for i in range(210)]
    page.get_by_role("radio", name="all", exact=True).click()
    expect(fader(page, 0)).to_have_attribute("aria-valuetext", "mixed, 4 to 8 bits, mean 4.6")


def test_keys_move_between_blocks_and_change_bits(page, site):
    fader(page, 0).focus()
    page.keyboard.press("ArrowUp")
    expect(fader(page, 0)).to_have_attribute("aria-valuenow", "5")
    page.keyboard.press("ArrowRight")
    expect(fader(page, 1)).to_be_focused()
    for key, bits in (("ArrowDown", 3), ("End", 16), ("Home", 2), ("7", 7), ("f", 16), ("3", 3), ("0", 16)):
        page.keyboard.press(key)
        expect(fader(page, 1)).to_have_attribute("aria-valuenow", str(bits))
    expect(fader(page, 1)).to_have_attribute("aria-valuetext", "16 bits (untouched)")
    expect(fader(page, 1)).to_have_attribute("aria-label", "Block 1, weights")
    settled(site, 8)


def test_a_held_key_is_one_edit(page, site):
    fader(page, 4).focus()
    for _ in range(4):
        page.keyboard.down("ArrowUp")
    page.keyboard.up("ArrowUp")
    settled(site, 1)
    assert site.commits[0]["w"][28] == 8
    page.keyboard.press("Control+z")
    expect(cell(page, 0, 4)).to_have_text("4")


def test_undo_and_redo_take_a_whole_stroke(page, site):
    undo, redo = page.locator('[data-action="undo"]'), page.locator('[data-action="redo"]')
    expect(undo).to_be_disabled()
    paint(page, (0, 0), (29, 6))
    settled(site, 1)
    painted = shown(page)
    undo.click()
    settled(site, 2)
    assert shown(page) == START["w"]
    expect(undo).to_be_disabled()
    redo.click()
    settled(site, 3)
    assert shown(page) == painted == site.commits[2]["w"]
    fader(page, 5).focus()
    page.keyboard.press("Control+z")
    settled(site, 4)
    page.keyboard.press("Control+Shift+z")
    settled(site, 5)
    page.keyboard.press("Control+z")
    settled(site, 6)
    page.keyboard.press("Control+y")
    settled(site, 7)
    assert shown(page) == painted


def test_a_preset_from_python_is_shown_can_be_undone_and_is_not_a_commit(page, site):
    page.locator("#preset").click()
    expect(cell(page, 3, 17)).to_have_text("3")
    assert set(shown(page)) == {3}
    settled(site, 0)
    page.locator('[data-action="undo"]').click()
    settled(site, 1)
    assert site.commits[0] == START


def test_the_same_preset_again_after_an_edit_is_shown_again(page, site):
    page.locator("#preset").click()
    expect(cell(page, 0, 0)).to_have_text("3")
    paint(page, (0, 6), (4, 6))
    settled(site, 1)
    page.locator("#preset").click()
    expect(cell(page, 0, 0)).to_have_text("3")
    assert set(shown(page)) == {3}


def test_a_preset_that_arrives_during_a_stroke_goes_under_it(page, site):
    paint(page, (0, 6), (3, 6), release=False)
    page.locator("#preset").evaluate("button => button.click()")
    expect(cell(page, 0, 20)).to_have_text("3")
    expect(cell(page, 0, 3)).to_have_text("8")
    page.mouse.up()
    settled(site, 1)
    assert site.commits[0]["w"] == [8] * 28 + [3] * 182


def test_the_address_holds_the_plan_and_keeps_the_rest(visit, site):
    page = visit("?__theme=light&x=1")
    paint(page, (0, 7), (29, 0))
    settled(site, 1)
    query = {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}
    assert query == {"__theme": "light", "x": "1"} | link.encode(site.commits[0], "big")
    assert link.decode(query, described()) == site.commits[0]


def test_copy_link_copies_the_address(visit, site):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#mixed").click()
    expect(cell(page, 2, 0)).to_have_text("8")
    page.locator('[data-action="share"]').click()
    expect(page.locator('[data-action="share"]')).to_have_text("Copied")
    copied = parse_qs(urlsplit(page.evaluate("navigator.clipboard.readText()")).query)
    assert {name: values[0] for name, values in copied.items()} == link.encode({"w": MIXED, "kv": 8}, "big")


def test_where_nothing_may_be_copied_the_link_is_shown(page):
    page.evaluate(
        """() => { Object.defineProperty(navigator, 'clipboard', { value: undefined });
            document.execCommand = () => false; }"""
    )
    page.locator('[data-action="share"]').click()
    shown_link = page.get_by_label("Link to this plan")
    assert link.encode(START)["w"] in shown_link.input_value()


def test_cells_rows_columns_and_all_are_set_with_the_picker(page, site):
    choose = page.locator(".picker")
    cell(page, 2, 3).click()
    expect(choose).to_contain_text("block 3, role v · 1 layer")
    choose.get_by_role("button", name="8 bits", exact=True).click()
    settled(site, 1)
    assert shown(page) == [8 if i == 7 * 3 + 2 else 4 for i in range(210)]
    cell(page, 6, -1).click()
    choose.get_by_role("button", name="6 bits", exact=True).click()
    settled(site, 2)
    assert shown(page)[6::7] == [6] * 30
    cell(page, -1, 9).click()
    choose.get_by_role("button", name="2 bits").click()
    settled(site, 3)
    assert shown(page)[63:70] == [2] * 7
    cell(page, -1, -1).click()
    expect(choose).to_contain_text("all blocks, all roles · 210 layers")
    choose.get_by_role("button", name="5 bits").click()
    settled(site, 4)
    assert set(shown(page)) == {5}
    expect(choose).to_be_hidden()


def test_a_sweep_over_cells_sets_them_together_and_steps_keep_their_order(page, site):
    page.locator("#mixed").click()
    expect(cell(page, 2, 0)).to_have_text("8")
    cell(page, 4, 5).hover()
    page.mouse.down()
    cell(page, 6, 8).hover()
    page.mouse.up()
    choose = page.locator(".picker")
    expect(choose).to_contain_text("blocks 5 to 8, roles gate to down · 12 layers")
    choose.get_by_role("button", name="one step more").click()
    settled(site, 1)
    assert shown(page)[39:42] == [4, 4, 7]
    page.keyboard.press("Escape")
    expect(choose).to_be_hidden()
    assert shown(page)[32:35] == [3, 3, 6]


def test_the_map_by_keyboard(page, site):
    cell(page, -1, -1).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(cell(page, 0, 0)).to_be_focused()
    page.keyboard.press("6")
    settled(site, 1)
    assert shown(page)[0] == 6
    page.keyboard.press("Enter")
    expect(page.locator('.picker [aria-pressed="true"]')).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    settled(site, 2)
    assert shown(page)[0] == 7
    expect(cell(page, 0, 0)).to_be_focused()


def test_activation_bits_and_the_kv_cache(page, site):
    page.get_by_role("radio", name="Activations").click()
    expect(fader(page, 0)).to_have_attribute("aria-valuemin", "4")
    paint(page, (0, 4), (29, 4))
    settled(site, 1)
    assert site.commits[0] == {"w": [4] * 210, "a": [8] * 210, "kv": 16, "e": 16}
    fader(page, 0).focus()
    page.keyboard.press("2")
    expect(page.locator("[data-live]")).to_have_text("2 bits is not offered for activations.")
    page.locator("[data-kv]").select_option("4")
    settled(site, 2)
    assert site.commits[1] == {"w": [4] * 210, "a": [8] * 210, "kv": 4, "e": 16}
    assert "does not cover activation bits and KV-cache bits" in page.evaluate("window.queptPrediction.note")
    assert page.evaluate("window.queptPrediction.predicted") is None
    page.get_by_role("radio", name="Weights").click()
    expect(cell(page, 0, 0)).to_have_text("4")
    expect(page.locator("[data-summary]")).to_contain_text("all 210 layers at 4 · A8 activations")


def test_each_block_keeps_its_keys_and_values_at_a_width_of_its_own(page, site):
    page.get_by_role("radio", name="KV cache").click()
    expect(page.locator("#equalizer .locks")).to_be_hidden()
    expect(page.get_by_role("radiogroup", name="Layers the faders move")).to_be_hidden()
    expect(fader(page, 0)).to_have_attribute("aria-valuetext", "16 bits (untouched)")
    paint(page, (0, 2), (9, 2))
    settled(site, 1)
    assert site.commits[0]["kv"] == [4] * 10 + [16] * 20 and site.commits[0]["w"] == [4] * 210
    expect(page.locator("[data-kv]")).to_have_value("mixed")
    expect(page.locator("[data-summary]")).to_contain_text("KV cache at 4 to 16")
    query = {key: values[0] for key, values in parse_qs(urlsplit(page.url).query).items()}
    assert link.decode(query, described())["kv"] == site.commits[0]["kv"]
    fader(page, 0).focus()
    page.keyboard.press("8")
    page.keyboard.press("l")
    settled(site, 2)
    assert site.commits[1]["kv"] == [8] + [4] * 9 + [16] * 20
    cell(page, -1, -1).click()
    expect(page.locator(".picker .title")).to_have_text("Keys and values of all blocks")
    expect(page.locator(".picker .lock")).to_be_hidden()
    page.locator('.picker [data-bits="3"]').click()
    settled(site, 3)
    assert site.commits[2] == {"w": [4] * 210, "a": [16] * 210, "kv": 3, "e": 16}
    page.keyboard.press("Control+z")
    settled(site, 4)
    assert site.commits[3] == site.commits[1]
    page.locator("[data-kv]").select_option("16")
    settled(site, 5)
    assert site.commits[4]["kv"] == 16
    page.get_by_role("radio", name="Weights").click()
    expect(cell(page, 0, 0)).to_have_text("4")


def test_the_prediction_is_told_at_once(page):
    page.evaluate(
        "() => { window.told = []; document.addEventListener('quept:predict', e => told.push(e.detail)); }"
    )
    paint(page, (0, 3), (29, 3), release=False)
    frame(page)
    told = page.evaluate("told.at(-1)")
    sizes = described()["sizes"]
    assert told["dragging"] is True
    assert told["bytes"] == sum(row[3] for row in sizes) + FIXED
    assert told["full_bytes"] == sum(row[7] for row in sizes) + FIXED
    assert told["bits_per_param"] == pytest.approx(told["bytes"] * 8 / 134_515_008)
    assert told["weight_bits"] == 5
    assert told["predicted"] == pytest.approx({"kl": 0.075, "ppl": 30.1, "same_top": 0.88})
    page.mouse.up()
    frame(page)
    assert page.evaluate("told.at(-1).dragging") is False
    page.keyboard.press("Control+z")
    cell(page, -1, -1).focus()
    page.keyboard.press("0")
    frame(page)
    assert page.evaluate("told.at(-1).predicted") == pytest.approx({"kl": 0, "ppl": 27.6, "same_top": 1})


def test_the_status_line_speaks_only_on_release(page, site):
    live, summary = page.locator("[data-live]"), page.locator("[data-summary]")
    paint(page, (0, 6), (4, 6), release=False)
    expect(summary).to_contain_text("175 layers at 4, 35 at 8 · ")
    expect(live).to_be_empty()
    page.mouse.up()
    expect(live).to_contain_text("175 layers at 4, 35 at 8 · ")
    expect(live).to_contain_text("bits/parameter · predicted perplexity 3")


def test_another_model_is_drawn_from_python(page, site):
    paint(page, (0, 6), (4, 6))
    settled(site, 1)
    page.locator("#tiny").click()
    expect(page.locator(".equalizer")).to_have_attribute("data-model", "tiny")
    expect(page.locator("#equalizer .cell")).to_have_count(18)
    assert set(shown(page)) == {8}
    expect(page.locator('[data-action="undo"]')).to_be_disabled()
    expect(page.get_by_role("radio", name="Activations")).to_have_count(0)
    assert page.evaluate("window.queptPrediction.predicted") is None
    paint(page, (0, 2), (5, 2))
    settled(site, 2)
    assert site.commits[1] == {"w": [4] * 18, "a": [16] * 18, "kv": 16, "e": 16}
    assert parse_qs(urlsplit(page.url).query)["m"] == ["tiny"]


def test_a_section_is_set_by_its_name(page, site):
    assert page.locator("#equalizer .sections").count() == 0, "a model of one section has no row for it"
    page.click("#seeing")
    expect(page.locator("#equalizer [data-section]")).to_have_text(["Vision", "Language"])
    page.click("[data-section=Language]")
    choose = page.locator(".picker")
    expect(choose).to_contain_text("blocks 2 to 3, all roles · 4 layers")
    choose.get_by_role("button", name="4 bits", exact=True).click()
    settled(site, 1)
    assert site.commits[-1]["w"] == [8] * 4 + [4] * 4


def test_names_and_messages_are_text_and_nothing_else(page):
    page.locator("#evil").click()
    expect(page.locator(".equalizer")).to_have_attribute("data-model", "evil")
    expect(page.get_by_role("columnheader").nth(1)).to_have_text(EVIL)
    page.locator("#fault").click()
    expect(page.locator("[data-status-line]")).to_contain_text(EVIL)
    page.wait_for_timeout(300)
    assert page.title() != "owned"
    assert page.locator("#equalizer img, #numbers img").count() == 0


def test_numbers_go_from_predicted_to_measured_without_moving(page, site):
    site.hold.clear()
    strip = page.locator(".numbers")
    expect(strip).to_have_css("min-height", "112px")  # its style is there
    heights = {strip.bounding_box()["height"]}
    tile = page.locator('[data-tile="ppl"]')
    paint(page, (0, 3), (29, 3), release=False)
    expect(tile).to_have_attribute("data-origin", "predicted")
    expect(tile.locator("[data-value]")).to_have_text("30.1")
    expect(tile).to_contain_text("% worse than full, 27.6")
    heights.add(strip.bounding_box()["height"])
    page.mouse.up()
    expect(page.locator("[data-status-line]")).to_have_text("Waiting to be measured, place 2 in the queue")
    expect(tile).to_have_attribute("data-origin", "predicted")
    site.hold.set()
    expect(page.locator("[data-status-line]")).to_have_text("Measured on 1,024 of 4,096 tokens")
    heights.add(strip.bounding_box()["height"])
    expect(page.locator("[data-status-line]")).to_have_text("Measured on 4,096 tokens")
    expect(tile).to_have_attribute("data-origin", "measured")
    expect(tile).to_contain_text("31.2")
    expect(tile).to_contain_text("± 0.4")
    expect(tile).to_contain_text("▲ 13.2% worse than full, 27.6")
    expect(tile).to_contain_text("▼ 3.1 better than uniform W3")
    expect(page.locator('[data-tile="same_top"]')).to_contain_text("80.0%78.8–81.2")
    heights.add(strip.bounding_box()["height"])
    assert len(heights) == 1


def test_numbers_of_a_plan_left_behind_are_not_shown(page, site):
    paint(page, (0, 3), (29, 3))
    tile = page.locator('[data-tile="kl"]')
    expect(tile).to_have_attribute("data-origin", "measured")
    page.locator("#preset").click()
    expect(tile).to_have_attribute("data-origin", "predicted")
    expect(page.locator("[data-status-line]")).to_have_text("Predicted")
    page.locator('[data-action="undo"]').click()
    expect(tile).to_have_attribute("data-origin", "measured")


def test_the_numbers_stay_in_sight_as_one_line(page):
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    expect(page.locator("[data-state-line]")).to_be_in_viewport(ratio=1)
    expect(page.locator("[data-state-line]")).to_contain_text("W4 · A16 · E16 · KV16")


def swipe(page: Page, *points: tuple[float, float]) -> None:
    """A finger put down at the first point, moved through the others, and lifted."""
    session = page.context.new_cdp_session(page)
    for i, (x, y) in enumerate(points):
        kind = "touchMove" if i else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        page.wait_for_timeout(16)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.fixture
def phone(visit) -> Page:
    return visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)


def between(
    start: tuple[float, float], end: tuple[float, float], steps: int = 12
) -> list[tuple[float, float]]:
    return [tuple(a + (b - a) * i / steps for a, b in zip(start, end, strict=True)) for i in range(steps + 1)]


def test_a_phone_has_room_and_the_strip_leaves_three_quarters(phone):
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.locator(".numbers").bounding_box()["height"] <= 844 / 4
    assert phone.locator(".fader").first.bounding_box()["width"] >= 24
    assert phone.locator("#equalizer .cell").first.bounding_box()["height"] >= 24


def test_a_finger_paints_up_and_down_then_across(phone, site):
    phone.locator("[data-faders]").evaluate(
        "field => window.scrollBy(0, field.getBoundingClientRect().top - 300)"
    )
    down = between(spot(phone, 1, 4), spot(phone, 1, 0))
    swipe(phone, *down, *between(spot(phone, 1, 0), spot(phone, 5, 0)))
    settled(site, 1)
    assert shown(phone) == [2 if 7 <= i < 42 else 4 for i in range(210)]


def test_a_finger_sideways_scrolls_the_faders_and_paints_nothing(phone, site):
    field = phone.locator("[data-faders]")
    field.evaluate("field => window.scrollBy(0, field.getBoundingClientRect().top - 300)")
    x, y = spot(phone, 6, 4)
    swipe(phone, *between((x, y), (x - 160, y + 10)))
    phone.wait_for_function("document.querySelector('.scroller').scrollLeft > 60")
    settled(site, 0)
    assert shown(phone) == START["w"]


def test_a_finger_on_the_map_scrolls_the_page(phone, site):
    cell(phone, 3, 2).evaluate("cell => window.scrollBy(0, cell.getBoundingClientRect().top - 500)")
    box = cell(phone, 3, 2).bounding_box()
    before = phone.evaluate("window.scrollY")
    swipe(phone, *between((box["x"], box["y"]), (box["x"], box["y"] - 200)))
    phone.wait_for_function(f"window.scrollY > {before + 100}")
    settled(site, 0)


def test_a_tap_on_a_cell_opens_the_picker_inside_the_screen(phone, site):
    cell(phone, 3, 2).evaluate("cell => window.scrollBy(0, cell.getBoundingClientRect().top - 500)")
    cell(phone, 3, 2).tap()
    box = phone.locator(".picker").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    phone.locator(".picker").get_by_role("button", name="8 bits", exact=True).tap()
    settled(site, 1)
    assert shown(phone)[17] == 8


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_on_cells_have_contrast_in_both_themes(visit, theme):
    page = visit(f"?__theme={theme}")
    colours = page.evaluate(
        """() => { const probe = document.querySelector('#equalizer .cell');
            return [2, 3, 4, 5, 6, 7, 8, 16].map(bits => { probe.dataset.bits = bits;
                const style = getComputedStyle(probe); return [style.backgroundColor, style.color]; }); }"""
    )
    assert len({json.dumps(pair) for pair in colours}) == 8
    for back, ink in colours:
        assert contrast(back, ink) >= 4.5


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two colours written rgb(r, g, b)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_another_model_may_come_while_something_in_it_has_the_focus(page: Page):
    page.locator("#equalizer .fader").first.focus()
    page.evaluate("document.querySelector('#tiny').click()")  # which leaves the focus where it is
    expect(page.locator("#equalizer .fader")).to_have_count(6)
