"""One opened model with all that the pages show of it: the equaliser's description, its named plans, what was
measured of a plan, and what its tables predict. No gradio here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from quept.allocate import SensitivityTable
from quept.allocate.front import fitting_front
from quept.allocate.rules.trial import load_trial
from quept.allocate.sensitivity.agreement import agreement
from quept.allocate.solve.constraints import AllocationError
from quept.artifact import Manifest, Source
from quept.evaluate import EvalTask, Results, Sample, Stored, TaskEstimate, Windows, tasks_of
from quept.evaluate.routing import asked
from quept.evaluate.shipped import load_shipped
from quept.export import exporter
from quept.files import dtype_name
from quept.models import ModelLayout
from quept.plan import (
    ACTIVATION_BITS,
    EMBEDDING_BITS,
    FULL,
    KV_BITS,
    QUANTIZED_BITS,
    WEIGHT_BITS,
    PrecisionPlan,
)
from quept.runtime import ElasticModel, title_of
from quept.runtime.sizes import Sizes

from .budget import NO_TABLE, slider
from .timing import Timing

ASKED = 1024  # tokens that say how often each expert of a mixture is asked
OTHER_TABLES = {"own-words": "its own words"}  # by the name of their file: what they were measured on


@dataclass(frozen=True)
class Card:
    """What menus and pages know of a model before it is opened: title, kind, where it comes from, and whether
    the classes of a classifier have names."""

    title: str
    kind: str
    source: str
    provenance: str
    labelled: bool

    @classmethod
    def of(cls, model: ElasticModel) -> Card:
        labelled = model.vision is None or bool(model.vision.labels)
        return cls(model.title, model.kind, model.source, model.provenance, labelled)

    @classmethod
    def built_in(cls, source: Source) -> Card:
        """Of a built-in model's artifact, without reading the model."""
        entry, manifest = source.entry, Manifest.read(source.artifact)
        title = title_of(entry.title, entry.name, manifest)
        return cls(title, entry.kind, entry.name, entry.provenance, entry.classes)


class OpenModel:
    """One opened model with all that the pages show of it."""

    def __init__(self, name: str, elastic: ElasticModel, sample: Sample, results: Results, cache: Path):
        self.name, self.elastic, self.sample, self.results = name, elastic, sample, results
        self.tasks = tasks_of(elastic, cache / "reference", {"text": sample})
        self.task = next(iter(self.tasks.values()))  # where not asked for another one
        self.presets = elastic.presets
        self.timing = Timing(elastic)
        self.asked = _asked(elastic, sample)
        self._file_sizes: dict[str, Sizes] = {}
        beside = elastic.origin.beside
        table = beside("sensitivity.json")
        self.sensitivity = SensitivityTable.load(table).of(elastic) if table else None
        self.other_tables = {name: found for name in OTHER_TABLES if (found := self._beside(name))}
        self.front = front = fitting_front(beside("front.json"), elastic)
        # The best plans found for their sizes, smallest first.
        self.best = [replace(point.plan, name=point.name) for point in front.points] if front else []
        if front:
            results.put_missing((key, payload) for _, key, payload in front.results(elastic.layers))
        beside_model = [task for task in self.tasks.values() if "data" in task.options and not task.lacking]
        for file in filter(None, map(beside, ("results.json", "baselines.json", "choices.json"))):
            named = {task.conditions["data"]: task.id for task in beside_model}
            load_shipped(results, file, elastic, named)

    def _beside(self, name: str) -> SensitivityTable | None:
        """The table of this name that comes with the model."""
        file = self.elastic.origin.beside(f"sensitivity-{name}.json")
        return SensitivityTable.load(file).of(self.elastic) if file else None

    def table(self, name: str = "") -> SensitivityTable | None:
        """The table of this name, "" for that which predictions read; None where there is none."""
        return self.other_tables.get(name) if name else self.sensitivity

    @property
    def tables_offered(self) -> list[list[str]]:
        """[name, title] of each table, where there is more than one."""
        if not self.other_tables or self.sensitivity is None:
            return []
        own = str(self.sensitivity.data.get("text", ""))
        return [["", own], *([name, OTHER_TABLES[name]] for name in self.other_tables)]

    @cached_property
    def description(self) -> dict:
        """What the browser needs to draw the equaliser and to answer while it is dragged; JSON."""
        elastic, layout = self.elastic, self.elastic.layout
        place = {block.name: i for i, block in enumerate(layout.blocks)}
        known = self.sensitivity.embedding_bits if self.sensitivity else EMBEDDING_BITS
        embedding_bits = known if elastic.embeddings else (FULL,)
        layers = [
            {
                "name": name,
                "block": b,
                "role": layout.roles.index(role),
                "params": elastic.sizes.weights[name],
                **({"asked": round(self.asked[name], 4)} if name in self.asked else {}),
            }
            for b, block in enumerate(layout.blocks)
            for role, name in block.layers.items()
        ]
        return {
            "model": self.name,
            "title": elastic.title,
            **_columns(layout),
            "roles": list(layout.roles),
            "layers": layers,
            "bits": list(WEIGHT_BITS),
            "activation_bits": list(ACTIVATION_BITS),
            "kv_bits": list(KV_BITS) if elastic.has_cache else [FULL],
            "kv_blocks": [place[name] for name in elastic.cached_blocks],
            "embedding_bits": list(embedding_bits),
            "embedding_names": list(elastic.embeddings),
            "embedding_bytes": [elastic.sizes.embeddings[b] for b in embedding_bits],
            "sizes": [[elastic.sizes.layers[layer["name"]][b] for b in WEIGHT_BITS] for layer in layers],
            "fixed_bytes": elastic.sizes.fixed,
            "params": elastic.sizes.parameters,
            "prediction": self._prediction(),
        }

    def _prediction(self) -> dict | None:
        """What predictions are made of, and the factor that those of KL are off by, if that is known."""
        table, elastic = self._scaled(), self.elastic
        made_of = table and table.prediction(elastic.layers, elastic.cached_blocks)
        if not made_of:
            return None
        off = self.front and self.front.off_by(table)
        unit = table.data.get("unit", "tokens")
        on = f"Predicted from plans measured on {table.reference['tokens']:,} {unit} of {table.data['text']}"
        return made_of | {"off_by": off and round(off, 3), "on": on}

    def _scaled(self) -> SensitivityTable | None:
        """The table that predictions read, for the data that plans are measured on first of all: its own may
        be others."""
        table = self.sensitivity
        full = table and self._full.get(table.score)
        return table.scaled(full) if full else table

    @cached_property
    def _full(self) -> dict[str, float | None]:
        """Full precision's metrics by the first task, which every plan's measurement says, of a plan measured
        before; {} where there is none."""
        measured = (self.stored(plan) for plan in (PrecisionPlan.full(), *self._uniform))
        found = next(filter(None, measured), None)
        return {metric.name: metric.full for metric in found.metrics} if found else {}

    @cached_property
    def slider(self) -> dict:
        """What the budget's slider runs through when nothing is tied or locked; JSON."""
        return slider(self)

    def file_sizes(self, target: str) -> Sizes:
        """The bytes of an export's file, by layer and width; AllocationError for a model it cannot hold."""
        if target not in self._file_sizes:
            if lacking := exporter(target).lacks(self.elastic):
                raise AllocationError(lacking)
            self._file_sizes[target] = exporter(target).sizes(self.elastic)
        return self._file_sizes[target]

    @cached_property
    def rules(self) -> dict | None:
        """The trial of rules of thumb that comes with the model, if one does; JSON."""
        file = self.elastic.origin.beside("rules.json")
        return load_trial(file, self.elastic) if file else None

    @cached_property
    def heat(self) -> dict:
        """What each layer costs by itself at each width, for the heat map; JSON."""
        table, described = self.sensitivity, self.description
        if table is None:
            return {"empty": NO_TABLE}
        layers = [{key: layer[key] for key in ("name", "block", "role")} for layer in described["layers"]]
        places = {key: described[key] for key in ("blocks", "roles", "kv_blocks")}
        others = [
            _costs(other, layers, OTHER_TABLES[name])
            | {"agreement": agreement(table, other, self.elastic.layout).describe()}
            for name, other in self.other_tables.items()
        ]
        own = _costs(table, layers, str(table.data.get("text", "")))
        return places | {"layers": layers, **own, "others": others}

    def conditions(self, plan: PrecisionPlan | None = None, task: EvalTask | None = None) -> str:
        """What numbers are measured on, as text; of a plan measured before, in the dtype it was measured
        in."""
        task = task or self.task
        if task.lacking:
            return task.lacking
        found = plan and self._found(plan, task)
        dtype = found[0].key.dtype if found else dtype_name(self.elastic.dtype)
        return f"{task.describe()}, {dtype}"

    def stored(self, plan: PrecisionPlan, task: EvalTask | None = None) -> TaskEstimate | None:
        """What was measured of this plan before; None if nothing was."""
        found = self._found(plan, task or self.task)
        return found and found[1]

    def _found(self, plan: PrecisionPlan, task: EvalTask) -> tuple[Stored, TaskEstimate] | None:
        """What was measured here comes before what was measured for the release, which is in float32."""
        if task.lacking:
            return None
        keys = (task.key(plan, dtype) for dtype in dict.fromkeys((self.elastic.dtype, torch.float32)))
        return next(filter(None, (self.results.read(key, task.read) for key in keys)), None)

    def floor(self, task: EvalTask) -> dict[str, float]:
        """Metrics of the untouched model in the compute dtype, of those that are 0 for the float32 reference:
        differences below them mean nothing. None in float32."""
        if self.elastic.dtype == torch.float32 or task.lacking:
            return {}
        found = self.results.read(task.key(PrecisionPlan.full()), task.read)
        metrics = found[1].metrics if found else ()
        return {metric.name: metric.value for metric in metrics if metric.full == 0}

    def metrics(self, estimate: TaskEstimate | None = None, task: EvalTask | None = None) -> list[dict]:
        """The metrics of an estimate as the pages draw them, each with its floor; without an estimate those
        of the task, with what full precision's are if that was measured."""
        task = task or self.task
        known, floor = estimate or self.stored(PrecisionPlan.full(), task), self.floor(task)
        if known:
            full = {metric.name: metric.full for metric in known.metrics}
            if task is self.task and known.done >= known.total:
                self._full = full
        else:
            full = self._full if task is self.task else {}
        return [
            m.to_dict() | {"full": full.get(m.name, m.full), "floor": floor.get(m.name)}
            for m in (estimate.metrics if estimate else task.metrics({}))
        ]

    @cached_property
    def named_plans(self) -> dict[str, PrecisionPlan]:
        """Every plan that has a name here, by the value that the pages' menus send."""
        uniform = map(PrecisionPlan.uniform, reversed(WEIGHT_BITS))
        named = {plan.name: plan.keeping(self.elastic.layout.vision_layers) for plan in uniform}
        return named | {plan.name: plan for plan in [*self.best, *self.presets]}

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of each of them, by its key."""
        layers = self.elastic.layers
        return {plan.key(layers): name for name, plan in reversed(self.named_plans.items())}

    def predicted(self, plan: PrecisionPlan) -> dict[str, float] | None:
        """What the sensitivity table says of a plan; None without one, or where it does not cover all that
        the plan rounds."""
        table = self._scaled()
        return table.predicted(plan) if table and table.covers(plan) else None

    def uniform_at(
        self, size: int, task: EvalTask | None = None, besides: PrecisionPlan | None = None
    ) -> dict | None:
        """Metrics and name of the best uniform plan that fits into so many bytes, embeddings at whatever
        width is best; None where none does, none was measured, or it is the plan `besides` itself."""
        task = task or self.task
        (head,) = (metric for metric in task.metrics({}) if metric.name == task.headline)
        sign = 1 if head.better == "lower" else -1
        fitting = [
            (sign * values[head.name], name, plan, values)
            for name, plan, values in self._uniform_plans(task)
            if self.elastic.sizes.deploy(plan) <= size
        ]
        if not fitting:
            return None
        _, name, plan, values = min(fitting, key=lambda found: found[0])
        if besides and plan.key(self.elastic.layers) == besides.key(self.elastic.layers):
            return None
        return {"label": f"uniform {name}"} | {k: values[k] for k in values if k != "tokens"}

    def _uniform_plans(self, task: EvalTask) -> Iterator[tuple[str, PrecisionPlan, Mapping[str, float]]]:
        """Uniform plans of weights and embeddings that were measured, here or for the table."""
        for plan in self._uniform:
            if found := self.stored(plan, task):
                yield plan.name, plan, {metric.name: metric.value for metric in found.metrics}
        table = self.sensitivity
        if table is None or task.lacking:
            return
        on = task.conditions
        if (table.reference["tokens"], table.reference.get("context")) == (
            on.get("tokens", task.total),
            on.get("context"),
        ):
            yield from self._uniform_in_table

    @cached_property
    def _uniform(self) -> list[PrecisionPlan]:
        plans = map(PrecisionPlan.uniform, QUANTIZED_BITS)
        return [plan.keeping(self.elastic.layout.vision_layers) for plan in plans]

    @cached_property
    def _uniform_in_table(self) -> list[tuple[str, PrecisionPlan, Mapping[str, float]]]:
        plans = {name: PrecisionPlan.parse(name) for name in self.sensitivity.whole}
        kept = {name: plan for name, plan in plans.items() if plan.default.activations == FULL}
        return [(name, plan, self.sensitivity.whole[name]) for name, plan in kept.items()]

    @cached_property
    def others(self) -> dict[str, PrecisionPlan]:
        """Settings of other tools, by the word that plans say."""
        return {word: PrecisionPlan.uniform(word) for word in self.elastic.settings}


def _costs(table: SensitivityTable, layers: list[dict], title: str) -> dict:
    """What a table says at its widths of each layer, of the embeddings and of each block's cache; JSON."""

    def costs(row: Mapping[int, float]) -> list[float | None]:
        return [float(f"{row[b]:.3g}") if b in row else None for b in table.widths]

    return {
        "title": title,
        "bits": list(table.widths),
        "sensitivity": [costs(table.layers[layer["name"]]) for layer in layers],
        "embeddings": costs(table.embeddings) if table.embeddings else None,
        "cache": [costs(row) for row in table.cache.values()],
        "conditions": table.conditions,
    }


def _asked(elastic: ElasticModel, sample: Sample) -> dict[str, float]:
    """How often a text asks the expert that a layer of a mixture is of; {} for any other model."""
    if not elastic.layout.routers:
        return {}
    windows = sample.windows(elastic)
    return asked(elastic, Windows(windows.ids[: max(1, ASKED // windows.ids.shape[1])]))


def _columns(layout: ModelLayout) -> dict:
    """The blocks of the equaliser and, of a model with several sections, where each begins and ends; JSON."""
    every = layout.blocks
    if len(layout.sections) == 1:
        return {"blocks": [str(i) for i in range(len(every))]}
    blocks, sections = [], []
    for section in layout.sections:
        count, start = sum(block.section == section for block in every), len(blocks)
        letter = section[0].upper()
        blocks += [f"{letter}{i}" for i in range(count)] if count > 1 else [letter]
        sections.append({"name": section.capitalize(), "from": start, "to": len(blocks)})
    return {"blocks": blocks, "sections": sections}
