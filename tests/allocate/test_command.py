"""`quept allocate` on a tiny model: the plan file it writes, and how it fails."""

import argparse
import json
import random
import re
from dataclasses import replace

import pytest

from quept.allocate import SensitivityTable
from quept.cli.allocate import allocate_parser
from quept.plan import QUANTIZED_BITS, PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def elastic(folder):
    return ElasticModel.open(str(folder), device="cpu")


@pytest.fixture(scope="module")
def table(elastic, tmp_path_factory) -> str:
    r = random.Random(0)
    figures = {"ppl": 20.0, "kl": 1.0, "same_top": 0.5}
    made = SensitivityTable(
        model="tiny",
        fingerprint=elastic.artifact.weights_id,
        group=elastic.artifact.group,
        per="layer",
        data={"text": "words", "tokens": 64, "context": 32, "dtype": "float32"},
        reference={"ppl": 20.0, "tokens": 64, "context": 32},
        layers={n: {b: 3.0**-b * r.uniform(0.5, 2) for b in QUANTIZED_BITS} for n in elastic.layers},
        uniform={b: figures | {"kl": 3.0**-b, "ppl": 20 * (1 + 3.0**-b)} for b in QUANTIZED_BITS},
        embeddings={b: 3.0**-b for b in (4, 5, 6, 7, 8)},
    )
    path = tmp_path_factory.mktemp("table") / "table.json"
    made.save(path)
    return str(path)


def run(*argv) -> None:
    parser = argparse.ArgumentParser(prog="quept")
    allocate_parser(parser.add_subparsers())
    options = parser.parse_args(["allocate", *argv])
    options.run(options)


def told(capsys, *argv) -> dict:
    run(*argv, "--json")
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_it_writes_the_plan_that_fits(folder, elastic, table, tmp_path, capsys):
    out = tmp_path / "plan.json"
    said = told(capsys, str(folder), "40 %", "--table", table, "--out", str(out))
    plan = PrecisionPlan.load(out, folder.name)
    assert elastic.sizes.deploy(plan) == said["bytes"] <= said["budget"]
    assert said["budget"] == elastic.sizes.deploy(PrecisionPlan.full()) * 40 // 100
    assert said["embeddings"] == plan.embeddings and sum(said["layers"].values()) == len(elastic.layers)
    costs = SensitivityTable.load(table)
    assert said["sensitivity"] == pytest.approx(costs.total(plan)) and said["gap"] == 0
    assert said["predicted"] == pytest.approx(costs.predicted(plan))
    run(str(folder), "40 %", "--table", table)
    assert f"of embeddings: {plan.embeddings}" in capsys.readouterr().out


def test_a_plan_measured_better_is_given_and_said(folder, elastic, table, tmp_path, capsys):
    whole = {"W4E4": {"kl": 1e-9, "ppl": 20.0, "same_top": 0.99}}
    path = tmp_path / "measured.json"
    replace(SensitivityTable.load(table), whole=whole).save(path)
    said = told(capsys, str(folder), "60 %", "--table", str(path))
    assert (said["origin"], said["measured"], said["expected_kl"]) == ("uniform", whole["W4E4"], 1e-9)
    assert said["bytes"] == elastic.sizes.deploy(PrecisionPlan.uniform(4, embeddings=4)) <= said["budget"]
    run(str(folder), "60 %", "--table", str(path))
    out = capsys.readouterr().out
    assert "mean KL, measured" in out and "W4E4, a uniform plan: its measured KL" in out


def test_its_limits_hold(folder, elastic, table, tmp_path, capsys):
    out = tmp_path / "plan.json"
    limits = ["--pin", f"{Q}=7", "--pin", "embeddings=5", "--floor", "*.mlp.*=4", "--ceiling", "*=7"]
    limits += ["--widths", "3,4,5,7", "--tie", "qkv"]
    told(capsys, str(folder), "5 % worse", "--table", table, "--out", str(out), *limits)
    plan = PrecisionPlan.load(out)
    bits = {name: b.weights for name, b in plan.resolve(elastic.layers).items()}
    assert plan.embeddings == 5 and bits[Q] == bits[K] == 7
    assert set(bits.values()) <= {3, 4, 5, 7}
    assert all(b >= 4 for name, b in bits.items() if ".mlp." in name)


def test_a_file_of_constraints_says_what_the_options_say_and_options_come_on_top(
    folder, elastic, table, tmp_path, capsys
):
    file, plans = tmp_path / "limits.json", [tmp_path / "file.json", tmp_path / "options.json"]
    limits = {"pin": {Q: 7, "embeddings": 5}, "floor": {"*.mlp.*": 4}, "tie": "qkv", "widths": [3, 4, 5, 7]}
    file.write_text(json.dumps({"format": "quept-constraints", "version": 1} | limits))
    options = ["--pin", f"{Q}=7", "--pin", "embeddings=5", "--floor", "*.mlp.*=4", "--tie", "qkv"]
    for out, said in zip(
        plans, (["--constraints", str(file)], [*options, "--widths", "3,4,5,7"]), strict=True
    ):
        told(capsys, str(folder), "5 % worse", "--table", table, "--out", str(out), *said)
    assert PrecisionPlan.load(plans[0]) == PrecisionPlan.load(plans[1])
    on_top = ["--constraints", str(file), "--pin", "embeddings=8"]
    assert told(capsys, str(folder), "40 %", "--table", table, *on_top)["embeddings"] == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "limits.json: this file is not a file of constraints: it is not valid JSON"),
        ('{"format": "quept-plan", "version": 1}', 'a JSON object with "format": "quept-constraints"'),
        ('{"format": "quept-constraints", "version": 1, "pins": {}}', "pins: nothing of that name"),
        (
            '{"format": "quept-constraints", "version": 1, "pin": {"a": "4"}}',
            "pin.a: it should be a valid int",
        ),
        ('{"format": "quept-constraints", "version": 1, "tie": "all"}', "tie: it should be 'qkv' or 'block'"),
        ('{"format": "quept-constraints", "version": 1, "floor": {"*.c": 4}}', "fits no layer"),
    ],
)
def test_a_file_that_says_nothing_of_the_kind_is_refused_in_words(folder, table, tmp_path, text, words):
    (tmp_path / "limits.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        run(str(folder), "40 %", "--table", table, "--constraints", str(tmp_path / "limits.json"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["1 kB"], "the smallest plan that these constraints allow"),
        (["lots"], "'lots' is no budget"),
        (["40 %", "--pin", "nothing=4"], "pinned 'nothing' fits no layer"),
        (["40 %", "--pin", f"{Q}=1"], "must be one of 2, 3"),
        (["40 %", "--activations", "as-weights"], "no number for the inputs of"),
    ],
)
def test_what_cannot_be_is_said_in_words(folder, table, argv, words):
    with pytest.raises(ValueError, match=words):
        run(str(folder), *argv, "--table", table)


def test_a_table_of_other_weights_is_refused(folder, table, tmp_path):
    other = tmp_path / "other.json"
    replace(SensitivityTable.load(table), fingerprint="0" * 64).save(other)
    with pytest.raises(ValueError, match="was measured on other weights"):
        run(str(folder), "40 %", "--table", str(other))
    with pytest.raises(
        ValueError, match="no sensitivity table: `quept sensitivity .* --out table.json` measures"
    ):
        run(str(folder), "40 %")


@pytest.mark.parametrize(
    "argv", [["--pin", "x"], ["--pin", "=4"], ["--widths", "3;4"], ["--activations", "x"], ["--tie", "head"]]
)
def test_what_cannot_be_read_ends_with_usage(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        run("model", "60 MB", *argv)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err
