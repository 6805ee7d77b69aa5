"""Eight visitors at eight precisions, editing, measuring and chatting at once on one service.

    python benchmarks/visitors.py [--model smollm2-135m] [--minutes 5] [--visitors 8]

Each visitor is a thread that calls the service as the pages' handlers do, all in this process, so that memory
growth is the service's own. Texts are greedy; they are compared with each other and with the same
conversations run alone afterwards.

errors            exceptions any visitor met
texts_differ      answers that differ from the same run alone
rss_growth_mb     resident memory at the end, over its level after every visitor's first round
longest_edit_s    longest wait of any visitor for the first estimate of an edit while the others chat
"""

from __future__ import annotations

import argparse
import gc
import threading
import time

import psutil
from report import report

from app.conversation import chat
from app.opening import open_service
from app.service import Service
from quept.plan import PrecisionPlan
from quept.runtime import Sampling

PLANS = [PrecisionPlan.uniform(b) for b in (2, 3, 4, 5, 6, 7, 8, 16)]
PROMPTS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write one sentence about the sea.",
)


class Visitor(threading.Thread):
    """Edits a plan, watches it being measured for a while, chats, again and again until the time is up."""

    def __init__(self, service: Service, model: str, index: int, until: float, started: threading.Barrier):
        super().__init__(daemon=True)
        self.service, self.model, self.index = service, model, index
        self.until, self.started = until, started
        self.plan = PLANS[index % len(PLANS)]
        self.answers: dict[str, str] = {}
        self.errors: list[str] = []
        self.differ = 0
        self.waits: list[float] = []

    def run(self) -> None:
        turn = 0
        while time.perf_counter() < self.until or turn == 0:
            try:
                self._edit(turn)
                prompt = PROMPTS[turn % len(PROMPTS)]
                text = answer(self.service, self.model, self.plan, prompt)
                self.differ += self.answers.setdefault(prompt, text) != text
            except Exception as error:
                self.errors.append(repr(error))
            turn += 1
            if turn == 1:
                self.started.wait()

    def _edit(self, turn: int) -> None:
        layers = self.service.models[self.model].layers
        layer = layers[(37 * self.index + 11 * turn) % len(layers)]
        plan = PrecisionPlan.of({"*": self.plan.default, layer: 2 + (turn + self.index) % 7})
        start = time.perf_counter()
        for state in self.service.measure(self.model, plan, f"visitor {self.index}"):
            if state["estimate"]:
                self.waits.append(time.perf_counter() - start)
                break


def answer(service: Service, model: str, plan: PrecisionPlan, prompt: str) -> str:
    """One greedy answer at a plan."""
    history = [[{"role": "user", "content": prompt}]]
    sampling = Sampling(temperature=0.0, max_tokens=24)
    *_, last = chat(service.models[model], [plan], history, sampling, "", service.gate, service.admission)
    return last.answers[0].text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--visitors", type=int, default=8)
    options = parser.parse_args()
    service = open_service([options.model], 1_000_000_000, lambda stage, fraction=None: None)
    (model,) = service.models
    for _ in service.measure(model, PrecisionPlan.full(), "first"):
        pass
    started = threading.Barrier(options.visitors + 1)
    until = time.perf_counter() + 60 * options.minutes
    visitors = [Visitor(service, model, i, until, started) for i in range(options.visitors)]
    for visitor in visitors:
        visitor.start()
    started.wait()
    gc.collect()
    before = psutil.Process().memory_info().rss
    for visitor in visitors:
        visitor.join()
    gc.collect()
    growth = psutil.Process().memory_info().rss - before
    alone = {(v.index, p): answer(service, model, v.plan, p) for v in visitors for p in v.answers}
    figures = {
        "errors": sum(len(v.errors) for v in visitors),
        "texts_differ": sum(v.differ for v in visitors)
        + sum(v.answers[p] != alone[v.index, p] for v in visitors for p in v.answers),
        "rss_growth_mb": growth / 1e6,
        "longest_edit_s": max((w for v in visitors for w in v.waits), default=float("nan")),
        "edits": sum(len(v.waits) for v in visitors),
    }
    for error in {e for v in visitors for e in v.errors}:
        print("error:", error)
    report("Visitors at once", figures, visitors=options.visitors, minutes=options.minutes, model=model)


if __name__ == "__main__":
    main()
