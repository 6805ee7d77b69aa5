"""How long a start takes: process start until the page can be used, with caches warm, here and in another
checkout, in turns.

    python benchmarks/startup.py [--repeats 3] [--against FOLDER]

usable_s      process start until the equaliser of the first page can be dragged, median of the runs behind a
              first one, which fetches and converts what is not in the caches yet; with --repeats 0 the first
config_bytes  of the page's configuration
ratio         usable_s here by usable_s there
"""

from __future__ import annotations

import argparse
import statistics
import time
import urllib.request
from pathlib import Path

from report import report
from running_app import ROOT, app, chromium, wait_for

USABLE = '#equalizer [role="slider"]'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path, help="folder of the other checkout")
    parser.add_argument(
        "--model", action="append", default=[], help="open this one alone; repeat for several"
    )
    options = parser.parse_args()
    roots = [ROOT, options.against] if options.against else [ROOT]
    starts = {root: [] for root in roots}
    with chromium() as browser:
        for _ in range(1 + options.repeats):
            for root in roots:
                starts[root].append(started(browser, root, options.model))
    medians = [statistics.median(usable for usable, _ in runs[1:] or runs) for runs in starts.values()]
    figures = {"usable_s": medians[0], "config_bytes": starts[ROOT][-1][1]}
    if options.against:
        figures |= {"usable_there_s": medians[1], "ratio": medians[0] / medians[1]}
    report("Starting the app", figures, repeats=options.repeats, models=options.model or "built in")


def started(browser, root: Path, models: list[str]) -> tuple[float, int]:
    """(seconds until usable, bytes of the configuration) of one start."""
    with app(*models, root=root) as (url, start, _):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        wait_for(url, 60)
        page.goto(url)  # the loading page, which gives way to the first one by itself
        page.locator(USABLE).first.wait_for(timeout=300_000)
        usable = time.perf_counter() - start
        page.close()
        with urllib.request.urlopen(f"{url}config") as answer:
            return usable, len(answer.read())


if __name__ == "__main__":
    main()
