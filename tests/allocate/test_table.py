"""The table is a file people can read, and predicts what the browser predicts."""

import json
import math

import pytest

from quept.allocate import SensitivityError, SensitivityTable
from quept.plan import PlanError, PrecisionPlan

LAYERS = {
    "a": {2: 4.0, 3: 1.0, 4: 0.2, 5: 0.05, 6: 0.01, 7: 0.003, 8: 0.001},
    "b": {2: 6.0, 3: 1.0, 4: 0.2, 5: 0.05, 6: 0.01, 7: 0.003, 8: 0.001},
}
UNIFORM = {
    2: {"kl": 9.0, "ppl": 5000.0, "same_top": 0.05},
    3: {"kl": 1.2, "ppl": 70.0, "same_top": 0.5},
    4: {"kl": 0.3, "ppl": 34.0, "same_top": 0.7},
    5: {"kl": 0.08, "ppl": 30.0, "same_top": 0.85},
    6: {"kl": 0.02, "ppl": 28.2, "same_top": 0.92},
    7: {"kl": 0.006, "ppl": 27.8, "same_top": 0.96},
    8: {"kl": 0.002, "ppl": 27.7, "same_top": 0.98},
}


def table(**changes) -> SensitivityTable:
    data = {"text": "words", "tokens": 512, "context": 512, "dtype": "float32"}
    reference = {"ppl": 27.6, "tokens": 4096, "context": 512}
    parts = {"data": data, "reference": reference, "layers": LAYERS, "uniform": UNIFORM} | changes
    return SensitivityTable("tiny", "f" * 64, 64, "layer", **parts)


def test_what_is_written_is_read_back(tmp_path):
    table().save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == table()
    assert [p.name for p in tmp_path.iterdir()] == ["sensitivity.json"]


def test_the_file_is_json_with_a_line_a_layer():
    text = table().to_json()
    data = json.loads(text)
    assert data["format"] == "quept-sensitivity" and data["version"] == 1
    assert data["layers"]["a"]["2"] == 4.0 and data["uniform"]["8"]["ppl"] == 27.7
    assert sum(line.strip().startswith('"a": {"2": 4.0') for line in text.splitlines()) == 1


@pytest.mark.parametrize("bits", UNIFORM)
def test_a_uniform_plan_is_predicted_as_it_was_measured(bits):
    predicted = table().predicted(PrecisionPlan.uniform(bits))
    assert predicted == pytest.approx({k: UNIFORM[bits][k] for k in ("kl", "ppl", "same_top")})


def test_between_two_points_the_prediction_is_linear_in_log_s():
    plan = PrecisionPlan.of({"a": 4, "b": 3})  # s = 1.2, between 0.4 and 2
    t = math.log(1.2 / 0.4) / math.log(2 / 0.4)
    predicted = table().predicted(plan)
    assert predicted["kl"] == pytest.approx(0.3 ** (1 - t) * 1.2**t)
    assert predicted["ppl"] == pytest.approx(34 ** (1 - t) * 70**t)
    assert predicted["same_top"] == pytest.approx(0.7 * (1 - t) + 0.5 * t)


def test_below_the_first_point_the_distance_to_full_precision_shrinks_in_proportion():
    predicted = table().predicted(PrecisionPlan.of({"a": 8}))  # s = 0.001, half of uniform W8
    assert predicted["kl"] == pytest.approx(0.001)
    assert predicted["ppl"] == pytest.approx(math.sqrt(27.6 * 27.7))
    assert predicted["same_top"] == pytest.approx(0.99)


def test_full_precision_is_the_reference():
    assert table().predicted(PrecisionPlan.full()) == pytest.approx({"kl": 0, "ppl": 27.6, "same_top": 1})


def test_beyond_the_last_point_the_prediction_stays():
    worse = {name: {**row, 2: 100.0} if name == "a" else row for name, row in LAYERS.items()}
    known = {b: u for b, u in UNIFORM.items() if b > 2}
    assert table(layers=worse, uniform=known).predicted(PrecisionPlan.of({"a": 2}))["ppl"] == pytest.approx(
        70
    )


def test_the_browser_gets_the_same_figures_in_its_own_order():
    told = table().prediction(["b", "a"])
    assert told["sensitivity"][0] == [*LAYERS["b"].values(), 0.0]
    assert told["curve"]["sum"] == pytest.approx([0.002, 0.006, 0.02, 0.1, 0.4, 2.0, 10.0])
    assert told["curve"]["kl"] == [UNIFORM[bits]["kl"] for bits in reversed(UNIFORM)]
    assert told["reference"] == {"ppl": 27.6} and "512 tokens of words" in told["conditions"]
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("layers", [["a", "c"], ["a"]])
def test_a_layer_that_was_not_measured_means_no_prediction(layers):
    assert (table().prediction(layers) is None) == ("c" in layers)


def test_a_width_that_was_not_measured_is_named():
    few = {name: {2: row[2]} for name, row in LAYERS.items()}
    assert table(layers=few).prediction(LAYERS) is None
    with pytest.raises(SensitivityError, match="a was not measured at 4 bits"):
        table(layers=few).total(PrecisionPlan.uniform(4))


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(PlanError, match="not in this model"):
        table().predicted(PrecisionPlan.of({"model.layers.0.mlp.up_proj": 4}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a sensitivity table"),
        ('{"format": "quept-plan"}', "not a sensitivity table"),
        ('{"format": "quept-sensitivity", "version": 2}', "version 2; this program reads up to 1"),
        ('{"format": "quept-sensitivity", "version": 1, "model": "m"}', "damaged: missing or unknown data"),
    ],
)
def test_what_is_no_table_is_refused_in_words(text, words, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(SensitivityError, match=words) as raised:
        SensitivityTable.load(path)
    assert "table.json" in str(raised.value)
    with pytest.raises(SensitivityError, match="cannot read"):
        SensitivityTable.load(tmp_path / "none.json")
