"""The equaliser and the numbers as Python objects: what comes in is checked, what goes out is well formed."""

from __future__ import annotations

import json
import math

import gradio as gr
import pytest
from gradio_client import utils as client_utils

from app.components.equalizer import Equalizer, check_plan, full_plan
from app.components.numbers import Numbers
from app.components.widget import FOLDER

LAYERS = ("model.layers.0.q", "model.layers.0.down", "model.layers.1.q", "model.layers.1.down")


def described(layers: tuple[str, ...] = LAYERS, **changes) -> dict:
    return {
        "model": "tiny",
        "title": "tiny",
        "blocks": ["0", "1"],
        "roles": ["q", "down"],
        "layers": [
            {"name": name, "block": i // 2, "role": i % 2, "params": 64} for i, name in enumerate(layers)
        ],
        "bits": [2, 3, 4, 5, 6, 7, 8, 16],
        "activation_bits": [4, 5, 6, 7, 8, 16],
        "kv_bits": [2, 3, 4, 8, 16],
        "kv_blocks": [0, 1],
        "embedding_bits": [4, 8, 16],
        "embedding_bytes": [32, 64, 128],
        "sizes": [[64 * bits // 8 for bits in (2, 3, 4, 5, 6, 7, 8, 16)] for _ in layers],
        "fixed_bytes": 100,
        "params": 356,
        "prediction": None,
    } | changes


@pytest.fixture
def equalizer() -> Equalizer:
    return Equalizer(description=described())


def test_a_plan_of_the_model_comes_through_complete_and_as_a_copy(equalizer):
    sent = {"w": [4, 8, 16, 2]}
    plan = equalizer.preprocess(sent)
    assert plan == {"w": [4, 8, 16, 2], "a": [16] * 4, "kv": 16, "e": 16}
    assert plan["w"] is not sent["w"]
    assert equalizer.preprocess(None) == equalizer.preprocess("") == full_plan(described())


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ([4, 4, 4, 4], "A plan is an object"),
        ("<b>hello</b>", "A plan is an object"),
        ({"kv": 16}, "no weight bits"),
        ({"w": [4] * 4, "x": 1}, "no others"),
        ({"w": "4444"}, "list with one number"),
        ({"w": {"0": 4}}, "list with one number"),
        ({"w": [4] * 3}, "for 3 layers, but the model on this page has 4"),
        ({"w": [4] * 1_000_000}, "for 1,000,000 layers"),
        ({"w": [4, 4, 4, 9]}, "model.layers.1.down (weight) can have 2, 3, 4, 5, 6, 7, 8 or 16 bits, not 9"),
        ({"w": [4, 4, 4, -1]}, "not -1"),
        ({"w": [4, 4, 4, 10**400]}, "as a whole number"),
        ({"w": [4, 4, 4, True]}, "model.layers.1.down"),
        ({"w": [4, 4, 4, 4.0]}, "as a whole number"),
        ({"w": [4, 4, 4, math.nan]}, "as a whole number"),
        ({"w": [4, 4, 4, None]}, "as a whole number"),
        ({"w": [4, 4, 4, "<img src=x>"]}, "as a whole number"),
        ({"w": [4, 4, 4, [4]]}, "as a whole number"),
        ({"w": [4] * 4, "a": [3] * 4}, "(activation) can have 4, 5, 6, 7, 8 or 16 bits, not 3"),
        ({"w": [4] * 4, "a": [8]}, "activation bits for 1 layers"),
        ({"w": [4] * 4, "kv": 5}, "The KV cache can have 2, 3, 4, 8 or 16 bits, not 5"),
        ({"w": [4] * 4, "kv": "8"}, "The KV cache"),
        (
            {"w": [4] * 4, "kv": [4]},
            "KV bits for 1 blocks, but the model on this page keeps keys and values in 2",
        ),
        ({"w": [4] * 4, "kv": [4, 5]}, "The KV cache of block 1 can have 2, 3, 4, 8 or 16 bits, not 5"),
        ({"w": [4] * 4, "kv": [4, "<b>"]}, "The KV cache of block 1"),
        ({"w": [4] * 4, "e": 3}, "The embeddings can have 4, 8 or 16 bits, not 3"),
        ({"w": [4] * 4, "e": "8"}, "The embeddings"),
    ],
)
def test_anything_else_is_refused_in_words_without_repeating_it(equalizer, sent, says):
    with pytest.raises(gr.Error) as caught:
        equalizer.preprocess(sent)
    assert says in caught.value.message
    assert "<" not in caught.value.message
    assert len(caught.value.message) < 250


def test_a_cache_that_is_alike_in_every_block_is_one_number():
    assert check_plan({"w": [4] * 4, "kv": [8, 8]}, described())["kv"] == 8
    assert check_plan({"w": [4] * 4, "kv": [8, 4]}, described())["kv"] == [8, 4]


def test_a_model_without_activation_bits_takes_only_16(equalizer):
    plain = described(activation_bits=[], kv_bits=[], embedding_bits=[])
    assert check_plan({"w": [4] * 4, "a": [16] * 4, "kv": 16}, plain)["kv"] == 16
    with pytest.raises(ValueError, match="can have 16 bits, not 8"):
        check_plan({"w": [4] * 4, "a": [8] * 4}, plain)


def test_a_wrong_value_from_python_is_an_error_at_once():
    with pytest.raises(ValueError, match="for 2 layers"):
        Equalizer({"w": [4, 4]}, description=described())
    with pytest.raises(ValueError, match=r"Equalizer\(description=describe\(model\)\)"):
        Equalizer()


def test_only_its_own_events_are_events(equalizer):
    assert not hasattr(equalizer, "description")
    assert not hasattr(Numbers(), "value_")
    with gr.Blocks():
        placed = Equalizer(description=described())
        placed.commit(lambda plan: None, placed)
        with pytest.raises(AttributeError, match="no attribute 'comit'"):
            placed.comit(lambda plan: None, placed)


def app_with(description: dict) -> tuple[gr.Blocks, Equalizer]:
    with gr.Blocks() as demo:
        placed = Equalizer(description=description)
        numbers = Numbers()
        placed.commit(lambda plan: {"status": "done"}, placed, numbers, api_name="measure")
    return demo, placed


def test_the_page_and_its_api_are_json_and_hold_the_description_once():
    demo, placed = app_with(described(layers=tuple(name + ".only_here" for name in LAYERS)))
    config = json.dumps(demo.get_config_file(), allow_nan=False)
    assert config.count(LAYERS[0] + ".only_here") == 1
    info = demo.get_api_info()["named_endpoints"]["/measure"]
    assert "w: list[int]" in client_utils.json_schema_to_python_type(info["parameters"][0]["type"])
    assert json.dumps(info, allow_nan=False)
    assert placed.preprocess(placed.example_payload()) == placed.example_value()


def test_an_update_carries_the_new_description_and_checks_against_it():
    from gradio.blocks import postprocess_update_dict

    other = described(LAYERS[:2], blocks=["0"])
    block = Equalizer(description=other)
    update = postprocess_update_dict(block, {"description": other, "value": {"w": [4, 4]}})
    assert update == {
        "props": {"description": other},
        "value": {"w": [4, 4], "a": [16, 16], "kv": 16, "e": 16},
        "__type__": "update",
    }


@pytest.mark.parametrize("name", ["equalizer", "numbers"])
def test_templates_are_constant_text(name):
    style = (FOLDER / f"{name}.css").read_text()
    for mark in ("${", "{{", "`", "\\", "@keyframes"):
        assert mark not in style
    component = Equalizer(description=described()) if name == "equalizer" else Numbers()
    assert component.html_template == f'<div class="widget {name}"></div>'
    script = (FOLDER / f"{name}.js").read_text()
    for way_in in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert way_in not in script


def test_numbers_are_json_whatever_was_measured():
    state = Numbers().postprocess(
        {"status": "done", "estimate": {"ppl": math.inf, "kl": math.nan, "tokens": 512}}
    )
    assert state == {"status": "done", "estimate": {"ppl": None, "kl": None, "tokens": 512}}
    assert Numbers().postprocess(None) == {"status": "idle"}
    assert Numbers().preprocess({"status": "done"}) is None


def test_numbers_refuse_an_unknown_status():
    with pytest.raises(ValueError, match="status 'finished' is not one of idle, opening, queued"):
        Numbers().postprocess({"status": "finished"})


def test_embeddings_may_have_a_width_with_a_half_where_the_model_has_it():
    model = described(embedding_bits=[4, 4.5, 5, 16])
    sent = {"w": [4] * len(model["layers"]), "e": 4.5}
    assert check_plan(sent, model)["e"] == 4.5
    with pytest.raises(ValueError, match="as one of these"):
        check_plan(sent | {"e": 4.25}, model)
