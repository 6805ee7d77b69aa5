"""Links: what is written is read back, and no stranger's link does more than raise a sentence."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.link import BITS, LinkError, decode, encode

unhurried = settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
ACTIVATION_BITS, KV_BITS, EMBEDDING_BITS = (4, 5, 6, 7, 8, 16), (2, 3, 4, 8, 16), (4, 4.5, 6, 8, 16)
BLOCKS = 3


def describe(layers: int, model: str = "toy") -> dict:
    return {
        "model": model,
        "layers": [{"name": f"layer.{i}"} for i in range(layers)],
        "bits": list(BITS),
        "activation_bits": list(ACTIVATION_BITS),
        "kv_bits": list(KV_BITS),
        "kv_blocks": list(range(BLOCKS)),
        "embedding_bits": list(EMBEDDING_BITS),
    }


def plan(weights: list[int], activations: list[int] | None = None, kv: int | list = 16, e: int = 16) -> dict:
    return {"w": weights, "a": activations or [16] * len(weights), "kv": kv, "e": e}


@st.composite
def plans(draw) -> dict:
    layers = draw(st.integers(1, 230))
    widths = st.lists(st.sampled_from(BITS), min_size=layers, max_size=layers)
    activations = st.lists(st.sampled_from(ACTIVATION_BITS), min_size=layers, max_size=layers)
    each = st.lists(st.sampled_from(KV_BITS), min_size=BLOCKS, max_size=BLOCKS).filter(
        lambda k: len({*k}) > 1
    )
    kv, e = draw(st.sampled_from(KV_BITS) | each), draw(st.sampled_from(EMBEDDING_BITS))
    return plan(draw(widths), draw(st.none() | activations), kv, e)


@unhurried
@given(plans())
def test_a_plan_survives_its_link(plan_json):
    assert decode(encode(plan_json, "toy"), describe(len(plan_json["w"]))) == plan_json


def test_the_letters_are_three_bit_indices_most_significant_first():
    # 4, 2, 16 -> 010 000 111 -> 01000011 10000000 -> Q4A
    assert encode(plan([4, 2, 16]), "toy") == {"m": "toy", "w": "Q4A"}
    assert decode({"w": "Q4A"}, describe(3)) == plan([4, 2, 16])


def test_what_is_all_sixteen_is_left_out():
    assert encode(plan([16] * 8)) == {"w": "____"}
    assert encode(plan([16] * 8, [8] + [16] * 7, kv=4, e=8)).keys() == {"w", "a", "kv", "e"}


def test_a_cache_of_different_widths_has_a_part_of_its_own_and_one_width_has_none():
    query = encode(plan([4] * 8, kv=[4, 8, 16]))
    assert "kv" not in query and decode(query, describe(8))["kv"] == [4, 8, 16]
    assert decode({"w": query["w"], "k": encode(plan([4] * 8, kv=[8, 8, 8]))["k"]}, describe(8))["kv"] == 8
    for damaged, words in (
        (query["k"][:-1], "3 blocks take"),
        ("____", "too long"),
        ("___", "altered"),
    ):
        with pytest.raises(LinkError, match=words):
            decode(query | {"k": damaged}, describe(8))
    with pytest.raises(LinkError, match="keeps no keys and values"):
        decode(query, describe(8) | {"kv_blocks": []})


def test_210_layers_are_106_characters():
    assert len(encode(plan([4] * 210))["w"]) == 106


@pytest.mark.parametrize("params", [{}, {"m": "toy"}, {"__theme": "dark", "utm": "x"}])
def test_a_link_without_a_plan_is_no_plan(params):
    assert decode(params, describe(3)) is None


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"w": "Q4"}, "cut short: 2 characters, where 3 layers take 3"),
        ({"w": "Q4AA"}, "too long: 4 characters"),
        ({"w": ""}, "cut short"),
        ({"w": "Q4!"}, "the character '!'"),
        ({"w": "Q4é"}, r"the character '\xe9'"),
        ({"w": "Q4="}, "the character '='"),
        ({"w": "Q4B"}, "altered"),
        ({"w": "Q4E"}, "altered"),
        ({"m": "other", "w": "Q4A"}, "for the model 'other', but this page has 'toy' open"),
        ({"m": "x" * 9000}, "xxx…'"),
        ({"a": "Q4A"}, "incomplete"),
        ({"kv": "4"}, "incomplete"),
        ({"w": "Q4A", "a": "Q4A"}, "asks for 2 activation bits; this model offers 4, 5, 6, 7, 8, 16"),
        ({"w": "Q4A", "kv": "5"}, "'5' bits in the KV cache; this model offers 2, 3, 4, 8, 16"),
        ({"w": "Q4A", "kv": "4.0"}, "'4.0'"),
        ({"e": "8"}, "incomplete"),
        ({"w": "Q4A", "e": "5"}, "'5' bits in the embeddings; this model offers 4, 4.5, 6, 8, 16"),
        ({"w": "Q4A", "kv": "٤"}, "KV cache"),
        ({"w": ["Q4A"]}, "not text"),
        ({"w": None}, "not text"),
    ],
)
def test_a_malformed_link_is_a_sentence(params, words):
    with pytest.raises(LinkError) as error:
        decode(params, describe(3))
    assert words in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "plan_json", [{"w": [9]}, {"w": [4], "a": [4, 4]}, {"w": [4], "kv": 9}, {"w": [4], "a": [1]}]
)
def test_a_plan_that_no_link_can_hold_is_a_sentence(plan_json):
    with pytest.raises(LinkError):
        encode(plan_json)


strings = st.text(max_size=12) | st.text("ABCab01_-", max_size=12)
anything = strings | st.none() | st.integers() | st.lists(strings, max_size=2)


@unhurried
@given(st.dictionaries(st.sampled_from(["m", "w", "a", "kv", "x"]), anything), st.integers(0, 20))
def test_a_strangers_link_raises_nothing_but_link_error(params, layers):
    try:
        plan_json = decode(params, describe(layers))
    except LinkError:
        return
    assert plan_json is None or (
        set(plan_json["w"]) <= set(BITS) and len(plan_json["w"]) == len(plan_json["a"]) == layers
    )
