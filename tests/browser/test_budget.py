"""The workbench of a tiny model in a real browser: the budget box, locks, why, the heat map, comparing."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
from playwright.sync_api import Page, expect

from app import refinement
from app.serve import build_app, look
from app.service import Sample, Service
from quept.allocate.solve.constraints_file import constraints_of, read_constraints
from quept.evaluate import Results
from quept.plan import FULL, PrecisionPlan
from tests.app.tiny import tiny_elastic, tiny_table

KL = re.compile("(predicted|measured) KL")  # measured once the numbers have come
MODEL = "tiny"
LAYERS = 14


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page over a service with a made-up sensitivity table; `service` is what answers."""
    folder = tmp_path_factory.mktemp("budget")
    elastic = tiny_elastic()
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    models = {MODEL: elastic, "bare": elastic}
    service = Service(models, sample, Results.open(folder / "results.sqlite"), folder)
    service.opened[MODEL].sensitivity = tiny_table(elastic)
    demo = build_app(service)
    _, url, _ = demo.launch(**look(), prevent_thread_lock=True, ssr_mode=False, quiet=True)
    yield SimpleNamespace(url=url, service=service, elastic=elastic)
    demo.close()


@pytest.fixture
def visit(contexts, site):
    """Open the page, at any size; no error on the console, in any test."""
    opened, complaints = [], []

    def open_page(query: str = "", **options) -> Page:
        page = contexts(**({"viewport": {"width": 1280, "height": 1000}} | options)).new_page()
        opened.append(page)
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(error.stack or str(error)))
        page.goto(site.url + query)
        page.locator("#equalizer [data-fold]").click(timeout=30_000)
        expect(page.locator("#equalizer .cell").last).to_be_visible()
        if "m=bare" not in query:
            expect(page.locator("[data-slider]")).to_be_enabled(timeout=30_000)
        expect(status(page)).to_contain_text("Measured", timeout=30_000)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert complaints == []


@pytest.fixture
def page(visit) -> Page:
    return visit()


def status(page: Page):
    return page.locator("#numbers [data-status-line]")


def words(page: Page):
    return page.locator("[data-words]")


def shown(page: Page) -> list[int]:
    """The bits in the map's cells, in plan order."""
    cells = page.locator("#equalizer .cell").evaluate_all(
        "all => all.map(c => [+c.dataset.block, +c.dataset.row, +c.innerText])"
    )
    return [bits for _, _, bits in sorted(cells)]


def tab(page: Page, name: str) -> None:
    page.locator(f'#tabs [role="tab"][data-tab-id="{name}"]').click()


def told(page: Page, name: str):
    return page.evaluate(f"window.queptPrediction.{name}")


def type_budget(page: Page, text: str) -> None:
    page.locator("[data-budget]").fill(text)
    page.locator("[data-budget]").press("Enter")


def at(page: Page, share: float) -> tuple[float, float]:
    """Where on the screen the slider has a place from 0 to 1."""
    box = page.locator("[data-slider]").bounding_box()
    return box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2


def cell(page: Page, row: int, col: int):
    return page.locator(f'#equalizer .map [data-row="{row}"][data-col="{col}"]')


def lock(page: Page, block: int | str):
    return page.locator(f'#equalizer [data-lock="{block}"]')


def megabytes(site, bits: int) -> float:
    return site.elastic.sizes.deploy(PrecisionPlan.uniform(bits)) / 1e6


def test_dragging_moves_the_faders_asks_nothing_and_the_answer_comes_on_release(page, site, rest):
    rest(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.mouse.move(*at(page, 0.9))
    page.mouse.down()
    sizes = []
    for share in (0.7, 0.5, 0.3, 0.15):
        page.mouse.move(*at(page, share), steps=6)
        rest(page)
        sizes.append(told(page, "bytes"))
        assert told(page, "dragging") is True
        assert set(shown(page)) == set(told(page, "plan.w"))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    expect(words(page)).to_contain_text(KL)
    expect(status(page)).to_contain_text("Predicted")
    assert asked == []
    page.mouse.up()
    expect(status(page)).to_contain_text("Measured", timeout=30_000)
    assert told(page, "dragging") is False
    budget = page.locator("[data-budget]").input_value()
    written, unit = budget.split()
    assert told(page, "bytes") <= float(written) * {"KB": 1e3, "MB": 1e6}[unit] + 500  # as it is rounded
    assert page.url.count("w=") == 1


def test_a_typed_budget_gets_the_best_plan_and_is_one_step_of_undo(page, site):
    before = shown(page)
    type_budget(page, f"{megabytes(site, 4):.4f} MB")
    expect(words(page)).to_contain_text(re.compile(f"bits per parameter · {KL.pattern}"))
    answer = site.service.solve(MODEL, {"budget": f"{megabytes(site, 4):.4f} MB"})["plan"]
    expect(page.locator("#equalizer [data-e]")).to_have_value(str(answer["e"]))
    assert shown(page) == answer["w"]
    expect(status(page)).to_contain_text("Measured", timeout=30_000)
    page.locator('[data-action="undo"]').click()
    expect(page.locator("#equalizer [data-e]")).to_have_value("16")
    assert shown(page) == before
    expect(page.locator("[data-budget]")).to_have_value("")


def test_the_slider_by_keyboard_asks_once_the_keys_rest(page):
    slider = page.locator("[data-slider]")
    slider.focus()
    before = told(page, "bytes")
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert told(page, "bytes") < before
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"[\d.]+ [KM]B"))
    page.wait_for_function("() => !window.queptPrediction.dragging")
    expect(status(page)).to_contain_text("Measured", timeout=30_000)
    page.keyboard.press("End")
    page.wait_for_function("() => !window.queptPrediction.dragging")
    assert set(told(page, "plan.w")) == {FULL}


@pytest.mark.parametrize(
    ("text", "says"),
    [("1 KB", "smallest"), ("soup", "60 MB"), ("<img src=x>", "60 MB"), ("", "Type a budget")],
)
def test_what_cannot_be_is_said_beside_the_box_and_moves_nothing(page, text, says):
    before = shown(page)
    type_budget(page, text)
    expect(words(page)).to_contain_text(says)
    expect(page.locator("[data-budget]")).to_have_attribute("aria-invalid", "true")
    assert shown(page) == before and page.locator("#budget img").count() == 0


def test_a_fader_moved_by_hand_empties_the_box(page, site):
    type_budget(page, f"{megabytes(site, 3):.4f} MB")
    expect(words(page)).to_contain_text(KL)
    page.locator(".fader").first.focus()
    page.keyboard.press("8")
    expect(page.locator("[data-budget]")).to_have_value("")
    expect(words(page)).to_contain_text("Type a budget")


def test_locked_blocks_keep_their_bits_in_edits_and_budgets_but_not_in_presets(page, site, rest):
    expect(lock(page, 1)).to_have_attribute("aria-pressed", "false")
    lock(page, 1).click()
    expect(lock(page, 1)).to_have_attribute("aria-pressed", "true")
    expect(lock(page, -1)).to_have_attribute("aria-pressed", "mixed")
    expect(page.locator(".fader").nth(1)).to_have_attribute("aria-readonly", "true")
    cell(page, -1, -1).focus()
    page.keyboard.press("7")
    assert shown(page) == [7] * 7 + [4] * 7
    type_budget(page, f"{megabytes(site, 3):.4f} MB")
    expect(words(page)).to_contain_text(KL)
    assert shown(page)[7:] == [4] * 7
    page.locator("#preset-W8").click()
    expect(cell(page, 0, 1)).to_have_text("8")
    expect(lock(page, 1)).to_have_attribute("aria-pressed", "true")
    rest(page)  # the path for the new pins
    page.mouse.move(*at(page, 0.9))
    page.mouse.down()
    page.mouse.move(*at(page, 0.4), steps=8)
    rest(page)
    assert shown(page)[7:] == [8] * 7
    assert set(shown(page)[:7]) != {8}
    page.mouse.up()
    expect(status(page)).to_contain_text("Measured", timeout=30_000)
    assert shown(page)[7:] == [8] * 7


def test_a_drag_paints_around_what_is_locked(page):
    cell(page, 2, 0).focus()
    page.keyboard.press("l")
    expect(cell(page, 2, 0)).to_have_attribute("aria-readonly", "true")
    expect(lock(page, 0)).to_have_attribute("aria-pressed", "mixed")
    box = page.locator("[data-faders]").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.4, steps=10)
    page.mouse.up()
    painted = shown(page)
    assert painted[2] == 4
    assert len(set(painted) - {4}) == 1 and painted.count(4) == 1
    page.keyboard.press("l")  # the fader under the pointer has the focus
    expect(page.locator(".fader").nth(1)).to_have_attribute("aria-readonly", "true")


def test_locks_by_picker_and_by_role_filter(page):
    page.get_by_role("radio", name="down", exact=True).click()
    lock(page, -1).click()
    page.get_by_role("radio", name="all", exact=True).click()
    expect(page.locator("#equalizer .cell.locked")).to_have_count(2)
    cell(page, 0, 0).click()
    page.locator(".picker .lock").click()
    expect(page.locator('.picker [data-bits="8"]')).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.locator("#equalizer .cell.locked")).to_have_count(3)


def test_the_embeddings_have_a_width_of_their_own(page, site):
    page.locator("#equalizer [data-e]").select_option("8")
    expect(status(page)).to_contain_text("Measured", timeout=30_000)
    assert "e=8" in page.url
    sizes = site.elastic.sizes
    assert told(page, "bytes") == sizes.deploy(PrecisionPlan.uniform(4, embeddings=8))
    table = site.service.opened[MODEL].sensitivity
    predicted = table.predicted(PrecisionPlan.uniform(4, embeddings=8))
    assert told(page, "predicted") == pytest.approx(predicted)
    cell(page, -1, -1).focus()
    page.keyboard.press("3")
    assert told(page, "plan.e") == 8
    lock(page, "e").click()
    expect(page.locator("#equalizer [data-e]")).to_be_disabled()
    type_budget(page, f"{megabytes(site, 3):.4f} MB")
    expect(words(page)).to_contain_text(KL)
    assert told(page, "plan.e") == 8
    page.locator("#preset-W8").click()
    expect(page.locator("#equalizer [data-e]")).to_have_value("16")


def test_constraints_change_the_answer_that_is_shown(page, site):
    type_budget(page, f"{megabytes(site, 3):.4f} MB")
    expect(words(page)).to_contain_text(KL)
    free = shown(page)
    page.locator("[data-limits]").click()
    page.get_by_role("radio", name="whole block").click()
    page.wait_for_function(
        "free => String(window.queptPrediction.plan.w) !== free", arg=",".join(map(str, free))
    )
    assert len(set(shown(page)[:7])) == 1 and len(set(shown(page)[7:])) == 1
    page.get_by_label("Embeddings and head stay at 16").check()
    page.wait_for_function("() => window.queptPrediction.plan.e === 16")
    expect(page.locator("[data-limits]")).to_have_text("Constraints (2)")


def test_what_a_constraint_makes_impossible_stays_said(page, site):
    least = site.elastic.sizes.deploy(PrecisionPlan.uniform(2, embeddings=4))
    type_budget(page, f"{1.02 * least / 1e6:.4f} MB")
    expect(words(page)).to_contain_text(KL)
    page.locator("[data-limits]").click()
    ticks = page.locator(".ticks").inner_text()
    page.get_by_label("Embeddings and head stay at 16").check()
    page.wait_for_function("ticks => document.querySelector('.ticks').innerText !== ticks", arg=ticks)
    expect(words(page)).to_contain_text("The smallest plan that these constraints allow has")
    page.get_by_label("Embeddings and head stay at 16").uncheck()
    expect(words(page)).to_contain_text(KL)


def test_why_is_told_on_hover_and_on_focus(page, site):
    cell(page, 6, 1).hover()
    why = page.locator(".why")
    expect(why).to_be_visible()
    expect(why).to_contain_text("model.layers.1.mlp.down_proj")
    expect(why).to_contain_text(re.compile(r"costs [\d.e−]+ KL by itself, [\d.]+ % of the plan's sum"))
    expect(why).to_contain_text(re.compile(r"at 5: takes [\d.]+ KB, predicted KL −"))
    expect(why).to_contain_text(re.compile(r"at 3: saves [\d.]+ KB, predicted KL \+"))
    page.mouse.move(5, 5)
    expect(why).to_be_hidden()
    cell(page, 0, 0).focus()
    expect(why).to_contain_text("model.layers.0.self_attn.q_proj")
    expect(cell(page, 0, 0)).to_have_attribute("aria-describedby", why.get_attribute("id"))
    page.keyboard.press("2")
    expect(why).not_to_contain_text("saves")


def test_floors_and_ceilings_by_role_and_all_limits_as_a_file(page, site, tmp_path):
    page.locator("[data-limits]").click()
    page.locator('[data-floor="down"]').select_option("6")
    page.locator('[data-ceiling="q"]').select_option("3")
    expect(page.locator("[data-limits]")).to_have_text("Constraints (2)")
    cell(page, 1, 0).focus()
    page.keyboard.press("5")
    page.keyboard.press("l")
    type_budget(page, f"{megabytes(site, 5):.4f} MB")
    expect(words(page)).to_contain_text(KL)
    bits, roles = shown(page), site.elastic.layout.roles
    assert bits[roles.index("down")] >= 6 and bits[roles.index("q")] <= 3 and bits[1] == 5
    with page.expect_download() as saved:
        page.locator("[data-save-limits]").click()
    said = json.loads(saved.value.path().read_text())
    names = set(told(page, "lockedNames"))
    assert set(said["pin"]) == names and set(said["floor"].values()) == {6}
    assert constraints_of(read_constraints(json.dumps(said)), site.elastic.layout).ceiling == said["ceiling"]
    page.locator("[data-clear-limits]").click()
    expect(page.locator('[data-floor="down"]')).to_have_value("")
    file = page.locator("[data-constraints-file]")
    file.set_input_files({"name": "a.json", "mimeType": "application/json", "buffer": b"{}"})
    expect(words(page)).to_contain_text("This file is not a file of constraints")
    expect(page.locator("[data-slider]")).to_be_enabled()
    file.set_input_files(
        {"name": "b.json", "mimeType": "application/json", "buffer": json.dumps(said).encode()}
    )
    expect(page.locator('[data-floor="down"]')).to_have_value("6")
    expect(page.locator("[data-said]")).to_contain_text(f"pin {min(names)} = ")
    wrong = said | {"pin": {"*.c_fc": 4}, "tie": "qkv"}
    file.set_input_files(
        {"name": "c.json", "mimeType": "application/json", "buffer": json.dumps(wrong).encode()}
    )
    expect(page.get_by_role("radio", name="q=k=v, gate=up")).to_have_attribute("aria-checked", "true")
    expect(words(page)).to_contain_text("'*.c_fc' fits no layer")
    page.locator("[data-clear-limits]").click()
    expect(page.locator("[data-slider]")).to_be_enabled()


def test_the_heat_map_opens_reads_out_and_leads_to_the_layer(page, site):
    heat = page.locator("#heatmap")
    tab(page, "layers")
    expect(heat.locator(".cell")).to_have_count(LAYERS)
    table = site.service.opened[MODEL].sensitivity
    name = site.elastic.layers[9]
    heat.get_by_role("radio", name="2", exact=True).click()
    heat.locator('[data-layer="9"]').hover()
    expect(page.locator("[data-heat-words]")).to_contain_text(f"{name} at 2 bits: KL")
    label = heat.locator('[data-layer="9"]').get_attribute("aria-label")
    assert float(label) == pytest.approx(table.layers[name][2], rel=0.05)
    expect(heat.locator("caption")).to_contain_text("one layer at 2 bits")
    heat.locator('[data-layer="9"]').focus()
    page.keyboard.press("ArrowLeft")
    expect(heat.locator('[data-layer="2"]')).to_be_focused()
    page.keyboard.press("Enter")
    expect(cell(page, 2, 0)).to_be_focused()


def test_two_plans_are_compared_layer_by_layer(page, site):
    page.locator("#preset-W3").click()
    expect(cell(page, 0, 0)).to_have_text("3")
    cell(page, 6, 0).focus()
    page.keyboard.press("8")
    expect(status(page)).to_contain_text("Measured", timeout=30_000)
    compare = page.locator("#compare")
    tab(page, "compare")
    said = page.locator("[data-compare-words]")
    expect(said).to_contain_text("B has more bits in 1 layer, fewer in 13 layers")
    assert compare.locator(".strip .more").all_inner_texts() == ["+4"]
    assert compare.locator(".strip .less").all_inner_texts() == ["−1"] * 13
    expect(compare.locator("tbody tr").nth(2)).to_contain_text("B − A")
    compare.locator("[data-a]").select_option("W3")
    expect(said).to_contain_text("more bits in 1 layer, fewer in 0 layers")
    page.locator("#equalizer [data-e]").select_option("6")
    expect(said).to_contain_text("embeddings and head 16 → 6 bits")
    compare.get_by_role("button", name="Swap").click()
    expect(said).to_contain_text("embeddings and head 6 → 16 bits")


def test_a_refinement_shows_its_progress_and_its_plan_goes_to_the_faders(page, site, monkeypatch):
    monkeypatch.setattr(Service.refine, "__defaults__", (8.0,))  # seconds
    page.locator("#preset-W3").click()
    expect(cell(page, 0, 0)).to_have_text("3")
    expect(status(page)).to_contain_text("Measured", timeout=30_000)
    size = told(page, "bytes")
    page.locator("[data-refine]").click()
    expect(page.locator("[data-refine]")).to_have_text("Cancel")
    said = page.locator("[data-told]")
    expect(said).to_contain_text(re.compile(r"plans? tried, \d+ of 8 s"), timeout=30_000)
    expect(page.locator("#budget .track")).to_be_visible()
    expect(page.locator("[data-refine]")).to_have_text("Refine", timeout=60_000)
    expect(said).to_contain_text("on text that the search did not see")
    assert told(page, "bytes") <= size
    if "Refined" in said.inner_text():
        assert set(shown(page)) != {3} or told(page, "plan.e") != FULL
        expect(status(page)).to_contain_text("Measured", timeout=30_000)


def test_a_refinement_can_be_cancelled_and_does_not_overrule_an_edit(page, site, monkeypatch):
    trials = refinement._trials

    def slower(*given):  # or all plans of the tiny model are tried before the edit is measured
        with closing(trials(*given)) as found:
            for trial in found:
                time.sleep(0.3)
                yield trial

    monkeypatch.setattr(refinement, "_trials", slower)
    monkeypatch.setattr(Service.refine, "__defaults__", (60.0,))
    page.locator("[data-refine]").click()
    said = page.locator("[data-told]")
    expect(said).to_contain_text(re.compile(r"[3-9]\d* plans tried"), timeout=60_000)
    page.locator(".fader").first.focus()
    page.keyboard.press("8")
    expect(status(page)).to_contain_text("Measured", timeout=30_000)
    edited = shown(page)
    heard = page.evaluate("""() => {
      const [button, told] = ["refine", "told"].map((name) => document.querySelector(`[data-${name}]`));
      button.click();
      return [told.textContent, button.disabled];
    }""")
    assert heard == ["Stopping", True], "at once, however long the pass under way takes"
    expect(said).to_contain_text("Stopped", timeout=30_000)
    expect(page.locator("[data-refine]")).to_have_text("Refine")
    assert shown(page) == edited
    if page.locator("[data-load]").is_visible():
        page.locator("[data-load]").click()
        page.wait_for_function(
            "edited => String(window.queptPrediction.plan.w) !== edited", arg=",".join(map(str, edited))
        )


def test_a_model_without_a_table_says_so_and_offers_no_budget(visit):
    page = visit("?m=bare")
    expect(words(page)).to_contain_text("no sensitivity table")
    for control in ("[data-budget]", "[data-slider]", "[data-refine]", "[data-limits]"):
        expect(page.locator(control)).to_be_disabled()
    tab(page, "layers")
    expect(page.locator("#heatmap")).to_contain_text("no sensitivity table")
    cell(page, 0, 0).hover()
    expect(page.locator(".why")).to_contain_text("what it costs is not known")
    tab(page, "compare")
    expect(page.locator("#compare .strip")).to_be_visible()


def test_a_phone_has_room_for_all_of_it(visit):
    phone = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.locator("[data-limits]").click()
    tab(phone, "layers")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    tab(phone, "compare")
    expect(phone.locator("#compare .strip")).to_be_attached()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    cell(phone, 0, 0).tap()
    box = phone.locator(".picker").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    expect(phone.locator(".picker")).to_contain_text("by itself")
