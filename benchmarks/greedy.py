"""Twelve visitors beside one greedy client: do they get their numbers, and how much later than alone?

    python benchmarks/greedy.py [--visitors 12] [--releases 4] [--greedy 79] [--tiny]

The app runs in a process of its own and is spoken to as a browser does. A release is a new plan followed by a
measurement; its time ends with the first estimate. The greedy client keeps `--greedy` jobs in the queue from
one page and never reads an answer. --tiny: a small model and few visitors, to see that all of it works.

refused            answers 4xx and 5xx that visitors got
greedy_refused     those that the greedy client got, which it should
alone_s            median time to the first estimate of one visitor by itself
together_p95_s     95 % of releases beside the other visitors and the greedy client are at most this long
slowdown           the two divided; visitors_slowdown: the same without the greedy client
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import threading
import time
import urllib.parse
import uuid

from report import report
from running_app import app, wait_for, without_results

THINKING_S = 8.0  # between a visitor's releases


class Page:
    """A visitor's page over HTTP. `refused` counts answers that are no success."""

    def __init__(self, url: str, config: dict):
        self.host = urllib.parse.urlsplit(url).netloc
        self.session, self.refused = uuid.uuid4().hex[:11], 0
        dependencies = config["dependencies"]
        self.measuring = next(d for d in dependencies if d["api_name"] == "measured")
        self.committing = next(d for d in dependencies if any(e == "commit" for _, e in d["targets"]))
        equalizer = next(c for c in config["components"] if c["props"].get("elem_id") == "equalizer")
        self.described = equalizer["props"]["props"]["description"]

    def post(self, path: str, function: dict, data: list) -> bool:
        body = {"data": data, "fn_index": function["id"], "session_hash": self.session}
        connection = http.client.HTTPConnection(self.host, timeout=300)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        self.refused += answer.status >= 400
        return answer.status < 400

    def ask(self) -> bool:
        """Queue a measurement of the page's plan."""
        return self.post("/gradio_api/queue/join", self.measuring, [self.described["model"], None, None])

    def release(self, draw: random.Random) -> float | None:
        """Seconds until the first estimate of a new plan; None where it was refused."""
        plan = {"w": [draw.choice((2, 3, 4, 5, 6, 7, 8)) for _ in self.described["layers"]]}
        began = time.perf_counter()
        if not (self.post("/gradio_api/run/commit", self.committing, [plan]) and self.ask()):
            return None
        connection = http.client.HTTPConnection(self.host, timeout=300)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        taken = None
        for line in connection.getresponse():
            message = json.loads(line[5:]) if line.startswith(b"data:") else {}
            if taken is None and message.get("msg") in ("process_generating", "process_completed"):
                taken = time.perf_counter() - began if _estimated(message) else None
            if message.get("msg") in ("process_completed", "close_stream", "unexpected_error"):
                break
        connection.close()
        return taken


def _estimated(message: dict) -> bool:
    """Whether the first output, a state of the numbers or what changed in it, holds an estimate."""
    state = ((message.get("output") or {}).get("data") or [None])[0]
    if isinstance(state, dict):
        return bool(state.get("estimate"))
    changes = state if isinstance(state, list) else []
    return any(change[1][:1] == ["estimate"] and change[2] for change in changes)


def visit(page: Page, releases: int, seed: int, thinking: float, taken: list[float]) -> None:
    draw = random.Random(seed)
    time.sleep(draw.random() * thinking)
    for _ in range(releases):
        if (seconds := page.release(draw)) is not None:
            taken.append(seconds)
        time.sleep(draw.uniform(0.5, 1.5) * thinking)


def together(pages: list[Page], releases: int, thinking: float, seed: int) -> list[float]:
    """Times of all releases of the pages at once."""
    taken: list[float] = []
    threads = [
        threading.Thread(target=visit, args=(page, releases, seed + i, thinking, taken))
        for i, page in enumerate(pages)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def ninety_five(taken: list[float]) -> float:
    return sorted(taken)[max(0, -(-95 * len(taken) // 100) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=12)
    parser.add_argument("--releases", type=int, default=4)
    parser.add_argument("--greedy", type=int, default=79)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    model, thinking = ("fashion-vit", 0.1) if options.tiny else ("smollm2-135m", THINKING_S)
    visitors, releases = (2, 1) if options.tiny else (options.visitors, options.releases)
    with without_results() as cache, app(model, cache=cache) as (url, _, _):
        wait_for(f"{url}config", 300, '"dependencies"')
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
        connection.request("GET", "/config")
        config = json.loads(connection.getresponse().read())
        alone: list[float] = []
        Page(url, config).release(random.Random(0))  # what the first one prepares for all
        visit(Page(url, config), max(3, releases), 1, 0.1, alone)
        others = together([Page(url, config) for _ in range(visitors)], releases, thinking, 100)
        greedy, over = Page(url, config), threading.Event()

        def grab() -> None:
            while not over.is_set():
                for _ in range(options.greedy):
                    greedy.ask()
                over.wait(1.0)

        grabbing = threading.Thread(target=grab)
        grabbing.start()
        pages = [Page(url, config) for _ in range(visitors)]
        beside = together(pages, releases, thinking, 200)
        over.set()
        grabbing.join()
    figures = {
        "refused": sum(page.refused for page in pages),
        "greedy_refused": greedy.refused,
        "alone_s": statistics.median(alone),
        "together_p95_s": ninety_five(beside),
        "slowdown": ninety_five(beside) / statistics.median(alone),
        "visitors_slowdown": ninety_five(others) / statistics.median(alone),
        "releases": len(beside),
    }
    report("One greedy client", figures, visitors=visitors, greedy=options.greedy, model=model)


if __name__ == "__main__":
    main()
