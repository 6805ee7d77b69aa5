"""Two answers side by side: one generator that steps both in turn and tells, ten to fifteen times a second,
how far they are.

`chat(...)` checks the prompt (PromptError with a sentence before anything is waited for), waits for
admission, puts the two precisions together and steps both answers alternately. The gate is held for one step
at a time, so that other visitors come in between. It yields a `Frame`: per side an `Answer` (text so far,
state, speed, memory), and where the two part. A side that fails says so in its answer and the other goes on.
Closing the generator, or `stopped()` turning true, ends it within one step and frees what it held.

Each answer at less than full precision is scored while it is written (see quept.evaluate.answers), as long as
that takes at most the share `scoring` of the time of writing it. What full precision wrote itself on the
other side, up to where both part, is scored without reading anything.

A visitor's key-value caches come from a `CachePool`, so that only the new words are read. Nothing here knows
of Gradio, and nothing depends on what else runs: the same seed gives the same text.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.cache_utils import Cache

from quept.engines.base import EngineError
from quept.evaluate import AnswerScorer, TokenScore
from quept.evaluate.answers import PIECE
from quept.plan import PlanError, PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.generate import (
    PREFILL_CHUNK,
    Conversation,
    GenerationError,
    Progress,
    Sampling,
    Stream,
    Token,
    context_length,
    prepare,
    stream,
)
from quept.runtime.kvcache import cache_nbytes
from quept.runtime.prompt import PromptError, check_fits
from quept.runtime.visual import VisualPrompt

from .cache_pool import CachePool
from .gate import Admission

FRAMES_PER_SECOND = 12
PREPARE_SECONDS = 0.1  # of slow preparation in one step, so that others get the gate in between
SCORING = 0.35  # of the time that writing an answer took
LOGITS_KEPT = 128  # tokens whose logits wait for their score: 25 MB for SmolLM2
BITS = "bits per token"  # as engines report them
SIDES = 2  # places in the pool: of the sides, then of full precision reading what each wrote
AT_ONCE = 6  # tokens read at once in the time that writing one takes, at least
FULL = PrecisionPlan.full()
UNSCORED = (
    "not scored further: further words have no KL, for full precision would have to read the conversation "
    "again to judge them, which takes too long here"
)
UNEXPECTED = (
    "This side failed for a reason of its own, not yours; the other side goes on. "
    "Try again, or choose another plan."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """How far one side is. state: queued, preparing, reading, writing, done, stopped or error.

    cut: done because the longest answer was reached. tokens_per_second counts this side's own steps, the
    first token left out. candidates: text and probability of what the first token could have been, the
    likeliest first, if `chat` was asked for any; the text of an end token is "".

    scores: of the first tokens, as far as they are known; spans: where each token stands in the text, (start,
    length); bits: what was spent on each, where the precision is chosen by token; others: what full precision
    would have said in the place of each scored one. written_s, scored_s: seconds of writing and of scoring;
    unscored: why there are no further scores, as a sentence."""

    state: str = "queued"
    text: str = ""
    position: int | None = None  # in line, 1 is next
    progress: float | None = None  # of reading the conversation
    tokens: int = 0
    cut: bool = False
    tokens_per_second: float | None = None
    first_token_s: float | None = None
    deploy_bytes: int | None = None
    cache_bytes: int | None = None
    switch_ms: float | None = None
    candidates: tuple[tuple[str, float], ...] = ()
    error: str = ""
    scores: tuple[TokenScore, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    bits: tuple[float, ...] = ()
    others: tuple[str, ...] = ()
    written_s: float = 0.0
    scored_s: float = 0.0
    unscored: str = ""


@dataclass(frozen=True)
class Parting:
    """The first token at which the answers differ: its index, both pieces of text (None: the answer ended
    there, "" : half a character), and where each piece begins in its answer's text."""

    index: int
    pieces: tuple[str | None, str | None]
    starts: tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """Both answers. same: how many first tokens they have in common so far."""

    answers: tuple[Answer, ...]
    same: int = 0
    parting: Parting | None = None


def chat(
    elastic: ElasticModel,
    sides: Sequence[PrecisionPlan],
    histories: Sequence[Sequence[Mapping[str, str]]],
    sampling: Sampling,
    system: str,
    gate: AbstractContextManager,
    admission: Admission,
    *,
    stopped: Callable[[], bool] = lambda: False,
    pool: CachePool | None = None,
    visitor: str = "",
    pictures: Sequence[Image.Image] = (),
    candidates: int = 0,
    scoring: float = SCORING,
    others: Mapping[int, Any] = MappingProxyType({}),
) -> Iterator[Frame]:
    """Answer `histories` (per side {"role", "content"} messages, the last one the user's) at the precisions
    of `sides`. pictures: those that each history speaks of, see `stream`; candidates: how many an Answer
    tells; scoring: see the module's docstring; others: the sides that something else answers, by their place,
    see app.llama_side.

    The first and the last frame always come; between them at most FRAMES_PER_SECOND. Raises PromptError for a
    prompt that cannot be given to the model and PlanError for a plan that does not fit it."""
    context = context_length(elastic, elastic.tokenizer)
    with gate if pictures else nullcontext():
        prompts = prepare(elastic.tokenizer, histories, system or None, elastic.processor, pictures)
    for prompt in prompts:
        check_fits(prompt.keys if isinstance(prompt, VisualPrompt) else prompt, context, sampling.max_tokens)
    sizes = [elastic.sizes.deploy(plan) for plan in sides]
    writers = [
        others.get(i) or _Writer(elastic, side, prompt, sampling, size, pool, visitor, i, candidates, scoring)
        for i, (side, prompt, size) in enumerate(zip(sides, prompts, sizes, strict=True))
    ]
    full = next((writer for writer in writers if writer.is_full), None)
    for writer in writers:
        if full and full is not writer and full.prompt is writer.prompt:
            writer.beside = full
    try:
        yield from _run(writers, gate, admission, stopped)
    finally:
        for writer in writers:
            writer.close()
        elastic.let_go()  # weights in 16 bits that were read of files, by full precision above all


def _run(
    writers: list[_Writer], gate: AbstractContextManager, admission: Admission, stopped: Callable[[], bool]
) -> Iterator[Frame]:
    def frame() -> Frame:
        return Frame(tuple(writer.answer for writer in writers), *_compare(writers))

    with admission.enter() as place:
        for position in place.wait():
            for writer in writers:
                writer.show(state="queued", position=position)
            yield frame()
            if stopped():
                break
        if not stopped():
            for writer in writers:
                writer.begin()
            yield frame()
        shown = time.monotonic()
        while not stopped() and any(writer.active for writer in writers):
            for writer in writers:
                if writer.active and not stopped():
                    writer.step(gate)
                if time.monotonic() - shown >= 1 / FRAMES_PER_SECOND:
                    yield frame()
                    shown = time.monotonic()
    for writer in writers:
        if writer.writing:
            writer.show(state="stopped", progress=None, position=None)
    yield frame()


class _Writer:
    """One side at work: puts its view together in the first steps, then runs one step of its stream at a
    time."""

    def __init__(
        self,
        elastic: ElasticModel,
        plan: PrecisionPlan,
        prompt: list[int] | VisualPrompt,
        sampling: Sampling,
        size: int,
        pool: CachePool | None,
        visitor: str,
        place: int,
        candidates: int,
        scoring: float,
    ):
        self._elastic, self._plan, self.prompt, self._sampling = elastic, plan, prompt, sampling
        self.is_full = plan.key(elastic.layers) == FULL.key(elastic.layers)
        self._scoring = 0.0 if self.is_full else scoring
        self._scorer: AnswerScorer | None = None
        self._scored: Conversation | None = None
        self._scored_rows = 0  # that full precision has read for the scores
        self.beside: _Writer | None = None  # full precision, which answers the same prompt
        self.logits: list[Tensor] = []  # of the first tokens, for the side that is scored
        # In 16 bits, and at some settings, text read at once and text read in two parts differ enough to
        # change a word now and then: there nothing is kept.
        self._pool = pool if elastic.steady(plan) and elastic.dtype == torch.float32 else None
        self._preparing = elastic.prepare(plan)
        self._prepared_s = 0.0
        self._visitor, self._place = visitor, place
        self._candidates = candidates
        self._stream: Stream | None = None
        self._conversation: Conversation | None = None
        self._cache: Cache | None = None
        self._began = self._read_each = 0.0
        self.answer = Answer(deploy_bytes=size)
        self.tokens: list[Token] = []
        self.starts: list[int] = []

    @property
    def active(self) -> bool:
        return self.writing or self._scorer is not None

    @property
    def writing(self) -> bool:
        return self.answer.state not in ("done", "stopped", "error")

    def show(self, **changes) -> None:
        self.answer = replace(self.answer, **changes)

    def begin(self) -> None:
        """It is this side's turn from now on: the clock of the first token starts."""
        self._began = time.perf_counter()
        self.show(state="preparing", position=None)

    def step(self, gate: AbstractContextManager) -> None:
        """One bounded piece of work, inside the gate."""
        try:
            with gate:
                if self._stream is None and self._scorer is None:
                    self._prepare()
                    return
                if self._score() or self._stream is None:
                    return
                event = next(self._stream)
            self._take(event)
        except StopIteration:
            self.show(state="done")
        except (GenerationError, PlanError, EngineError, PromptError) as error:
            self._fail(str(error))
        except Exception:
            logger.exception("an answer at %s failed", self._plan.name)
            self._fail(UNEXPECTED)

    def close(self) -> None:
        """Free the cache, or put it in the pool for the next turn. Any number of times."""
        self._end_writing()
        self._end_scoring()

    def _end_scoring(self) -> None:
        if self._scorer is not None:
            self._scorer.close()
        if self._scored is not None and self._pool is not None:
            self._pool.give_back(self._visitor, self._place + SIDES, self._scored)
        self._scorer = self._scored = None

    def _end_writing(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._conversation is not None:
            self._pool.give_back(self._visitor, self._place, self._conversation)
        self._stream = self._conversation = self._cache = None

    def _prepare(self) -> None:
        elastic, plan = self._elastic, self._plan
        start = time.perf_counter()
        view = None
        while view is None:
            try:
                share = next(self._preparing)
            except StopIteration as made:
                view = made.value
            else:
                if time.perf_counter() - start >= PREPARE_SECONDS:
                    self._prepared_s += time.perf_counter() - start
                    self.show(progress=share)
                    return
        switch = 1000 * (self._prepared_s + time.perf_counter() - start)
        if self._pool is not None:
            key = " ".join(elastic.filed_under(plan))
            self._conversation = self._pool.take(self._visitor, self._place, key)
            self._cache = self._conversation.cache

        def make_cache() -> Cache:
            self._cache = elastic.make_cache(plan)
            return self._cache

        self._stream = stream(
            view,
            elastic.tokenizer,
            (),
            self._sampling,
            make_cache,
            conversation=self._conversation,
            prompt=self.prompt,
            top=self._candidates,
            logits=True,
        )
        if self._scoring:
            self._begin_scoring()
        self.show(state="reading", progress=0.0, switch_ms=switch)

    def _take(self, event: Progress | Token) -> None:
        if isinstance(event, Progress):
            self.show(progress=event.done / event.total)
            return
        if not self.tokens:
            read = self._elastic.tokenizer.decode
            named = tuple((read([id], skip_special_tokens=True), p) for id, p in event.top)
            self.show(first_token_s=time.perf_counter() - self._began, candidates=named)
        self.starts.append(len(self.answer.text))
        self.tokens.append(replace(event, logits=None))
        if self._scorer is not None:
            self._scorer.add(event)
        elif self.is_full and len(self.logits) < LOGITS_KEPT:
            self.logits.append(event.logits)
        stats = self._stream.stats
        state = "done" if event.finished else "writing"
        self.show(
            state=state,
            progress=None,
            text=self.answer.text + event.text,
            tokens=len(self.tokens),
            cut=event.finished == "length",
            tokens_per_second=stats.tokens_per_second,
            cache_bytes=cache_nbytes(self._cache),
            spans=(*self.answer.spans, (self.starts[-1], len(event.text))),
            bits=(*self.answer.bits, *(event.reports[name] for name in [BITS] if name in event.reports)),
            written_s=stats.prefill_seconds + stats.decode_seconds,
        )
        self._read_each = stats.prefill_seconds / max(1, stats.prompt_tokens - stats.reused_tokens)
        if event.finished:
            self._end_writing()

    def _begin_scoring(self) -> None:
        elastic, keys = self._elastic, self.prompt
        self._scored = Conversation("full")
        if self._pool is not None and not self._shown:
            self._scored = self._pool.take(self._visitor, self._place + SIDES, "full")
        if self._shown:
            keys = keys.keys
        self._scorer = AnswerScorer(elastic.view(FULL), keys, self._scored, lambda: elastic.make_cache(FULL))

    @property
    def _shown(self) -> bool:
        """Whether the answer is about pictures: reading them again costs as much as answering."""
        return isinstance(self.prompt, VisualPrompt)

    def _score(self) -> bool:
        """Scores what can be; returns whether that took a step. Inside the gate."""
        scorer, answer = self._scorer, self.answer
        if scorer is None:
            return False
        ended, beside, done = answer.state == "done", self.beside, len(answer.scores)
        while beside and done < min(len(self.tokens), len(beside.logits)) and self._agrees(beside, done):
            self._told(scorer.known(beside.logits[done]))
            done += 1
        if ended and done == len(self.tokens):
            self._end_scoring()
            return False
        if ended and beside and beside.writing and done == len(beside.tokens) and self._agrees(beside, done):
            return False  # full precision is about to say what it says there
        each = answer.written_s / max(1, len(self.tokens))
        rate = min(self._read_each, each / AT_ONCE)  # of full precision, a guess until it has read something
        if self._scored_rows:
            rate = max(rate, answer.scored_s / self._scored_rows)
        left = self._scoring * answer.written_s - answer.scored_s - each
        most = PREFILL_CHUNK if self._scoring == math.inf else int(left / max(rate, 1e-9))
        # What comes before the answer is not read for the sake of no score.
        worth = most >= min(scorer.unread, scorer.before + PIECE) and not self._shown
        if scorer.due(ended) and worth:
            start, unread = time.perf_counter(), scorer.unread
            self._told(scorer.step(most))
            self._scored_rows += unread - scorer.unread
            self.show(scored_s=self.answer.scored_s + time.perf_counter() - start)
            return True
        if ended or len(self.tokens) - done >= LOGITS_KEPT:
            self.show(unscored="" if self._shown else UNSCORED)
            self._end_scoring()
        return False

    def _agrees(self, beside: _Writer, count: int) -> bool:
        return all(a.id == b.id for a, b in zip(self.tokens[:count], beside.tokens[:count], strict=True))

    def _told(self, scores: Sequence[TokenScore]) -> None:
        read = self._elastic.tokenizer.decode
        others = tuple(read([score.likeliest], skip_special_tokens=True) for score in scores)
        self.show(scores=(*self.answer.scores, *scores), others=(*self.answer.others, *others))

    def _fail(self, words: str) -> None:
        self.show(state="error", error=words, progress=None)
        self.close()


def _compare(writers: Sequence[_Writer]) -> tuple[int, Parting | None]:
    """How many first tokens all sides have in common, and where they part, as far as both are."""
    if len(writers) != 2:
        return 0, None
    left, right = writers
    pairs = list(zip(left.tokens, right.tokens, strict=False))
    index = next((i for i, (a, b) in enumerate(pairs) if a.id != b.id), None)
    if index is None:
        return len(pairs), None
    pieces = tuple(None if token.finished == "stop" else token.text for token in pairs[index])
    return index, Parting(index, pieces, (left.starts[index], right.starts[index]))
