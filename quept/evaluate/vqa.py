"""How well a vision-language model at some precision still answers: questions about pictures through it,
batch by batch, next to what full precision answers.

    full, cache = elastic.full_precision, cache_dir() / "reference"
    reference = VqaReference.open(elastic.base_identity, questions, full, cache)
    for estimate in vqa(elastic.view(plan), questions, reference):
        ...                                        # one VqaEstimate per batch, stop any time

A model reads the question and then the answer of the data, token by token. At every token of the answer, and
where it ends, its most likely token shows what greedy generation would say there, as long as all before was
the answer's. So, per question, exactly as if each answer were generated:

    right = every token is the answer's, and then it ends      top1: its share, with Wilson's 95 % interval
    same  = both models are right, or say the same first       same_top: its share, likewise
            token, in the same place, that is not the answer's
    kl    = sum_t p_t (log p_t - log q_t), mean over the answer's tokens and its end; p: full precision

What quantization did to the accuracy is far better known than the accuracy itself, since both models see the
same questions: `lost` ones became wrong and `gained` ones right, and nothing else changed. Names are those
of AccuracyEstimate where they mean the same.

A picture is read into the KV cache once for all questions about it; each row of the cache then reads one
question. Causal attention makes that the same as asking one by one. Full precision's answers are kept in one
file a batch: log-probabilities (tokens, vocabulary) float16, most likely tokens (tokens,) and the numbers of
the questions; in the folder, and within its limit, of the other references.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import LongTensor, Tensor, nn

from quept.data.images import ImageError
from quept.data.questions import Batch, Prepared, Questions
from quept.models import FAMILIES
from quept.models.layout import family_of
from quept.models.multimodal import language_inputs
from quept.runtime.generate import end_tokens
from quept.runtime.kvcache import make_cache as full_cache

from .accuracy import compared
from .forward import Gate, MakeCache, NonFiniteLogits
from .reference import LIMIT, keep, kept_batch
from .results import read_as


@dataclass(frozen=True)
class TypeChange:
    """Of the questions of one type: how many, how many full precision has right, how many the model, and to
    how many the two say different things."""

    questions: int
    right_ref: int
    right: int
    changed: int


@dataclass(frozen=True)
class VqaEstimate:
    """What `questions` of them say, in finite numbers; the pictures of `skipped` ones could not be read.
    types: by the type of the question, those that occurred. `seconds` is wall time, waiting and reading
    included."""

    questions: int
    skipped: int
    top1: float
    top1_low: float
    top1_high: float
    top1_ref: float
    lost: int
    gained: int
    same_top: float
    same_top_low: float
    same_top_high: float
    kl: float
    kl_se: float
    seconds: float
    types: Mapping[str, TypeChange] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """As JSON; `tokens`, by which the results store compares two measurements, is the questions'
        number."""
        return asdict(self) | {"tokens": self.questions}

    @classmethod
    def from_dict(cls, data: Mapping) -> VqaEstimate:
        """Inverse of `to_dict`, see `read_as`."""
        return read_as(cls, data)


@dataclass(frozen=True)
class Told:
    """What a model says where the tokens of a batch's answers, and their ends, belong. log_probs (tokens,
    vocabulary), top (tokens,): the most likely of each."""

    log_probs: Tensor
    top: LongTensor


@dataclass(frozen=True)
class VqaReference:
    """What full precision says to a set of questions. Use `VqaReference.open`. Safe to share."""

    questions: Questions
    model: Callable[[], nn.Module]
    folder: Path
    limit: int = LIMIT

    @classmethod
    def open(
        cls,
        identity: str,
        questions: Questions,
        model: Callable[[], nn.Module],
        cache: Path,
        limit: int = LIMIT,
    ) -> VqaReference:
        """The reference of the model of this identity, kept under `cache` (normally `cache_dir() /
        "reference"`).
        `model` gives full precision (`elastic.full_precision`); it is called only for batches that are not
        on disk."""
        return cls(questions, model, Path(cache) / f"{identity}-{questions.id}", limit)

    def told(self, number: int, batch: Batch, gate: Gate = nullcontext) -> Told:
        """For batch `number`, on the CPU. Where it must be computed, `gate` is held."""
        path = self.folder / f"batch-{number:05d}.safetensors"
        if kept := kept_batch(path, batch.rows):
            return Told(kept["log_probs"].float(), kept["top"])
        with gate():
            told = _told(self.model(), batch, None)
        if not told.log_probs.isfinite().all():
            raise NonFiniteLogits("full precision's logits are not finite: the model's weights are damaged")
        log_probs = told.log_probs.clamp(min=torch.finfo(torch.float16).min).half()
        keep(path, {"rows": batch.rows, "log_probs": log_probs, "top": told.top}, self.limit)
        return Told(log_probs.float(), told.top)


def vqa(
    model: nn.Module,
    questions: Questions,
    reference: VqaReference,
    make_cache: MakeCache | None = None,
    gate: Gate = nullcontext,
) -> Iterator[VqaEstimate]:
    """One estimate after every batch, over all questions so far; the last one covers them all.

    make_cache gives an empty KV cache, for plans that quantize it (`lambda: elastic.make_cache(plan)`). Each
    batch is prepared, then goes through the model with `gate()` held (a fair lock of the caller's; do not
    hold it around this generator yourself), after one more turn where the reference does not have it yet.
    Raises NonFiniteLogits when the model answers NaN or infinity, ImageError when no picture can be read."""
    if questions.id != reference.questions.id:
        raise ValueError("these questions are not the reference's: open it with those you measure on")
    start = time.perf_counter()
    ends = end_tokens(model, questions.processor.tokenizer)
    scores: list[Tensor] = []
    skipped = 0
    for number in range(questions.batches):
        batch = questions.batch(number)
        skipped += batch.skipped
        if not batch.groups:
            continue
        expected = reference.told(number, batch, gate)
        with gate():
            told = _told(model, batch, make_cache)
        if not told.log_probs.isfinite().all():
            raise NonFiniteLogits(
                f"the model's logits are not finite for question {batch.rows[0].item()} or one of the "
                f"{len(batch.rows)} from there: try more bits, or float32 instead of a half precision"
            )
        scores.append(_scores(told, expected, batch, ends))
        yield _summary(torch.cat(scores, 1), questions.kinds, skipped, time.perf_counter() - start)
    if not scores:
        raise ImageError(f"none of the pictures of {questions.name} can be read")


@torch.inference_mode()
def answer_logits(model: nn.Module, group: Prepared, make_cache: MakeCache | None = None) -> Tensor:
    """Logits (tokens, vocabulary) float32 in the places of the answers' tokens and of each answer's end,
    question by question."""
    family = FAMILIES[family_of(model.config.model_type)]
    words = model.get_input_embeddings()
    device, dtype = words.weight.device, words.weight.dtype
    language, seen = model.get_submodule(family.language), group.seen
    given = {
        name: t.to(device, dtype if t.is_floating_point() else None)
        for name, t in group.prompt.inputs.items()
    }
    found = language_inputs(model, family.language, given)
    embeds, positions = found["inputs_embeds"][:, :seen], found.get("position_ids")
    cache = make_cache() if make_cache else full_cache(model.config)
    read = partial(language, past_key_values=cache, use_cache=True)
    positions = None if positions is None else positions[..., :seen]
    read(inputs_embeds=embeds, position_ids=positions)
    cache.batch_repeat_interleave(len(group.asked))

    tokens = [torch.tensor([*asked.tokens, *asked.answer]) for asked in group.asked]
    padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device)  # behind, where nobody looks
    if positions is not None:  # of words: one after the other, on all axes
        steps = positions.max() + 1 + torch.arange(padded.shape[1], device=device)
        positions = steps.expand(len(positions), *padded.shape)
    hidden = read(inputs_embeds=words(padded), position_ids=positions).last_hidden_state
    speaks = [slice(len(asked.tokens) - 1, len(asked.tokens) + len(asked.answer)) for asked in group.asked]
    spoken = torch.cat([row[places] for row, places in zip(hidden, speaks, strict=True)])
    return model.get_submodule(family.head)(spoken).float()


def _told(model: nn.Module, batch: Batch, make_cache: MakeCache | None) -> Told:
    logits = torch.cat([answer_logits(model, group, make_cache) for group in batch.groups])
    return Told(logits.log_softmax(-1).cpu(), logits.argmax(-1).cpu())


def _scores(told: Told, expected: Told, batch: Batch, ends: set[int]) -> Tensor:
    """(5, questions) float64: number, whether full precision is right, whether the model is, whether they say
    the same, kl."""
    p = expected.log_probs.double()
    kl = (p.softmax(-1) * (p.log_softmax(-1) - told.log_probs.double())).sum(-1)
    columns, start = [], 0
    for asked in (asked for group in batch.groups for asked in group.asked):
        places = slice(start, start + len(asked.answer) + 1)
        theirs, ours = (_wrong(top[places].tolist(), asked.answer, ends) for top in (expected.top, told.top))
        columns.append((asked.row, theirs is None, ours is None, theirs == ours, kl[places].mean().item()))
        start = places.stop
    return torch.tensor(columns, dtype=torch.float64).T


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
