"""Measure a SensitivityTable: one layer (or one block) at b bits, everything else as it is, for every layer
and width, the embeddings at every width, and the keys and values of every block.

In: an elastic model, windows to change layers on, a reference to measure whole plans against. Out: the
table.

    S[unit, b] = KL(full precision || base plan with the unit at b) - KL(full precision || base plan)

as a mean over every position of the windows but each one's last, over the whole vocabulary, with both
sides in the model's compute dtype (open the model in float32: a narrower one adds its own noise). The
base plan is full precision unless another is given; then the second term is 0. Each pass starts at the
changed block, see `passes`.

The work is a list of small tasks (one unit at all its widths on one window, or one whole plan), which
several processes or machines share, see `workers`: the table is the same for any number of them, given
the threads per pass and the kind of processor (see `moved`). With `resume` the metrics of every task are
appended to a JSON-lines file at once; a run that finds metrics of the same measurement there goes on after
them and gives the same table as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quept.data.windows import Windows
from quept.engines import GRADED_WIDTHS
from quept.evaluate.reference import Reference, open_reference
from quept.evaluate.token_scores import divergence
from quept.files import append_line, dtype_name, resume_lines
from quept.models import Block
from quept.plan import ACTIVATION_BITS, FULL, KV_BITS, QUANTIZED_BITS, Bits, PrecisionPlan
from quept.runtime.model import ElasticModel

from .passes import FullPass, cached_kl, changed_kl, full_pass, plan_kl
from .table import BASE, FULL_PRECISION, SensitivityError, SensitivityTable
from .workers import run

Progress = Callable[[str, float | None], None]
WHOLE = ("kl", "kl_se", "ppl", "ppl_se", "same_top", "tokens", "ppl_ref")  # kept of a whole plan
ROUNDED_INPUTS = tuple(bits for bits in ACTIVATION_BITS if bits != FULL)
ROUNDED_CACHE = tuple(bits for bits in KV_BITS if bits != FULL)
HEAD_IN_BLOCKS = 4  # what a pass costs beside its blocks, for the progress line
KEPT_BY_BANK = 1  # bytes: a worker wants the weights of a plan once, and those of the base live with its view


def measure_sensitivity(
    elastic: ElasticModel,
    windows: Windows,
    reference: Reference,
    widths: tuple[int, ...] = QUANTIZED_BITS,
    per: str = "layer",
    *,
    embeddings: bool = True,
    activations: bool = False,
    cache: bool = False,
    extend: SensitivityTable | None = None,
    base: PrecisionPlan | None = None,
    whole: Sequence[str] = (),
    model: str = "",
    text: str = "text",
    source: str | Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    executor: str = "processes",
    address: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    resume: str | Path | None = None,
) -> SensitivityTable:
    """Change one layer (or block) at a time on `windows`; measure whole plans on the windows of `reference`:
    every width for all layers, and those named in `whole`, like "W4E8" (with another base: the base alone).

    activations: also round each layer's inputs, its weights as they are, at 4 to 8 bits. cache: also round
    the keys and values of each block, at 2 to 8 bits. extend: a table of the same model on the same text, of
    which fewer tokens do, that gets the cache, the graded widths of embeddings (on all of its tokens) and the
    whole plans that it lacks; nothing else is measured.
    model, text: names for the file. source: what `elastic` was opened from, for workers that open it again (a
    name, a folder); workers, threads, executor, address, options: see `workers.run`. progress(stage,
    fraction) is called after every task. Raises SensitivityError when `resume` holds another measurement,
    WorkersError when workers keep dying."""
    if per not in ("layer", "block"):
        raise ValueError(f'per must be "layer" or "block"; got {per!r}')
    base = base or PrecisionPlan.full()
    if base.rounds_cache:
        raise ValueError("the base plan quantizes the KV cache, which takes no part in this measurement")
    if other := elastic.sizes.other_setting(base):
        raise ValueError(f"the base plan is {other} as a whole, no layer of which can change: give widths")
    around_full = base == PrecisionPlan.full()
    names = [f"W{bits}" for bits in widths] + list(whole) if around_full else [BASE]
    if extend:
        names = [name for name in whole if name not in extend.whole]
    widths = tuple(widths) if around_full else (*widths, FULL)
    data = {
        "text": text,
        "tokens": windows.ids.numel(),
        "context": windows.context,
        "dtype": dtype_name(elastic.dtype),
    }
    if extend and ({**extend.data, "tokens": data["tokens"]}, extend.base) != (data, FULL_PRECISION):
        raise SensitivityError(
            f"the table to extend was measured otherwise ({extend.conditions}): give its text, context "
            "and dtype"
        )
    size = {"tokens": reference.windows.ids.numel(), "context": reference.windows.context}
    if extend and names and size != {name: extend.reference[name] for name in size}:
        tokens = extend.reference["tokens"]
        raise SensitivityError(f"whole plans of that table were measured on {tokens} tokens: give as many")
    head = {
        "measurement": "sensitivity 3",
        "fingerprint": elastic.identity,
        "group": elastic.artifact.group,
        "method": elastic.artifact.manifest.method,
        "per": per,
        "base": base.key(elastic.layers),
        "widths": list(widths),
        "windows": windows.id,
        "whole": reference.windows.id,
        **data,
    }
    units = _units(elastic, per)
    tasks = [Task("whole", name) for name in names]
    place = {block.name: i for i, block in enumerate(elastic.layout.blocks)}
    cached = {name: place[name] for name in elastic.cached_blocks if cache}
    graded = [bits for bits in GRADED_WIDTHS if bits in elastic.sizes.embeddings]
    of_embeddings = (*widths, *graded) if embeddings else ()
    if extend:
        whole_text = bool(extend.embeddings) and data["tokens"] == extend.data["tokens"]
        of_embeddings = tuple(bits for bits in graded if whole_text and bits not in extend.embeddings)
    for window in range(len(windows)):
        if of_embeddings:
            tasks.append(Task("embeddings", "", of_embeddings, window))
        for unit in () if extend else units:
            tasks.append(Task("weights", unit.name, widths, window, unit.block))
            if activations:
                tasks.append(Task("activations", unit.name, ROUNDED_INPUTS, window, unit.block))
        tasks += (Task("cache", name, ROUNDED_CACHE, window, block) for name, block in cached.items())
    job = Measurement(
        source=str(source or elastic.origin.asked),
        device=elastic.device.type,
        dtype=elastic.dtype,
        identity=elastic.identity,
        windows=windows,
        per=per,
        base=base,
        curve=reference.windows,
        cache=reference.folder.parent,
        limit=reference.limit,
    )
    done = Lines(resume, head)
    costs = {task.key: task.cost(len(elastic.layout.blocks), len(reference.windows)) for task in tasks}
    left = [task for task in tasks if task.key not in done]
    spent = sum(costs.values()) - sum(costs[task.key] for task in left)
    state = State(elastic, reference)
    shared = {"executor": executor, "threads": threads, "address": address, "options": options}
    with closing(run(job, left, workers, state=state, **shared)) as answers:
        for task, metrics in answers:
            done[task.key] = metrics
            spent += costs[task.key]
            if progress:
                progress(task.key, spent / sum(costs.values()))
    if progress and not left:
        progress("everything was measured before", 1.0)

    def mean(what: str, name: str) -> dict[int | float, float]:
        rows = [done[Task(what, name, window=window).key] for window in range(len(windows))]
        return {json.loads(bits): sum(row[bits] for row in rows) / len(rows) for bits in rows[0]}

    def shared_out(what: str) -> dict[str, dict[int, float]]:
        weights = elastic.sizes.weights
        return {n: row for unit in units for n, row in _shares(unit, mean(what, unit.name), weights)}

    metrics = {name: dict(done[Task("whole", name).key]) for name in names}
    ppl = [row.pop("ppl_ref") for row in metrics.values()]
    rows = {name: rounded(mean("cache", name)) for name in cached}
    if extend:
        measured = dict(extend.whole) | metrics
        if of_embeddings:
            extend = replace(extend, embeddings=rounded({**extend.embeddings, **mean("embeddings", "")}))
        if not rows:
            return replace(extend, whole=measured)
        fewer = data["tokens"] if data["tokens"] != extend.data["tokens"] else 0
        return replace(extend, whole=measured, cache=rows, cache_tokens=fewer)
    uniform = {bits: metrics.pop(f"W{bits}") for bits in widths} if around_full else {}
    return SensitivityTable(
        model=model or elastic.source,
        fingerprint=elastic.identity,
        group=elastic.artifact.group,
        per=per,
        data=data,
        reference={"ppl": ppl[0], **size},
        layers=shared_out("weights"),
        uniform=uniform,
        whole=metrics,
        embeddings=rounded(mean("embeddings", "")) if of_embeddings else {},
        activations=shared_out("activations") if activations else {},
        base=FULL_PRECISION if around_full else base.name or "a mixed plan",
        cache=rows,
    )


@dataclass(frozen=True)
class Task:
    """One line of the resume file. what: "weights" or "activations" of the unit `name`, the "cache" of the
    block `name`, "embeddings", or the plan called `name` as a "whole". block: where the change is, None for
    anywhere."""

    what: str
    name: str
    widths: tuple[int | float, ...] = ()
    window: int = 0
    block: int | None = None

    @property
    def key(self) -> str:
        if self.what == "whole":
            return f"all layers, {self.name}"
        return f"window {self.window}, {self.what}{' of ' if self.name else ''}{self.name}"

    __str__ = key.fget

    def cost(self, blocks: int, windows: int) -> int:
        """How long it takes, in passes through one block."""
        if self.what == "whole":
            return windows * (blocks + HEAD_IN_BLOCKS)
        return len(self.widths) * (blocks - (self.block or 0) + HEAD_IN_BLOCKS)


@dataclass
class State:
    """What tasks need: the model, the reference, and the last window's full pass."""

    elastic: ElasticModel
    reference: Reference
    window: int | None = None
    start: FullPass | None = None


@dataclass(frozen=True)
class Measurement:
    """The job that workers do, see `workers.Job`: what to open, and what to change and compare."""

    source: str
    device: str
    dtype: torch.dtype
    identity: str
    windows: Windows
    per: str
    base: PrecisionPlan
    curve: Windows
    cache: Path
    limit: int

    def open(self) -> State:
        elastic = ElasticModel.open(self.source, device=self.device, dtype=self.dtype, budget=KEPT_BY_BANK)
        if elastic.identity != self.identity:
            raise SensitivityError(
                f"a worker opened {self.source!r} and got another model than is being measured; "
                "give what the model was opened from as source"
            )
        return State(elastic, open_reference(elastic, self.curve, self.cache, limit=self.limit))

    def do(self, state: State, task: Task) -> dict[str, float]:
        """`{bits: S}`, or the metrics of a whole plan."""
        if task.what == "whole":
            plan = self.base if task.name == BASE else PrecisionPlan.parse(task.name)
            view = state.elastic.view(plan)
            cache = partial(state.elastic.make_cache, plan) if plan.rounds_cache else None
            *_, estimate = divergence(view, state.reference, state.reference.windows, cache)
            return {name: getattr(estimate, name) for name in WHOLE}
        if state.window != task.window:
            state.start = None  # lets go of the last window before the next one is kept
            state.start = full_pass(state.elastic, self.windows.ids[task.window], self.base, quick=True)
            state.window = task.window
        return {str(bits): self._cost(state, task, bits) for bits in task.widths}

    def _cost(self, state: State, task: Task, bits: int) -> float:
        elastic, start = state.elastic, state.start
        now = self.base.resolve(elastic.layers)
        if task.what == "embeddings":
            plan = PrecisionPlan.of(now, embeddings=bits)
            kl = start.base_kl if bits == self.base.embeddings else plan_kl(elastic, start, plan)
        elif task.what == "cache":
            kl = cached_kl(elastic, start, bits, task.block)
        else:
            unit = next(unit for unit in _units(elastic, self.per) if unit.name == task.name)
            inputs = task.what == "activations"
            new = {
                n: Bits(now[n].weights, bits) if inputs else Bits(bits, now[n].activations)
                for n in unit.layers
            }
            same = all(now[name] == wanted for name, wanted in new.items())
            kl = start.base_kl if same else changed_kl(elastic, start, new, unit.block)
        if not kl == kl:
            raise SensitivityError(
                f"{task.what} of {task.name or 'the model'} at {bits} bits give no finite answer: "
                "the model's weights are damaged"
            )
        return kl - start.base_kl


@dataclass(frozen=True)
class Unit:
    """What is changed together: its name, its layers, and the index of its block."""

    name: str
    layers: tuple[str, ...]
    block: int


def _units(elastic: ElasticModel, per: str) -> list[Unit]:
    blocks: tuple[Block, ...] = elastic.layout.blocks
    if per == "block":
        return [Unit(block.name, tuple(block.layers.values()), i) for i, block in enumerate(blocks)]
    return [Unit(name, (name,), i) for i, block in enumerate(blocks) for name in block.layers.values()]


def _shares(
    unit: Unit, row: Mapping[int, float], weights: Mapping[str, int]
) -> Iterator[tuple[str, dict[int, float]]]:
    """The cost of a unit as costs of its layers, by their number of weights."""
    whole = sum(weights[name] for name in unit.layers)
    for name in unit.layers:
        yield name, rounded({bits: kl * weights[name] / whole for bits, kl in row.items()})


def rounded(row: Mapping[int | float, float]) -> dict[int | float, float]:
    """Four digits: one more than the data give, and those on which two ways of adding agree."""
    return {bits: float(f"{kl:.4g}") for bits, kl in sorted(row.items())}


class Lines(dict):
    """Metrics by key, each appended to a file as one JSON line when it is set. A broken last line is what a
    killed run leaves."""

    def __init__(self, path: str | Path | None, head: Mapping[str, object]):
        super().__init__()
        self._path = path
        if path:
            self.update((row["key"], row["figures"]) for row in resume_lines(path, head, SensitivityError))

    def __setitem__(self, key: str, metrics: Mapping[str, float]) -> None:
        super().__setitem__(key, metrics)
        if self._path:
            append_line(self._path, {"key": key, "figures": metrics})
