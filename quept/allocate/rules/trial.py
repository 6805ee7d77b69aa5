"""Rules of thumb on trial: the front that each would give, against measured sensitivities and uniform plans.

    for result in trial(elastic, table, windows, shown): ...
    save_trial(path, elastic, results, conditions)

Every rule allocates the bits of the layers at the sizes of uniform plans, embeddings untouched, and the plans
are measured whole on text that no rule saw, or on pictures. Per rule:

    correlation   Spearman's, of its costs and the measured ones over the layers, at 3 bits
    front         [bits, bytes, KL] of its plan at each size
    wasted        how many bits a weight less the measured sensitivities need for the same KL: a mean over the
                  sizes, read off their front with log KL linear in bits
    seconds       what its costs took to compute

The file: {"format": "quept-rules", "version": 1, "model", "identity", "conditions", "rules": {name:
{"source", "correlation", "front", "wasted", "seconds"}}}; "measured" and "uniform" are in it like rules.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quept.data.windows import Windows
from quept.evaluate.tasks import ImageTask
from quept.files import read_json, write_atomic
from quept.plan import PrecisionPlan
from quept.runtime.model import ElasticModel

from ..sensitivity.agreement import rank_correlation
from ..sensitivity.table import SensitivityError, SensitivityTable
from ..solve.solver import allocate
from .scores import RULES, Costs, Subject, table_with

FORMAT, VERSION = "quept-rules", 1
BITS = (2.5, 3.0, 3.5, 4.0, 5.0)
COMPARED = 3  # bits, at which layers are ranked
MEASURED, UNIFORM = "measured", "uniform"


@dataclass(frozen=True)
class Verdict:
    """See the module's docstring; correlation and wasted: None where there is none."""

    source: str
    correlation: float | None
    front: tuple[tuple[float, int, float], ...]
    wasted: float | None
    seconds: float


def trial(
    elastic: ElasticModel,
    table: SensitivityTable,
    data: Windows | ImageTask,
    kl: Callable[[PrecisionPlan], float],
    bits: Sequence[float] = BITS,
    rules: Sequence[str] = tuple(RULES),
) -> Iterator[tuple[str, Verdict]]:
    """Yields (name, verdict), measured sensitivities and uniform plans first. data: the text that rules
    may read, or the pictures; kl: of a plan, on others."""
    measured = _front(elastic, table, kl, bits)
    yield MEASURED, Verdict("KL of each layer rounded by itself", 1.0, measured, 0.0, 0.0)
    whole = sorted(b for b in bits if b == int(b))
    plain = [(b, PrecisionPlan.uniform(int(b))) for b in whole]
    points = tuple((b, elastic.sizes.deploy(plan), kl(plan)) for b, plan in plain)
    yield UNIFORM, Verdict("the same bits in every layer", None, points, _wasted(points, measured), 0.0)
    for name in rules:
        began = time.perf_counter()
        costs = RULES[name].costs(Subject(elastic, data))
        seconds = time.perf_counter() - began
        front = _front(elastic, table_with(costs, elastic, name), kl, bits)
        ranks = _correlation(costs, table)
        yield name, Verdict(RULES[name].source, ranks, front, _wasted(front, measured), round(seconds, 1))


def bytes_at(elastic: ElasticModel, bits: float) -> int:
    """Those of the uniform plan with untouched embeddings; between two widths, linear."""
    low = int(bits)
    sizes = [elastic.sizes.deploy(PrecisionPlan.uniform(b)) for b in (low, low + (bits > low))]
    return int(sizes[0] + (bits - low) * (sizes[1] - sizes[0]))


def save_trial(
    path: str | Path, elastic: ElasticModel, found: Mapping[str, Verdict], **conditions: Any
) -> None:
    """Write the file; it appears whole or not at all."""
    head = {"format": FORMAT, "version": VERSION, "model": elastic.source, "identity": elastic.identity}
    body = json.dumps(head | {"conditions": conditions}, indent=1).removesuffix("\n}")
    rows = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(asdict(v))}" for name, v in found.items())
    write_atomic(path, body + ',\n "rules": {\n  ' + rows + "\n }\n}\n")


def load_trial(path: str | Path, elastic: ElasticModel) -> dict[str, Any] | None:
    """Returns what the file says of this model, None where it is of another; SensitivityError for a file
    that is none."""
    data = read_json(path, "a trial of rules", FORMAT, VERSION, SensitivityError)
    return data if elastic.is_named(data["identity"]) else None


def _front(
    elastic: ElasticModel,
    table: SensitivityTable,
    kl: Callable[[PrecisionPlan], float],
    bits: Sequence[float],
) -> tuple[tuple[float, int, float], ...]:
    """Costs of the layers alone: embeddings stay as they are."""
    layers = table_with(table.layers, elastic, table.model)
    plans = [allocate(layers, elastic.sizes, bytes_at(elastic, b)) for b in bits]
    return tuple((b, found.bytes, kl(found.plan)) for b, found in zip(bits, plans, strict=True))


def _wasted(front: Sequence[tuple[float, int, float]], measured: Sequence[tuple[float, int, float]]) -> float:
    logs = [math.log(kl) for *_, kl in measured]
    needed = [np.interp(-math.log(kl), [-x for x in logs], [b for b, *_ in measured]) for *_, kl in front]
    return round(float(np.mean([b - n for (b, *_), n in zip(front, needed, strict=True)])), 3)


def _correlation(costs: Costs, table: SensitivityTable) -> float:
    return rank_correlation(*([rows[name][COMPARED] for name in costs] for rows in (costs, table.layers)))
