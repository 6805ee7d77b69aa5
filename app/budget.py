"""A visitor's budget: from what the browser asks to the best plan, and to the plans that its slider runs
through.

A request (see `payloads.BudgetRequest`) numbers layers as in the model's description; EMBEDDINGS stands for
the token embeddings and the output head. What cannot be had is said in a sentence for the visitor.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol

from quept.allocate import SensitivityTable
from quept.allocate.front import Front
from quept.allocate.solve.asked import asked
from quept.allocate.solve.best import Best
from quept.allocate.solve.budget import parse_budget, with_context
from quept.allocate.solve.constraints import ANY_EMBEDDING, CACHE, Constraints, megabytes
from quept.allocate.solve.constraints import EMBEDDINGS as EMBEDDINGS_KEY
from quept.allocate.solve.constraints_file import constraints_of as constraints_said
from quept.allocate.solve.constraints_file import read_constraints
from quept.allocate.solve.container import within
from quept.allocate.solve.solver import path
from quept.export import exporter
from quept.models import ModelLayout
from quept.plan import FULL, WEIGHT_BITS, PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.sizes import Sizes

from .payloads import NOT_UNDERSTOOD, BudgetRequest

EMBEDDINGS = -1
NO_TABLE = (
    "This model has no sensitivity table, so nothing tells where its bits count most. The command “quept "
    "sensitivity” measures one."
)


class Tabled(Protocol):
    """An opened model, its sensitivity tables and its measured front, if there are any."""

    elastic: ElasticModel
    other_tables: Mapping[str, SensitivityTable]
    tables_offered: list[list[str]]
    front: Front | None

    def table(self, name: str = "") -> SensitivityTable | None: ...

    def file_sizes(self, target: str) -> Sizes: ...


def solved(opened: Tabled, request: Mapping[str, Any]) -> tuple[Best, int]:
    """The best plan known for the request's budget, and that budget in bytes; ValueError with a sentence."""
    request = BudgetRequest.read(request)
    table = table_of(opened, request)
    sizes, constraints = limits_of(opened, request)
    if request.budget is None:
        raise ValueError(NOT_UNDERSTOOD)
    said = request.budget if isinstance(request.budget, str) else int(request.budget)
    return asked(said, table, sizes, constraints, opened.front, capped=True)


def more_than_full(opened: Tabled, request: Mapping[str, Any], budget: int) -> str:
    """That the request asks for more than the `budget` it got, full precision's bytes, in words; "" where it
    does not."""
    request = BudgetRequest.read(request)
    sizes, constraints = limits_of(opened, request)
    if not isinstance(request.budget, str) or budget < sizes.deploy(PrecisionPlan.full()):
        return ""
    said = parse_budget(with_context(request.budget)[0], table_of(opened, request), sizes, constraints)
    return f"more than the whole model takes ({megabytes(budget)})" if said > budget else ""


def context_of(request: Mapping[str, Any]) -> int:
    """Tokens whose keys and values the request's budget has room for; 0 where it names none."""
    said = request.get("budget")
    return with_context(said)[1] if isinstance(said, str) else 0


def slider(opened: Tabled, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the slider runs through within the request's limits, or why it cannot; JSON."""
    table = opened.table()
    answer = {"path": None, "error": "", "activations": bool(table and table.activations), "turn": 0}
    answer |= {"parts": parts_of(opened.elastic), "tables": opened.tables_offered}
    if table is None:
        return answer | {"error": NO_TABLE}
    try:
        asked = BudgetRequest.read(request or {})
        answer["turn"], table = asked.turn, table_of(opened, asked)
        sizes, constraints = limits_of(opened, asked)
        answer["path"] = path(table, sizes, constraints).to_dict()
        if asked.target:
            answer["file"] = _file(asked.target, opened.elastic, sizes)
        if asked.file:
            answer["said"] = read_constraints(asked.file)
    except ValueError as error:
        answer["error"] = sentence(error)
    return answer


def table_of(opened: Tabled, asked: BudgetRequest) -> SensitivityTable:
    """The table that the request names; ValueError with a sentence where there is none."""
    if asked.table and asked.table not in opened.other_tables:
        raise ValueError(NOT_UNDERSTOOD)
    table = opened.table(asked.table)
    if table is None:
        raise ValueError(NO_TABLE)
    return table


def limits_of(opened: Tabled, asked: BudgetRequest) -> tuple[Sizes, Constraints]:
    """What the bytes of a budget are, of weights in memory or of a file, and what the request's limits allow;
    ValueError with a sentence."""
    constraints = constraints_of(opened, asked)
    if not asked.target:
        return opened.elastic.sizes, constraints
    return within(exporter(asked.target), opened.elastic, constraints, opened.file_sizes(asked.target))


def parts_of(elastic: ElasticModel) -> list[dict[str, Any]]:
    """What a floor or ceiling may be given to at once, with its keys as limits name it: the layers of a role,
    the embeddings, the KV cache; JSON."""
    layout = elastic.layout
    found = {role: _patterns(role, layout) for role in layout.roles}
    parts = [{"name": role, "keys": keys} for role, keys in found.items() if keys]
    parts += [{"name": EMBEDDINGS_KEY, "keys": [EMBEDDINGS_KEY]}] if elastic.embeddings else []
    return parts + ([{"name": "KV cache", "keys": [CACHE]}] if elastic.cached_blocks else [])


def _patterns(role: str, layout: ModelLayout) -> list[str]:
    """Patterns that fit the layers of a role and no others, by the ends of their names; none where they do
    not."""
    layers = {block.layers[role] for block in layout.blocks if role in block.layers}
    for parts in (1, 2):
        patterns = sorted({"*." + ".".join(name.split(".")[-parts:]) for name in layers})
        fitting = {name for name in layout.layers for pattern in patterns if fnmatchcase(name, pattern)}
        if fitting == layers:
            return patterns
    return []


def _file(target: str, elastic: ElasticModel, sizes: Sizes) -> dict[str, Any]:
    """What the browser needs to weigh any plan as a file of this format; JSON, None for what it lacks."""
    return {
        "title": exporter(target).title,
        "sizes": [[sizes.layers[name].get(bits) for bits in WEIGHT_BITS] for name in elastic.layers],
        "embeddings": {str(bits): size for bits, size in sizes.embeddings.items()},
        "fixed": sizes.fixed,
    }


def constraints_of(opened: Tabled, asked: BudgetRequest) -> Constraints:
    """What the request's limits allow; ValueError with a sentence."""
    elastic, table = opened.elastic, opened.table(asked.table)
    if len(asked.pins) > len(elastic.layers) + 1:
        raise ValueError(NOT_UNDERSTOOD)
    said = {name: getattr(asked, name) for name in ("floor", "ceiling", "widths", "embeddings", "kv")}
    said = {"widths": WEIGHT_BITS} | {name: value for name, value in said.items() if value}
    said["pin"] = asked.pin | dict(_pin(pin, elastic.layers) for pin in asked.pins)
    if asked.full_embeddings:
        said["embeddings"] = (FULL,)
    if asked.ties != "none":
        said["tie"] = asked.ties
    if table is not None and table.activations:
        said["activations"] = asked.activations
    return constraints_said(said, elastic.layout)


def budget_of(table: SensitivityTable, asked: BudgetRequest, sizes: Sizes, constraints: Constraints) -> int:
    """The request's budget in bytes, at most full precision's; ValueError with a sentence."""
    budget = asked.budget
    if budget is None:
        raise ValueError(NOT_UNDERSTOOD)
    if isinstance(budget, str):
        budget = parse_budget(budget, table, sizes, constraints)
    return min(int(budget), sizes.deploy(PrecisionPlan.full()))


def sentence(error: Exception) -> str:
    """An error's words as a sentence."""
    words = str(error).strip() or "this budget cannot be met"
    return words[0].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def _pin(pin: list[int | float], layers: tuple[str, ...]) -> tuple[str, int | float]:
    """A locked layer's name, or "embeddings", and the bits it keeps."""
    layer, bits = pin
    known = isinstance(layer, int) and EMBEDDINGS <= layer < len(layers)
    if not known or bits not in (ANY_EMBEDDING if layer == EMBEDDINGS else WEIGHT_BITS):
        raise ValueError(NOT_UNDERSTOOD)
    return (EMBEDDINGS_KEY if layer == EMBEDDINGS else layers[layer]), bits
