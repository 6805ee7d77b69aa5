"""A visitor's budget: from what the browser asks to the best plan, and to the plans that its slider runs
through.

A request is anybody's JSON (see components/budget.py for its form), so all of it is checked here. Layers are
numbered as in the model's description; EMBEDDINGS stands for the token embeddings and the output head. What
cannot be had is said in a sentence for the visitor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from quept.allocate import SensitivityTable
from quept.allocate.front import Front
from quept.allocate.solve.best import Best, best
from quept.allocate.solve.budget import parse_budget
from quept.allocate.solve.solver import Constraints, path, tied
from quept.evaluate.tasks import fitting
from quept.plan import ACTIVATION_BITS, EMBEDDING_BITS, FULL, WEIGHT_BITS, PrecisionPlan
from quept.runtime import ElasticModel

EMBEDDINGS = -1
AS_WEIGHTS = "as weights"
TIES = ("none", "qkv", "block")
NO_TABLE = "This model has no sensitivity table, so nothing tells where its bits count most."
NOT_UNDERSTOOD = "This request was not understood: reload the page"


class Tabled(Protocol):
    """An opened model, its sensitivity table and its measured front, if there are any."""

    elastic: ElasticModel
    sensitivity: SensitivityTable | None
    front: Front | None


def no_table(elastic: ElasticModel) -> str:
    """Why there is no budget for a model without a table, and what to do."""
    if "text" in fitting(elastic):
        return f"{NO_TABLE} The command `quept sensitivity` measures one."
    return f"{NO_TABLE} They are measured for language models only: try plans, and measure them whole."


def solved(opened: Tabled, request: Mapping[str, Any]) -> tuple[Best, int]:
    """The best plan known for the request's budget, and that budget in bytes; ValueError in words."""
    if opened.sensitivity is None:
        raise ValueError(no_table(opened.elastic))
    constraints = constraints_of(opened, request)
    budget = budget_of(opened, request, constraints)
    return best(opened.sensitivity, opened.elastic.sizes, budget, constraints, opened.front), budget


def slider(opened: Tabled, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the slider runs through within the request's limits, or why it cannot; JSON."""
    table = opened.sensitivity
    answer = {"path": None, "error": "", "activations": bool(table and table.activations), "turn": 0}
    if table is None:
        return answer | {"error": no_table(opened.elastic)}
    try:
        if request:
            answer["turn"] = _whole(request.get("turn"))
        constraints = constraints_of(opened, request or {})
        answer["path"] = path(table, opened.elastic.sizes, constraints).to_dict()
    except ValueError as error:
        answer["error"] = sentence(error)
    return answer


def constraints_of(opened: Tabled, request: Mapping[str, Any]) -> Constraints:
    """What the request's limits allow; ValueError in words. Missing ones are no limits."""
    elastic, table = opened.elastic, opened.sensitivity
    ties, activations = request.get("ties", "none"), request.get("activations", FULL)
    if ties not in TIES or (activations != AS_WEIGHTS and activations not in ACTIVATION_BITS):
        raise ValueError(NOT_UNDERSTOOD)
    pins = dict(_pin(pin, elastic.layers) for pin in _pins(request, len(elastic.layers)))
    limits: dict[str, Any] = {"pinned": pins}
    if request.get("full_embeddings") is True:
        limits["embeddings"] = (FULL,)
    if ties != "none":
        limits["ties"] = tied(elastic.layout, ties)
    if table is not None and table.activations:
        limits["activations"] = activations
    return Constraints(widths=WEIGHT_BITS, **limits)


def budget_of(opened: Tabled, request: Mapping[str, Any], constraints: Constraints) -> int:
    """The request's budget in bytes, at most full precision's; ValueError in words."""
    sizes, asked = opened.elastic.sizes, request.get("budget")
    if isinstance(asked, str):
        budget = parse_budget(asked, opened.sensitivity, sizes, constraints)
        return min(budget, sizes.deploy(PrecisionPlan.full()))
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not math.isfinite(asked) or asked < 0:
        raise ValueError(NOT_UNDERSTOOD)
    return min(int(asked), sizes.deploy(PrecisionPlan.full()))


def sentence(error: Exception) -> str:
    """An error's words as a sentence."""
    words = str(error).strip() or "this budget cannot be met"
    return words[0].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def _pins(request: Mapping[str, Any], layers: int) -> list:
    pins = request.get("pins", [])
    if not isinstance(pins, list) or len(pins) > layers + 1:
        raise ValueError(NOT_UNDERSTOOD)
    return pins


def _pin(pin: object, layers: tuple[str, ...]) -> tuple[str, int]:
    """A locked layer's name, or "embeddings", and the bits it keeps."""
    if not isinstance(pin, list) or len(pin) != 2:
        raise ValueError(NOT_UNDERSTOOD)
    layer, bits = map(_whole, pin)
    if not EMBEDDINGS <= layer < len(layers):
        raise ValueError(NOT_UNDERSTOOD)
    if bits not in (EMBEDDING_BITS if layer == EMBEDDINGS else WEIGHT_BITS):
        raise ValueError(NOT_UNDERSTOOD)
    return ("embeddings" if layer == EMBEDDINGS else layers[layer]), bits


def _whole(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(NOT_UNDERSTOOD)
    return number
