"""The table is a file people can read, and predicts what the browser predicts."""

import json
import math

import pytest

from quept.allocate import SensitivityError, SensitivityTable
from quept.plan import ACTIVATION_BITS, EMBEDDING_BITS, FULL, Bits, PlanError, PrecisionPlan

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
EMBEDDINGS = {2: 3.0, 3: 0.9, 4: 0.1, 5: 0.03, 6: 0.008, 7: 0.002, 8: 0.0003}
ACTIVATIONS = {
    "a": {4: 0.3, 5: 0.07, 6: 0.02, 7: 0.005, 8: 0.0011},
    "b": {4: 0.5, 5: 0.09, 6: 0.03, 7: 0.006, 8: 0.0012},
}
SEEING = {
    "data": {"text": "clothes", "tokens": 500, "unit": "pictures", "dtype": "float32"},
    "reference": {"top1": 0.9, "tokens": 1000},
    "uniform": {b: {"kl": r["kl"], "top1": 0.9 - r["kl"] / 20, "same_top": 0.9} for b, r in UNIFORM.items()},
}
MORE = {"embeddings": EMBEDDINGS, "activations": ACTIVATIONS}


def table(**changes) -> SensitivityTable:
    data = {"text": "words", "tokens": 512, "context": 512, "dtype": "float32"}
    reference = {"ppl": 27.6, "tokens": 4096, "context": 512}
    parts = {"data": data, "reference": reference, "layers": LAYERS, "uniform": UNIFORM} | changes
    return SensitivityTable("tiny", "f" * 64, 64, "layer", **parts)


@pytest.mark.parametrize(
    "more", [{}, MORE | {"whole": {"W4E4": UNIFORM[4]}}, {"base": "W4", "whole": {"base": UNIFORM[4]}}]
)
def test_what_is_written_is_read_back(tmp_path, more):
    table(**more).save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == table(**more)
    assert [p.name for p in tmp_path.iterdir()] == ["sensitivity.json"]


def test_graded_widths_of_embeddings_are_offered_where_they_were_measured():
    graded = table(**MORE | {"embeddings": {**EMBEDDINGS, 5.5: 0.01, 6.5: 0.004}})
    assert SensitivityTable.from_json(graded.to_json()) == graded
    assert table(**MORE).embedding_bits == EMBEDDING_BITS
    assert graded.embedding_bits == (2, 3, 4, 5, 5.5, 6, 6.5, 7, 8, FULL)
    assert graded.prediction(LAYERS)["embeddings"][4] == 0.01
    assert not graded.covers(PrecisionPlan.uniform(4, embeddings=4.5))


def test_the_file_is_json_with_a_line_a_layer():
    text = table().to_json()
    data = json.loads(text)
    assert data["format"] == "quept-sensitivity" and data["version"] == 2
    assert data["layers"]["a"]["2"] == 4.0 and data["uniform"]["8"]["ppl"] == 27.7
    assert sum(line.strip().startswith('"a": {"2": 4.0') for line in text.splitlines()) == 1


def test_a_table_of_version_1_still_predicts_the_same():
    data = json.loads(table().to_json())
    for key in ("whole", "embeddings", "activations", "base"):
        del data[key]
    old = SensitivityTable.from_json(json.dumps(data | {"version": 1}))
    assert old == table()


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


def test_embeddings_and_inputs_add_to_the_sum():
    plan = PrecisionPlan.of({"a": Bits(4, 8), "b": Bits(FULL, 5)}, embeddings=6)
    assert table(**MORE).total(plan) == pytest.approx(0.2 + 0.0011 + 0.09 + 0.008)
    assert table(**MORE).covers(plan)


def test_a_named_plan_is_predicted_as_it_was_measured():
    figures = {"kl": 0.5, "ppl": 40.0, "same_top": 0.6}
    known = table(**MORE, whole={"W4E4": figures})  # s = 0.5, between W4's 0.4 and W3's 2
    assert known.predicted(PrecisionPlan.uniform(4, embeddings=4)) == pytest.approx(figures)
    assert known.curve()["sum"] == pytest.approx([0.002, 0.006, 0.02, 0.1, 0.4, 0.5, 2.0, 10.0])


def test_a_named_plan_with_something_not_measured_stays_out_of_the_curve():
    assert len(table(whole={"W4E4": UNIFORM[3], "W4KV4": UNIFORM[3]}).curve()["sum"]) == len(UNIFORM)


@pytest.mark.parametrize(
    ("kls", "kept"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ([1, 9, 3, 4, 5], [1, 3, 4, 5]),
        ([9, 1, 2, 3, 4], [1, 2, 3, 4]),
        ([1, 2, 3, 4, 0], [1, 2, 3, 4]),
        ([3, 3, 4, 1, 5], [3, 3, 4, 5]),
        ([5, 4, 3, 2, 1], [5]),
    ],
)
def test_as_few_points_as_do_it_are_left_out_of_the_curve_for_it_to_rise(kls, kept):
    uniform = {bits: UNIFORM[bits] | {"kl": float(kl)} for bits, kl in zip(range(8, 3, -1), kls, strict=True)}
    curve = table(uniform=uniform).curve()
    assert curve["kl"] == kept and curve["sum"] == sorted(set(curve["sum"]))


def test_around_another_base_the_prediction_is_linear():
    changes = {"a": {3: 0.05, 4: 0.0, 5: -0.06, 16: -0.1}, "b": {3: 0.04, 4: 0.0, 5: -0.09, 16: -0.14}}
    known = table(layers=changes, uniform={}, base="W4", whole={"base": UNIFORM[4]})
    assert known.predicted(PrecisionPlan.uniform(4)) == pytest.approx(UNIFORM[4])
    half = known.predicted(PrecisionPlan.uniform(5))  # KL 0.3 - 0.15
    assert half["kl"] == pytest.approx(0.15)
    assert half["ppl"] == pytest.approx(math.sqrt(27.6 * 34.0)) and half["same_top"] == pytest.approx(0.85)
    assert known.total(PrecisionPlan.of({"a": 3, "b": 5})) == pytest.approx(-0.04)
    assert known.predicted(PrecisionPlan.full())["kl"] == pytest.approx(0.06)
    assert known.prediction(LAYERS) is None and "around W4" in known.conditions


def test_a_change_from_another_base_that_was_not_measured_is_not_taken_for_none():
    known = table(layers={"a": {4: 0.0}, "b": {4: 0.0}}, uniform={}, base="W4", whole={"base": UNIFORM[4]})
    with pytest.raises(SensitivityError, match="a was not measured at 16 bits"):
        known.total(PrecisionPlan.of({"b": 4}))
    with pytest.raises(SensitivityError, match="how its base plan measured"):
        table(uniform={}, base="W4").predicted(PrecisionPlan.uniform(4))


def test_full_precision_is_the_reference():
    assert table().predicted(PrecisionPlan.full()) == pytest.approx({"kl": 0, "ppl": 27.6, "same_top": 1})


def test_on_data_of_another_full_precision_the_same_ratio_to_it_is_predicted():
    plan, known = PrecisionPlan.uniform(4), table()
    here, there = known.predicted(plan), known.scaled(2 * known.reference["ppl"]).predicted(plan)
    assert there == pytest.approx({**here, "ppl": 2 * here["ppl"]})
    seeing = table(**SEEING).scaled(1.0)
    assert seeing.reference["top1"] == 1.0 and seeing.predicted(plan)["top1"] <= 1.0


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


def test_the_browser_gets_embeddings_and_inputs_if_they_were_measured():
    told = table(**MORE).prediction(["b", "a"])
    assert told["embeddings"] == [*EMBEDDINGS.values(), 0.0] and len(told["embeddings"]) == len(
        EMBEDDING_BITS
    )
    assert told["activations"][0] == [*ACTIVATIONS["b"].values(), 0.0]
    assert {len(row) for row in told["activations"]} == {len(ACTIVATION_BITS)}
    assert not {"embeddings", "activations"} & set(table().prediction(["b", "a"]))
    few = {"embeddings": {8: 0.1}, "activations": {"a": ACTIVATIONS["a"]}}
    assert not {"embeddings", "activations"} & set(table(**few).prediction(["b", "a"]))


@pytest.mark.parametrize("layers", [["a", "c"], ["a"]])
def test_a_layer_that_was_not_measured_means_no_prediction(layers):
    assert (table().prediction(layers) is None) == ("c" in layers)


def test_a_width_that_was_not_measured_is_named():
    few = {name: {2: row[2]} for name, row in LAYERS.items()}
    assert table(layers=few).prediction(LAYERS) is None
    with pytest.raises(SensitivityError, match="a was not measured at 4 bits"):
        table(layers=few).total(PrecisionPlan.uniform(4))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (PrecisionPlan.uniform(4, embeddings=4), "embeddings.* at 4 bits"),
        (PrecisionPlan.uniform(4, 8), "input of a at 8 bits"),
        (PrecisionPlan.of({"b": Bits(FULL, 8)}), "input of b at 8 bits"),
    ],
)
def test_what_was_not_measured_is_not_left_out_silently(plan, words):
    assert table(**MORE).covers(plan) and not table().covers(plan)
    with pytest.raises(SensitivityError, match=words):
        table().predicted(plan)


def test_the_cache_of_keys_and_values_adds_what_it_cost_alone_and_is_not_covered_before():
    plan = PrecisionPlan.uniform(4, kv=4)
    assert not table().covers(plan) and table().covers(PrecisionPlan.uniform(4))
    known = table(whole={"W16KV4": UNIFORM[5]})
    assert known.covers(plan) and known.kv == {4: 0.08}
    assert known.total(plan) == pytest.approx(0.4 + 0.08)
    assert known.curve() == table().curve()


BY_BLOCK = {"cache": {"a0": {8: 0.001, 4: 0.03}, "b0": {8: 0.002, 4: 0.05}}, "whole": {"W16KV4": UNIFORM[5]}}
BLOCK_LAYERS = {"a0.x": LAYERS["a"], "b0.y": LAYERS["b"]}


def test_the_cache_of_each_block_adds_what_it_cost_alone(tmp_path):
    known = table(layers=BLOCK_LAYERS, **BY_BLOCK)
    assert known.total(PrecisionPlan.uniform(4, kv=4)) == pytest.approx(0.4 + 0.03 + 0.05)
    mixed = PrecisionPlan.of({}, 4, kv_blocks={"a0": 8})
    assert known.total(mixed) == pytest.approx(0.4 + 0.001)
    assert known.curve() == table().curve()
    known.save(tmp_path / "table.json")
    assert SensitivityTable.load(tmp_path / "table.json") == known
    assert '"cache"' not in table().to_json()
    with pytest.raises(SensitivityError, match="the cache of a0 was not measured at 5 bits; measured: 4, 8"):
        known.total(PrecisionPlan.uniform(4, kv=5))
    whole = table(layers=BLOCK_LAYERS, whole={"W16KV4": UNIFORM[5]})
    assert not whole.covers(mixed) and whole.covers(PrecisionPlan.uniform(4, kv=4))
    with pytest.raises(SensitivityError, match="as a whole only; measure it with --kv"):
        whole.total(mixed)


def test_a_model_that_sees_has_an_accuracy_in_place_of_perplexity(tmp_path):
    known = table(**SEEING)
    known.save(tmp_path / "sensitivity.json")
    assert SensitivityTable.load(tmp_path / "sensitivity.json") == known
    assert known.predicted(PrecisionPlan.uniform(4)) == pytest.approx(SEEING["uniform"][4])
    assert known.predicted(PrecisionPlan.of({"a": 8}))["top1"] == pytest.approx(0.9 - 0.001 / 20)
    assert "500 pictures of clothes" in known.conditions and known.prediction(LAYERS)["score"] == "top1"


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
        ('{"format": "quept-sensitivity", "version": 3}', "version 3; this program reads up to 2"),
        (
            '{"format": "quept-sensitivity", "version": 1, "model": "m"}',
            "damaged: fingerprint: it is missing",
        ),
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


def test_a_plan_measured_whole_is_never_the_name_of_a_file(tmp_path):
    PrecisionPlan.uniform(4).save(tmp_path / "plan.json")
    text = table(whole={str(tmp_path / "plan.json"): UNIFORM[4]}).to_json()
    with pytest.raises(SensitivityError, match="is no plan like W4E8"):
        SensitivityTable.from_json(text)
