"""Twelve visitors beside one greedy client: do they get their numbers, and how much later than alone?

    python benchmarks/greedy.py [--visitors 12] [--releases 2] [--greedy 79] [--tiny]

The app runs in a process of its own and is spoken to as a browser does. A release is a new plan followed by a
measurement; its time ends with the first estimate. The measurement goes on while the visitor looks at it for
some THINKING_S, so that all visitors' measurements are always under way; the next release ends it. The greedy
client keeps `--greedy` jobs in the queue from one page and never reads an answer. --tiny: a small model and
few visitors, to see that all of it works. Takes about three minutes.

refused            answers 4xx and 5xx that visitors got
greedy_refused     those that the greedy client got, which it should
alone_s            median time to the first estimate of one visitor by itself, before the others come
together_p95_s     95 % of releases beside the other visitors and the greedy client are at most this long,
                   half of them at most together_median_s
slowdown           the two divided; visitors_slowdown: the same without the greedy client
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import statistics
import threading
import time
import urllib.parse
import uuid
from contextlib import suppress

from report import report
from running_app import app, wait_for, without_results

THINKING_S = 8.0  # between a visitor's releases


class Page:
    """A visitor's page over HTTP, with one stream of answers, as a browser has it. `refused` counts answers
    that are no success."""

    def __init__(self, url: str, config: dict):
        self.host = urllib.parse.urlsplit(url).netloc
        self.session, self.refused = uuid.uuid4().hex[:11], 0
        dependencies = config["dependencies"]
        self.measuring = next(d for d in dependencies if d["api_name"] == "measured")
        self.committing = next(d for d in dependencies if any(e == "commit" for _, e in d["targets"]))
        equalizer = next(c for c in config["components"] if c["props"].get("elem_id") == "equalizer")
        self.described = equalizer["props"]["props"]["description"]
        self.first: dict[str, float] = {}  # by event: when its first estimate came
        self.ended: set[str] = set()
        self.reader = threading.Thread()
        self.stream: http.client.HTTPConnection | None = None

    def post(self, path: str, function: dict, data: list) -> dict | None:
        """The answer; None where it was refused."""
        body = {"data": data, "fn_index": function["id"], "session_hash": self.session}
        connection = http.client.HTTPConnection(self.host, timeout=300)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        self.refused += answer.status >= 400
        return json.loads(said) if answer.status < 400 else None

    def ask(self) -> str | None:
        """Queue a measurement of the page's plan: the event's id."""
        held = [None] * (len(self.measuring["inputs"]) - 1)  # what the page holds, in Python
        data = [self.described["model"], *held]
        return (self.post("/gradio_api/queue/join", self.measuring, data) or {}).get("event_id")

    def release(self, draw: random.Random, whole: bool = False) -> float | None:
        """Seconds until the first estimate of a new plan; None where there was none. whole: the measurement
        is waited for."""
        plan = {"w": [draw.choice((2, 3, 4, 5, 6, 7, 8)) for _ in self.described["layers"]]}
        began = time.perf_counter()
        if not self.post("/gradio_api/run/commit", self.committing, [self.described["model"], plan]) or not (
            event := self.ask()
        ):
            return None
        while event not in self.ended and (whole or event not in self.first):
            if not self.reader.is_alive():
                self.reader = threading.Thread(target=self._read, daemon=True)
                self.reader.start()
            time.sleep(0.005)
        return self.first[event] - began if event in self.first else None

    def leave(self) -> None:
        """Close the page: what it asked for ends."""
        if self.stream and self.stream.sock:
            self.stream.sock.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        connection = self.stream = http.client.HTTPConnection(self.host, timeout=300)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        with suppress(http.client.HTTPException, OSError):  # the page was closed
            for line in connection.getresponse():
                message = json.loads(line[5:]) if line.startswith(b"data:") else {}
                kind, event = message.get("msg"), message.get("event_id")
                if kind in ("process_generating", "process_completed") and _estimated(message):
                    self.first.setdefault(event, time.perf_counter())
                if kind == "process_completed":
                    self.ended.add(event)
                if kind in ("close_stream", "unexpected_error"):
                    break
        connection.close()


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
    page.leave()


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
    parser.add_argument("--releases", type=int, default=2)
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
        page, draw = Page(url, config), random.Random(0)
        page.release(draw, whole=True)  # what the first one prepares for all
        # Each waited out, and before the others: what they leave behind would make one alone look slow.
        alone = list(filter(None, (page.release(draw, whole=True) for _ in range(1 if options.tiny else 4))))
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
        "together_median_s": statistics.median(beside),
        "slowdown": ninety_five(beside) / statistics.median(alone),
        "visitors_slowdown": ninety_five(others) / statistics.median(alone),
        "releases": len(beside),
    }
    report("One greedy client", figures, visitors=visitors, greedy=options.greedy, model=model)


if __name__ == "__main__":
    main()
