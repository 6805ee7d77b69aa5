"""Measure a SensitivityTable: one layer (or one block) at b bits, everything else full precision, for every
layer and width.

In: an elastic model, windows to change layers on, a reference to measure whole uniform plans against. Out:
the table. For every window the full-precision pass is run once and keeps two things: the hidden state that
enters each block, and its own log-probabilities. A pass with a change in block k then starts there: the
blocks before it become stubs, the last of which hands out the kept state. It computes what the whole pass
computes, and a test holds the two equal. Both sides of the KL divergence run in the model's compute dtype
(open the model in float32: a narrower one adds its own noise), over the whole vocabulary, at every position
of a window but the last.

With `resume` every figure is appended to a JSON-lines file at once; a run that finds figures of the same
measurement there goes on after them and gives the same table as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import LongTensor, Tensor, nn

from quept.evaluate.divergence import divergence
from quept.evaluate.reference import Reference
from quept.evaluate.windows import Windows
from quept.models import Block
from quept.plan import QUANTISED_BITS, PrecisionPlan
from quept.runtime.model import ElasticModel, clone

from .table import SensitivityError, SensitivityTable

Progress = Callable[[str, float | None], None]
WHOLE = ("kl", "kl_se", "ppl", "ppl_se", "same_top", "tokens", "ppl_ref")  # kept of a whole uniform plan
ROWS = 32  # positions whose probabilities are handled together, to stay near the processor's cache


def sensitivity(
    elastic: ElasticModel,
    windows: Windows,
    reference: Reference,
    widths: tuple[int, ...] = QUANTISED_BITS,
    per: str = "layer",
    *,
    model: str = "",
    text: str = "text",
    progress: Progress | None = None,
    resume: str | Path | None = None,
) -> SensitivityTable:
    """Change one layer (or block) at a time on `windows`; measure uniform plans whole on the windows of
    `reference`.

    `model` and `text` are names for the file. progress(stage, fraction) is called after every pass.
    Raises SensitivityError when `resume` holds another measurement."""
    if per not in ("layer", "block"):
        raise ValueError(f'per must be "layer" or "block"; got {per!r}')
    data = {
        "text": text,
        "tokens": windows.ids.numel(),
        "context": windows.context,
        "dtype": str(elastic.dtype)[6:],
    }
    head = {
        "measurement": "sensitivity",
        "fingerprint": elastic.artifact.weights_id,
        "group": elastic.artifact.group,
    }
    head |= {
        "method": elastic.artifact.manifest.method,
        "per": per,
        "windows": windows.id,
        "uniform": reference.windows.id,
        **data,
    }
    done = _Lines(resume, head)
    units = _units(elastic, per)
    passes = len(windows) * len(units) * len(widths)
    total = passes + len(widths) * len(reference.windows)
    step = 0

    def report(stage: str) -> None:
        nonlocal step
        step += 1
        if progress:
            progress(stage, step / total)

    costs = {unit.name: dict.fromkeys(widths, 0.0) for unit in units}
    for w in range(len(windows)):
        start = None
        for unit in units:
            for bits in widths:
                key = f"window {w}, {unit.name} at {bits} bits"
                if key not in done:
                    start = start or full_pass(elastic, windows.ids[w])
                    done[key] = {"kl": changed_kl(elastic, start, unit, bits)}
                costs[unit.name][bits] += done[key]["kl"] / len(windows)
                report(key)
    uniform = {}
    for bits in widths:
        key = f"uniform {bits}"
        if key not in done:
            view = elastic.view(PrecisionPlan.uniform(bits))
            estimate = None
            for estimate in divergence(view, reference, reference.windows):  # noqa: B007  the last one is of all windows
                report(f"all layers at {bits} bits")
            done[key] = {name: getattr(estimate, name) for name in WHOLE}
        else:
            step += len(reference.windows)
        uniform[bits] = dict(done[key])
    ppl = [row.pop("ppl_ref") for row in uniform.values()]
    size = {"tokens": reference.windows.ids.numel(), "context": reference.windows.context}
    return SensitivityTable(
        model=model or elastic.source,
        fingerprint=elastic.artifact.weights_id,
        group=elastic.artifact.group,
        per=per,
        data=data,
        reference={"ppl": ppl[0], **size},
        layers={
            name: row
            for unit in units
            for name, row in _shared_out(unit, costs[unit.name], elastic.sizes.weights)
        },
        uniform=uniform,
    )


@dataclass(frozen=True)
class Unit:
    """What is changed together: its name, its layers, and the index of its block."""

    name: str
    layers: tuple[str, ...]
    block: int


def _units(elastic: ElasticModel, per: str) -> list[Unit]:
    blocks: tuple[Block, ...] = elastic.anatomy.blocks
    if per == "block":
        return [Unit(block.name, tuple(block.layers.values()), i) for i, block in enumerate(blocks)]
    return [Unit(name, (name,), i) for i, block in enumerate(blocks) for name in block.layers.values()]


def _shared_out(
    unit: Unit, row: Mapping[int, float], weights: Mapping[str, int]
) -> Iterator[tuple[str, dict[int, float]]]:
    """The cost of a unit as costs of its layers, by their number of weights; six digits are more than the
    data give."""
    whole = sum(weights[name] for name in unit.layers)
    for name in unit.layers:
        yield name, {bits: float(f"{kl * weights[name] / whole:.6g}") for bits, kl in row.items()}


@dataclass(frozen=True)
class FullPass:
    """What the full-precision pass over one window left: its ids (1, t), the hidden state entering each
    block, its log-probabilities (t - 1, vocabulary) in float32."""

    ids: LongTensor
    states: tuple[Tensor, ...]
    log_probs: Tensor


class _Kept(nn.Module):
    """A block that remembers the hidden state it was given."""

    def __init__(self, block: nn.Module, states: list[Tensor]):
        super().__init__()
        self.block, self.states = block, states

    def forward(self, hidden: Tensor, *args, **kwargs) -> Tensor:
        self.states.append(hidden)
        return self.block(hidden, *args, **kwargs)


class _Given(nn.Module):
    """A stub for a block before the changed one: answers with the state it was made with, whatever it is
    given."""

    def __init__(self, state: Tensor):
        super().__init__()
        self.state = state

    def forward(self, hidden: Tensor, *args, **kwargs) -> Tensor:
        return self.state


@torch.inference_mode()
def full_pass(elastic: ElasticModel, ids: LongTensor) -> FullPass:
    """Run one window (t,) at full precision and keep what later passes start from."""
    view = elastic.view(PrecisionPlan.full())
    states: list[Tensor] = []
    kept = {block.name: _Kept(view.get_submodule(block.name), states) for block in elastic.anatomy.blocks}
    ids = ids[None].to(elastic.device)
    logits = clone(view, kept)(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return FullPass(ids, tuple(states), logits - logits.logsumexp(-1, keepdim=True))


@torch.inference_mode()
def changed_logits(elastic: ElasticModel, start: FullPass, plan: PrecisionPlan, block: int) -> Tensor:
    """Logits (t - 1, vocabulary) of `plan`, which changes nothing before block number `block`, from that
    block on."""
    names = [b.name for b in elastic.anatomy.blocks[:block]]
    stubs = dict.fromkeys(names, _Given(start.states[block]))
    return clone(elastic.view(plan), stubs)(input_ids=start.ids, use_cache=False).logits[0, :-1]


def changed_kl(elastic: ElasticModel, start: FullPass, unit: Unit, bits: int) -> float:
    """Mean over positions of KL(full precision || `unit` at `bits` and the rest full precision)."""
    plan = PrecisionPlan.of(dict.fromkeys(unit.layers, bits))
    kl = mean_kl(start.log_probs, changed_logits(elastic, start, plan, unit.block))
    if not kl == kl:
        raise SensitivityError(
            f"{unit.name} at {bits} bits gives no finite answer: the model's weights are damaged"
        )
    return kl


@torch.inference_mode()
def mean_kl(log_probs: Tensor, logits: Tensor) -> float:
    """Mean over rows of KL(p || q): log_probs (n, vocabulary) float32 of p, logits (n, vocabulary) of q.
    Never below 0.

    log p - log q is formed first and then weighted: near-equal distributions then lose no digits to
    cancellation. Both are normalised by logsumexp; log_softmax's own sum over 50,000 words is off by 1e-5,
    which is what a layer at 8 bits costs.
    """
    total = 0.0
    for rows in range(0, len(log_probs), ROWS):
        p, q = log_probs[rows : rows + ROWS], logits[rows : rows + ROWS].float()
        difference = (p - q).add_(q.logsumexp(-1, keepdim=True))
        total += torch.linalg.vecdot(p.exp(), difference).double().sum().item()
    return max(0.0, total / len(log_probs)) if total == total else total


class _Lines(dict):
    """Figures by key, each appended to a file as one JSON line when it is set. A broken last line is what a
    killed run leaves."""

    def __init__(self, path: str | Path | None, head: Mapping[str, object]):
        super().__init__()
        self._path = Path(path) if path else None
        if self._path is None:
            return
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        rows = [row for row in map(_parsed, lines) if row is not None]
        if rows and rows[0] != dict(head):
            raise SensitivityError(
                f"{path} holds another measurement; delete it to start afresh, or choose another file"
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = rows or [dict(head)]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.update((row["key"], row["figures"]) for row in kept[1:])

    def __setitem__(self, key: str, figures: Mapping[str, float]) -> None:
        super().__setitem__(key, figures)
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "figures": figures}) + "\n")


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
