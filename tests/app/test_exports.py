"""Files of plans: what a format weighs is what its file has; made once, and the oldest go for newer ones."""

from __future__ import annotations

import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.exports import Exports, offers
from app.pages.export import make, offered, run
from app.service import Sample, Service
from quept.evaluate import Results
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel

MODEL = "tiny"
W4 = PrecisionPlan.uniform(4)


@pytest.fixture
def service(elastic: ElasticModel, tmp_path: Path) -> Service:
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    return Service({MODEL: elastic}, sample, Results.open(tmp_path / "results.sqlite"), tmp_path)


def states(exports: Exports, service: Service, plan: PrecisionPlan, name: str) -> list[dict]:
    return list(exports.make(service.opened[MODEL], plan, name, nullcontext))


def test_every_format_says_its_bytes_and_the_file_has_them(service):
    plan_json = service.plan_json_of(MODEL, W4)
    rows = {row["format"]: row for row in offered(service, MODEL, plan_json)["rows"]}
    fitting = {name: row for name, row in rows.items() if row["bytes"]}
    assert {"mlx", "compressed-tensors", "packed", "hf"} <= set(fitting)
    for name, row in fitting.items():
        last = list(make(service, MODEL, plan_json, {"format": name}))[-1]
        assert last["status"] == "done" and last["bytes"] == row["bytes"], last
        assert Path(last["path"]).is_file() and last["name"].startswith("tiny-w4")
        assert all("{" not in line for line in last["commands"])


def test_what_a_format_lacks_is_a_sentence_with_the_nearest_plan(service):
    plan_json = service.plan_json_of(MODEL, PrecisionPlan.uniform(4, 8))
    rows = {row["format"]: row for row in offered(service, MODEL, plan_json)["rows"]}
    assert "activations" in rows["mlx"]["refused"] and rows["mlx"]["refused"].endswith(".")
    near = service.plan_of(MODEL, rows["mlx"]["nearest"]["plan"])
    assert near.name == "W4" and rows["packed"]["bytes"]
    asked = list(make(service, MODEL, plan_json, {"format": "mlx"}))
    assert asked[-1] == asked[-1] | {"status": "error", "message": rows["mlx"]["refused"]}


def test_seven_bits_say_what_they_cost_in_mlx(service):
    opened = service.opened[MODEL]
    rows = offers(opened, PrecisionPlan.uniform(7), lambda plan: {})
    adds = next(row["adds"] for row in rows if row["format"] == "mlx")
    assert len(adds) == 1 and adds[0].startswith("7 bits cost ") and adds[0].endswith(" in 8 bits")


def test_a_file_is_made_once_and_the_oldest_goes_where_there_is_no_room(service):
    exports, opened = Exports(), service.opened[MODEL]
    first = states(exports, service, W4, "mlx")[-1]
    made = exports.path(opened, W4, "mlx")
    stamp = made.stat().st_mtime_ns
    assert len(states(exports, service, W4, "mlx")) == 1 and made.stat().st_mtime_ns == stamp
    with zipfile.ZipFile(made) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) == first["bytes"]
    small = Exports(kept=int(2.5 * first["bytes"]))
    states(small, service, W4, "mlx")
    states(small, service, PrecisionPlan.uniform(3), "mlx")
    assert small.path(opened, W4, "mlx") is None and small.path(opened, PrecisionPlan.uniform(3), "mlx")
    assert len(list(small.folder.iterdir())) == 1


def test_a_file_that_is_too_large_and_a_disk_that_is_full_are_sentences(service, monkeypatch):
    refused = states(Exports(kept=1000), service, W4, "packed")[-1]
    assert refused["status"] == "error" and "`quept export --to packed`" in refused["message"]
    exports = Exports()

    def full(self, elastic, plan, out, progress):
        out.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quept.export.packed.Packed.fill", full)
    failed = states(exports, service, W4, "packed")[-1]
    assert failed["status"] == "error" and "the disk is full" in failed["message"]
    assert not list(exports.folder.iterdir())


def test_a_file_that_was_made_runs_and_is_compared_with_the_view(service):
    pytest.importorskip("xllamacpp")
    plan_json = service.plan_json_of(MODEL, W4)
    assert list(make(service, MODEL, plan_json, {"format": "gguf"}))[-1]["status"] == "done"
    speed, answer, compared = (state["words"] for state in run(service, MODEL, plan_json))
    service.llama.close()
    assert (
        speed.startswith("Runs as llama.cpp would: 0 MB file, ") and "Asked “Why is the sky blue?”" in answer
    )
    assert compared.startswith(answer) and "of 8 positions, KL " in compared


def test_running_a_file_that_was_not_made_is_said(service):
    assert "make it again" in next(run(service, MODEL, service.plan_json_of(MODEL, W4)))["words"]
    asked = list(make(service, MODEL, service.plan_json_of(MODEL, W4), {"format": "../x"}))
    assert asked[-1]["status"] == "error" and "not understood" in asked[-1]["message"]
