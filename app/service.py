"""What the pages ask for: the opened models, and measurements of a plan, for many visitors at once. No gradio
here.

The models are opened once and shared; a visitor's precision is an argument of every call. Everything that
runs a model goes through one fair gate, one forward step at a time. A visitor's newer measurement ends the
older one. What was measured once is kept in the results store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from quept.allocate import SensitivityError, SensitivityTable
from quept.allocate.front import fitting_front
from quept.evaluate import (
    AccuracyEstimate,
    Estimate,
    Reference,
    ResultKey,
    Results,
    Stored,
    VqaEstimate,
    Windows,
    cut,
)
from quept.evaluate.shipped import load_shipped
from quept.files import dtype_name
from quept.models import ModelLayout
from quept.plan import (
    ACTIVATION_BITS,
    EMBEDDING_BITS,
    FULL,
    KV_BITS,
    QUANTIZED_BITS,
    WEIGHT_BITS,
    Bits,
    PrecisionPlan,
)
from quept.runtime import BASELINES, Baseline, ElasticModel

from .budget import AS_WEIGHTS, no_table, sentence, slider, solved
from .conversation import Running
from .gate import Admission, Gate
from .link import encode
from .measured_on import Answers, MeasuredOn, Passages, Pictures, Sample
from .refinement import SECONDS, refinement
from .side import EQUALIZER, PREFIX, baseline_choices

CHATS_AT_ONCE = 4
UPDATE_S = 0.25  # between two estimates that a page is told of
NO_PICTURES = "no labelled pictures lie beside this model"
NO_QUESTIONS = "no questions with answers lie beside this model"
TRIED = "tried:"  # with a number: one of the plans that a visitor has measured
NO_KL = 1e-5  # weights rounded to 16 bits once after a transform show 2e-6: full precision, for a reader

# A plan as the browser holds it: {"w": [bits per layer], "a": [bits per layer], "kv": bits,
# "e": bits of the token embeddings and the output head}; all but "w" may be missing, which means 16
PlanJson = Mapping[str, object]


class OpenModel:
    """One opened model with all that the pages show of it."""

    def __init__(self, name: str, elastic: ElasticModel, sample: Sample, results: Results, cache: Path):
        self.name, self.elastic, self.sample, self.results = name, elastic, sample, results
        # None for a model that sees and has no labelled pictures or questions: nothing can be measured.
        self.measured_on: MeasuredOn | None = _data_of(elastic, sample, cache)
        self.presets = elastic.presets
        beside = elastic.origin.beside
        table = beside("sensitivity.json")
        self.sensitivity = SensitivityTable.load(table).of(elastic) if table else None
        self.front = front = fitting_front(beside("front.json"), elastic)
        # The best plans found for their sizes, smallest first.
        self.best = [replace(point.plan, name=point.name) for point in front.points] if front else []
        if front:
            results.put_missing((key, payload) for _, key, payload in front.results(elastic.layers))
        for file in filter(None, (beside("results.json"), beside("baselines.json"))):
            load_shipped(results, file, elastic)

    @property
    def lacking(self) -> str:
        """Why nothing of this model can be measured, if nothing can."""
        return NO_PICTURES if self.elastic.vision else NO_QUESTIONS

    @property
    def windows(self) -> Windows:
        """Of a language model."""
        return self.measured_on.windows

    def windows_from(self, first: int, count: int) -> Windows:
        """Windows of the same text after those that figures are shown of; ValueError where it ends before."""
        start, size = len(self.windows) + first, self.sample.context
        every = cut(self.sample.text, self.elastic.tokenizer, size, size * (start + count))
        if len(every) < start + count:
            raise ValueError(f"{self.sample.title} is too short to measure on other text than is shown")
        return Windows(every.ids[start : start + count])

    def reference_on(self, windows: Windows) -> Reference:
        return self.measured_on.reference_on(windows)

    @cached_property
    def description(self) -> dict:
        """What the browser needs to draw the equaliser and to answer while it is dragged; JSON."""
        elastic, layout = self.elastic, self.elastic.layout
        embedding_bits = EMBEDDING_BITS if elastic.embeddings else (FULL,)
        layers = [
            {
                "name": name,
                "block": b,
                "role": layout.roles.index(role),
                "params": elastic.sizes.weights[name],
            }
            for b, block in enumerate(layout.blocks)
            for role, name in block.layers.items()
        ]
        return {
            "model": self.name,
            "title": elastic.title,
            "kind": elastic.kind,
            **_columns(layout),
            "roles": list(layout.roles),
            "layers": layers,
            "bits": list(WEIGHT_BITS),
            "activation_bits": list(ACTIVATION_BITS),
            "kv_bits": [FULL] if elastic.vision else list(KV_BITS),
            "embedding_bits": list(embedding_bits),
            "embedding_names": list(elastic.embeddings),
            "embedding_bytes": [elastic.sizes.embeddings[b] for b in embedding_bits],
            "sizes": [[elastic.sizes.layers[layer["name"]][b] for b in WEIGHT_BITS] for layer in layers],
            "fixed_bytes": elastic.sizes.fixed,
            "params": elastic.sizes.parameters,
            "prediction": self.sensitivity and self.sensitivity.prediction(elastic.layers),
        }

    @cached_property
    def slider(self) -> dict:
        """What the budget's slider runs through when nothing is tied or locked; JSON."""
        return slider(self)

    @cached_property
    def heat(self) -> dict:
        """What each layer costs by itself at each width, for the heat map; JSON."""
        table, described = self.sensitivity, self.description
        if table is None:
            return {"empty": no_table(self.elastic)}

        def figures(row: Mapping[int, float]) -> list[float | None]:
            return [float(f"{row[b]:.3g}") if b in row else None for b in table.widths]

        return {
            "blocks": described["blocks"],
            "roles": described["roles"],
            "layers": [
                {key: layer[key] for key in ("name", "block", "role")} for layer in described["layers"]
            ],
            "bits": list(table.widths),
            "sensitivity": [figures(table.layers[layer["name"]]) for layer in described["layers"]],
            "embeddings": figures(table.embeddings) if table.embeddings else None,
            "conditions": table.conditions,
        }

    def conditions(self, plan: PrecisionPlan | None = None) -> str:
        """What numbers are measured on, in words; of a plan measured before, in the dtype it was measured
        in."""
        if self.measured_on is None:
            return self.lacking
        found = plan and self._found(plan)
        dtype = found.key.dtype if found else dtype_name(self.elastic.dtype)
        return f"{self.measured_on.words}, {dtype}"

    def stored(self, plan: PrecisionPlan) -> Estimate | AccuracyEstimate | VqaEstimate | None:
        """What was measured of this plan before; None if nothing was."""
        found = self._found(plan)
        return found and self.measured_on.read(found.payload)

    def _found(self, plan: PrecisionPlan) -> Stored | None:
        """What was measured here comes before what was measured for the release, which is in float32."""
        if self.measured_on is None:
            return None
        here = self._measured(self.result_key(plan))
        return here or self._measured(self.result_key(plan, torch.float32))

    def _measured(self, key: ResultKey) -> Stored | None:
        return self.results.get(key, self.measured_on.read)

    def result_key(self, plan: PrecisionPlan, dtype: torch.dtype | None = None) -> ResultKey:
        """Where measurements of this plan in a compute dtype (the model's own unless given) are kept."""
        elastic = self.elastic
        name = dtype_name(dtype or elastic.dtype)
        return ResultKey(plan.key(elastic.layers), elastic.identity, self.measured_on.id, name)

    def baseline_stored(self, baseline: Baseline) -> Estimate | AccuracyEstimate | VqaEstimate | None:
        """What was measured of a baseline before. It depends on the base weights, not on how ours are
        quantized."""
        if self.measured_on is None:
            return None
        identity, dtype = self.elastic.base_identity, dtype_name(self.elastic.dtype)
        keys = (ResultKey(baseline.key, identity, self.measured_on.id, name) for name in (dtype, "float32"))
        found = next(filter(None, map(self._measured, keys)), None)
        return found and self.measured_on.read(found.payload)

    @property
    def floor(self) -> float | None:
        """KL of the untouched model in the compute dtype from the float32 reference: differences below it
        mean nothing. None in float32."""
        if self.elastic.dtype == torch.float32 or self.measured_on is None:
            return None
        found = self._measured(self.result_key(PrecisionPlan.full()))
        return found and found.payload["kl"]

    @cached_property
    def named_plans(self) -> dict[str, PrecisionPlan]:
        """Every plan that has a name here, by the value that the pages' menus send."""
        uniform = map(PrecisionPlan.uniform, reversed(WEIGHT_BITS))
        named = {plan.name: self.elastic.layout.guarded(plan) for plan in uniform}
        return named | {plan.name: plan for plan in [*self.best, *self.presets]}

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of each of them, by its key."""
        layers = self.elastic.layers
        return {plan.key(layers): name for name, plan in reversed(self.named_plans.items())}

    def predicted(self, plan: PrecisionPlan) -> dict[str, float] | None:
        """What the sensitivity table says of a plan; None without a table or where a width is not in it."""
        try:
            return self.sensitivity and self.sensitivity.predicted(plan)
        except SensitivityError:
            return None

    def uniform_at(self, size: int) -> dict | None:
        """Quality of uniform plans at the same bytes, embeddings at whatever width is best: interpolated
        between the two beside them that no smaller one beats; None outside their range."""
        points: list[tuple[int, str, Mapping[str, float]]] = []
        for name, plan, figures in sorted(self._uniform_plans(), key=lambda found: found[2]["kl"]):
            taken = self.elastic.sizes.deploy(plan)
            if not points or taken < points[-1][0]:  # better ones came before: it has to be smaller
                points.append((taken, name, figures))
        points.reverse()
        for (below, low, poor), (above, high, good) in zip(points, points[1:], strict=False):
            if below <= size <= above:
                t = (size - below) / (above - below)
                label = low if t == 0 else high if t == 1 else f"between {low} and {high}"
                return {"label": f"uniform, equal bytes ({label})"} | self.measured_on.between(poor, good, t)
        return None

    def _uniform_plans(self) -> Iterator[tuple[str, PrecisionPlan, Mapping[str, float]]]:
        """Uniform plans of weights and embeddings that were measured on the sample, here or for the table."""
        for bits in QUANTIZED_BITS:
            plan = self.elastic.layout.guarded(PrecisionPlan.uniform(bits))
            if found := self.stored(plan):
                yield plan.name, plan, found.to_dict()
        table, sample = self.sensitivity, self.sample
        if self.elastic.kind != "language":
            return
        if table and (table.reference["tokens"], table.reference["context"]) == (
            sample.tokens,
            sample.context,
        ):
            for name, figures in table.whole.items():
                plan = PrecisionPlan.parse(name)
                if plan.default.activations == FULL:
                    yield name, plan, figures


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


class Service:
    """All that visitors share."""

    def __init__(self, models: Mapping[str, ElasticModel], sample: Sample, results: Results, cache: Path):
        self.models = dict(models)
        self.opened = {
            name: OpenModel(name, elastic, sample, results, cache) for name, elastic in models.items()
        }
        self.gate = Gate()
        self.admission = Admission(CHATS_AT_ONCE)
        self.refining = Running()
        self._newest: dict[str, object] = {}
        self._lock = threading.Lock()

    def describe(self, model: str) -> dict:
        return self.opened[model].description

    def choices(self, model: str) -> list[tuple[str, str]]:
        """Menu of precisions: (label, value)."""
        named = [(_label(name), name) for name in self.opened[model].named_plans]
        return [("Equaliser (Explore page)", EQUALIZER), *named, *baseline_choices(self.models[model])]

    def start(self, model: str) -> PrecisionPlan:
        """The plan that a page opens with: 4 bits, of activations too where the model was calibrated so."""
        elastic = self.models[model]
        quality = elastic.artifact.manifest.quality
        return elastic.layout.guarded(PrecisionPlan.parse("W4A4" if "W4A4" in quality else "W4"))

    def plan(self, model: str, choice: str, plan_json: PlanJson | None = None) -> PrecisionPlan:
        """The plan behind a menu value; "equaliser" is the visitor's own, in `plan_json`."""
        if choice == EQUALIZER:
            return self.plan_of(model, plan_json) if plan_json else PrecisionPlan.full()
        named = self.opened[model].named_plans
        if choice not in named:
            raise ValueError(f"no plan is called {choice!r}; choose one from the list")
        return named[choice]

    def plan_of(self, model: str, plan_json: PlanJson) -> PrecisionPlan:
        """The plan that the browser holds as bits per layer; PlanError if it does not fit the model."""
        layers = self.models[model].layers
        pairs = zip(layers, plan_json["w"], plan_json.get("a") or [FULL] * len(layers), strict=True)
        rules = {name: Bits(w, a) for name, w, a in pairs}
        plan = PrecisionPlan.of(rules, kv=plan_json.get("kv", FULL), embeddings=plan_json.get("e", FULL))
        return replace(plan, name=self.name_of(model, plan))

    def name_of(self, model: str, plan: PrecisionPlan) -> str:
        """The name of a plan that has one, else the bits of all its layers, or the mean of them."""
        opened = self.opened[model]
        elastic = opened.elastic
        name = opened.names.get(plan.key(elastic.layers))
        if name:
            return name
        rules, weights = plan.resolve(elastic.layers), elastic.sizes.weights
        if len(set(rules.values())) == 1:
            bits = next(iter(rules.values()))
            return PrecisionPlan.uniform(bits.weights, bits.activations, plan.kv, plan.embeddings).name
        mean = sum(rules[n].weights * k for n, k in weights.items()) / sum(weights.values())
        return f"mixed, {mean:.2f} bits" + (f", E{plan.embeddings}" if plan.embeddings != FULL else "")

    def plan_json_of(self, model: str, plan: PrecisionPlan) -> dict:
        """A plan as the browser holds it."""
        bits = plan.resolve(self.models[model].layers).values()
        widths = {"w": [b.weights for b in bits], "a": [b.activations for b in bits]}
        return widths | {"kv": plan.kv, "e": plan.embeddings}

    def slider(self, model: str, request: Mapping | None = None) -> dict:
        """What the budget's slider runs through within the limits of a request; JSON."""
        opened = self.opened[model]
        return {"model": model} | (slider(opened, request) if request else opened.slider)

    def solve(self, model: str, request: Mapping) -> dict:
        """The answer to a request for a budget: the best plan as the browser holds it, or why it has none."""
        answer = {"serial": request.get("serial")}
        try:
            found, budget = solved(self.opened[model], request)
        except ValueError as error:
            return answer | {"error": sentence(error)}
        plan_json = self.plan_json_of(model, found.allocation.plan)
        changed = ("w", "a", "e") if request.get("activations") == AS_WEIGHTS else ("w", "e")
        plan = {key: plan_json[key] for key in changed}
        return answer | {"plan": plan, "budget": budget, "note": found.words()}

    def comparable(self, model: str, tried: Sequence[PrecisionPlan] = ()) -> dict:
        """What there is to compare: the menu of plans, and where the model's layers lie."""
        described, named = self.describe(model), self.opened[model].named_plans
        own = [("Equaliser", EQUALIZER)]
        history = [(f"Tried: {p.name}", f"{TRIED}{i}") for i, p in enumerate(tried) if p.name not in named]
        choices = [*own, *((_label(name), name) for name in named), *reversed(history)]
        return {
            "model": model,
            "choices": [list(choice) for choice in choices],
            "blocks": described["blocks"],
            "roles": described["roles"],
            "layers": [[layer["role"], layer["block"]] for layer in described["layers"]],
        }

    def compared(self, model: str, plan: PrecisionPlan) -> dict:
        """One of two plans beside each other: its bits, bytes and quality as far as they are known."""
        opened = self.opened[model]
        sizes, measured = opened.elastic.sizes, opened.stored(plan)
        return {
            "label": _label(plan.name),
            "plan": self.plan_json_of(model, plan),
            "bytes": sizes.deploy(plan),
            "bits_per_param": sizes.bits_per_parameter(plan),
            "predicted": opened.predicted(plan),
            "measured": measured and measured.to_dict(),
        }

    def refine(
        self, model: str, plan: PrecisionPlan, request: Mapping, visitor: str, seconds: float = SECONDS
    ) -> Iterator[dict]:
        """The plan made better by measuring, as the browser shows it (see components/budget.py); a visitor's
        newer refinement ends the older one."""
        job = self.refining.begin(visitor)
        limits = (lambda: self.gate, job.is_set, seconds)
        try:
            with closing(refinement(self.opened[model], plan, request, *limits)) as steps:
                for step in steps:
                    state = step.state
                    if step.plan:
                        name = self.name_of(model, step.plan)
                        state = state | {"plan": self.plan_json_of(model, step.plan), "name": name}
                    if self.refining.is_newest(visitor, job):
                        yield state
        finally:
            self.refining.end(visitor, job)

    def stop_refining(self, visitor: str) -> None:
        """End the visitor's refinement after the pass it is in; harmless where there is none."""
        self.refining.stop(visitor)

    def points(
        self, model: str, tried: Sequence[PrecisionPlan] = (), current: PrecisionPlan | None = None
    ) -> dict:
        """The chart: every named plan, every plan tried and every baseline that has been measured, and the
        plan on the faders."""
        opened = self.opened[model]
        named = opened.named_plans
        best = {plan.name for plan in opened.best}
        points = [
            _point(opened, plan, name, "best" if name in best else "preset") for name, plan in named.items()
        ]
        history = [(f"{TRIED}{i}", plan) for i, plan in enumerate(tried)]
        points += [
            _point(opened, plan, identity, "tried") for identity, plan in history if plan.name not in named
        ]
        points += [_baseline_point(opened, baseline) for baseline in BASELINES.values()]
        points.append(current and _point(opened, current, "current", "current"))
        full = opened.stored(PrecisionPlan.full())
        sizes = opened.elastic.sizes
        full_bytes = sizes.deploy(PrecisionPlan.full())
        reference = {
            "bytes": full_bytes,
            "bits_per_param": 8 * full_bytes / sizes.parameters,
        }
        if full:
            reference |= opened.measured_on.perfect(full)
        kind = opened.elastic.kind
        return {
            "kind": kind,
            "points": [p for p in points if p],
            "reference": reference,
            "floor": opened.floor,
        }

    def state(self, model: str, plan: PrecisionPlan, **changes) -> dict:
        """The numbers strip for a plan: what is known of it without running anything."""
        opened = self.opened[model]
        elastic, size = opened.elastic, opened.elastic.sizes.deploy(plan)
        stored = opened.stored(plan)
        full = opened.stored(PrecisionPlan.full())
        known = stored or full
        return {
            "kind": elastic.kind,
            "status": "stored" if stored else "idle",
            "position": 0,
            "message": "" if opened.measured_on else opened.lacking,
            "progress": 1.0 if stored else 0.0,
            "estimate": stored and stored.to_dict(),
            "reference": (opened.measured_on.perfect(known) if known else {}) | {"kl_floor": opened.floor},
            "uniform": self._uniform(opened, plan, size),
            "deploy_bytes": size,
            "full_bytes": elastic.sizes.deploy(PrecisionPlan.full()),
            "elastic_bytes": elastic.resident_bytes,
            "switch_ms": None,
            "switch_kind": None,
            "conditions": opened.conditions(plan),
            "link": encode(self.plan_json_of(model, plan), model),
        } | changes

    @staticmethod
    def _uniform(opened: OpenModel, plan: PrecisionPlan, size: int) -> dict | None:
        """Uniform plans at the same bytes; None for a plan that rounds activations too, whose cost the bytes
        do not show."""
        bits = plan.resolve(opened.elastic.layers).values()
        return opened.uniform_at(size) if all(b.activations == FULL for b in bits) else None

    def measure(self, model: str, plan: PrecisionPlan, visitor: str) -> Iterator[dict]:
        """Numbers for a plan, better with every window; ends early when the same visitor asks for another."""
        ticket = object()
        with self._lock:
            self._newest[visitor] = ticket
        try:
            yield from self._measure(model, plan, lambda: self._newest.get(visitor) is ticket)
        finally:
            with self._lock:
                if self._newest.get(visitor) is ticket:
                    del self._newest[visitor]

    def _measure(self, model: str, plan: PrecisionPlan, wanted) -> Iterator[dict]:
        opened = self.opened[model]
        state = self.state(model, plan)
        if state["estimate"] or opened.measured_on is None:
            yield state
            return
        if self.gate.waiting:
            yield state | {"status": "queued", "position": self.gate.waiting}
        else:
            yield state | {"status": "measuring", "message": "preparing the weights"}
        with self.gate:
            if not wanted():
                return
            made, start = opened.elastic.bank.made, time.perf_counter()
            view = opened.elastic.view(plan)
            switch = 1000 * (time.perf_counter() - start)
        state |= {
            "switch_ms": switch,
            "switch_kind": "cold" if opened.elastic.bank.made > made else "warm",
            "elastic_bytes": opened.elastic.resident_bytes,
        }
        data = opened.measured_on
        estimates = data.estimates(plan, view, lambda: self.gate)
        estimate, told = None, 0.0
        for estimate in estimates:
            if not wanted():
                estimates.close()
                return
            if time.monotonic() - told < UPDATE_S:
                continue
            told = time.monotonic()
            measured = estimate.to_dict()
            yield state | {
                "status": "measuring",
                "message": "",
                "progress": measured["tokens"] / data.count,
                "estimate": measured,
                "reference": state["reference"] | data.perfect(estimate),
                "uniform": _so_far(state["uniform"], state["reference"], data.perfect(estimate)),
            }
        opened.results.put(opened.result_key(plan), estimate.to_dict())
        done = {"status": "done", "progress": 1.0, "estimate": estimate.to_dict()}
        done["reference"] = state["reference"] | data.perfect(estimate)
        yield state | done | {"uniform": self._uniform(opened, plan, state["deploy_bytes"])}


def _data_of(elastic: ElasticModel, sample: Sample, cache: Path) -> MeasuredOn | None:
    if elastic.vision:
        return Pictures(elastic, cache) if elastic.vision.images and elastic.vision.labels else None
    if elastic.kind == "vision-language":
        return Answers(elastic, cache) if elastic.questions else None
    return Passages(elastic, sample, cache)


def _so_far(uniform: Mapping | None, whole: Mapping, now: Mapping) -> Mapping | None:
    """Uniform plans' perplexity on the text read so far, by what full precision's is there and on all of
    it: passages differ more than plans do."""
    if not uniform or not whole.get("ppl") or not now.get("ppl"):
        return uniform
    return {**uniform, "ppl": uniform["ppl"] * now["ppl"] / whole["ppl"]}


def _label(name: str) -> str:
    return name[0].upper() + name[1:]


def _point(opened: OpenModel, plan: PrecisionPlan, identity: str, kind: str) -> dict | None:
    size = opened.elastic.sizes.deploy(plan)
    return _drawn(opened, opened.stored(plan), size, id=identity, label=_label(plan.name), kind=kind)


def _baseline_point(opened: OpenModel, baseline: Baseline) -> dict | None:
    size, identity = opened.elastic.baseline_bytes(baseline.name), PREFIX + baseline.name
    estimate = opened.baseline_stored(baseline)
    return _drawn(opened, estimate, size, id=identity, label=baseline.title, kind="baseline")


def _drawn(
    opened: OpenModel, estimate: Estimate | AccuracyEstimate | VqaEstimate | None, size: int, **who: str
) -> dict | None:
    """A point of the chart; None for what has not been measured."""
    if estimate is None:
        return None
    quality = opened.measured_on.figures(estimate)
    if estimate.kl < NO_KL:
        quality |= {"kl": 0.0, "kl_se": 0.0}
    bits = 8 * size / opened.elastic.sizes.parameters
    return who | {"bytes": size, "bits_per_param": bits, "measured": True} | quality
