"""How long a person waits: drives the running app in Chromium, caches warm but no result known yet.

    python benchmarks/explore_loop.py [--model smollm2-135m] [--repeats 3]

page_usable_s        process start until the equaliser can be dragged
loading_state_s      process start until the loading screen answers
first_estimate_s     release of a drag to the first measured estimate on screen
full_estimate_s      the same to the estimate over all tokens
requests_while_dragging   what the page asks Python between pressing and releasing
"""

from __future__ import annotations

import argparse
import re
import statistics
import time

from playwright.sync_api import Page, expect
from report import report
from running_app import app, chromium, wait_for, without_results

from app.opening import TEXT
from quept import ElasticModel, zoo

USABLE = '#equalizer [role="slider"]'
REST = 2000  # ms without a question, after which the page has nothing left to ask


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ElasticModel.open(options.model, device="cpu")  # fetches and converts what is not in the cache yet
    zoo.text(TEXT)
    with (
        without_results() as cache,
        app(options.model, cache=cache) as (url, start, _),
        chromium() as browser,
    ):
        loading = wait_for(url, 30) - start
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.locator(USABLE).first.wait_for(timeout=120_000)
        usable = time.perf_counter() - start
        expect(page.locator("#numbers [data-status-line]")).to_contain_text("Measured", timeout=120_000)
        runs = [drag(page, i) for i in range(options.repeats)]
    figures = {
        "loading_state_s": loading,
        "page_usable_s": usable,
        "first_estimate_s": statistics.median(r[0] for r in runs),
        "full_estimate_s": statistics.median(r[1] for r in runs),
        "requests_while_dragging": sum(r[2] for r in runs),
    }
    report(
        "Exploring in the browser",
        figures,
        model=options.model,
        tokens=4096,
        context=512,
        repeats=options.repeats,
    )


def drag(page: Page, index: int) -> tuple[float, float, int]:
    """Paint over a few blocks to bits not tried before; (first estimate, full estimate) in seconds after
    release, requests before it."""
    sliders = page.locator(USABLE)
    first, last = sliders.nth(3 + 4 * index), sliders.nth(9 + 4 * index)
    a, b = first.bounding_box(), last.bounding_box()
    requests: list[str] = []
    # Questions to Python; a script that is fetched late is none.
    page.on("request", lambda request: request.method == "POST" and requests.append(request.url))
    status, whole = (
        page.locator("#numbers [data-status-line]"),
        re.compile(r"Measured (earlier )?on 4,\d+ tokens"),
    )
    expect(status).to_have_text(whole, timeout=120_000)  # the plan before
    page.wait_for_timeout(REST)
    while requests:  # what its measurement has left to draw
        requests.clear()
        page.wait_for_timeout(REST)
    height = a["y"] + a["height"] * (0.30 + 0.13 * index)
    page.mouse.move(a["x"] + a["width"] / 2, height)
    requests.clear()
    page.mouse.down()
    page.mouse.move(b["x"] + b["width"] / 2, height + 6, steps=25)
    sent = len(requests)
    page.mouse.up()
    released = time.perf_counter()
    expect(status).to_contain_text("Measured on", timeout=60_000)
    estimate = time.perf_counter() - released
    expect(status).to_have_text(whole, timeout=120_000)
    return estimate, time.perf_counter() - released, sent


if __name__ == "__main__":
    main()
