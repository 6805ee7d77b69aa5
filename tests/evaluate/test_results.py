import os
import sqlite3
import threading
from pathlib import Path

import pytest

from quept.evaluate import ResultKey, Results, ResultsError
from tests.processes import together

KEY = ResultKey(plan="p", model="m", data="d")


@pytest.fixture
def results(tmp_path):
    return Results.open(tmp_path / "deep" / "results.sqlite")


def test_what_is_put_is_got_by_another_opening(results):
    assert results.get(KEY) is None
    assert results.put(KEY, {"tokens": 511, "kl": 0.25, "plan": {"w": [4, 4]}})
    stored = Results.open(results.path).get(KEY)
    assert (stored.key, stored.tokens, stored.payload["kl"], stored.payload["plan"]) == (
        KEY,
        511,
        0.25,
        {"w": [4, 4]},
    )


def test_more_tokens_win_and_of_equals_the_later(results):
    assert results.put(KEY, {"tokens": 1022, "kl": 1})
    assert not results.put(KEY, {"tokens": 511, "kl": 2})
    assert results.get(KEY).payload["kl"] == 1
    assert results.put(KEY, {"tokens": 1022, "kl": 3})
    assert results.put(KEY, {"tokens": 4088, "kl": 4})
    assert results.get(KEY).payload["kl"] == 4


@pytest.mark.parametrize("part", ["plan", "model", "data", "dtype", "version"])
def test_every_part_of_the_key_counts(results, part):
    other = {**KEY.__dict__, part: 99 if part == "version" else "other"}
    results.put(KEY, {"tokens": 1})
    assert results.get(ResultKey(**other)) is None


def test_the_table_has_every_plan_of_a_model_and_data_oldest_first(results):
    for plan in "cab":
        results.put(ResultKey(plan, "m", "d"), {"tokens": 1})
    results.put(ResultKey("a", "m", "d", dtype="bfloat16"), {"tokens": 1})
    for other in (ResultKey("x", "m2", "d"), ResultKey("x", "m", "d2"), ResultKey("x", "m", "d", version=0)):
        results.put(other, {"tokens": 1})
    assert list(results.table("m", "d")["plan"]) == ["c", "a", "b", "a"]
    assert list(results.table("m", "d", dtype="bfloat16")["plan"]) == ["a"]


@pytest.mark.parametrize(
    "payload",
    [{}, {"tokens": 0}, {"tokens": "9"}, {"tokens": 1, "kl": float("nan")}, {"tokens": 1, "x": {1}}],
)
def test_a_payload_that_is_no_result_is_refused(results, payload):
    with pytest.raises(ValueError, match="result"):
        results.put(KEY, payload)


def test_threads_share_the_store(results):
    def work(me):
        for n in range(1, 26):
            results.put(KEY, {"tokens": n, "by": me})
            results.put(ResultKey(f"{me}-{n}", "m", "d"), {"tokens": n})

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.get(KEY).tokens == 25
    assert len(results.table("m", "d")) == 101


def put_fifty(path: Path, me: str) -> None:
    results = Results.open(path)
    for n in range(1, 51):
        results.put(ResultKey("shared", "m", "d"), {"tokens": n})
        results.put(ResultKey(f"{me}-{n}", "m", "d"), {"tokens": n})


@pytest.mark.slow
@pytest.mark.parametrize("beginning", [None, b"not a database, long enough to be looked at" * 40])
def test_processes_that_start_together_share_the_store(tmp_path, beginning):
    path = tmp_path / "results.sqlite"
    if beginning:
        path.write_bytes(beginning)
    together(put_fifty, [(path, "a"), (path, "b")])
    assert len(Results.open(path).table("m", "d")) == 101
    assert len(list(tmp_path.glob("*.damaged-*"))) == bool(beginning)


def test_an_unreadable_file_is_moved_aside_and_a_fresh_one_begun(tmp_path, caplog):
    path = tmp_path / "results.sqlite"
    path.write_bytes(b"this was a database once" * 500)
    results = Results.open(path)
    assert results.put(KEY, {"tokens": 1}) and results.get(KEY)
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"this was") and aside.name in caplog.text


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_breaks_under_an_open_store_does_not_stop_it(results, gone):
    results.put(KEY, {"tokens": 1})
    results.path.write_bytes(b"overwritten" * 2000)
    if gone:
        results.path.unlink()
    assert results.put(KEY, {"tokens": 2}) and results.get(KEY).tokens == 2
    again = Results.open(results.path)
    assert again.put(KEY, {"tokens": 3}) and results.put(KEY, {"tokens": 4})
    assert Results.open(results.path).get(KEY).tokens == 4


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9])
def test_a_truncated_file_never_crashes(tmp_path, share):
    path = tmp_path / "results.sqlite"
    rows = ((ResultKey(str(n), "m", "d"), {"tokens": 1, "text": "x" * 300}) for n in range(200))
    assert Results.open(path).put_missing(rows) == 200
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    again = Results.open(path)
    again.put(KEY, {"tokens": 3})
    assert again.get(KEY).tokens == 3 and len(again.table("m", "d"))


def test_somebody_elses_database_is_left_intact_beside(tmp_path):
    path = tmp_path / "results.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    assert Results.open(path).put(KEY, {"tokens": 1})
    (aside,) = tmp_path.glob("*.damaged-*")
    with sqlite3.connect(aside) as db:
        assert db.execute("SELECT count(*) FROM theirs").fetchone() == (0,)
    db.close()


def test_a_newer_schema_is_kept_aside(results, caplog):
    results.put(KEY, {"tokens": 1})
    with sqlite3.connect(results.path) as db:
        db.execute("PRAGMA user_version=2")
    db.close()
    assert results.get(KEY) is None and "schema 2" in caplog.text


@pytest.mark.parametrize(
    "column, value",
    [
        ("payload", "CAST(x'ff7b' AS TEXT)"),
        ("payload", "'[]'"),
        ("payload", "'{}'"),
        ("payload", '\'{"tokens": 1, "kl": NaN}\''),
        ("payload", '\'{"tokens": 1, "kl": 1e999}\''),
        ("payload", "x'00'"),
        ("tokens", "1000000"),
        ("tokens", "'many'"),
        ("measured", "9e999"),
        ("measured", "'yesterday'"),
    ],
)
def test_a_row_that_is_no_result_hides_itself_alone_and_is_written_over(results, column, value):
    for plan in "ab":
        results.put(ResultKey(plan, "m", "d"), {"tokens": 1})
    with sqlite3.connect(results.path) as db:
        db.execute(f"UPDATE results SET {column} = {value} WHERE plan = 'a'")
    db.close()
    assert list(results.table("m", "d")["plan"]) == ["b"]
    assert results.get(ResultKey("a", "m", "d")) is None
    assert results.put(ResultKey("a", "m", "d"), {"tokens": 1})
    assert Results.open(results.path).get(ResultKey("a", "m", "d")).payload == {"tokens": 1}


def test_a_payload_that_its_reader_refuses_counts_as_not_measured(results):
    results.put(KEY, {"tokens": 1})
    assert results.get(KEY, lambda payload: payload["kl"]) is None


def test_the_file_is_opened_once_and_read_again_only_when_another_wrote(results, monkeypatch):
    other = Results.open(results.path)
    results.put(KEY, {"tokens": 1})
    other.get(KEY)
    opened, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kw: opened.append(args) or connect(*args, **kw))
    for n in range(2, 30):
        results.put(KEY, {"tokens": n})
        assert other.get(KEY).tokens == n
        table = other._table
        assert other.get(KEY).tokens == n and other._table is table
    assert not opened


def test_a_fork_opens_the_file_for_itself(results):
    results.put(KEY, {"tokens": 1})
    child = os.fork()
    if not child:
        os._exit(results.get(KEY).tokens != 1 or not results.put(KEY, {"tokens": 2}))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert results.get(KEY).tokens == 2 and results.put(KEY, {"tokens": 3})


def test_a_place_that_cannot_hold_a_file_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "results.sqlite"):
        with pytest.raises(ResultsError, match="QUEPT_CACHE"):
            Results.open(path)
