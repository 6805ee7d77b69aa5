"""Multiple choice and cloze: how well a language model at some precision still answers, window by window,
next to what full precision answers.

Scored as lm-evaluation-harness does it. With l_a the summed log-probability of answer a's tokens behind its
context and n_a the answer's bytes in UTF-8, per item:

    right      = the right answer has the largest l_a            acc: its share, with Wilson's 95 % interval
    right_norm = the right answer has the largest l_a / n_a      acc_norm: its share, likewise
    p_right    = softmax of l at the right answer                its mean change from full precision, paired
    same       = both models choose the same answer              same_answer: its share; a flip where not

A cloze has one answer: it is right where every token of it is the most likely one, and its probability is
exp(l). Accuracy of a small model says little, since much of it is chance; the change is far better known,
because both models answer the same items: `lost` ones became wrong, `gained` ones right, and McNemar's
interval of the difference is made of these two alone. p_right moves long before answers do.

Full precision's log-probabilities are kept in one small file a window, in the folder, and within its limit,
of the other references.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quept import zoo
from quept.data.choices import Batch, Choices, Item, built_in, choice_file
from quept.evaluate.forward import Gate, MakeCache, device_of
from quept.evaluate.intervals import mean_and_error, wilson
from quept.evaluate.reference import BatchReference, open_reference
from quept.models.context import context_length

from .agreement import Agreement, batches, compared, finite
from .base import EvalTask, Metric

if TYPE_CHECKING:
    from quept.runtime import ElasticModel

DEFAULT = ("sciq", "arc-easy", "piqa", "hellaswag", "lambada")  # where 135M parameters are well above chance
ITEMS = 400


@dataclass(frozen=True)
class SetChange:
    """Of the items of one set: how many, how many full precision has right, how many the model, how many
    answers differ, and how many would be right by chance."""

    items: int
    right_ref: int
    right: int
    flips: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class ChoiceEstimate(Agreement):
    """What `items` of them say, in finite numbers. norm, norm_ref: shares that are right by log-probability a
    byte; p_right, p_right_ref: mean probability of the right answer; p_change, p_change_se: its mean change,
    paired. sets: by the name of the set."""

    items: int
    norm: float
    norm_ref: float
    p_right: float
    p_right_ref: float
    p_change: float
    p_change_se: float
    sets: Mapping[str, SetChange] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Returns it as JSON; `tokens`, by which the results store compares two measurements, is the items'
        number."""
        return asdict(self) | {"tokens": self.items}


@torch.inference_mode()
def answer_log_probs(
    model: nn.Module, batch: Batch, make_cache: MakeCache | None = None
) -> dict[str, Tensor]:
    """Returns what a language model says of each answer of a window: log_probs (C,) float32, summed over its
    tokens, and greedy (C,) bool, whether each of them is the most likely one."""
    device = device_of(model)
    dtype = model.get_input_embeddings().weight.dtype
    seen = batch.visible().to(device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
    places, index = batch.place.unique(return_inverse=True)
    cache = {"use_cache": False} if make_cache is None else {"cache": make_cache(), "use_cache": True}
    logits = model(
        input_ids=batch.ids[None].to(device),
        position_ids=batch.positions[None].to(device),
        attention_mask=mask[None, None],
        logits_to_keep=places.to(device),
        **cache,
    ).logits[0]
    found = logits.float().log_softmax(-1).cpu()
    said = found[index, batch.target]
    most = found.argmax(-1)[index] == batch.target
    answers = sum(batch.counts)
    missed = torch.zeros(answers, dtype=torch.int64).index_add_(0, batch.owner, (~most).long())
    log_probs = torch.zeros(answers, dtype=torch.float32).index_add_(0, batch.owner, said)
    return {"log_probs": log_probs, "greedy": missed == 0}


def choice_reference(elastic: ElasticModel, choices: Choices, cache: Path | None = None) -> BatchReference:
    """Returns full precision's answers to a set of items; cache: see `open_reference`."""

    def compute(batch: Batch) -> dict[str, Tensor]:
        return finite(answer_log_probs(elastic.full_precision(), batch))

    return open_reference(elastic, choices, cache, compute)


def choice(
    model: nn.Module,
    choices: Choices,
    reference: BatchReference,
    make_cache: MakeCache | None = None,
    gate: Gate = nullcontext,
) -> Iterator[ChoiceEstimate]:
    """Yields an estimate after every window, over all items so far; the last one covers them all.

    make_cache gives an empty KV cache, for plans that quantize it. Each window goes through the model with
    `gate()` held (a fair lock of the caller's; do not hold it around this generator yourself), after one more
    turn where the reference does not have it yet. Errors are those of `batches`."""
    start = time.perf_counter()
    scores: list[Tensor] = []

    def answers(batch: Batch) -> dict[str, Tensor]:
        return answer_log_probs(model, batch, make_cache)

    for batch, expected, found, _ in batches("question", choices, reference, model, answers, gate):
        items = [choices.items[row] for row in batch.rows.tolist()]
        scores.append(_scores(items, batch.counts, expected, found))
        yield _summary(torch.cat(scores, 1), choices.items, time.perf_counter() - start)


class ChoiceTask(EvalTask):
    """choices: names of built-in sets with commas between, or a file of items (see `quept.data.choices`);
    items: how many of them."""

    name, kind, models, unit = "choice", "language", "language models", "questions"
    result = ChoiceEstimate
    options, amount = ("choices", "items"), "items"
    headline = "acc"

    @cached_property
    def choices(self) -> Choices:
        asked, most = self.given.get("choices"), self.given.get("items") or ITEMS
        if asked and Path(asked).is_file():
            name, items = Path(asked).name, choice_file(Path(asked))[:most]
        else:
            names = tuple(filter(None, (name.strip() for name in (asked or ",".join(DEFAULT)).split(","))))
            if unknown := [name for name in names if name not in zoo.CHOICES] or not names:
                raise ValueError(
                    f"no questions {unknown[0] if names else asked!r}: give one or more of "
                    f"{', '.join(zoo.CHOICES)}, or the path of a file"
                )
            name, items = ", ".join(names), built_in(names, most, self.given.get("progress"))
        return Choices.of(items, name, self.elastic.tokenizer, context_length(self.elastic))

    @cached_property
    def reference(self) -> BatchReference:
        return choice_reference(self.elastic, self.choices, self.cache)

    @property
    def id(self) -> str:
        return self.choices.id

    @property
    def total(self) -> int:
        return len(self.choices)

    @property
    def conditions(self) -> dict[str, Any]:
        return {"data": self.choices.name, "items": self.total}

    def payloads(self, view: nn.Module, make_cache: MakeCache | None, gate: Gate) -> Iterator[Mapping]:
        for estimate in choice(view, self.choices, self.reference, make_cache, gate):
            yield estimate.to_dict()

    def metrics(self, payload: Mapping) -> tuple[Metric, ...]:
        get, known = payload.get, bool(payload)
        n, lost, gained, same, change, error = map(
            get, ("tokens", "lost", "gained", "same_top", "p_change", "p_change_se")
        )
        return (
            Metric(
                "acc", "Accuracy", "Accuracy: right answers by log-probability", get("top1"), "higher",
                get("top1_low"), get("top1_high"), unit="share", full=get("top1_ref"),
                margin=mcnemar(lost, gained, n) if known else None,
                note=f"{lost:,} became wrong, {gained:,} right" if known else "",
                detail=_by_set(get("sets", {})),
            ),
            Metric(
                "acc_norm", "Accuracy by bytes", "Accuracy: right answers by log-probability a byte",
                get("norm"), "higher", *(wilson(round(get("norm") * n), n) if known else (None, None)),
                unit="share", full=get("norm_ref"),
            ),
            Metric(
                "p_right", "Right answer's probability",
                "Mean change in the probability of the right answer, from full precision", change, "higher",
                change - error if known else None, change + error if known else None, full=0.0,
                margin=2 * error if known else None,
            ),
            Metric(
                "same_answer", "Same answer", "Same answer as full precision", same, "higher",
                get("same_top_low"), get("same_top_high"), unit="share", full=1.0,
                note=f"{round((1 - same) * n):,} of {n:,} flipped" if known else "",
            ),
        )  # fmt: skip


def mcnemar(lost: int, gained: int, n: int) -> float:
    """Returns half the 95 % interval of the paired difference of two shares of n: of the items that changed
    sides alone (McNemar 1947, with Wald's variance)."""
    return 1.96 * math.sqrt(max(0.0, lost + gained - (lost - gained) ** 2 / n)) / n


def _by_set(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """Each set's accuracy, and where full precision itself is hardly above chance."""
    found = []
    for name, of in sets.items():
        n, p = of["items"], of["chance"] / of["items"]
        near = of["right_ref"] / n < p + 2 * math.sqrt(p * (1 - p) / n)
        full = "" if of["right"] == of["right_ref"] else f" (full {100 * of['right_ref'] / n:.0f} %)"
        found.append(f"{name} {100 * of['right'] / n:.0f} %{full}{', near chance' if near else ''}")
    return "By set: " + " · ".join(found) if found else ""


def _scores(items: Sequence[Item], counts: Sequence[int], expected: Mapping, found: Mapping) -> Tensor:
    """(9, items) float64: number in the batch's order is the column; rows: whether full precision is right,
    whether the model is, whether they choose the same, both by bytes, the right answer's probability under
    both, the divergence of the choice, and chance."""
    columns, start = [], 0
    for item, count in zip(items, counts, strict=True):
        places = slice(start, start + count)
        p, q = (
            _answered(item, said["log_probs"][places], said["greedy"][places]) for said in (expected, found)
        )
        kl = sum(
            a * (math.log(a) - math.log(max(b, 1e-30))) for a, b in zip(p[3], q[3], strict=True) if a > 0
        )
        right = [one[0] == item.right for one in (p, q)]
        norm = [one[1] == item.right for one in (p, q)]
        chance = 1 / count if count > 1 else 0.0
        columns.append((*right, p[0] == q[0], *norm, p[2], q[2], kl, chance))
        start = places.stop
    return torch.tensor(columns, dtype=torch.float64).T


def _answered(item: Item, log_probs: Tensor, greedy: Tensor) -> tuple[int, int, float, list[float]]:
    """The chosen answer, the chosen one by bytes, the right one's probability, and all of them. Of a cloze
    the answer that is chosen is 0 where it is said, else -1, and its probabilities are of said and not."""
    log_probs = log_probs.double()
    if len(item.pairs) == 1:
        said, p = (0 if greedy.item() else -1), log_probs.exp().item()
        return said, said, p, [p, 1 - p]
    nbytes = torch.tensor([max(1, len(said.strip().encode())) for _, said in item.pairs])
    shares = log_probs.softmax(0).tolist()
    chosen, normed = log_probs.argmax().item(), (log_probs / nbytes).argmax().item()
    return chosen, normed, shares[item.right], shares


def _summary(scores: Tensor, items: Sequence[Item], seconds: float) -> ChoiceEstimate:
    right_ref, right, same, norm_ref, norm = scores[:5].bool()
    change, error = mean_and_error(scores[6] - scores[5])
    kinds: dict[str, list[Tensor]] = {}
    for item, column in zip(items, scores.T, strict=False):
        kinds.setdefault(item.kind, []).append(column)
    sets = {}
    for kind, columns in kinds.items():
        of = torch.stack(columns, 1)
        counted = [int(x) for x in (of[0].sum(), of[1].sum(), (1 - of[2]).sum())]
        sets[kind] = SetChange(len(columns), *counted, round(of[8].sum().item(), 6))
    return ChoiceEstimate(
        items=len(right),
        skipped=0,
        seconds=seconds,
        norm=norm.double().mean().item(),
        norm_ref=norm_ref.double().mean().item(),
        p_right=scores[6].mean().item(),
        p_right_ref=scores[5].mean().item(),
        p_change=change,
        p_change_se=error,
        sets=sets,
        **compared(right_ref, right, same, scores[7]),
    )
