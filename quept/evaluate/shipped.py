"""Measured results as a file that travels with a model: written once by `quept evaluate --export-results`,
read into the store at start.

    {"format": "quept-results", "version": 1, "model": …, "identity": …, "data": …, "measure": …, "text": …,
     "tokens": …, …, "results": [{"name": "W4", "plan": key, "dtype": "float32", "payload": {…}}, …]}

`identity` and `data` are `model` and `data` of a ResultKey; `model` names the artifact (`Artifact.identity`)
or, for another tool's numbers, the base weights. Files without an identity were written before configs
counted: they are of the model that they name so. What the store already holds was measured here and is left
as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quept.evaluate.results import VERSION as MEASURE
from quept.evaluate.results import ResultKey, Results, ResultsError
from quept.files import read_json, write_atomic

if TYPE_CHECKING:
    from quept.runtime import ElasticModel

FORMAT, VERSION = "quept-results", 1


def write_shipped(
    path: str | Path,
    results: Iterable[tuple[str, ResultKey, Mapping[str, Any]]],
    elastic: ElasticModel,
    **conditions,
) -> None:
    """Write (name, key, payload) of one model on one text, with what they were measured on; the file appears
    whole or not at all."""
    results = list(results)
    if len({(key.model, key.data) for _, key, _ in results}) != 1:
        raise ValueError("a results file holds results of one model on one text, and at least one")
    first = results[0][1]
    head = {
        "format": FORMAT,
        "version": VERSION,
        "model": {at: name for name, at in _identities(elastic).items()}[first.model],
        "identity": first.model,
        "data": first.data,
        "measure": MEASURE,
        **conditions,
    }
    rows = [
        json.dumps(
            {"name": name, "plan": key.plan, "dtype": key.dtype, "payload": dict(payload)}, allow_nan=False
        )
        for name, key, payload in results
    ]
    body = json.dumps(head, indent=1).removesuffix("\n}")
    body += ',\n "results": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    write_atomic(path, body)


def _identities(elastic: ElasticModel) -> dict[str, str]:
    """`{name of what was measured: its identity}`."""
    return {elastic.artifact.identity: elastic.identity, elastic.fingerprint: elastic.base_identity}


def load_shipped(
    results: Results, path: str | Path, elastic: ElasticModel, named: Mapping[str, str] | None = None
) -> int:
    """Put what the file holds of this model and the store does not into the store; returns how many. A file
    of an older measure holds nothing of use. named: `{name of data that lie beside the model: their id}`, for
    files that call the data by their name.

    Raises ResultsError for a file that is no results file, is damaged, or is newer than this program."""
    data = read_json(path, "a results file", FORMAT, VERSION, ResultsError)
    if data.get("measure") != MEASURE:
        return 0
    try:
        identity = data.get("identity") or _identities(elastic).get(data["model"], data["model"])
        measured_on = (named or {}).get(data["data"], data["data"])
        rows = [
            (ResultKey(row["plan"], identity, measured_on, row["dtype"]), row["payload"])
            for row in data["results"]
        ]
        return results.put_missing(rows)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ResultsError(f"{path} is damaged; copy it afresh or write it again") from None
