"""Questions about pictures: how well a vision-language model at some precision still answers, batch by batch,
next to what full precision answers.

A model reads the question and then the answer of the data, token by token. At every token of the answer, and
where it ends, its most likely token shows what greedy generation would say there, as long as all before was
the answer's. So, per question, exactly as if each answer were generated:

    right = every token is the answer's, and then it ends      top1: its share, with Wilson's 95 % interval
    same  = both models are right, or say the same first       same_top: its share, likewise
            token, in the same place, that is not the answer's
    kl    = sum_t p_t (log p_t - log q_t), mean over the answer's tokens and its end; p: full precision

A picture is read into the KV cache once for all questions about it; each row of the cache then reads one
question. Causal attention makes that the same as asking one by one. Full precision's answers are kept in one
file a batch: log-probabilities (tokens, vocabulary) float16, most likely tokens (tokens,) and the numbers of
the questions; in the folder, and within its limit, of the other references.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from quept.data.questions import Asked, Batch, Prepared, Questions, question_folder, stored_questions
from quept.evaluate.forward import Gate, MakeCache
from quept.evaluate.reference import BatchReference, open_reference
from quept.models import FAMILIES
from quept.models.behind import head_of
from quept.models.context import check_context
from quept.models.layout import family_of
from quept.models.multimodal import Entered, language_inputs
from quept.runtime.generate import end_tokens, spelled_end
from quept.runtime.kvcache import make_cache as full_cache

from .agreement import Agreement, accuracy_metrics, batches, compared, finite
from .base import EvalTask, Metric

if TYPE_CHECKING:
    from quept.runtime import ElasticModel


@dataclass(frozen=True)
class TypeChange:
    """Of the questions of one type: how many, how many full precision has right, how many the model, and to
    how many the two say different things."""

    questions: int
    right_ref: int
    right: int
    changed: int


@dataclass(frozen=True, kw_only=True)
class VqaEstimate(Agreement):
    """What `questions` of them say, in finite numbers. types: by the type of the question, those that
    occurred."""

    questions: int
    types: Mapping[str, TypeChange] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Returns it as JSON; `tokens`, by which the results store compares two measurements, is the
        questions' number."""
        return asdict(self) | {"tokens": self.questions}


def vqa_reference(elastic: ElasticModel, questions: Questions, cache: Path | None = None) -> BatchReference:
    """Returns full precision's answer log-probs for a set of questions; cache: see `open_reference`."""

    def compute(batch: Batch) -> dict[str, Tensor]:
        with torch.inference_mode():
            found = finite(_answer_log_probs(elastic.full_precision(), batch, None))
        lowest = torch.finfo(torch.float16).min
        return found | {"log_probs": found["log_probs"].clamp(min=lowest).half()}

    return open_reference(elastic, questions, cache, compute)


def vqa(
    model: nn.Module,
    questions: Questions,
    reference: BatchReference,
    make_cache: MakeCache | None = None,
    gate: Gate = nullcontext,
) -> Iterator[VqaEstimate]:
    """Yields an estimate after every batch, over all questions so far; the last one covers them all.

    make_cache gives an empty KV cache, for plans that quantize it (`lambda: elastic.make_cache(plan)`). Each
    batch is prepared, then goes through the model, both with `gate()` held (a fair lock of the caller's; do
    not hold it around this generator yourself), after one more turn where the reference does not have it yet.
    Errors are those of `batches`."""
    start = time.perf_counter()
    ends = end_tokens(model, questions.processor) | spelled_end(questions.processor)
    scores: list[Tensor] = []
    answers = torch.inference_mode()(partial(_answer_log_probs, model, make_cache=make_cache))
    for batch, expected, found, skipped in batches("question", questions, reference, model, answers, gate):
        scores.append(_scores(found, expected, batch, ends))
        yield _summary(torch.cat(scores, 1), questions.kinds, skipped, time.perf_counter() - start)


class VqaTask(EvalTask):
    """data: a folder with pictures and pairs.json, or a file as `save_questions` writes it; questions: how
    many. Without data those that lie beside the model's weights, all of them."""

    name, kind, models, unit = "vqa", "vision-language", "vision-language models", "questions"
    result = VqaEstimate
    options, amount = ("data", "questions"), "questions"

    @property
    def lacking(self) -> str:
        ready = self.elastic.questions or self.given.get("data")
        return "" if ready else "no questions with answers lie beside this model"

    @cached_property
    def questions(self) -> Questions:
        elastic, (data, count) = self.elastic, map(self.given.get, self.options)
        if data and not Path(data).is_file():
            return question_folder(Path(data), elastic.processor, count)
        if data or elastic.questions:
            return stored_questions(data or elastic.questions, elastic.processor, count)
        raise ValueError(
            f"{elastic.title} comes without questions: give --data FOLDER, which holds pictures and "
            "pairs.json"
        )

    @cached_property
    def reference(self) -> BatchReference:
        return vqa_reference(self.elastic, self.questions, self.cache)

    @property
    def id(self) -> str:
        return self.questions.id

    @property
    def total(self) -> int:
        return len(self.questions)

    @property
    def conditions(self) -> dict[str, Any]:
        return {"data": self.questions.name, "questions": self.total}

    def payloads(self, view: nn.Module, make_cache: MakeCache | None, gate: Gate) -> Iterator[Mapping]:
        for estimate in vqa(view, self.questions, self.reference, make_cache, gate):
            yield estimate.to_dict()

    def divergences(self, model: nn.Module) -> Iterator[Tensor]:
        answers = partial(_answer_log_probs, model, make_cache=lambda: DynamicCache(config=model.config))
        for batch, expected, found, _ in batches(
            "question", self.questions, self.reference, model, answers, nullcontext
        ):
            yield torch.stack([kl.mean() for kl in _divergence(expected, found).split(_lengths(batch))])

    def metrics(self, payload: Mapping) -> tuple[Metric, ...]:
        found = [
            f"{name} {_percent(t['right'], t)}"
            + ("" if t["right"] == t["right_ref"] else f" (full {_percent(t['right_ref'], t)})")
            for name, t in payload.get("types", {}).items()
        ]
        return accuracy_metrics(payload, "By type: " + " · ".join(found) if found else "")


def _percent(right: int, of: Mapping[str, int]) -> str:
    return f"{100 * right / of['questions']:.1f}%"


def answer_logits(model: nn.Module, group: Prepared, make_cache: MakeCache | None = None) -> Tensor:
    """Logits (tokens, vocabulary) float32 in the places of the answers' tokens and of each answer's end,
    question by question."""
    language = FAMILIES[family_of(model.config.model_type)].language
    head, seen = head_of(model, language), group.seen
    entered = _entered(model, language, group.prompt.inputs)
    if entered.cut(seen) != seen:  # what is seen depends on the question: each is read by itself
        return torch.cat(
            [head(_by_itself(model, language, group, asked, make_cache)) for asked in group.asked]
        )
    cache = make_cache() if make_cache else full_cache(model.config)
    read = partial(model.get_submodule(language), cache=cache, use_cache=True)
    read(**entered.part(0, seen, cache))
    cache.batch_repeat_interleave(len(group.asked))

    tokens = [torch.tensor([*asked.tokens, *asked.answer]) for asked in group.asked]
    padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)  # behind, where nobody looks
    words = model.get_input_embeddings()(padded.to(model.device))
    hidden = read(**entered.behind(words, seen)).last_hidden_state
    places = [slice(len(asked.tokens) - 1, len(asked.tokens) + len(asked.answer)) for asked in group.asked]
    return head(torch.cat([row[at] for row, at in zip(hidden, places, strict=True)])).float()


def _by_itself(
    model: nn.Module, language: str, group: Prepared, asked: Asked, make_cache: MakeCache | None
) -> Tensor:
    """Hidden states (tokens, hidden) of one question, for `answer_logits`."""
    ids, tokens = group.prompt.inputs["input_ids"], torch.tensor([asked.tokens])
    inputs = {
        name: torch.cat([t[:, : group.seen], fill.expand_as(tokens)], 1) if t.shape == ids.shape else t
        for name, t in group.prompt.inputs.items()
        for fill in [tokens if name == "input_ids" else t[:, -1:]]
    }
    entered = _entered(model, language, inputs)
    cache = make_cache() if make_cache else full_cache(model.config)
    read = partial(model.get_submodule(language), cache=cache, use_cache=True)
    found = [read(**entered.part(0, entered.tokens, cache)).last_hidden_state[0, -1:]]
    for place, token in enumerate(asked.answer, entered.tokens):  # of two together each would see the other
        word = model.get_input_embeddings()(torch.tensor([[token]], device=model.device))
        found.append(read(**entered.behind(word, place)).last_hidden_state[0])
    return torch.cat(found)


def _entered(model: nn.Module, language: str, inputs: Mapping[str, Tensor]) -> Entered:
    dtype = model.dtype
    given = {name: t.to(model.device, dtype if t.is_floating_point() else None) for name, t in inputs.items()}
    return Entered(language_inputs(model, language, given), model.config)


def _answer_log_probs(model: nn.Module, batch: Batch, make_cache: MakeCache | None) -> dict[str, Tensor]:
    """What a model says where the tokens of a batch's answers, and their ends, belong: log_probs (tokens,
    vocabulary), top (tokens,), the most likely of each."""
    for group in batch.groups:
        answer = max(len(asked.answer) for asked in group.asked)
        check_context(group.prompt.inputs["input_ids"].shape[-1] + answer, model)
    logits = torch.cat([answer_logits(model, group, make_cache) for group in batch.groups])
    return {"log_probs": logits.log_softmax(-1).cpu(), "top": logits.argmax(-1).cpu()}


def _scores(found: Mapping, expected: Mapping, batch: Batch, ends: set[int]) -> Tensor:
    """(5, questions) float64: number, whether full precision is right, whether the model is, whether they say
    the same, kl."""
    kl = _divergence(expected, found)
    columns, start = [], 0
    for asked, length in zip(_asked(batch), _lengths(batch), strict=True):
        places = slice(start, start + length)
        theirs, ours = (
            _wrong(top[places].tolist(), asked.answer, ends) for top in (expected["top"], found["top"])
        )
        columns.append((asked.row, theirs is None, ours is None, theirs == ours, kl[places].mean().item()))
        start = places.stop
    return torch.tensor(columns, dtype=torch.float64).T


def _divergence(expected: Mapping, found: Mapping) -> Tensor:
    """KL at every token (tokens,) float64."""
    p = expected["log_probs"].double()
    return (p.softmax(-1) * (p.log_softmax(-1) - found["log_probs"].double())).sum(-1)


def _asked(batch: Batch) -> list[Asked]:
    return [asked for group in batch.groups for asked in group.asked]


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each question's answer, its end among them."""
    return [len(asked.answer) + 1 for asked in _asked(batch)]


def _wrong(top: Sequence[int], answer: Sequence[int], ends: set[int]) -> tuple[int, int] | None:
    """(place, token) of the first token that is not the answer's; None for the whole answer."""
    for place, (said, right) in enumerate(zip(top, answer, strict=False)):
        if said != right:
            return place, said
    return None if top[-1] in ends else (len(answer), top[-1])


def _summary(scores: Tensor, kinds: Sequence[str], skipped: int, seconds: float) -> VqaEstimate:
    right_ref, right, same = scores[1:4].bool()
    counted: dict[str, list[list[bool]]] = {}
    for row, *facts in scores[:4].T.tolist():
        counted.setdefault(kinds[int(row)], []).append([True, bool(facts[0]), bool(facts[1]), not facts[2]])
    return VqaEstimate(
        questions=len(right),
        skipped=skipped,
        seconds=seconds,
        types={
            kind: TypeChange(*map(sum, zip(*facts, strict=True))) for kind, facts in sorted(counted.items())
        },
        **compared(right_ref, right, same, scores[4]),
    )
