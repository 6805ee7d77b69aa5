"""A side of the chat that llama.cpp answers, from the file of the visitor's plan.

`LlamaSide` is stepped as `app.conversation.chat` steps the sides of our own runtime, and tells the same
`Answer`. The file is made once per plan (see app.exports); llama.cpp works in a thread of its own, so that a
step waits for a moment at most. What it writes has no scores: its logits stay with it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from quept.plan import PrecisionPlan
from quept.runtime.generate import Sampling

from .budget import sentence
from .conversation import UNEXPECTED, Answer
from .exports import Exports, Opened
from .llama import LlamaRoom

POLL_S = 0.03  # that a step waits for news
MEASURING_S = 1.0  # that it waits while the file's speed is measured, so that the other side does not disturb

logger = logging.getLogger(__name__)


class LlamaSide:
    """See the module docstring. messages: the side's conversation, the last one the user's; gate: behind
    which weights are rounded; size: bytes that the file will have."""

    is_full, prompt = False, None  # our runtime has nothing to score here

    def __init__(
        self,
        opened: Opened,
        plan: PrecisionPlan,
        exports: Exports,
        room: LlamaRoom,
        gate: AbstractContextManager,
        messages: Sequence[Mapping[str, str]],
        sampling: Sampling,
        size: int,
    ):
        self._opened, self._plan, self._exports, self._room = opened, plan, exports, room
        self._gate, self._messages, self._sampling = gate, messages, sampling
        self._news: queue.Queue[dict[str, Any]] = queue.Queue()
        self._closed = threading.Event()
        self.answer = Answer(deploy_bytes=size)
        self.tokens: list = []  # none with an id, which a comparison would need
        self.starts: list[int] = []

    @property
    def active(self) -> bool:
        return self.writing

    @property
    def writing(self) -> bool:
        return self.answer.state not in ("done", "stopped", "error")

    def show(self, **changes) -> None:
        self.answer = replace(self.answer, **changes)

    def begin(self) -> None:
        """It is this side's turn from now on."""
        self.show(state="preparing", position=None)
        threading.Thread(target=copy_context().run, args=(self._work,), daemon=True).start()

    def step(self, gate: AbstractContextManager) -> None:
        """Hears what is new, and waits for it a moment."""
        measuring = self.answer.state == "reading"
        try:
            self.show(**self._news.get(timeout=MEASURING_S if measuring else POLL_S))
        except queue.Empty:
            return

    def close(self) -> None:
        """Stops the answer. Any number of times."""
        self._closed.set()

    def _work(self) -> None:
        try:
            with closing(self._changes()) as changes:
                for change in changes:
                    if self._closed.is_set():
                        return
                    self._news.put(change)
        except (RuntimeError, OSError) as error:
            self._news.put({"state": "error", "error": sentence(error), "progress": None})
        except Exception:
            logger.exception("an answer of llama.cpp at %s failed", self._plan.name)
            self._news.put({"state": "error", "error": UNEXPECTED, "progress": None})

    def _changes(self) -> Iterator[dict[str, Any]]:
        """Of the Answer, as they come."""
        began, sampling = time.perf_counter(), self._sampling
        with closing(self._exports.make(self._opened, self._plan, "gguf", lambda: self._gate)) as making:
            for state in making:
                if state["status"] == "error":
                    raise RuntimeError(state["message"])
                yield {"progress": state["fraction"]}
        path = self._exports.path(self._opened, self._plan, "gguf")
        if path is None:
            raise RuntimeError("the file of this plan has made room for another: send the message again")
        switch = 1000 * (time.perf_counter() - began)
        yield {"state": "reading", "progress": None, "switch_ms": switch}
        caption, speed = self._room.caption(path), self._room.speed(path).write
        yield {"unscored": f"{caption}; its tokens are not scored", "tokens_per_second": speed}
        began, text, count = time.perf_counter(), "", 0
        answer = self._room.answer(
            path,
            self._messages,
            sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        with closing(answer):
            for piece in answer:
                if not count:
                    yield {"first_token_s": time.perf_counter() - began}
                text, count = text + piece, count + 1
                yield {"state": "writing", "text": text, "tokens": count}
        yield {"state": "done", "cut": count >= sampling.max_tokens}
