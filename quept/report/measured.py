"""Results files: what was measured, under which conditions, and how it relates to an artifact.

Three forms are read. The first is what `quept evaluate --export-results` writes (see evaluate.shipped); it
names the model, so results of this artifact, of round-to-nearest of the same base, of other tools on it, and
of something else altogether are told apart. The second is what the quality benchmark prints, as a file
of its own or as the last line of its output; it holds artifact and round-to-nearest side by side:

    {"w2": {"kl": 1.2, "kl_rtn": 9.9, "ppl": 60, "ppl_rtn": 3e5}, "w4a4": {…},
     "artifact_mb": {…}, "conditions": {…}}

The third is an ablation, see `ablation`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quept.artifact import Artifact, Manifest
from quept.evaluate.results import ResultsError
from quept.evaluate.shipped import FORMAT, VERSION
from quept.evaluate.tasks import Metric, metrics_of

from .ablation import Ablation, ablation_of
from .words import number, plan_bits, short, without_folder

# what a results file is about
THIS, PLAIN, BASE, UNSAID, OTHER = (
    "this artifact",
    "round-to-nearest",
    "other tools",
    "unsaid",
    "something else",
)


@dataclass(frozen=True)
class Row:
    """One plan; None where it was not measured. *_se: standard errors. *_rtn: of round-to-nearest. metrics:
    what the task it was measured by says, where that is known."""

    kl: float | None = None
    kl_se: float | None = None
    kl_rtn: float | None = None
    ppl: float | None = None
    ppl_se: float | None = None
    ppl_rtn: float | None = None
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One file. subject: one of the constants above. data: which text in which windows, "" if unsaid.
    conditions: (name, value) as text. rows: `{plan name: Row}`."""

    file: str
    subject: str
    data: str
    conditions: tuple[tuple[str, str], ...]
    rows: Mapping[str, Row]


def read_results(path: str | Path, artifact: Artifact) -> Measured | Ablation:
    """One results file; ResultsError with a sentence if it cannot be read, holds no results, or is too
    new."""
    path = Path(path)
    try:
        data = _json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"cannot read the results file {path}: {error.strerror}") from None
    except ValueError:
        raise ResultsError(f"{path} is not a results file: it holds no JSON object") from None
    if parts := ablation_of(data):
        return parts
    if data.get("format") == FORMAT:
        version = data.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise ResultsError(f"{path} has version {version}; this program reads up to {VERSION}: update it")
        found = _shipped(path.name, data, artifact)
    else:
        found = _benchmark(path.name, data)
    if not found.rows:
        raise ResultsError(
            f"{path} is not a results file: give what `quept evaluate --export-results` or the benchmarks "
            "quality and ablation wrote"
        )
    return found


def compared(files: list[Measured]) -> list[Measured]:
    """Results of round-to-nearest go beside those of this artifact on the same text, as its *_rtn columns; a
    file that is used up so is dropped."""
    plain = {found.data: found for found in files if found.subject == PLAIN}
    used = {found.data for found in files if found.subject == THIS and found.data in plain}
    result = []
    for found in files:
        if found.subject == THIS and found.data in used:
            beside = plain[found.data].rows
            rows = {
                name: replace(row, kl_rtn=beside[name].kl, ppl_rtn=beside[name].ppl)
                if name in beside
                else row
                for name, row in found.rows.items()
            }
            result.append(replace(found, rows=rows))
        elif found.subject != PLAIN or found.data not in used:
            result.append(found)
    return result


def _json(text: str) -> dict[str, Any]:
    """The whole text, or its last line, as a JSON object."""
    lines = text.strip().splitlines() or [""]
    for candidate in (text, lines[-1]):
        try:
            data = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(data, dict):
            return data
    raise ValueError("no JSON object")


def _shipped(file: str, data: Mapping[str, Any], artifact: Artifact) -> Measured:
    results = data.get("results")
    entries = [e for e in results if isinstance(e, dict)] if isinstance(results, list) else []
    payloads = {
        str(e.get("name") or "plan"): e["payload"] for e in entries if isinstance(e.get("payload"), dict)
    }
    rows = {name: _row(payload) for name, payload in payloads.items()}
    m = artifact.manifest
    plain = Artifact(Manifest("rtn", m.base, m.fingerprint, m.group, m.layers)).identity
    subject = {m.fingerprint: BASE, plain: PLAIN, artifact.identity: THIS}.get(data.get("model"), OTHER)
    conditions = _conditions(
        data, but=("format", "version", "model", "identity", "data", "measure", "results")
    )
    full = next((number(p.get("ppl_ref")) for p in payloads.values() if number(p.get("ppl_ref"))), None)
    if full is not None:
        conditions = (*conditions, ("perplexity at full precision", short(full)))
    return Measured(
        file, subject, str(data.get("data")), conditions, {n: r for n, r in rows.items() if r != Row()}
    )


def _benchmark(file: str, data: Mapping[str, Any]) -> Measured:
    entries = {name: _row(entry) for name, entry in data.items() if isinstance(entry, dict)}
    rows = {name: row for name, row in entries.items() if row != Row()}
    named = {name.upper() if plan_bits(name) else name: row for name, row in rows.items()}
    return Measured(file, UNSAID, "", _conditions(data, but=tuple(rows)), named)


def _row(entry: Mapping[str, Any]) -> Row:
    names = [name for name in Row.__dataclass_fields__ if name != "metrics"]
    return Row(**{name: number(entry.get(name)) for name in names}, metrics=metrics_of(entry))


def _conditions(data: Mapping[str, Any], but: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """All plain entries of a file, as text; those of a table in it with its name before theirs."""
    found = []
    for name, value in data.items():
        if isinstance(value, dict) and name not in but and not plan_bits(name):
            prefix = "" if name == "conditions" else f"{name.replace('_', ' ')} "
            found += [(prefix + inner, text) for inner, text in _conditions(value, but=())]
        if name in but or not isinstance(value, str | int | float) or isinstance(value, bool):
            continue
        shown = (
            f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else value
        )
        found.append((name.replace("_", " "), without_folder(shown) if isinstance(value, str) else shown))
    return tuple(found)
