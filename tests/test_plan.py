import hashlib
import itertools
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.engines import GRADED_WIDTHS
from quept.plan import (
    ACTIVATION_BITS,
    EMBEDDING_BITS,
    KV_BITS,
    MAX_PATTERN,
    MAX_RULES,
    WEIGHT_BITS,
    Bits,
    PlanError,
    PrecisionPlan,
)

ROLES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
LAYERS = tuple(f"model.layers.{i}.{role}" for i in range(12) for role in ROLES)
HEAD = {"format": "quept-plan", "version": 1}

bits = st.builds(Bits, st.sampled_from(WEIGHT_BITS), st.sampled_from(ACTIVATION_BITS))
patterns = st.sampled_from(
    [*LAYERS[:6], "*", "*.down_proj", "model.layers.1.*", "model.layers.1?.*", "*.[qo]_proj"]
)
plans = st.builds(
    PrecisionPlan,
    bits,
    st.lists(st.tuples(patterns, bits), max_size=6).map(tuple),
    st.sampled_from(KV_BITS),
    st.text(max_size=20),
    st.sampled_from((*EMBEDDING_BITS, *GRADED_WIDTHS)),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def plan_json(**entries) -> str:
    return json.dumps(HEAD | entries)


def test_a_uniform_plan_gives_every_layer_the_same_bits_in_the_order_asked():
    resolved = PrecisionPlan.uniform(4, 8).resolve(reversed(LAYERS))
    assert list(resolved) == list(reversed(LAYERS)) and set(resolved.values()) == {Bits(4, 8)}


def test_the_last_matching_rule_wins():
    plan = PrecisionPlan.of({"*.down_proj": 8, "model.layers.0.*": 2, LAYERS[1]: 5}, default=4)
    resolved = plan.resolve(LAYERS)
    assert [resolved[name].weights for name in LAYERS[:8]] == [2, 5, 2, 2, 4, 4, 4, 8]


def test_a_pattern_said_twice_counts_where_it_is_said_last():
    plan = PrecisionPlan(rules=(("*.q_proj", Bits(2)), ("*", Bits(5)), ("*.q_proj", Bits(3))))
    assert plan.resolve(LAYERS)[LAYERS[0]] == Bits(3)
    assert PrecisionPlan.from_json(plan.to_json()).resolve(LAYERS) == plan.resolve(LAYERS)
    twice = '{"format": "quept-plan", "version": 1, "layers": {"*.q_proj": 2, "*": 5, "*.q_proj": 3}}'
    assert PrecisionPlan.from_json(twice).resolve(LAYERS) == plan.resolve(LAYERS)


def test_patterns_match_whole_names_and_care_about_case():
    assert PrecisionPlan.of({"*.layers.1.*": 2}, default=4).resolve(LAYERS)[
        "model.layers.11.mlp.down_proj"
    ] == Bits(4)
    with pytest.raises(PlanError):
        PrecisionPlan.of({"*.DOWN_PROJ": 2}).resolve(LAYERS)
    with pytest.raises(PlanError):
        PrecisionPlan.of({"down_proj": 2}).resolve(LAYERS)


def test_the_key_does_not_depend_on_how_an_assignment_is_spelled():
    spellings = [
        PrecisionPlan.of({"*.down_proj": 8}, default=4, name="one"),
        PrecisionPlan.of({name: 8 if "down" in name else 4 for name in LAYERS}, name="two"),
        PrecisionPlan.of({"*": 4, "*.mlp.*": 2, "*.gate_proj": 4, "*.down_proj": 8}, default=16),
    ]
    assert len({plan.key(LAYERS) for plan in spellings}) == 1
    assert all(len(plan.key(LAYERS)) == 64 for plan in spellings)


def test_the_key_tells_different_assignments_apart():
    variants = [
        PrecisionPlan.uniform(4),
        PrecisionPlan.uniform(5),
        PrecisionPlan.uniform(4, 8),
        PrecisionPlan.uniform(4, kv=8),
        PrecisionPlan.uniform(4, embeddings=8),
        PrecisionPlan.of({LAYERS[0]: 5}, default=4),
        PrecisionPlan.of({LAYERS[1]: 5}, default=4),
    ]
    assert len({plan.key(LAYERS) for plan in variants}) == len(variants)
    assert PrecisionPlan.uniform(4).key(LAYERS) != PrecisionPlan.uniform(4).key(LAYERS[1:])


def test_a_plan_that_leaves_embeddings_alone_keeps_the_key_it_always_had():
    text = json.dumps([16, [[name, 4, 16] for name in LAYERS]])
    assert PrecisionPlan.uniform(4).key(LAYERS) == hashlib.sha256(text.encode()).hexdigest()


def test_plans_are_values_and_the_name_is_only_a_label():
    one, two = PrecisionPlan.of({"*": 4}, name="one"), PrecisionPlan.of({"*": 4}, name="two")
    assert one == two and hash(one) == hash(two) and len({one, two}) == 1
    assert one != PrecisionPlan.of({"*": 5}) and one != "W4"
    with pytest.raises(AttributeError):
        one.kv = 4


BLOCKS = sorted({name.split(".self")[0].split(".mlp")[0] for name in LAYERS})


def test_a_cache_at_one_width_for_every_block_is_the_plan_it_always_was():
    one = PrecisionPlan.uniform(4, kv=8)
    spelled = [
        PrecisionPlan.uniform(4).with_cache(dict.fromkeys(BLOCKS, 8)),
        PrecisionPlan.of({}, 4, kv_blocks=dict.fromkeys(BLOCKS, 8)),
        PrecisionPlan.of({}, 4, kv=3, kv_blocks={"*": 2, "model.layers.*": 8}),
    ]
    assert {plan.key(LAYERS) for plan in spelled} == {one.key(LAYERS)} and spelled[0] == one
    assert (
        replace(spelled[0], name="").to_json() == replace(one, name="").to_json()
        and "kv_blocks" not in one.to_json()
    )
    assert all(plan.resolve_cache(BLOCKS) == one.resolve_cache(BLOCKS) for plan in spelled)


def test_each_block_may_keep_its_cache_at_a_width_of_its_own():
    plan = PrecisionPlan.of({}, 4, kv=4, kv_blocks={BLOCKS[0]: 8, BLOCKS[1]: 16})
    widths = plan.resolve_cache(BLOCKS)
    assert [widths[b] for b in BLOCKS[:3]] == [8, 16, 4] and plan.rounds_cache
    assert plan.with_cache(widths) == plan == PrecisionPlan.from_json(plan.to_json())
    other = PrecisionPlan.of({}, 4, kv=4, kv_blocks={BLOCKS[0]: 16, BLOCKS[1]: 8})
    assert len({p.key(LAYERS) for p in (plan, other, PrecisionPlan.uniform(4, kv=4))}) == 3
    assert not PrecisionPlan.of({}, 4, kv_blocks={"*": 16}).rounds_cache


@pytest.mark.parametrize("block", ["model.layers.99", "model.layer.0", "*.mlp.down_proj"])
def test_a_block_that_the_cache_does_not_have_is_an_error_that_helps(block):
    plan = PrecisionPlan.of({}, kv_blocks={block: 4})
    with pytest.raises(PlanError, match=r"is not in the KV cache of this model.*model\.layers\.[0-9]"):
        plan.resolve_cache(BLOCKS)
    with pytest.raises(PlanError, match="no block"):
        plan.key(LAYERS)


@given(plans)
def test_json_round_trip(plan):
    again = PrecisionPlan.from_json(plan.to_json())
    assert again == plan and again.name == plan.name
    assert again.resolve(LAYERS) == plan.resolve(LAYERS) if _fits(plan) else True


def _fits(plan) -> bool:
    try:
        return bool(plan.resolve(LAYERS))
    except PlanError:
        return False


def test_a_saved_plan_loads_and_records_its_model(tmp_path):
    plan = PrecisionPlan.of({"*.down_proj": Bits(8, 8)}, default=Bits(4, 8), kv=4, name="straße")
    plan.save(tmp_path / "plan.json", model="tiny")
    assert PrecisionPlan.load(tmp_path / "plan.json", "tiny") == plan
    with pytest.raises(PlanError, match="made for the model 'tiny'.*'other'"):
        PrecisionPlan.load(tmp_path / "plan.json", "other")


def test_a_rule_inherits_what_it_does_not_say():
    plan = PrecisionPlan.from_json(
        plan_json(weights=4, activations=8, layers={"a": 5, "b": {"weights": 6}, "c": {"activations": 16}})
    )
    assert plan.resolve("abc") == {"a": Bits(5, 8), "b": Bits(6, 8), "c": Bits(4, 16)}


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("full", PrecisionPlan.full()),
        ("FP", PrecisionPlan.full()),
        ("16", PrecisionPlan.full()),
        ("W16", PrecisionPlan.full()),
        ("4", PrecisionPlan.uniform(4)),
        ("W4", PrecisionPlan.uniform(4)),
        ("w4a8", PrecisionPlan.uniform(4, 8)),
        ("W4A8KV4", PrecisionPlan.uniform(4, 8, 4)),
        ("W8kv2", PrecisionPlan.uniform(8, kv=2)),
        ("w4e6", PrecisionPlan.uniform(4, embeddings=6)),
        ("W4A8KV4E8", PrecisionPlan.uniform(4, 8, 4, 8)),
        ("w5e5.5", PrecisionPlan.uniform(5, embeddings=5.5)),
    ],
)
def test_parse_reads_what_a_person_types(text, plan):
    assert PrecisionPlan.parse(text) == plan


@pytest.mark.parametrize(
    "plan",
    [PrecisionPlan.uniform(*bits) for bits in itertools.product(WEIGHT_BITS, (4, 16), (4, 16), (2, 16))],
)
def test_the_name_of_a_uniform_plan_parses_back(plan):
    assert plan.name == "full precision" or PrecisionPlan.parse(plan.name) == plan


def test_parse_takes_a_file(tmp_path):
    PrecisionPlan.uniform(3).save(tmp_path / "mine.json")
    PrecisionPlan.uniform(3).save(tmp_path / "mine")
    assert (
        PrecisionPlan.parse(str(tmp_path / "mine.json"))
        == PrecisionPlan.parse(str(tmp_path / "mine"))
        == PrecisionPlan.uniform(3)
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "A8",
        "W4B8",
        "W1",
        "W9",
        "W4A3",
        "W4A8KV9",
        "W" + "4" * 5000,
        "x" * 9999,
        "no.json",
        "\0",
        "\0.json",
        ".",
    ],
)
def test_parse_refuses_the_rest_in_words(text):
    with pytest.raises(PlanError):
        PrecisionPlan.parse(text)


@pytest.mark.parametrize("weights", [0, 1, 9, 15, 17, -4, 4.0, True, "4", None, [4]])
def test_weight_bits_out_of_range_are_refused(weights):
    with pytest.raises(PlanError, match="weight bits must be one of 2, 3, .*, 16; got"):
        Bits(weights)


@pytest.mark.parametrize("activations", [2, 3, 9, 1.5, False])
def test_activation_bits_out_of_range_are_refused(activations):
    with pytest.raises(PlanError, match="activation bits must be one of 4, .*16; got"):
        Bits(4, activations)


@pytest.mark.parametrize("kv", [1, 9, "8", None, True])
def test_cache_bits_out_of_range_are_refused(kv):
    with pytest.raises(PlanError, match="KV cache bits"):
        PrecisionPlan(kv=kv)


@pytest.mark.parametrize("embeddings", [1, 9, "8", None, True, 5.25, 8.0, 7.5])
def test_embedding_bits_out_of_range_are_refused(embeddings):
    with pytest.raises(PlanError, match="embedding bits"):
        PrecisionPlan(embeddings=embeddings)


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ("model.layers.3.mlp.gate", "did you mean 'model.layers.3.mlp.gate_proj'"),
        ("model.layers.99.mlp.down_proj", "did you mean 'model.layers."),
        ("transformer.h.0.attn", "its layers are named like 'model.layers.0.self_attn.q_proj'"),
        ("*.c_fc", "pattern '\\*.c_fc' is not in this model"),
        ("[", "is not in this model"),
    ],
)
def test_a_rule_that_fits_no_layer_is_an_error_that_helps(rule, hint):
    with pytest.raises(PlanError, match=hint):
        PrecisionPlan.of({rule: 4}).resolve(LAYERS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 10_000, "not valid JSON"),
        ("null", 'JSON object with "format"'),
        ("[]", 'JSON object with "format"'),
        ('{"format": "quept-artifact", "version": 1}', 'JSON object with "format"'),
        ('{"format": "quept-plan"}', "version must be a whole number"),
        ('{"format": "quept-plan", "version": true}', "version must be a whole number"),
        ('{"format": "quept-plan", "version": 0}', "version must be a whole number"),
        ('{"format": "quept-plan", "version": 2}', "has version 2; this program reads up to 1: update"),
        (plan_json(wights=4), "unknown plan entries: 'wights'"),
        (plan_json(weights=1), "weight bits must be one of"),
        (plan_json(weights=float("nan")), "weight bits must be one of"),
        (plan_json(kv="4"), "KV cache bits"),
        (plan_json(layers=[]), '"layers" must be an object'),
        (plan_json(kv_blocks=[4]), '"kv_blocks" must be an object'),
        (plan_json(kv_blocks={"a": [4]}), "KV cache bits"),
        (plan_json(layers={"a": 1}), "layer 'a': weight bits"),
        (plan_json(layers={"a": {"weights": 4, "activations": 3}}), "layer 'a': activation bits"),
        (plan_json(layers={"a": {"bits": 4}}), "layer 'a': unknown entries 'bits'"),
        (plan_json(layers={"a": None}), "layer 'a'"),
        (plan_json(layers={"a" * (MAX_PATTERN + 1): 4}), "at most"),
        (plan_json(layers={str(i): 4 for i in range(MAX_RULES + 1)}), "at most"),
        (plan_json(name=3), '"name" must be a text'),
        (plan_json(name="x" * 201), '"name" must be a text'),
        (plan_json(model=["smollm2-135m"]), '"model" must be a text'),
        (" " * 10_000_000, "at most 1000 kB"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_in_words(text, says):
    with pytest.raises(PlanError, match=says) as refusal:
        PrecisionPlan.from_json(text)
    assert len(str(refusal.value)) < 500


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_no_bytes_raise_anything_but_plan_error(text):
    with pytest.raises(PlanError):
        PrecisionPlan.from_json(text)


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(["version", "name", "model", "weights", "activations", "kv", "layers", "note", "x"]),
        json_values,
    ),
    st.booleans(),
)
def test_no_json_raises_anything_but_plan_error(entries, sound_head):
    try:
        plan = PrecisionPlan.from_json(
            json.dumps({"format": "quept-plan"} | entries | (HEAD if sound_head else {})), "tiny"
        )
        plan.resolve(LAYERS)
    except PlanError:
        return
    assert isinstance(plan, PrecisionPlan)


@pytest.mark.parametrize("name", ["missing.json", "", "a\0b.json", "x" * 5000 + ".json"])
def test_a_plan_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(PlanError, match="cannot read the plan"):
        PrecisionPlan.load(f"{tmp_path}/{name}")


def test_a_huge_file_is_refused_without_reading_it_all(tmp_path):
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PlanError, match="huge.json: .*at most 1000 kB"):
        PrecisionPlan.load(tmp_path / "huge.json")


def test_a_plan_of_the_largest_size_still_resolves_quickly():
    rules = {"*": 4} | {f"*[{i}a-z]*": 4 for i in range(MAX_RULES - 1)}
    plan = PrecisionPlan.from_json(plan_json(layers=rules))
    begun = time.process_time()
    plan.resolve(LAYERS)
    assert time.process_time() - begun < 5


def test_a_pattern_full_of_stars_does_not_hang():
    begun = time.process_time()
    with pytest.raises(PlanError):
        PrecisionPlan.of({"a*" * 100 + "c": 4}).resolve(["a" * 300 + "b"])
    assert time.process_time() - begun < 1
