"""Text: perplexity, and divergence from full precision, of a language model on the first tokens of a text.

What holds for English prose need not hold for code, another language or a chat: each of these is a task with
a small text of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from quept import zoo
from quept.data.windows import Windows, cut
from quept.evaluate.forward import Gate, MakeCache
from quept.evaluate.intervals import wilson
from quept.evaluate.reference import Reference, open_reference
from quept.evaluate.token_scores import Estimate, divergence, exp_capped
from quept.files import read_text
from quept.models.context import check_context, context_length

from .base import EvalTask, Metric

if TYPE_CHECKING:
    from quept.runtime import ElasticModel

DEFAULT_TEXT, TOKENS, CONTEXT = "boolq-passages", 4096, 512
FIRST = 64  # tokens that the first estimate is over: a sixth of the time of a window
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Sample:
    """The first `tokens` tokens of a text, in windows of `context`. title: for people; name: for files."""

    text: str
    title: str
    tokens: int = TOKENS
    context: int = CONTEXT
    name: str = ""

    @classmethod
    def read(
        cls,
        text: str = DEFAULT_TEXT,
        tokens: int = TOKENS,
        context: int = CONTEXT,
        progress: Progress | None = None,
    ) -> Sample:
        """Returns the sample of a built-in text or of a text file; ValueError where there is none."""
        if text in zoo.TEXTS:
            return cls(zoo.text(text, progress), zoo.TEXTS[text].title, tokens, context, text)
        if not Path(text).is_file():
            raise ValueError(f"no text {text!r}: give {', '.join(zoo.TEXTS)}, or the path of a text file")
        name = Path(text).name
        return cls(read_text(text), name, tokens, context, name)

    def windows(self, elastic: ElasticModel) -> Windows:
        """Returns them; ValueError where they pass the context, and for a model without a tokenizer."""
        tokenizer = elastic.tokenizer
        check_context(self.context, elastic)
        return cut(self.text, tokenizer, self.context, self.tokens)


class TextTask(EvalTask):
    """text: a `Sample`, or what `Sample.read` takes. built_in: the text of a task that has its own."""

    name, kind, models, unit = "text", "language", "language models", "tokens"
    result = Estimate
    options, amount = ("text", "tokens", "context"), "tokens"
    built_in: ClassVar[str] = ""

    @cached_property
    def sample(self) -> Sample:
        text = self.given.get("text")
        asked = {key: self.given[key] for key in (*self.options, "progress") if self.given.get(key)}
        if name := self.built_in:
            size = {key: asked[key] for key in ("tokens", "context") if key in asked}
            sample = Sample(self.text_named(name), zoo.TEXTS[name].title, name=name, **size)
        elif isinstance(text, Sample):
            sample = replace(text, tokens=asked.get("tokens", text.tokens))
        else:
            sample = Sample.read(**asked)
        if "context" in asked:
            return sample
        return replace(sample, context=min(sample.context, context_length(self.elastic) or sample.context))

    def text_named(self, name: str) -> str:
        """Returns the built-in text."""
        return zoo.text(name)

    @cached_property
    def windows(self) -> Windows:
        return self.sample.windows(self.elastic)

    @cached_property
    def reference(self) -> Reference:
        return self.reference_on(self.windows)

    def reference_on(self, windows: Windows) -> Reference:
        """Returns full precision's answers to other windows."""
        return open_reference(self.elastic, windows, self.cache)

    def windows_from(self, first: int, count: int) -> Windows:
        """Returns windows of the same text after those that are measured; ValueError where it ends before."""
        start, size = len(self.windows) + first, self.sample.context
        every = cut(self.sample.text, self.elastic.tokenizer, size, size * (start + count))
        if len(every) < start + count:
            raise ValueError(f"{self.sample.title} is too short to measure on other text than is shown")
        return Windows(every.ids[start : start + count])

    @property
    def id(self) -> str:
        return self.windows.id

    @property
    def total(self) -> int:
        return self.windows.scored

    @property
    def conditions(self) -> dict[str, Any]:
        windows, name = self.windows, self.sample.name or self.sample.title
        return {"text": name, "tokens": windows.ids.numel(), "context": windows.context}

    def describe(self) -> str:
        tokens = self.windows.ids.numel() if self.built_in else self.sample.tokens
        return f"{self.sample.title}, {tokens:,} tokens, context {self.sample.context}"

    def payloads(self, view: nn.Module, make_cache: MakeCache | None, gate: Gate) -> Iterator[Mapping]:
        for estimate in divergence(view, self.reference, self.windows, make_cache, gate, FIRST):
            yield self._of_all(estimate).to_dict()

    def _of_all(self, estimate: Estimate) -> Estimate:
        """The estimate with the perplexity that all windows are going to have: full precision's, which is
        known there, by what the plan changes on those that were read. Passages differ more than plans do, so
        that the perplexity of the first ones says little, and jumps."""
        if estimate.tokens == self.total or not (whole := self.reference.whole()):
            return estimate
        nll, error = whole
        ppl = exp_capped(nll + math.log(estimate.ppl_ratio))
        error = ppl * math.hypot(error, estimate.ppl_ratio_se / estimate.ppl_ratio)
        return replace(estimate, ppl=ppl, ppl_se=error, ppl_ref=exp_capped(nll))

    def metrics(self, payload: Mapping) -> tuple[Metric, ...]:
        ppl, kl, same, full, tail, paired = map(
            payload.get, ("ppl", "kl", "same_top", "ppl_ref", "kl_p99", "ppl_ratio_se")
        )
        tokens = payload.get("tokens")
        return (
            Metric(
                "ppl", "Perplexity", "Perplexity", ppl, "lower", *_around(payload, "ppl"), full=full,
                margin=None if paired is None else 2 * full * paired,
            ),
            Metric(
                "kl", "Mean KL", "Mean KL divergence from full precision", kl, "lower",
                *_around(payload, "kl"), unit="nats", full=0.0,
            ),
            Metric(
                "same_top", "Same top token", "Tokens with the same first choice as full precision", same,
                "higher", *((None, None) if same is None else wilson(round(same * tokens), tokens)),
                unit="share", full=1.0, note="" if tail is None else f"99% of tokens: KL under {tail:.3g}",
            ),
        )  # fmt: skip


class CodeTask(TextTask):
    """Perplexity and divergence on program code."""

    name, options, built_in = "code", ("tokens", "context"), "code"


class GermanTask(TextTask):
    """Perplexity and divergence in another language than most of what the model was trained on."""

    name, options, built_in = "german", ("tokens", "context"), "german"


class ChatTask(TextTask):
    """Perplexity and divergence on conversations in the model's own template."""

    name, options, built_in = "chats", ("tokens", "context"), "chats"

    @property
    def lacking(self) -> str:
        known = getattr(self.elastic.tokenizer, "chat_template", None)
        return "" if known else "this model has no chat template"

    def text_named(self, name: str) -> str:
        """The conversations one after the other, as the template writes them."""
        tell = partial(self.elastic.tokenizer.apply_chat_template, tokenize=False)
        return "".join(map(tell, zoo.chats(name)))


def _around(payload: Mapping, name: str) -> tuple[float | None, float | None]:
    value, error = payload.get(name), payload.get(f"{name}_se")
    return (None, None) if value is None or error is None else (value - error, value + error)
