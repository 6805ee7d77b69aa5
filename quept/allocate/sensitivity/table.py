"""SensitivityTable: what rounding each part of a model costs by itself, and what that predicts for whole
plans.

    S[layer, b] = mean over positions of KL(p_full || p_new): that layer's weights at b bits, all else full
    A[layer, b] = the same for the layer's inputs, its weights untouched
    E[b]        = the same for the embeddings (token embeddings and output head)
    C[block, b] = the same for the keys and values of one block; or of the whole KV cache ("W16KV8")
    s(plan)     = sum over layers of S[layer, weight bits] + A[layer, input bits], plus E[embedding bits] and
                  the sum over blocks of C[block, KV bits]

Isolated costs do not simply add up at low widths, so s is only an abscissa: the *curve* holds s of every plan
that was measured whole (uniform ones, and some with rounded embeddings or inputs) beside the KL, the score
(perplexity; accuracy of a model that sees) and the same-top share that it showed. Points at which KL falls
while s rises are left out, as few as do it: a curve for reading must rise. A prediction reads it: linear in
log s, with KL and perplexity in log and the shares as they are, and constant beyond the last point. Below the
first point the distance to full precision (KL, log perplexity, lost accuracy, share of differing tokens)
shrinks in proportion to s. The equaliser does the same arithmetic in the
browser from `prediction(...)`. What rounded keys and values of blocks cost does add up, to each other and to
the KL of rounded weights (SmolLM2: W4E8 0.127, KV4 0.126, W4KV4E8 0.250), so theirs is added
to what the curve says of the rest, and the other metrics are read where the curve shows that KL.

A table may be measured around another plan than full precision, its `base`: S is then the *change* of KL
from that plan, negative where a layer gets more bits, and holds a number for 16 bits too. Such a table
has no curve: its predictions are linear, the base's own KL plus the changes, and the score and the share
of differing tokens in proportion to KL. They are good near the base only.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quept.checked import AnyWidth, Count, Group, Number, Positive, Share, Whole, Width, checked, form
from quept.engines import GRADED_WIDTHS
from quept.files import parse_json, read_bytes, write_atomic
from quept.plan import ACTIVATION_BITS, EMBEDDING_BITS, FULL, KV_BITS, WEIGHT_BITS, Bits, PrecisionPlan

if TYPE_CHECKING:
    from quept.runtime import ElasticModel

FORMAT, VERSION = "quept-sensitivity", 2
SMALLEST = 1e-12  # where a measured zero stands on a logarithmic scale
FULL_PRECISION, BASE = (
    "full precision",
    "base",
)  # what `base` says normally; the key of another base in `whole`


# What PrecisionPlan.parse takes for no file.
SHORT = re.compile(r"w\d+(a\d+)?(kv\d+)?(e\d+(\.5)?)?", re.IGNORECASE)


_ROW = dict[Width, Number]
_SCORES = {  # by the score's name: what it must be, and what else belongs to data and to the reference
    "ppl": (Positive, {"text": str, "tokens": Count, "context": Count, "dtype": str}, {"context": Count}),
    "top1": (Share, {"text": str, "tokens": Count, "unit": str, "dtype": str}, {}),
}


def _form(score: str) -> Any:
    """The form of a table whose plans have this score."""
    kind, data, reference = _SCORES[score]
    metrics = form(**{"kl": Number, score: kind, "same_top": Share}, more=True)
    return form(
        format=str,
        version=int,
        model=str,
        fingerprint=str,
        group=Group,
        per=Literal["layer", "block"],
        data=form(**data),
        reference=form(**{score: kind, "tokens": Count} | reference, more=True),
        layers=dict[str, _ROW],
        uniform=dict[Width, metrics],
        whole=dict[str, metrics],
        embeddings=dict[AnyWidth, Number],
        activations=dict[str, _ROW],
        base=str,
        cache=dict[str, _ROW],
        cache_tokens=Whole,
    )


class SensitivityError(ValueError):
    """A table that cannot be read, or does not know what it is asked; the message says why."""


@dataclass(frozen=True)
class SensitivityTable:
    """model: its name. fingerprint, group: whose metrics these are (`ElasticModel.identity`) and the grid.
    per: "layer", or "block" where a block was changed as a whole and its cost is shared out over its
    layers by their number of weights. data: what S was measured on. layers: `{name: {bits: S}}`. uniform:
    `{bits: {"kl", "kl_se", "ppl", "ppl_se", "same_top", "tokens"}}` of whole uniform plans; reference:
    full precision on the same, longer data: `{"ppl", "tokens", "context"}`. Of a model that sees the score
    is "top1", not "ppl", and its data have a "unit" (pictures, questions), no context. whole: more plans
    measured whole, `{"W4E8": ...}`. embeddings: `{bits: E}`; activations: `{name: {bits: A}}`; both empty
    if not measured. base: the plan that changes were made around. cache: `{block: {bits: C}}`; where it is
    empty the KV cache has the whole plans of it alone, one width for all blocks. cache_tokens: what C was
    measured on, where that is less than S."""

    model: str
    fingerprint: str
    group: int | str
    per: str
    data: Mapping[str, int | str]
    reference: Mapping[str, float]
    layers: Mapping[str, Mapping[int, float]]
    uniform: Mapping[int, Mapping[str, float]]
    whole: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    embeddings: Mapping[int | float, float] = field(default_factory=dict)
    activations: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    base: str = FULL_PRECISION
    cache: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    cache_tokens: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths at which every layer was measured, ascending."""
        return tuple(sorted(set.intersection(*(set(row) for row in self.layers.values()))))

    @property
    def embedding_bits(self) -> tuple[int | float, ...]:
        """Widths that embeddings are offered, ascending: every whole one, and the graded ones that were
        measured."""
        return tuple(sorted({*EMBEDDING_BITS, *(b for b in GRADED_WIDTHS if b in self.embeddings)}))

    @property
    def score(self) -> str:
        """Name of the metric beside KL and the same-top share: "ppl", or "top1" of a model that sees."""
        return "top1" if "top1" in self.reference else "ppl"

    @cached_property
    def kv(self) -> dict[int, float]:
        """What rounding the KV cache alone costs at each width that was measured whole."""
        plans = ((PrecisionPlan.parse(name), row) for name, row in self.whole.items() if name != BASE)
        return {plan.kv: row["kl"] for plan, row in plans if _of_cache(plan)}

    @property
    def conditions(self) -> str:
        """What the metrics were measured on, as text."""
        d, r = self.data, self.reference
        what = "each layer" if self.per == "layer" else "each block"
        around = "" if self.base == FULL_PRECISION else f" around {self.base}"
        plans = "uniform plans" if self.base == FULL_PRECISION else self.base
        if self.score == "top1":
            changed = f"{what} changed by itself{around} on {d['tokens']:,} {d['unit']} of {d['text']}"
            return f"{changed}; {plans} whole on {r['tokens']:,} {d['unit']}; {d['dtype']}"
        cache = f"; keys and values on {self.cache_tokens:,}" if self.cache_tokens else ""
        return (
            f"{what} changed by itself{around} on {d['tokens']:,} tokens of {d['text']}, context "
            f"{d['context']}{cache}; {plans} whole on {r['tokens']:,} tokens, context {r['context']}; "
            f"{d['dtype']}"
        )

    def total(self, plan: PrecisionPlan) -> float:
        """s(plan), or the change from the base. SensitivityError for a width that was not measured, PlanError
        for a plan of another model."""
        total = 0.0
        for name, bits in plan.resolve(self.layers).items():
            total += self._of(self.layers[name], bits.weights, name)
            if bits.activations != FULL:
                total += self._of(self.activations.get(name, {}), bits.activations, f"the input of {name}")
        if plan.rounds_cache:
            total += self.cache_cost(plan)
        return total + self._of(self.embeddings, plan.embeddings, "the model with embeddings")

    def cache_cost(self, plan: PrecisionPlan) -> float:
        """What the plan's KV cache adds to its total; SensitivityError where that was not measured."""
        if self.cache:
            widths = plan.resolve_cache(self.cache).items()
            return math.fsum(
                self._of(self.cache[name], bits, f"the cache of {name}") for name, bits in widths
            )
        if plan.kv_blocks:
            raise SensitivityError("this table knows the KV cache as a whole only; measure it with --kv")
        return self._of(self.kv, plan.kv, "the KV cache")

    def of(self, elastic: ElasticModel) -> SensitivityTable | None:
        """This table as one of this model; None if it was measured on another one, or on another grid."""
        if self.group != elastic.artifact.group or not elastic.is_named(self.fingerprint):
            return None
        return replace(self, fingerprint=elastic.identity)

    def covers(self, plan: PrecisionPlan) -> bool:
        """Whether every width of this plan was measured. PlanError for a plan of another model."""
        try:
            self.total(plan)
        except SensitivityError:
            return False
        return True

    def predicted(self, plan: PrecisionPlan) -> dict[str, float]:
        """{"kl", score, "same_top"} that this plan should show; raises as `total` does."""
        name, s = self.score, self.total(plan)
        if not self.reference:
            raise SensitivityError("a rule of thumb predicts nothing; measure a table")
        scale, back = (math.log, math.exp) if name == "ppl" else (float, float)
        reference = scale(self.reference[name])
        if self.base != FULL_PRECISION:
            base = self._base_metrics()
            kl, score, same_top = max(0.0, base["kl"] + s), scale(base[name]), base["same_top"]
            share = min(kl / max(base["kl"], SMALLEST), 1 / max(1 - same_top, SMALLEST))
        else:
            curve, sums = self._curve, self._logs[0]
            if self.cache and plan.rounds_cache:
                added = self.cache_cost(plan)
                s = self._showing(self._kl_at(s - added) + added)
            at = math.log(max(s, 1e-300))
            share = min(1.0, s / curve["sum"][0])
            kl = self._kl_at(s)
            score = _interpolate(sums, [scale(x) for x in curve[name]], at)
            same_top = _interpolate(sums, curve["same_top"], at)
        return {
            "kl": kl,
            name: back(reference + (score - reference) * share),
            "same_top": 1 - (1 - same_top) * share,
        }

    def scaled(self, full: float) -> SensitivityTable:
        """This table for data on which full precision scores `full`: what carries over from one text to
        another is the ratio to full precision."""
        name, ratio = self.score, full / self.reference[self.score]
        most = 1.0 if name == "top1" else math.inf

        def moved(rows: Mapping) -> dict:
            return {key: {**row, name: min(ratio * row[name], most)} for key, row in rows.items()}

        reference = {**self.reference, name: full}
        return replace(self, reference=reference, uniform=moved(self.uniform), whole=moved(self.whole))

    @property
    def _logs(self) -> tuple[list[float], list[float]]:
        """Logarithms of the curve's sums and of its KL."""
        return tuple([math.log(max(x, SMALLEST)) for x in self._curve[name]] for name in ("sum", "kl"))

    def _kl_at(self, s: float) -> float:
        sums, kls = self._logs
        share = min(1.0, s / self._curve["sum"][0])
        return math.exp(_interpolate(sums, kls, math.log(max(s, 1e-300)))) * share

    def _showing(self, kl: float) -> float:
        """The sum at which the curve shows this KL."""
        (sums, kls), first = self._logs, self._curve["kl"][0]
        if kl <= first:
            return self._curve["sum"][0] * kl / max(first, SMALLEST)
        return math.exp(_interpolate(kls, sums, math.log(kl)))

    def curve(self) -> dict[str, list[float]]:
        """The plans measured whole in order of their summed sensitivity, but for those that break the rise of
        KL: {"sum", "kl", score, "same_top"}."""
        return {name: list(column) for name, column in self._curve.items()}

    @cached_property
    def _curve(self) -> dict[str, list[float]]:
        plans = [(PrecisionPlan.uniform(bits), row) for bits, row in self.uniform.items()]
        plans += [(PrecisionPlan.parse(text), row) for text, row in self.whole.items()]
        points = [
            (self.total(plan), row["kl"], row[self.score], row["same_top"])
            for plan, row in plans
            if self.covers(plan) and not (_of_cache(plan) or (self.cache and plan.rounds_cache))
        ]
        points = _rising([point for point in points if point[0] > 0])
        if not points:
            raise SensitivityError("this table has no whole plan to predict from; measure it again")
        names = ("sum", "kl", self.score, "same_top")
        return dict(zip(names, map(list, zip(*points, strict=True)), strict=True))

    def prediction(self, layers: Iterable[str], blocks: Iterable[str] = ()) -> dict | None:
        """What the browser needs to predict by itself, for `layers` and the blocks that keep keys and values,
        in this order; None where a layer or a width is missing, and around another base. "embeddings" (one
        number a width of `embedding_bits`), "cache" (for each block one a width of KV_BITS), or "kv" (of the
        whole), and "activations" (for each layer one a width of ACTIVATION_BITS) are there if they were
        measured."""
        layers = list(layers)
        if self.base != FULL_PRECISION or not self.uniform or not set(layers) <= set(self.layers):
            return None
        rows = {
            "sensitivity": [_row(self.layers[name], WEIGHT_BITS) for name in layers],
            "activations": [_row(self.activations.get(name, {}), ACTIVATION_BITS) for name in layers],
            "cache": [_row(self.cache.get(name, {}), KV_BITS) for name in blocks],
        }
        rows = {key: table for key, table in rows.items() if table and None not in table}
        if "sensitivity" not in rows:
            return None
        for name, row, widths in (
            ("embeddings", self.embeddings, self.embedding_bits),
            ("kv", {} if self.cache else self.kv, KV_BITS),
        ):
            if costs := _row(row, widths):
                rows[name] = costs
        return {
            **rows,
            "curve": self.curve(),
            "score": self.score,
            "reference": {self.score: self.reference[self.score]},
            "conditions": self.conditions,
        }

    def _of(self, row: Mapping[int | float, float], bits: int | float, what: str) -> float:
        if bits in row:
            return row[bits]
        if bits == FULL and (not row or self.base == FULL_PRECISION):
            return 0.0
        if not row:
            raise SensitivityError(f"{what} at {bits} bits: this table did not measure any such rounding")
        measured = ", ".join(map(str, sorted(row)))
        raise SensitivityError(f"{what} was not measured at {bits} bits; measured: {measured}")

    def _base_metrics(self) -> Mapping[str, float]:
        if BASE not in self.whole:
            raise SensitivityError("this table does not say how its base plan measured; measure it again")
        return self.whole[BASE]

    def to_json(self) -> str:
        """The file: one line a layer."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        tables = {key: data.pop(key) for key in ("layers", "activations", "uniform", "whole", "cache")}
        if not tables["cache"]:
            del tables["cache"]
        if not data["cache_tokens"]:
            del data["cache_tokens"]
        body = json.dumps(data, indent=1).removesuffix("\n}")
        for key, table in tables.items():
            rows = ",\n".join(
                f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in _text_keys(table).items()
            )
            body += f',\n "{key}": {{\n{rows}\n }}' if rows else f',\n "{key}": {{}}'
        return body + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> SensitivityTable:
        """Read what `to_json` writes; SensitivityError with a sentence for anything else."""
        data = parse_json(text, "a sensitivity table", FORMAT, VERSION, SensitivityError)
        if data["version"] == 1:
            data |= {"whole": {}, "embeddings": {}, "activations": {}, "base": FULL_PRECISION}
        data = {"cache": {}, "cache_tokens": 0} | data
        reference = data.get("reference")
        score = "top1" if isinstance(reference, dict) and "top1" in reference else "ppl"
        data = checked(data, _form(score), "this sensitivity table", SensitivityError)
        if not data["layers"]:
            raise SensitivityError("this sensitivity table is empty; measure it again")
        odd = [name for name in data["whole"] if name != BASE and not SHORT.fullmatch(name)]
        if odd:
            raise SensitivityError(f"this sensitivity table is damaged: {odd[0]!r:.40} is no plan like W4E8")
        return cls(**{f.name: data[f.name] for f in fields(cls)})

    def save(self, path: str | Path) -> None:
        """Write the file; it appears whole or not at all."""
        write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> SensitivityTable:
        """Read a file; SensitivityError names it."""
        content = read_bytes(path, "a sensitivity table", SensitivityError)
        try:
            return cls.from_json(content)
        except SensitivityError as error:
            raise SensitivityError(f"{path}: {error}") from None


def _of_cache(plan: PrecisionPlan) -> bool:
    """Whether a plan rounds the KV cache and nothing else."""
    return plan.kv != FULL and plan.default == Bits() and plan.embeddings == FULL


def _text_keys(table: Mapping) -> dict:
    return {
        str(key): {str(inner): value for inner, value in sorted(row.items())}
        if isinstance(key, str)
        else dict(row)
        for key, row in table.items()
    }


def _row(row: Mapping[int | float, float], widths: tuple[int | float, ...]) -> list[float] | None:
    """A number for each width, 0 for the untouched one; None if one is missing."""
    known = {FULL: 0.0, **row}
    return [known[bits] for bits in widths] if row and set(widths) <= set(known) else None


def _rising(points: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The longest series of points of which both the first number and the second rise; of equally long ones,
    that which ends lowest."""
    best: list[list[tuple[float, ...]]] = []
    for point in sorted(points):
        before = [series for series in best if series[-1][0] < point[0] and series[-1][1] <= point[1]]
        best.append([*max(before, key=len, default=[]), point])
    return max(best, key=len, default=[])


def _interpolate(xs: list[float], ys: list[float], x: float) -> float:
    """Piecewise linear through (xs, ys), xs ascending, constant outside."""
    if x <= xs[0]:
        return ys[0]
    if x >= xs[-1]:
        return ys[-1]
    i = bisect_left(xs, x)
    t = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + t * (ys[i] - ys[i - 1])
