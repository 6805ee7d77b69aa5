"""What has been measured before: one table in memory, read once, written through to a SQLite file that
threads and processes share.

One row per (plan, model, data, dtype, version): `plan` is `PrecisionPlan.key`, `model` the model's
`ElasticModel.identity` (of another tool's numbers its `base_identity`), `data` the windows' id, `dtype` what
was computed in, `version` that of the measuring code, so that a changed measure never mixes with older
numbers. The payload is a JSON object with at least `tokens`, usually an `Estimate.to_dict()` and what the
caller wants to find beside it; of two measurements of one key the one over more tokens stays (the later one
of equals). A row that is no result (its payload is damaged, tells no number of tokens, or holds NaN) counts
as not measured and is overwritten.

A process opens the file once. SQLite tells in microseconds whether another process has written since; only
then the table is read again. A fork opens the file anew. A file that SQLite cannot read is moved aside with a
warning and a fresh one begun: results can be measured again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from filelock import FileLock
from pydantic import TypeAdapter

VERSION = 1  # of the measures and the payload: raise it when a number would come out differently
_SCHEMA = 1
_KEY = ["plan", "model", "data", "dtype", "version"]
_CREATE = """
CREATE TABLE IF NOT EXISTS results (
    plan TEXT NOT NULL, model TEXT NOT NULL, data TEXT NOT NULL, dtype TEXT NOT NULL,
    version INTEGER NOT NULL,
    tokens INTEGER NOT NULL, measured REAL NOT NULL, payload TEXT NOT NULL,
    PRIMARY KEY (plan, model, data, dtype, version)
)"""
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


class Results:
    """Use `Results.open`. Safe to share between threads, processes and forks."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._process = 0  # whose lock and connection these are
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # device and inode that the connection has open
        self._version: int | None = None  # SQLite's count of others' changes when the table was read
        self._table: dict[ResultKey, Stored] = {}
        self._reads: dict[ResultKey, tuple[Stored, Callable, object]] = {}

    def __del__(self):
        self._close()

    @classmethod
    def open(cls, path: Path | str) -> Results:
        """The store in `path`, made when missing. Raises ResultsError where the folder cannot be written."""
        results = cls(path)
        try:
            results.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise results._unusable(error) from error
        results._run(_check)
        return results

    def get(self, key: ResultKey, read: Callable[[dict], object] = dict) -> Stored | None:
        """The measurement of `key`, or None; None also for a payload that `read` refuses with an error."""
        found = self.read(key, read)
        return found and found[0]

    def read(self, key: ResultKey, read: Callable[[dict], _T]) -> tuple[Stored, _T] | None:
        """The same, and what `read` makes of its payload, which is made once for all who ask."""
        found = self._run(lambda db: self._table.get(key))
        if found is None:
            return None
        before, reader, value = self._reads.get(key, (None, None, None))
        if before is not found or reader != read:
            try:
                value = read(found.payload)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                value = None
            self._reads[key] = found, read, value
        return (found, value) if value else None

    def put(self, key: ResultKey, payload: Mapping[str, Any]) -> bool:
        """Keep `payload` unless a measurement over more tokens is there already; True when it was kept.

        Raises ValueError for a payload that is not JSON (NaN and infinity are not) or has no positive integer
        `tokens`.
        """
        return self._put([(key, payload)], lambda old, tokens: old.tokens <= tokens) == 1

    def put_missing(self, rows: Iterable[tuple[ResultKey, Mapping[str, Any]]]) -> int:
        """Put those of the rows whose keys were not measured yet, at once; returns how many."""
        return self._put(rows, lambda old, tokens: False)

    def table(
        self, models: str | Iterable[str], data: str, dtype: str | None = None, version: int = VERSION
    ) -> pd.DataFrame:
        """Every measurement of a model (of one of its identities) on some data, oldest first; of one `dtype`
        where it is given. Columns: those of the key, `measured`, and one for each number of the payload."""
        models = {models} if isinstance(models, str) else set(models)
        found = [
            stored
            for key, stored in self._run(lambda db: dict(self._table)).items()
            if key.model in models and (key.data, key.version) == (data, version)
            if dtype in (None, key.dtype)
        ]
        found.sort(key=lambda stored: stored.measured)
        rows = pd.DataFrame([(*astuple(stored.key), stored.measured) for stored in found])
        rows = (
            rows.set_axis([*_KEY, "measured"], axis=1) if found else pd.DataFrame(columns=[*_KEY, "measured"])
        )
        return rows.join(pd.json_normalize([stored.payload for stored in found]))

    def _put(self, rows: Iterable[tuple[ResultKey, Mapping]], wins: Callable[[Stored, int], bool]) -> int:
        now = time.time()
        new = [(key, _tokens(payload), now, _text(payload)) for key, payload in rows]

        def write(db: sqlite3.Connection) -> int:
            db.execute("BEGIN IMMEDIATE")
            with db:
                self._refresh(db)  # what others wrote counts; nobody writes from here on
                held = ((row, self._table.get(row[0])) for row in new)
                kept = [row for row, old in held if old is None or wins(old, row[1])]
                kept = [(*astuple(key), *rest) for key, *rest in kept]
                db.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)", kept)
            self._table |= _table(kept)
            return len(kept)

        return self._run(write)

    def _refresh(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            _schema(db)
            self._table = _table(db.execute("SELECT * FROM results").fetchall())
            self._version = version

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if (
            self._process != os.getpid()
        ):  # after a fork, where one thread goes on; the parent's are left alone
            self._process, self._lock, self._db = os.getpid(), threading.RLock(), None
        with self._lock:
            for last in (False, True):
                try:
                    db = self._connection()
                    self._refresh(db)
                    return work(db)
                except (sqlite3.Error, _NotOurs) as error:
                    self._close()
                    if last or not _is_damage(error):
                        raise self._unusable(error) from error
                    self._move_aside(error)
        raise AssertionError("unreachable")

    def _connection(self) -> sqlite3.Connection:
        """The open file; opened anew where another one lies in its place meanwhile."""
        if self._db is None or self._file != _identity(self.path):
            self._close()
            self._db = self._connect()
            self._prepare(self._db)
            self._file, self._version = _identity(self.path), None
        return self._db

    def _close(self) -> None:
        if self._db is not None and self._process == os.getpid():
            self._db.close()
        self._db = None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        db.text_factory = lambda raw: raw.decode(errors="replace")  # a damaged text hides itself alone
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


def read_as(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """Returns the dataclass `kind` that a JSON object spells; keys beyond its fields are ignored. Raises
    ValueError for a field that is missing or of a wrong type."""
    return _adapter(kind).validate_python(data)


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _table(rows: Iterable[tuple]) -> dict[ResultKey, Stored]:
    """Those rows of the file that are results, by key."""
    return {stored.key: stored for stored in map(_result, rows) if stored}


def _result(row: tuple) -> Stored | None:
    *key, tokens, measured, text = row
    try:
        payload = json.loads(text)
        _text(payload)
        whole = _tokens(payload) == tokens and math.isfinite(measured)
    except (AttributeError, TypeError, ValueError):
        return None
    return Stored(ResultKey(*key), tokens, measured, payload) if whole else None


def _tokens(payload: Mapping[str, Any]) -> int:
    tokens = payload.get("tokens")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ValueError(f"a result says over how many tokens it was measured: 'tokens' is {tokens!r}")
    return tokens


def _text(payload: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(payload), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a result must be plain, finite JSON: {error}") from error
