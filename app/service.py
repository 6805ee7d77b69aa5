"""What the pages ask for: the opened models, and measurements of a plan, for many visitors at once. No gradio
here.

The models are opened once and shared; a visitor's precision is an argument of every call. Everything that
runs a model goes through one fair gate, one forward step at a time. A visitor's newer measurement ends the
older one. What was measured once is kept in the results store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from pathlib import Path

from quept.allocate.solve.constraints import megabytes
from quept.evaluate import EvalTask, Results, Sample, TaskEstimate
from quept.plan import FULL, Bits, PlanError, PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.memory import release_libraries, resident_bytes

from .budget import context_of, more_than_full, sentence, slider, solved
from .exports import Exports
from .gate import Admission, Gate, Unwanted
from .lazy import Lazy
from .link import encode
from .llama import LlamaRoom
from .open_model import Card, OpenModel
from .payloads import AS_WEIGHTS
from .refinement import SECONDS, refinement
from .running import Running
from .side import EQUALIZER, plainly, setting_choices

CHATS_AT_ONCE = 4
UPDATE_S = 0.25  # between two estimates that a page is shown
TOKENS_SHOWN = 512  # of a conversation, whose keys and values are counted
TRIED = "tried:"  # with a number: one of the plans that a visitor has measured
STARTING = "best 5 bits"
NO_KL = 1e-5  # weights rounded to 16 bits once after a transform show 2e-6: full precision, for a reader

# A plan as the browser holds it: {"w": [bits per layer], "a": [bits per layer], "kv": bits, or a list of them
# where blocks differ, "e": bits of the token embeddings and the output head}; all but "w" may be missing,
# which means 16
PlanJson = Mapping[str, object]


class Service:
    """All that visitors share."""

    def __init__(
        self,
        models: Mapping[str, ElasticModel],
        sample: Sample,
        results: Results,
        cache: Path,
        cards: Mapping[str, Card] | None = None,
    ):
        """models may be Lazy; cards say of those in it that are opened later what menus show of them."""
        self.models = models
        self.cards = {name: (cards or {}).get(name) or Card.of(models[name]) for name in models}

        def opening(name: str) -> Callable[[], OpenModel]:
            return lambda: OpenModel(name, models[name], sample, results, cache)

        self.opened = Lazy({name: opening(name) for name in models})
        for name in models:
            if name not in (cards or {}):
                self.opened[name]
        self.gate = Gate()
        self.admission = Admission(CHATS_AT_ONCE)
        self.refining = Running()
        self.exports, self.llama = Exports(), LlamaRoom()
        self._opening = threading.Lock()
        self._newest: dict[str, object] = {}
        self._lock = threading.Lock()

    @property
    def waiting(self) -> list[str]:
        """Names of the models that nobody has asked for yet."""
        return [name for name in self.opened if name not in self.opened.made]

    def open_waiting(self, after: float) -> None:
        """Open them after some seconds, one after the other; a thread that finds another at it leaves."""
        if self._opening.acquire(blocking=False):
            try:
                time.sleep(after)
                for name in self.waiting:
                    self.opened[name]
            finally:
                self._opening.release()

    def describe(self, model: str) -> dict:
        return self.opened[model].description

    def choices(self, model: str) -> list[tuple[str, str]]:
        """Menu of precisions: (label, value)."""
        elastic, plans = self.opened[model].elastic, self.opened[model].named_plans
        named = [(_label(plainly(plan, bool(elastic.embeddings))), name) for name, plan in plans.items()]
        return [("Your plan", EQUALIZER), *named, *setting_choices(elastic)]

    def tasks(self, model: str) -> list[tuple[str, str]]:
        """Menu of what plans are measured by: (label, value), the default first. `state`, `measure`,
        `points`, `comparable` and `compared` take the value as `task`."""
        metrics = {name: task.metrics({}) for name, task in self.opened[model].tasks.items()}
        return [(f"{_label(name)}: {', '.join(m.label for m in own)}", name) for name, own in metrics.items()]

    def start(self, model: str) -> PrecisionPlan:
        """The plan that the app opens with: the best one found for 5 bits a parameter; without any 4 bits in
        every layer, of activations too where the model was calibrated so."""
        elastic, opened = self.models[model], self.opened[model]
        if best := next((plan for plan in opened.best if plan.name == STARTING), None):
            return best
        quality = elastic.artifact.manifest.quality
        plan = PrecisionPlan.parse("W4A4" if "W4A4" in quality else "W4")
        return plan.keeping(elastic.layout.vision_layers)

    def plan(self, model: str, choice: str, plan_json: PlanJson | None = None) -> PrecisionPlan:
        """The plan behind a menu value; "equaliser" is the visitor's own, in `plan_json`."""
        if choice == EQUALIZER:
            return self.plan_of(model, plan_json) if plan_json else PrecisionPlan.full()
        named = self.opened[model].named_plans
        if choice not in named:
            raise ValueError(f"no plan is called {choice!r}; choose one from the list")
        return named[choice]

    def of_model(self, model: str, tried: Iterable[PlanJson]) -> list[PlanJson]:
        """Those with as many layers as the model: what a page tried before it was told of another model, and
        what it asks meanwhile, is of the one before."""
        return [plan for plan in tried if len(plan["w"]) == len(self.models[model].layers)]

    def plan_of(self, model: str, plan_json: PlanJson) -> PrecisionPlan:
        """The plan that the browser holds as bits per layer; PlanError if it does not fit the model."""
        layers = self.models[model].layers
        pairs = zip(layers, plan_json["w"], plan_json.get("a") or [FULL] * len(layers), strict=True)
        rules = {name: Bits(w, a) for name, w, a in pairs}
        plan, kv = PrecisionPlan.of(rules, embeddings=plan_json.get("e", FULL)), plan_json.get("kv", FULL)
        blocks = self.models[model].cached_blocks
        one = isinstance(kv, int)
        plan = replace(plan, kv=kv) if one else plan.with_cache(dict(zip(blocks, kv, strict=True)))
        return replace(plan, name=self.name_of(model, plan))

    def name_of(self, model: str, plan: PrecisionPlan) -> str:
        """The name of a plan that has one, else the bits of all its layers, or the mean of them."""
        opened = self.opened[model]
        elastic = opened.elastic
        name = opened.names.get(plan.key(elastic.layers))
        if name:
            return name
        rules, weights = plan.resolve(elastic.layers), elastic.sizes.weights
        kv = plan.resolve_cache(elastic.cached_blocks).values()
        cache = f", KV mixed {sum(kv) / len(kv):.1f}" if len(set(kv)) > 1 else ""
        if len(set(rules.values())) == 1:
            bits, one = next(iter(rules.values())), FULL if cache else plan.kv
            uniform = PrecisionPlan.uniform(bits.weights, bits.activations, one, plan.embeddings)
            return uniform.name + cache
        mean = sum(rules[n].weights * k for n, k in weights.items()) / sum(weights.values())
        embeddings = f", E{plan.embeddings}" if plan.embeddings != FULL else ""
        return f"mixed, {mean:.2f} bits{embeddings}{cache}"

    def plan_json_of(self, model: str, plan: PrecisionPlan) -> dict:
        """A plan as the browser holds it; PlanError for a setting of another tool, which it cannot hold."""
        bits = plan.resolve(self.models[model].layers).values()
        if any(isinstance(b.weights, str) for b in bits):
            raise PlanError(
                f"{plan.name or 'this plan'} has no bits per layer to load: choose it in the Chat"
            )
        widths = {"w": [b.weights for b in bits], "a": [b.activations for b in bits]}
        kv = list(plan.resolve_cache(self.models[model].cached_blocks).values())
        return widths | {"kv": kv if len(set(kv)) > 1 else kv[0] if kv else plan.kv, "e": plan.embeddings}

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
        changed = ["w", "e"] + ["a"] * (request.get("activations") == AS_WEIGHTS)
        tokens = context_of(request)
        changed += ["kv"] * (found.allocation.plan.rounds_cache or tokens > 0)
        plan = {key: plan_json[key] for key in changed}
        note = " · ".join(
            filter(None, (more_than_full(self.opened[model], request, budget), found.describe()))
        )
        if tokens:
            taken = megabytes(self.models[model].sizes.cache(found.allocation.plan, tokens))
            note = f"{taken} of it for the keys and values of {tokens:,} tokens. {note}".strip()
        return answer | {"plan": plan, "budget": budget, "note": note}

    def comparable(self, model: str, tried: Sequence[PrecisionPlan] = (), task: str | None = None) -> dict:
        """What there is to compare: the menu of plans, and where the model's layers lie."""
        opened, task = self._task(model, task)
        described, named = opened.description, opened.named_plans
        own = [("Your plan", EQUALIZER)]
        history = [(f"Tried: {p.name}", f"{TRIED}{i}") for i, p in enumerate(tried) if p.name not in named]
        choices = [*own, *((_label(name), name) for name in named), *reversed(history)]
        return {
            "model": model,
            "choices": [list(choice) for choice in choices],
            "blocks": described["blocks"],
            "roles": described["roles"],
            "layers": [[layer["role"], layer["block"]] for layer in described["layers"]],
            "metrics": opened.metrics(task=task),
            "headline": task.headline,
        }

    def compared(self, model: str, plan: PrecisionPlan, task: str | None = None) -> dict:
        """One of two plans beside each other: its bits, bytes and quality as far as they are known."""
        opened, task = self._task(model, task)
        sizes, measured = opened.elastic.sizes, opened.stored(plan, task)
        return {
            "label": _label(plan.name),
            "plan": self.plan_json_of(model, plan),
            "bytes": sizes.deploy(plan),
            "bits_per_param": sizes.bits_per_parameter(plan),
            "predicted": opened.predicted(plan),
            "metrics": measured and opened.metrics(measured, task),
        }

    def measured_table(self, model: str, task: str | None = None) -> str:
        """Everything measured of the model by one of its tasks, here and for the release, as CSV: a row per
        measurement, the plan by its name where it has one, its bytes, and every number."""
        opened, chosen = self._task(model, task)
        elastic, key = opened.elastic, chosen.key(PrecisionPlan.full())
        frame = opened.results.table([elastic.identity, elastic.base_identity], key.data)
        named = opened.named_plans.values()
        sizes = {plan.key(elastic.layers): elastic.sizes.deploy(plan) for plan in named}
        frame.insert(1, "bytes", frame["plan"].map(sizes))
        frame["plan"] = frame["plan"].map(opened.names).fillna(frame["plan"])
        return frame.drop(columns=["model"]).to_csv(index=False)

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
        """End the visitor's refinement after the pass it is in; does nothing where there is none."""
        self.refining.stop(visitor)

    def points(
        self,
        model: str,
        tried: Sequence[PrecisionPlan] = (),
        current: PrecisionPlan | None = None,
        task: str | None = None,
    ) -> dict:
        """The chart: every named plan, every plan tried and every setting of other tools that has been
        measured, and the plan on the faders."""
        opened, task = self._task(model, task)
        named = opened.named_plans
        best = {plan.name for plan in opened.best}
        points = [
            _point(opened, task, plan, name, "best" if name in best else "preset")
            for name, plan in named.items()
        ]
        history = [(f"{TRIED}{i}", plan) for i, plan in enumerate(tried)]
        points += [
            _point(opened, task, plan, identity, "tried")
            for identity, plan in history
            if plan.name not in named
        ]
        points += [_point(opened, task, plan, word, "baseline") for word, plan in opened.others.items()]
        points.append(current and _point(opened, task, current, "current", "current"))
        full, sizes = PrecisionPlan.full(), opened.elastic.sizes
        return {
            "metrics": opened.metrics(task=task),
            "headline": task.headline,
            "points": [p for p in points if p],
            "trail": [plan.name if plan.name in named else identity for identity, plan in history],
            "reference": {"bytes": sizes.deploy(full), "bits_per_param": sizes.bits_per_parameter(full)},
            "token_s": opened.timing.line,
        }

    def _task(self, model: str, name: str | None) -> tuple[OpenModel, EvalTask]:
        opened = self.opened[model]
        return opened, opened.tasks.get(name or "", opened.task)  # a page may still have another model's

    def state(self, model: str, plan: PrecisionPlan, task: str | None = None, **changes) -> dict:
        """The numbers strip for a plan: what is known of it, by one of the model's tasks (the first unless
        given), without running anything."""
        opened, task = self._task(model, task)
        elastic, size = opened.elastic, opened.elastic.sizes.deploy(plan)
        stored = opened.stored(plan, task)
        return {
            "status": "stored" if stored else "idle",
            "position": 0,
            "message": task.lacking,
            **_so_far(opened, task, stored),
            "unit": task.unit,
            "headline": task.headline,
            "uniform": self._uniform(opened, task, plan, size),
            "deploy_bytes": size,
            "full_bytes": elastic.sizes.deploy(PrecisionPlan.full()),
            "resident_bytes": resident_bytes(),
            "memory": elastic.memory(plan, TOKENS_SHOWN),
            "dense": elastic.dense,
            "speed": opened.timing.of(plan),
            "switch_ms": None,
            "switch_kind": None,
            "conditions": opened.conditions(plan, task),
            "link": encode(self.plan_json_of(model, plan), model),
        } | changes

    @staticmethod
    def _uniform(opened: OpenModel, task: EvalTask, plan: PrecisionPlan, size: int) -> dict | None:
        """The best uniform plan at the same bytes; None for that plan itself, and for one that rounds
        activations too, whose cost the bytes do not show."""
        bits = plan.resolve(opened.elastic.layers).values()
        return opened.uniform_at(size, task, plan) if all(b.activations == FULL for b in bits) else None

    def measure(
        self, model: str, plan: PrecisionPlan, visitor: str, task: str | None = None
    ) -> Iterator[dict]:
        """Numbers for a plan, better with every step; ends early when the same visitor asks for another."""
        ticket, looked_up = object(), True

        def wanted() -> bool:
            return self._newest.get(visitor) is ticket

        with self._lock:
            self._newest[visitor] = ticket
        try:
            with suppress(Unwanted):
                for state in self._measure(model, plan, task, wanted):
                    looked_up = looked_up and state["status"] == "stored"
                    yield state
                timing = self.opened[model].timing
                if wanted() and not timing.knows(plan) and not self.gate.waiting:
                    looked_up = False
                    timing.measure(plan, lambda: self.gate.turn(first=False, wanted=wanted))
                    yield state | {"speed": timing.of(plan)}
        finally:
            with self._lock:
                if newest := wanted():
                    del self._newest[visitor]
            if newest and not looked_up and not self.gate.waiting:  # who comes behind lets go of it
                self.models[model].let_go()
                release_libraries()

    def _measure(self, model: str, plan: PrecisionPlan, name: str | None, wanted) -> Iterator[dict]:
        opened, task = self._task(model, name)
        state = self.state(model, plan, name)
        if state["estimate"] or task.lacking:
            yield state
            return
        if self.gate.waiting:
            yield state | {"status": "queued", "position": self.gate.waiting}
        else:
            yield state | {"status": "measuring", "message": "preparing the weights"}
        estimate, shown = None, 0.0

        def turn() -> AbstractContextManager:
            return self.gate.turn(first=estimate is None, wanted=wanted)

        with turn():
            made, start = opened.elastic.bank.made, time.perf_counter()
            view = opened.elastic.view(plan)
            switch = 1000 * (time.perf_counter() - start)
        state |= {
            "switch_ms": switch,
            "switch_kind": "cold" if opened.elastic.bank.made > made else "warm",
            "resident_bytes": resident_bytes(),
        }
        for estimate in task.estimates(view, plan, turn):
            if not wanted():
                return
            if time.monotonic() - shown < UPDATE_S:
                continue
            shown = time.monotonic()
            so_far = _so_far(opened, task, estimate)
            uniform = _scaled(state["uniform"], state["metrics"], so_far["metrics"])
            yield state | {"status": "measuring", "message": "", "uniform": uniform} | so_far
        opened.results.put(task.key(plan), estimate.to_dict())
        uniform = self._uniform(opened, task, plan, state["deploy_bytes"])
        yield state | {"status": "done", "uniform": uniform} | _so_far(opened, task, estimate)


def _so_far(opened: OpenModel, task: EvalTask, estimate: TaskEstimate | None) -> dict:
    """The part of the numbers strip that an estimate says."""
    return {
        "progress": estimate.done / estimate.total if estimate else 0.0,
        "done": estimate.payload["tokens"] if estimate else 0,
        "total": estimate.total if estimate else 0,
        "estimate": estimate and estimate.to_dict(),
        "metrics": opened.metrics(estimate, task),
    }


def _scaled(uniform: dict | None, whole: list[dict], now: list[dict]) -> dict | None:
    """Uniform plans' metrics on the data read so far, by what full precision's are there and on all of them:
    passages differ more than plans do."""
    seen = {metric["name"]: metric["full"] for metric in now}
    scales = {
        metric["name"]: seen[metric["name"]] / metric["full"]
        for metric in whole
        if metric["unit"] != "share" and metric["full"] and seen[metric["name"]]
    }
    return uniform and {k: v * scales[k] if k in scales else v for k, v in uniform.items()}


def _label(name: str) -> str:
    return name[0].upper() + name[1:]


def _point(opened: OpenModel, task: EvalTask, plan: PrecisionPlan, identity: str, kind: str) -> dict | None:
    """A point of the chart; None for what has not been measured."""
    estimate, sizes = opened.stored(plan, task), opened.elastic.sizes
    if estimate is None:
        return None
    values = {}
    for m in estimate.metrics:
        none = m.full == 0 and m.value < NO_KL
        ends = (0.0, 0.0, 0.0) if none else (m.value, m.low, m.high)
        values |= zip((m.name, f"{m.name}_low", f"{m.name}_high"), ends, strict=True)
    label = plan.name if kind == "baseline" else _label(plan.name)
    who = {"id": identity, "label": label, "kind": kind, "measured": True}
    speed = opened.timing.of(plan)
    taken = {"bytes": sizes.deploy(plan), "bits_per_param": sizes.bits_per_parameter(plan)}
    return who | taken | {"tokens_per_s": speed and speed["tokens_per_s"]} | values
