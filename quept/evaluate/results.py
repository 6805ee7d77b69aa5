"""What has been measured before, in one SQLite file that threads and processes share.

One row per (plan, model, data, dtype, version): `plan` is `PrecisionPlan.key`, `model` the model's
`ElasticModel.identity` (of another tool's numbers its `base_identity`), `data` the windows' id, `dtype` what
was computed in, `version` that of the measuring code, so that a changed measure never mixes with older
numbers. The payload is a JSON object with at least `tokens`, usually an `Estimate.to_dict()` and what the
caller wants to find beside it; of two measurements of one key the one over more tokens stays (the later one
of equals).

Every call opens the file, does one transaction and closes it (milliseconds): nothing is shared between
threads or over a fork. A file that SQLite cannot read is moved aside with a warning and a fresh one begun:
results can be measured again.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

VERSION = 1  # of the measures and the payload: raise it when a number would come out differently
_SCHEMA = 1
_CREATE = """
CREATE TABLE IF NOT EXISTS results (
    plan TEXT NOT NULL, model TEXT NOT NULL, data TEXT NOT NULL, dtype TEXT NOT NULL,
    version INTEGER NOT NULL,
    tokens INTEGER NOT NULL, measured REAL NOT NULL, payload TEXT NOT NULL,
    PRIMARY KEY (plan, model, data, dtype, version)
)"""
_PUT = """
INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (plan, model, data, dtype, version)
DO UPDATE SET tokens = excluded.tokens, measured = excluded.measured, payload = excluded.payload
WHERE excluded.tokens >= results.tokens"""
_WAIT = 10.0  # seconds for another process's transaction
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class ResultsError(RuntimeError):
    """The store cannot be used (folder not writable, disk full); the message says what to do."""


class _NotOurs(Exception):
    """A file that SQLite opens but that is damaged inside or belongs to something else."""


@dataclass(frozen=True)
class ResultKey:
    """What a number belongs to."""

    plan: str
    model: str
    data: str
    dtype: str = "float32"
    version: int = VERSION


@dataclass(frozen=True)
class Stored:
    """One measurement: `measured` is Unix time, `payload` the JSON object that was put."""

    key: ResultKey
    tokens: int
    measured: float
    payload: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Use `Results.open`. Safe to share between threads, processes and forks."""

    path: Path

    @classmethod
    def open(cls, path: Path | str) -> Results:
        """The store in `path`, made when missing. Raises ResultsError where the folder cannot be written."""
        results = cls(Path(path))
        try:
            results.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise results._unusable(error) from error
        results._run(_check)
        return results

    def get(self, key: ResultKey) -> Stored | None:
        """The measurement of `key`, or None."""
        rows = self._select("plan = ? AND model = ? AND data = ? AND dtype = ? AND version = ?", astuple(key))
        return rows[0] if rows else None

    def put(self, key: ResultKey, payload: Mapping[str, Any]) -> bool:
        """Keep `payload` unless a measurement over more tokens is there already; True when it was kept.

        Raises ValueError for a payload that is not JSON (NaN and infinity are not) or has no positive integer
        `tokens`.
        """
        tokens = payload.get("tokens")
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise ValueError(f"a result says over how many tokens it was measured: 'tokens' is {tokens!r}")
        try:
            text = json.dumps(dict(payload), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"a result must be plain, finite JSON: {error}") from error
        row = (*astuple(key), tokens, time.time(), text)
        return self._run(lambda db: db.execute(_PUT, row).rowcount > 0)

    def all(self, model: str, data: str, dtype: str | None = None, version: int = VERSION) -> list[Stored]:
        """Every measurement of a model on some data, oldest first; of one `dtype` where it is given."""
        if dtype is None:
            return self._select("model = ? AND data = ? AND version = ?", (model, data, version))
        return self._select(
            "model = ? AND data = ? AND version = ? AND dtype = ?", (model, data, version, dtype)
        )

    def _select(self, where: str, values: tuple) -> list[Stored]:
        query = f"SELECT * FROM results WHERE {where} ORDER BY measured"
        stored = []
        for *key, tokens, measured, text in self._run(lambda db: db.execute(query, values).fetchall()):
            try:
                payload = json.loads(text)
            except (TypeError, ValueError):  # a damaged row is one to measure again
                continue
            stored.append(Stored(ResultKey(*key), tokens, measured, payload))
        return stored

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        for last in (False, True):
            try:
                with closing(self._connect()) as db:
                    self._prepare(db)
                    return work(db)
            except (sqlite3.Error, _NotOurs) as error:
                if last or not _is_damage(error):
                    raise self._unusable(error) from error
                self._move_aside(error)
        raise AssertionError("unreachable")

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
        db.text_factory = lambda raw: raw.decode(
            errors="replace"
        )  # so that a damaged payload fails as JSON, alone
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        if _schema(db) == 0:
            with FileLock(f"{self.path}.lock"):  # SQLite does not wait for others when it switches to WAL
                if _schema(db) == 0:
                    _check(db)
                    db.execute("PRAGMA journal_mode=WAL")
                    db.execute(_CREATE)
                    db.execute(f"PRAGMA user_version={_SCHEMA}")
        db.execute("PRAGMA synchronous=NORMAL")

    def _move_aside(self, error: Exception) -> None:
        with FileLock(f"{self.path}.lock"):
            try:
                with closing(self._connect()) as db:
                    _schema(db)
                    _check(db)
                return  # another process moved it before us
            except (sqlite3.Error, _NotOurs) as still:
                if not _is_damage(still):
                    return
            aside = self.path.with_name(
                f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            )
            try:
                os.replace(self.path, aside)
                for suffix in ("-wal", "-shm"):  # they belong to the old file and would damage the new one
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            except OSError as failed:
                raise self._unusable(failed) from failed
        _log.warning(
            "the results store could not be read (%s); it was moved to %s and a fresh one begun",
            error,
            aside.name,
        )

    def _unusable(self, error: Exception) -> ResultsError:
        return ResultsError(
            f"the results store {self.path} cannot be used: {error}. "
            "Set QUEPT_CACHE to a folder that can be written and has space left."
        )


def _schema(db: sqlite3.Connection) -> int:
    schema = db.execute("PRAGMA user_version").fetchone()[0]
    if schema not in (0, _SCHEMA):
        raise _NotOurs(f"it has schema {schema}, this code reads {_SCHEMA}")
    return schema


def _check(db: sqlite3.Connection) -> None:
    answer = db.execute("PRAGMA quick_check(1)").fetchone()
    if answer != ("ok",):
        raise _NotOurs(f"SQLite finds it damaged: {answer[0] if answer else 'no answer'}")
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "results" not in tables:
        raise _NotOurs(f"it holds other tables: {', '.join(sorted(tables))}")


def _is_damage(error: Exception) -> bool:
    """Locks, full disks, permissions (OperationalError) and wrong calls are no reason to drop the file."""
    return isinstance(error, _NotOurs) or type(error) is sqlite3.DatabaseError
