"""SensitivityTable: what each layer's rounding costs by itself, and what that predicts for whole plans.

    S[layer, b] = mean over positions of KL(p_full || p_new): that layer at b bits, all else full precision
    s(plan)     = sum over layers of S[layer, b of the layer]

Isolated costs do not simply add up at low widths, so s is only an abscissa: the *curve* holds s of every
uniform plan beside the KL, perplexity and same-top share that the same plan showed when it was measured
whole. A prediction reads that curve: linear in log s, with KL and perplexity in log and the same-top share as
it is, and constant beyond the last point. Below the first point the distance to full precision (KL, log
perplexity, share of differing tokens) shrinks in proportion to s. Activation and KV bits take no part in it.
The equaliser does the same arithmetic in the browser from `prediction(...)`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from quept.plan import FULL, WEIGHT_BITS, PrecisionPlan

FORMAT, VERSION = "quept-sensitivity", 1
SMALLEST = 1e-12  # where a measured zero stands on a logarithmic scale


class SensitivityError(ValueError):
    """A table that cannot be read, or does not know what it is asked; the message says why."""


@dataclass(frozen=True)
class SensitivityTable:
    """model: its name. fingerprint, group: what widths are made from (`Artifact.weights_id`) and the grid.
    per: "layer", or "block" where a block was changed as a whole and its cost is shared out over its layers
    by their number of weights. data: what S was measured on. layers: `{name: {bits: S}}`. uniform: `{bits:
    {"kl", "kl_se", "ppl", "ppl_se", "same_top", "tokens"}}` of whole uniform plans; reference: full precision
    on the same, longer data: `{"ppl", "tokens", "context"}`."""

    model: str
    fingerprint: str
    group: int | str
    per: str
    data: Mapping[str, int | str]
    reference: Mapping[str, float]
    layers: Mapping[str, Mapping[int, float]]
    uniform: Mapping[int, Mapping[str, float]]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths at which every layer was measured, ascending."""
        return tuple(sorted(set.intersection(*(set(row) for row in self.layers.values()))))

    @property
    def conditions(self) -> str:
        """What the figures were measured on, in words."""
        d, r = self.data, self.reference
        what = "each layer" if self.per == "layer" else "each block"
        return (
            f"{what} changed by itself on {d['tokens']:,} tokens of {d['text']}, context {d['context']}; "
            f"uniform plans whole on {r['tokens']:,} tokens, context {r['context']}; {d['dtype']}"
        )

    def total(self, plan: PrecisionPlan) -> float:
        """s(plan): the summed sensitivity. SensitivityError for a width that was not measured, PlanError for
        a plan of another model."""
        total = 0.0
        for name, bits in plan.resolve(self.layers).items():
            if bits.weights == FULL:
                continue
            if bits.weights not in self.layers[name]:
                raise SensitivityError(
                    f"{name} was not measured at {bits.weights} bits; measured: {self.widths}"
                )
            total += self.layers[name][bits.weights]
        return total

    def predicted(self, plan: PrecisionPlan) -> dict[str, float]:
        """{"kl", "ppl", "same_top"} that this plan's weight bits should show."""
        s, curve, reference = self.total(plan), self.curve(), math.log(self.reference["ppl"])
        at = math.log(max(s, 1e-300))
        sums = [math.log(x) for x in curve["sum"]]
        share = min(1.0, s / curve["sum"][0])
        kl = _interpolate(sums, [math.log(max(x, SMALLEST)) for x in curve["kl"]], at)
        ppl = _interpolate(sums, [math.log(x) for x in curve["ppl"]], at)
        same_top = _interpolate(sums, curve["same_top"], at)
        return {
            "kl": math.exp(kl) * share,
            "ppl": math.exp(reference + (ppl - reference) * share),
            "same_top": 1 - (1 - same_top) * share,
        }

    def curve(self) -> dict[str, list[float]]:
        """The uniform plans in order of their summed sensitivity: {"sum", "kl", "ppl", "same_top"}."""
        points = []
        for bits, whole in self.uniform.items():
            s = self.total(PrecisionPlan.uniform(bits))
            if s > 0:
                points.append((s, whole["kl"], whole["ppl"], whole["same_top"]))
        if not points:
            raise SensitivityError("this table has no uniform plan to predict from; measure it again")
        return dict(
            zip(("sum", "kl", "ppl", "same_top"), map(list, zip(*sorted(points), strict=True)), strict=True)
        )

    def prediction(self, layers: Iterable[str]) -> dict | None:
        """What the browser needs to predict by itself, for `layers` in this order; None where a layer or a
        width is missing."""
        layers = list(layers)
        measured = [bits for bits in WEIGHT_BITS if bits != FULL]
        if not set(layers) <= set(self.layers) or not set(measured) <= set(self.widths) or not self.uniform:
            return None
        return {
            "sensitivity": [[*(self.layers[name][bits] for bits in measured), 0.0] for name in layers],
            "curve": self.curve(),
            "reference": {"ppl": self.reference["ppl"]},
            "conditions": self.conditions,
        }

    def to_json(self) -> str:
        """The file: one line a layer."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        tables = {key: data.pop(key) for key in ("layers", "uniform")}
        body = json.dumps(data, indent=1).removesuffix("\n}")
        for key, table in tables.items():
            rows = ",\n".join(
                f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in _text_keys(table).items()
            )
            body += f',\n "{key}": {{\n{rows}\n }}'
        return body + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> SensitivityTable:
        """Read what `to_json` writes; SensitivityError in words for anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise SensitivityError("this file is not a sensitivity table: it is not valid JSON") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise SensitivityError(f'this file is not a sensitivity table ("format" is not "{FORMAT}")')
        version = data.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise SensitivityError(
                f"this table has version {version}; this program reads up to {VERSION}: update it"
            )
        names = {f.name for f in fields(cls)}
        wrong = names.symmetric_difference(set(data) - {"format", "version"})
        if wrong:
            raise SensitivityError(
                f"this sensitivity table is damaged: missing or unknown {', '.join(sorted(wrong))}"
            )
        try:
            layers = {
                name: {int(b): float(kl) for b, kl in row.items()} for name, row in data["layers"].items()
            }
            uniform = {int(b): dict(row) for b, row in data["uniform"].items()}
        except (AttributeError, TypeError, ValueError):
            raise SensitivityError(
                "this sensitivity table is damaged: its figures are not numbers by width"
            ) from None
        if not layers:
            raise SensitivityError("this sensitivity table is empty; measure it again")
        return cls(**{name: data[name] for name in names} | {"layers": layers, "uniform": uniform})

    def save(self, path: str | Path) -> None:
        """Write the file; it appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w") as file:
            file.write(self.to_json())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> SensitivityTable:
        """Read a file; SensitivityError names it."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except OSError as error:
            raise SensitivityError(f"cannot read the sensitivity table {path}: {error.strerror}") from None
        except SensitivityError as error:
            raise SensitivityError(f"{path}: {error}") from None


def _text_keys(table: Mapping) -> dict:
    return {
        str(key): {str(inner): value for inner, value in sorted(row.items())}
        if isinstance(key, str)
        else dict(row)
        for key, row in table.items()
    }


def _interpolate(xs: list[float], ys: list[float], x: float) -> float:
    """Piecewise linear through (xs, ys), xs ascending, constant outside."""
    if x <= xs[0]:
        return ys[0]
    if x >= xs[-1]:
        return ys[-1]
    i = bisect_left(xs, x)
    t = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + t * (ys[i] - ys[i - 1])
