"""The chart in a real browser: points load plans, the star follows the faders, a zoom is kept."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import urlsplit

import gradio as gr
import pytest
import uvicorn
from fastapi import FastAPI, Response
from PIL import Image, ImageColor
from playwright.sync_api import Page, expect

from app.components.chart import LONGEST_ID, Chart, point_id
from app.components.plan_table import PlanTable
from quept.evaluate import TextTask

PARAMS, FIXED, FULL = 134_515_008, 56_000_000, 269_030_016
EVIL = '<img src=x onerror="window.owned=1"><b>x</b>${window.owned=1}{{this}}%{x}'
UNIFORM = {
    2: (9.9, 5.8e5, 0.06),
    3: (1.14, 76.7, 0.55),
    4: (0.3, 34.3, 0.77),
    5: (0.075, 30.1, 0.88),
    6: (0.018, 28.2, 0.94),
    8: (0.001, 27.6, 0.985),
}


FULL_AT = {"ppl": 27.6, "kl": 0.0, "same_top": 1.0}
METRICS = {
    "metrics": [
        m.to_dict() | {"full": FULL_AT[m.name], "floor": 0.0009 if m.name == "kl" else None}
        for m in TextTask(None).metrics({})
    ],
    "headline": "kl",
}


def size(bits: float) -> int:
    return FIXED + int(106_168_320 * (bits + 0.5) / 8)


def point(identity: str, label: str, kind: str, bits: float, kl: float, ppl: float, same_top: float) -> dict:
    measured = {"kl": kl, "kl_low": 0.96 * kl, "kl_high": 1.04 * kl, "same_top": same_top}
    measured |= {"ppl": ppl, "ppl_low": 0.98 * ppl, "ppl_high": 1.02 * ppl}
    where = {"bytes": size(bits), "bits_per_param": 8 * size(bits) / PARAMS}
    return {"id": identity, "label": label, "kind": kind, "measured": True} | where | measured


PRESETS = [point(f"w{bits}", f"W{bits}", "preset", bits, *quality) for bits, quality in UNIFORM.items()]
PRESETS += [point("gentle", "Gentle", "preset", 5.5, 0.035, 28.9, 0.9)]
TRIED = [
    point("tried:0", "first", "tried", 3.4, 0.5, 40.0, 0.67),
    point("tried:1", "second", "tried", 4.4, 0.19, 32.0, 0.8),
]
CURRENT = point("current", "mixed", "current", 4.7, 0.14, 31.2, 0.83)


def value(*more: dict) -> dict:
    reference = {"bytes": FULL, "bits_per_param": 16.0}
    return METRICS | {"points": [*PRESETS, *TRIED, *more], "reference": reference}


def build(chosen: list[str]) -> gr.Blocks:
    with gr.Blocks() as demo:
        chart = Chart(value(), elem_id="chart")
        PlanTable(elem_id="plan-table")
        out = gr.Textbox(elem_id="out", label="chosen")
        evil = point("evil", EVIL, "tried", 3.0, 0.9, 60.0, 0.6)
        third = point("tried:2", "third", "tried", 5.2, 0.05, 29.5, 0.89)
        for name, new in {
            "more": value(third),
            "measured": value(CURRENT),
            "evil": value(evil),
            "other": value(point("baseline:nf4", "bitsandbytes NF4", "baseline", 4.5, 0.25, 33.3, 0.73)),
            "best": value(
                point("best 4 bits", "Best 4 bits", "best", 4.1, 0.15, 31.0, 0.85),
                point("best 3 bits", "Best 3 bits", "best", 3.1, 0.6, 42.0, 0.66),
            ),
            "empty": METRICS | {"points": []},
        }.items():
            button = gr.Button(name, elem_id=name)
            button.click(lambda new=new: new, None, chart, show_progress="hidden")

        def choose(event: gr.EventData) -> str:
            chosen.append(point_id(event))
            return chosen[-1]

        chart.point(choose, None, out, show_progress="hidden", trigger_mode="multiple")
    return demo


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    """A page with a chart and buttons that send it other values; `site.chosen` is what Python was told."""
    chosen: list[str] = []
    demo = build(chosen)
    _, url, _ = demo.launch(prevent_thread_lock=True, ssr_mode=False, quiet=True, show_error=True)
    yield SimpleNamespace(url=url, chosen=chosen)
    demo.close()


@pytest.fixture
def visit(contexts, site: SimpleNamespace):
    """Open the page at any size; in every test nothing complains and nothing is asked of another host."""
    opened, complaints = [], []

    def say(message) -> None:
        if message.type == "error":
            complaints.append(f"{message.text} {message.location}")

    def watch(request) -> None:
        if not request.url.startswith(("data:", "blob:")) and urlsplit(request.url).hostname != "127.0.0.1":
            complaints.append(request.url)

    def open_page(query: str = "", url: str = site.url, **options) -> Page:
        site.chosen.clear()
        page = contexts(**({"viewport": {"width": 1280, "height": 900}} | options)).new_page()
        opened.append(page)
        page.on("console", say)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", watch)
        page.goto(url + query)
        expect(page.locator("#chart .main-svg").first).to_be_visible(timeout=30_000)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert complaints == []


@pytest.fixture
def page(visit) -> Page:
    return visit()


def predict(page: Page, bits: float, kl: float | None, dragging: bool = False) -> None:
    """What the equaliser does on every change."""
    predicted = None if kl is None else {"kl": kl, "ppl": 27.6 + 20 * kl, "same_top": 1 - 0.4 * kl}
    detail = {
        "bytes": size(bits),
        "bits_per_param": 8 * size(bits) / PARAMS,
        "predicted": predicted,
        "dragging": dragging,
        "note": "",
    }
    page.evaluate(
        """detail => {
          window.queptPrediction = detail;
          document.dispatchEvent(new CustomEvent("quept:predict", { detail }));
        }""",
        detail,
    )


def spot(page: Page, identity: str) -> tuple[float, float]:
    """Where on the screen a point lies, as Plotly has it."""
    page.locator("#chart .canvas").scroll_into_view_if_needed()
    return tuple(
        page.evaluate(
            """id => {
              const plot = document.querySelector("#chart .canvas"), box = plot.getBoundingClientRect();
              const { xaxis, yaxis } = plot._fullLayout;
              for (const { x, y, customdata } of plot.data) {
                const i = (customdata ?? []).indexOf(id);
                if (i < 0) continue;
                return [
                  box.left + xaxis._offset + xaxis.d2p(x[i]), box.top + yaxis._offset + yaxis.d2p(y[i]),
                ];
              }
            }""",
            identity,
        )
    )


def star(page: Page) -> tuple[float, float]:
    box = page.locator("#chart .star path").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def ranges(page: Page) -> list[list[float]]:
    return page.evaluate(
        "() => { const { xaxis, yaxis } = document.querySelector('#chart .canvas').layout;"
        " return [xaxis.range, yaxis.range]; }"
    )


def names(page: Page) -> list[str]:
    return page.locator("#plan-table tbody tr:not(.group) th span:last-child").all_inner_texts()


@pytest.mark.parametrize("identity", ["w4", "gentle", "tried:1"])
def test_a_click_on_a_point_tells_python_which(page: Page, site, identity: str):
    page.mouse.move(*spot(page, identity))
    page.mouse.click(*spot(page, identity))
    expect(page.locator("#out textarea")).to_have_value(identity)
    assert site.chosen == [identity]


def test_a_tap_on_a_phone_does_too(visit):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.touchscreen.tap(*spot(page, "gentle"))
    expect(page.locator("#out textarea")).to_have_value("gentle")


def test_a_baseline_has_its_own_mark_and_nothing_to_load(page: Page, site):
    page.click("#other")
    expect(page.locator("#chart .legend")).to_contain_text("other tools")
    row = page.locator("#plan-table tbody tr", has_text="bitsandbytes NF4")
    expect(row).to_contain_text("0.250 ± 0.010")
    expect(row.get_by_role("button")).to_have_count(0)
    page.mouse.move(*spot(page, "baseline:nf4"))
    expect(page.locator("#chart .hoverlayer")).to_contain_text("no plan to load")
    page.mouse.click(*spot(page, "baseline:nf4"))
    expect(page.locator("#out textarea")).to_have_value("baseline:nf4")


def test_the_best_plans_found_are_joined_and_load_like_presets(page: Page, site):
    page.click("#best")
    expect(page.locator("#chart .legend")).to_contain_text("best found")
    expect(page.locator("#plan-table tr.group")).to_have_text(
        [re.compile("Tried"), "Best found for their size", "Presets"]
    )
    rows = page.locator("#plan-table tbody tr", has_text="Best ").filter(has=page.locator("button"))
    expect(rows).to_contain_text(["Best 3 bits", "Best 4 bits"])
    line = page.evaluate(
        """() => { const trace = document.querySelector('#chart .canvas').data.find(t => t.name === 'best');
            return [trace.mode, trace.x[0] < trace.x[1]]; }"""
    )
    assert line == ["lines+markers", True]
    page.mouse.click(*spot(page, "best 4 bits"))
    expect(page.locator("#out textarea")).to_have_value("best 4 bits")


def test_hover_speaks_in_words(page: Page):
    page.mouse.move(*spot(page, "gentle"))
    hover = page.locator("#chart .hoverlayer")
    for words in (
        "Gentle",
        "bits per parameter",
        "perplexity 28.9 ± 0.6",
        "mean KL 0.0350 ± 0.0014",
        "same top token 90.0 %",
    ):
        expect(hover).to_contain_text(words)


def test_the_table_lists_the_newest_first_and_loads_by_keyboard(page: Page, site):
    assert names(page) == ["second", "first", "Gentle", "W8", "W6", "W5", "W4", "W3", "W2"]
    page.get_by_role("button", name="Load first", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#out textarea")).to_have_value("tried:0")
    assert site.chosen == ["tried:0"]


def test_the_focus_stays_when_the_table_grows(page: Page):
    load = page.get_by_role("button", name="Load Gentle")
    load.focus()
    page.evaluate("document.querySelector('#more').click()")
    expect(page.get_by_role("button", name="Load third")).to_be_visible()
    expect(load).to_be_focused()


def test_the_star_follows_the_faders_without_a_request(page: Page, rest):
    predict(page, 4.2, 0.3)
    expect(page.locator("#chart .star text")).to_have_text("predicted")
    before, asked = star(page), []
    page.on("request", lambda request: asked.append(request.url))
    for step in range(20):
        predict(page, 4.2 + step / 10, 0.3 / (1 + step), dragging=True)
        page.wait_for_timeout(20)
    rest(page)
    after = star(page)
    assert after[0] > before[0] + 100
    assert after[1] > before[1] + 20
    assert asked == []


def test_the_star_lies_where_a_point_of_the_same_numbers_lies(page: Page):
    predict(page, 5.5, 0.035)
    expect(page.locator("#chart .star")).to_be_visible()
    assert star(page) == pytest.approx(spot(page, "gentle"), abs=2)


def test_the_star_is_filled_once_measured_and_hollow_again_after_a_change(page: Page):
    legend = page.locator("#chart .legend")
    predict(page, 4.7, 0.2)
    expect(legend).to_contain_text("your plan, predicted")
    page.click("#measured")
    expect(page.locator("#chart .star.predicted")).to_have_count(0)
    expect(legend).not_to_contain_text("predicted")
    predict(page, 4.9, 0.1, dragging=True)
    expect(page.locator("#chart .star.predicted")).to_have_count(1)
    predict(page, 4.7, 0.2)
    expect(page.locator("#chart .star.predicted")).to_have_count(0)


def test_full_precision_and_plans_without_a_prediction_have_their_place(page: Page):
    predict(page, 7.5, 0.0)
    expect(page.locator("#chart .star")).to_be_visible()
    predict(page, 4.5, None)
    expect(page.locator("#chart .star text")).to_have_text("your plan, not measured yet")
    expect(page.locator("#chart line.guide")).to_have_css("display", "inline")


def test_zoom_is_kept_across_updates_and_a_double_click_shows_everything(page: Page):
    everything = ranges(page)
    left, top = spot(page, "w5")
    page.mouse.move(left - 60, top - 60)
    page.mouse.down()
    page.mouse.move(left + 90, top + 60, steps=8)
    page.mouse.up()
    page.wait_for_function(
        "low => document.querySelector('#chart .canvas').layout.xaxis.range[0] > low",
        arg=everything[0][0] + 1,
    )
    zoomed = ranges(page)
    figure = page.locator("#chart .canvas .main-svg").first.element_handle()
    page.click("#more")
    expect(page.get_by_role("button", name="Load third")).to_be_visible()
    predict(page, 4.8, 0.12)
    page.wait_for_timeout(200)
    assert ranges(page) == zoomed
    assert figure.evaluate("node => node.isConnected")  # updated, not rebuilt

    page.locator("#chart label", has_text="Perplexity").click()
    page.locator("#chart label", has_text="KL").click()
    assert ranges(page) == zoomed
    page.mouse.dblclick(*spot(page, "w5"), delay=20)
    page.wait_for_function(
        "low => document.querySelector('#chart .canvas').layout.xaxis.range[0] < low", arg=zoomed[0][0] - 1
    )


def test_the_buttons_choose_what_is_shown(page: Page):
    title = page.locator("#chart .y-title")
    expect(title).to_contain_text("KL")
    page.locator("#chart label", has_text="Perplexity").click()
    expect(title).to_have_text("Perplexity, log scale")
    expect(page.locator("#chart .infolayer")).to_contain_text("full precision 27.6")
    page.keyboard.press("ArrowLeft")
    expect(title).to_contain_text("same first choice")
    page.locator("#chart label", has_text="Bits").click()
    expect(page.locator("#chart .xtitle")).to_have_text(re.compile("Bits per parameter"))
    assert page.evaluate("document.querySelector('#chart .canvas').layout.xaxis.range[1]") < 17


def test_names_from_outside_stay_text(page: Page):
    page.click("#evil")
    row = page.locator("#plan-table tbody th", has_text="onerror")
    expect(row).to_contain_text(EVIL)
    page.mouse.move(*spot(page, "evil"))
    expect(page.locator("#chart .hoverlayer")).to_contain_text('<img src=x onerror="window.owned=1">')
    assert page.evaluate("window.owned") is None
    assert page.locator("#chart img, #plan-table img").count() == 0


def test_nothing_measured_is_said_in_words_and_ends_with_the_first_point(page: Page):
    page.click("#empty")
    message = page.locator("#chart .message")
    expect(message).to_contain_text("Nothing has been measured yet")
    expect(page.locator("#plan-table .plan-table")).to_be_hidden()
    page.click("#more")
    expect(message).to_be_hidden()
    expect(page.locator("#chart .main-svg").first).to_be_visible()


def test_it_follows_the_theme(page: Page):
    tick = "getComputedStyle(document.querySelector('#chart .xtick text')).fill"
    light = page.evaluate(tick)
    page.evaluate("document.body.classList.toggle('dark')")
    page.wait_for_function(f"light => {tick} !== light", arg=light)


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_width_and_follows_a_resize(visit, width: int):
    page = visit(viewport={"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 700, "height": 844})
    fits = """() => {
      const [drawn, room] = ["#chart .main-svg", "#chart .canvas"].map((at) => document.querySelector(at));
      return Math.abs(drawn.clientWidth - room.clientWidth) < 2;
    }"""
    page.wait_for_function(fits)
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def test_plotly_is_found_under_a_path_of_its_own(visit):
    site = FastAPI()
    site.get("/favicon.ico")(lambda: Response(status_code=204))  # the browser's own question, not the app's
    gr.mount_gradio_app(site, build([]), path="/tool", ssr_mode=False)
    server = uvicorn.Server(uvicorn.Config(site, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        page = visit(url=f"http://127.0.0.1:{port}/tool/")
        page.goto("about:blank")
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.mark.parametrize(
    "sent", [None, {}, {"id": 3}, {"id": ""}, {"id": "x" * (LONGEST_ID + 1)}, "id", {"id": "a\nb"}]
)
def test_an_event_that_names_no_point_is_a_sentence(sent):
    with pytest.raises(gr.Error, match="not known any more"):
        point_id(gr.EventData(None, sent))


def test_the_value_is_checked_where_it_enters_and_dropped_where_it_comes_back():
    chart = Chart()
    odd = {"id": "a", "label": "A", "kind": "tried", "kl": float("nan"), "ppl": None}
    assert chart.postprocess(METRICS | {"points": [odd]})["points"][0]["kl"] is None
    assert chart.preprocess({"points": ["anything"]}) is None
    for wrong in ({"id": ""}, {"kind": "other"}, {"label": None}):
        with pytest.raises(ValueError, match="chart point"):
            chart.postprocess({"points": [odd | wrong]})


def test_the_plot_is_saved_as_a_picture_with_its_legend_and_the_star(page: Page):
    predict(page, 4.7, 0.14)
    with page.expect_download() as download:
        page.locator("#chart .png").click()
    assert download.value.suggested_filename.endswith("kl-against-bytes.png")
    picture = Image.open(download.value.path())
    star = ImageColor.getrgb(
        page.evaluate("getComputedStyle(document.querySelector('#chart .chart')).getPropertyValue('--live')")
    )
    colors = {color for _, color in picture.convert("RGB").getcolors(maxcolors=2**20)}
    assert picture.size == (1920, 1200) and star in colors
