import json

import pytest
import torch

from quept.transforms import Record, TransformError, rotation_record

SCALING = {"kind": "scaling", "bits": (3, 4), "group": 64, "grid": 20, "tokens": 128}


def test_a_record_survives_json_and_keeps_its_tensors():
    scales = {"b": torch.rand(3) + 0.1, "a": torch.rand(5) + 0.1}
    record = Record((SCALING, *rotation_record(4).steps), scales)
    read = Record.from_json(record.to_json(), scales)
    assert read == record and hash(read) == hash(record) and read.steps[0]["bits"] == [3, 4]
    assert all(torch.equal(read.tensors[name], scales[name]) for name in scales)


def test_records_differ_if_a_bit_does():
    one = Record((SCALING,), {"a": torch.ones(4)})
    other = Record((SCALING,), {"a": torch.ones(4).mul(1 + 2**-23)})
    assert one != other and one.identity != other.identity and rotation_record(0) != rotation_record(1)


def test_a_record_keeps_a_copy_of_what_it_was_given():
    scales, step = {"a": torch.ones(4)}, dict(SCALING)
    record = Record((step,), scales)
    before = record.identity
    scales["a"][0], step["grid"] = 9, 3
    assert record.identity == before


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{"kind": "shuffle"}], "no step of the kind 'shuffle'; there is norms, rotation, scaling"),
        ([{"seed": 1}], "no step of the kind None"),
        (["norms"], "no step of the kind None"),
        ([{"kind": "norms"}, {"kind": "norms"}], "at most once"),
        ([{"kind": "norms", "seed": 1}], "exactly these settings: none"),
        ([{"kind": "rotation", "seed": 1}], "exactly these settings: seed, heads, online"),
        ([{"kind": "rotation", "seed": "1", "heads": True, "online": True}], "seed .* cannot be '1'"),
        ([{"kind": "rotation", "seed": 0, "heads": 1, "online": True}], "heads .* cannot be 1"),
        ([SCALING | {"group": -3}], "group .* cannot be -3"),
    ],
)
def test_unknown_and_damaged_steps_are_refused(steps, says):
    with pytest.raises(TransformError, match=says):
        Record(tuple(steps))
    with pytest.raises(TransformError, match=says):
        Record.from_json(json.dumps(steps))


@pytest.mark.parametrize("text", ["", "{", "{}", "3", "null", "[" * 100_000])
def test_text_that_is_no_record_is_refused(text):
    with pytest.raises(TransformError, match="the steps of a record"):
        Record.from_json(text)


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (torch.ones(2, 2), "must be .channels,. float32"),
        (torch.ones(2).double(), "must be .channels,. float32"),
        (torch.tensor([1.0, 0.0]), "positive and finite"),
        (torch.tensor([1.0, float("nan")]), "positive and finite"),
    ],
)
def test_scales_that_are_none_are_refused(scale, says):
    with pytest.raises(TransformError, match=says):
        Record((SCALING,), {"a": scale})


def test_scales_need_their_step():
    with pytest.raises(TransformError, match="belong to one step of the kind scaling"):
        Record(({"kind": "norms"},), {"a": torch.ones(2)})
