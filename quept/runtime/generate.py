"""Text from a view, one forward step at a time.

`stream(view, tokenizer, messages, sampling)` checks and tokenises the conversation at once (or PromptError);
then every `next()` runs the model at most once, on at most 256 tokens: `Progress` while the prompt is read,
then a `Token` for each token of the answer, the last one with `finished` set. A caller can therefore take a
lock for each step, stop between two, and step several streams in turn. A stream owns its KV cache and its
random generator: the same seed gives the same text whatever runs beside it. Closing a stream, or dropping it,
frees its cache.

A token is drawn from softmax(logits / temperature), cut to the smallest set of most likely tokens whose
probability reaches top_p; temperature 0 takes the most likely one. `logprob` is the token's log-probability
under the model itself (temperature 1, nothing cut), so it can be compared between precisions. The texts of
the tokens join to exactly `tokenizer.decode(ids, skip_special_tokens=True,
clean_up_tokenization_spaces=False)`, what ends the answer left out, and none holds half a character. An
answer ends with a token, or, where the chat template ends a turn with a text that the tokenizer spells in
several ordinary ones, with that text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import takewhile

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.cache_utils import Cache

from quept.engines.reports import Reports
from quept.models.context import context_length

from .decode import OneToken, decoder_of
from .kvcache import make_cache as full_cache
from .prompt import check_fits, check_known, prompt_ids, turn_end
from .visual import VisualPrompt, VisualReader, shown, visual_prompt

PREFILL_CHUNK = 256
MAX_TOKENS = 4096
HEAD = 256  # tokens looked at before sorting the whole vocabulary for top_p


class GenerationError(RuntimeError):
    """The model cannot go on; the message is a sentence for the visitor."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_p in (0, 1]; max_tokens 1..4096; seed 0..2**63-1.

    Raises ValueError, naming the value."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self):
        _require_number("temperature", self.temperature)
        _require_number("top_p", self.top_p)
        _require_whole("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _require_whole("seed", self.seed, 0, 2**63 - 1)
        if self.temperature < 0:
            raise ValueError(
                f"temperature must be 0 (the most likely token) or more; got {self.temperature!r}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (keeps every token); got {self.top_p!r}")


def _require_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}")


def _require_whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}; got {value!r}")


@dataclass(frozen=True)
class Progress:
    """Part of the prompt has been read: `done` of `total` tokens. Carries no text."""

    done: int
    total: int
    text: str = ""
    finished: None = None


@dataclass(frozen=True)
class Token:
    """One token of the answer. `text` may be empty (a character is not complete yet); index counts from 0.

    finished: None, "stop" (the model ended its answer; this is its end token, and not part of the text) or
    "length" (max_tokens are out). top: (id, probability under the model itself) of the likeliest tokens in
    this place, if they were asked for. reports: what the layers said of the pass that gave this token, by
    name (see quept.engines.reports): "bits per token". logits (vocabulary,): what it was chosen from, if they
    were asked for."""

    id: int
    text: str
    index: int
    logprob: float
    finished: str | None = None
    top: tuple[tuple[int, float], ...] = ()
    reports: Mapping[str, float] = field(default_factory=dict)
    logits: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass
class Stats:
    """Counts and seconds of one stream. Compute is time in its own steps; wall includes what ran between."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, already in the conversation's cache
    tokens: int = 0
    time_to_first_token: float | None = None  # wall, from the first step
    prefill_seconds: float = 0.0  # compute, until the first token
    decode_seconds: float = 0.0  # compute, after it

    def count(self, event: Progress | Token, compute: float, wall: float) -> None:
        """Add one step: what it gave, its seconds, and the seconds since the stream's first step."""
        if isinstance(event, Token) and event.index:
            self.decode_seconds += compute
        else:
            self.prefill_seconds += compute
            if isinstance(event, Token):
                self.time_to_first_token = wall
        self.tokens += isinstance(event, Token)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second of this stream's own compute, without the first, which reading the prompt gave."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 else None


@dataclass
class Conversation:
    """The keys and values of a chat, kept from one answer to the next so that only new tokens are read.

    key: what they were computed with: PrecisionPlan.key, which knows the KV bits too. Give one to `stream`
    for every turn of a chat, and call `switch` when the plan changes: what was kept is dropped, and read anew
    at the new plan; or with keep=True it stays, and `mixed` says so until the next drop. A running stream has
    the cache on lease: a second one beside it starts from nothing."""

    key: str = ""
    ids: list[int] = field(default_factory=list)
    cache: Cache | None = None
    mixed: bool = False

    def switch(self, key: str, keep: bool = False) -> None:
        if key != self.key:
            self.key = key
            if keep and self.cache is not None:
                self.mixed = True
            else:
                self.drop()

    def drop(self) -> None:
        self.ids, self.cache, self.mixed = [], None, False

    def lease(self, prompt: list[int], cut: Callable[[int], int] = int) -> Lease:
        """The cache cut to the tokens it shares with the prompt, which keeps at least one token to read; cut:
        gives the first place from here on where the prompt may be parted."""
        cache, held, mixed = self.cache, self.ids, self.mixed
        self.drop()
        pairs = zip(held, prompt[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        shared = shared if shared and cut(shared) == shared else 0
        if 0 < shared < len(held):
            if cache.is_croppable and not any(cache.is_sliding):
                cache.crop(shared - len(held))
            else:  # what has left a window cannot come back
                shared = 0
        return Lease(self, self.key, cache if shared else None, shared, mixed and shared > 0)


@dataclass(frozen=True)
class Lease:
    """A conversation's cache while a stream runs: it holds `length` tokens of the prompt (None where 0)."""

    conversation: Conversation
    key: str
    cache: Cache | None
    length: int
    mixed: bool

    def give_back(self, ids: list[int], cache: Cache) -> None:
        """Keep the cache, which holds these tokens, for the next turn; not if the plan has been switched."""
        if self.conversation.key == self.key:
            kept = self.conversation
            kept.ids, kept.cache, kept.mixed = ids, cache, self.mixed


class Stream:
    """What `stream` returns: an iterator of Progress and Token, with `stats`, `prompt` (ids, or the keys of a
    VisualPrompt) and `close`."""

    def __init__(self, steps: Iterator[Progress | Token], prompt: list[int], stats: Stats):
        self._steps, self.prompt, self.stats = steps, prompt, stats
        self._closed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Progress | Token:
        try:
            return next(self._steps)
        finally:
            if self._closed:  # closed by another thread in the middle of this step
                self.close()

    def close(self) -> None:
        """Stop and free the cache; from any thread, any number of times. A step under way is the last."""
        self._closed = True
        with suppress(ValueError):  # a step is running in another thread, which closes when it is done
            self._steps.close()


def prepare(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Mapping]],
    system: str | None = None,
    processor: ProcessorMixin | None = None,
    pictures: Sequence[Image.Image] = (),
) -> list[list[int] | VisualPrompt]:
    """What `stream` reads of each of several conversations about the same pictures: the pictures, and
    conversations that are equal, are prepared once. PromptError with a sentence."""
    if processor is None:
        one = partial(prompt_ids, tokenizer, system=system)
    else:
        seen = cache(lambda: shown(processor, pictures))
        one = partial(visual_prompt, processor, pictures=pictures, system=system, seen=seen)
    made: list[list[int] | VisualPrompt] = []
    for i, messages in enumerate(conversations):
        first = conversations.index(messages)
        made.append(one(messages) if first == i else made[first])
    return made


def stream(
    view: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    sampling: Sampling | None = None,
    make_cache: Callable[[], Cache] | None = None,
    *,
    system: str | None = None,
    conversation: Conversation | None = None,
    processor: ProcessorMixin | None = None,
    pictures: Sequence[Image.Image] = (),
    prompt: list[int] | VisualPrompt | None = None,
    top: int = 0,
    fast: bool = False,
    logits: bool = False,
) -> Stream:
    """Answer the conversation with a view, one bounded step per `next()`; see the module for what a step is.

    messages: [{"role", "content"}, ...], the last one the user's. system: a system prompt; None leaves it to
    the template. make_cache: makes the KV cache (`lambda: elastic.make_cache(plan)`); full precision if None.
    conversation: reuse of this chat's cache; the caller keeps its key in step with the plan. processor: of a
    vision-language model, whose messages may hold `pictures` (see prompt). prompt: what `prepare` made of
    these messages, where it has been done. top: how many likeliest tokens each Token tells. fast: where one
    call reads a token (see decode), packed layers round their inputs to 8 bits. logits: whether a Token keeps
    those that it was chosen from. Raises PromptError here, and GenerationError while stepping."""
    sampling = sampling or Sampling()
    if prompt is None:
        (prompt,) = prepare(tokenizer, [messages], system, processor, pictures)
    visual = isinstance(prompt, VisualPrompt)
    ids, read = (prompt.keys, VisualReader(view, prompt)) if visual else (prompt, _Reader(view, fast))
    check_known(ids, view, tokenizer)
    check_fits(ids, context_length(view, tokenizer), sampling.max_tokens)
    stats = Stats(prompt_tokens=len(ids))
    make = make_cache or (lambda: full_cache(view.config))
    ends, until = end_tokens(view, processor or tokenizer), _Until(turn_end(processor or tokenizer)[1])
    asked = (top, logits)
    steps = _steps(read, tokenizer, ids, sampling, make, conversation, stats, ends, until, asked)
    return Stream(steps, ids, stats)


def _steps(
    read, tokenizer, ids, sampling, make_cache, conversation, stats, ends, until, asked
) -> Iterator[Progress | Token]:
    """The generator behind a Stream: one turn of the loop is one step. `fed` are the tokens in the cache;
    read(cache, more of them, how many are there) gives the logits after the last; asked: what a Token is to
    tell, (how many of the likeliest, whether the logits)."""
    top, kept = asked
    began = started = time.perf_counter()
    lease = conversation.lease(ids, read.cut) if conversation else None
    cache, shared = (lease.cache, lease.length) if lease and lease.length else (make_cache(), 0)
    stats.reused_tokens = shared
    fed, pending = ids[:shared], ids[shared:]
    text = _Detokeniser(tokenizer)
    generator = torch.Generator().manual_seed(sampling.seed)
    try:
        while True:
            many = len(pending) > PREFILL_CHUNK
            size = read.cut(len(fed) + PREFILL_CHUNK) - len(fed) if many else len(pending)
            chunk, pending = pending[:size], pending[size:]
            with Reports().listen() as found:
                logits = read(cache, chunk, len(fed))
            fed += chunk
            if pending:
                event = Progress(len(fed), len(ids))
            else:
                id, logprob = _choose(logits, sampling, generator)
                index = len(fed) - len(ids)
                finished = "stop" if id in ends else "length" if index + 1 == sampling.max_tokens else None
                piece = "" if finished == "stop" else text.add(id)
                piece = until.add(piece + text.flush() if finished else piece)
                finished = "stop" if until.reached else finished
                piece += until.held if finished else ""
                likeliest = _likeliest(logits, top) if top else ()
                details = (likeliest, found.last(), logits if kept else None)
                event = Token(id, piece, index, logprob, finished, *details)
                pending = [id]
            stats.count(event, time.perf_counter() - began, time.perf_counter() - started)
            yield event
            if event.finished:
                return
            began = time.perf_counter()
    except GeneratorExit:  # closed between two steps
        raise
    except BaseException:  # stopped inside one: the cache may be half written
        lease = None
        raise
    finally:
        if lease:
            lease.give_back(fed, cache)


class _Reader:
    """(cache, tokens, how many are there) -> logits after the last: a single token in one call, where the
    view's family allows it."""

    def __init__(self, view: PreTrainedModel, fast: bool):
        self._view, self._fast = view, fast

    @cached_property
    def _one(self) -> OneToken | None:
        decoder = decoder_of(self._view, self._fast)
        return decoder and OneToken(decoder)

    def cut(self, at: int) -> int:
        """Text may be parted anywhere."""
        return at

    @torch.inference_mode()
    def __call__(self, cache: Cache, chunk: list[int], start: int) -> Tensor:
        if len(chunk) == 1 and start and self._one:
            logits = self._one(cache, chunk[0], start)
            if logits is not None:
                return logits
        return _forward(self._view, cache, chunk, start)


@torch.inference_mode()
def _forward(view: PreTrainedModel, cache: Cache, chunk: list[int], start: int) -> Tensor:
    """Read a few tokens into the cache -> logits (vocabulary,) after the last of them, float32 on the CPU."""
    ids = torch.tensor([chunk], device=view.device)
    logits = view(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1).logits
    return logits[0, -1].float().cpu()


@torch.inference_mode()
def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[int, float]:
    """logits (vocabulary,) -> a token and its log-probability under the model itself."""
    total = float(logits.logsumexp(0))
    if not math.isfinite(total):
        raise GenerationError("The model's output is not finite at this precision: give it more bits.")
    if sampling.temperature == 0:
        id = int(logits.argmax())
    else:
        scaled = logits.double().sub_(logits.max()).div_(sampling.temperature)  # at most 0: cannot overflow
        id = _draw(scaled.softmax(0), sampling.top_p, generator)
    return id, float(logits[id]) - total


def _likeliest(logits: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    p, ids = logits.softmax(0).topk(min(count, len(logits)))
    return tuple(zip(ids.tolist(), p.tolist(), strict=True))


def _draw(p: Tensor, top_p: float, generator: torch.Generator) -> int:
    """A token from p (vocabulary,), cut to the smallest set of most likely tokens that reaches top_p."""
    if top_p == 1:
        order, mass = None, p.cumsum(0)
    else:
        likeliest, order = p.topk(min(HEAD, len(p)))
        if likeliest.sum() < top_p:
            likeliest, order = p.sort(descending=True)
        mass = likeliest.cumsum(0)
        mass = mass[: int(torch.searchsorted(mass, top_p)) + 1]
    drawn = torch.rand(1, generator=generator, dtype=torch.float64) * mass[-1]
    at = min(int(torch.searchsorted(mass, drawn, right=True)), len(mass) - 1)
    return at if order is None else int(order[at])


def end_tokens(view: PreTrainedModel, owner: PreTrainedTokenizerBase | ProcessorMixin) -> set[int]:
    """Ids that end an answer: of the generation config (one or a list), the config and the tokenizer, and
    what the chat template of `owner`, the tokenizer or processor, writes behind one."""
    ends, tokenizer = {turn_end(owner)[0]} - {None}, getattr(owner, "tokenizer", owner)
    for said in (getattr(view, "generation_config", None), view.config.get_text_config(), tokenizer):
        ids = getattr(said, "eos_token_id", None)
        ends.update(() if ids is None else [ids] if isinstance(ids, int) else ids)
    return ends


def spelled_end(owner: PreTrainedTokenizerBase | ProcessorMixin) -> set[int]:
    """The first token of a text that ends a turn where no token of its own does; empty where one does."""
    return set(getattr(owner, "tokenizer", owner).encode(turn_end(owner)[1], add_special_tokens=False)[:1])


class _Until:
    """Text up to a marker ("": all of it): what may be its beginning is `held` back."""

    def __init__(self, marker: str):
        self._marker, self.held, self.reached = marker, "", False

    def add(self, piece: str) -> str:
        text, self.held = self.held + piece, ""
        if not self._marker:
            return text
        before, self.reached = text.partition(self._marker)[0], self._marker in text
        if self.reached:
            return before
        longest = min(len(text), len(self._marker) - 1)
        at = next(n for n in range(longest, -1, -1) if self._marker.startswith(text[len(text) - n :]))
        self.held = text[len(text) - at :]
        return text[: len(text) - at]


class _Detokeniser:
    """Token ids in, the text each adds out; characters split over several tokens come with the last of them.

    How a token reads depends on those before it, so the tokens since the last but one piece are decoded again
    each time, and the new end of their text is the piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._shown = 0  # the window begins at _start; the text of _ids[:_shown] is out

    def add(self, id: int) -> str:
        self._ids.append(id)
        return "" if self._text(len(self._ids)).endswith("\ufffd") else self.flush()

    def flush(self) -> str:
        """Whatever is held back, broken or not."""
        piece = self._text(len(self._ids))[len(self._text(self._shown)) :]
        if piece:
            self._start, self._shown = self._shown, len(self._ids)
        return piece

    def _text(self, end: int) -> str:
        window = self._ids[self._start : end]
        return self._tokenizer.decode(window, skip_special_tokens=True, clean_up_tokenization_spaces=False)
