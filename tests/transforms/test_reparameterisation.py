"""The reparameterisation of norms: the same function, channels of one range, refusals."""

import pytest
import torch

from quept.calibrate.observe import RANGE_TOKENS, channel_ranges, observe, observed_reparameterisation
from quept.models import load
from quept.transforms import Record, TransformError, apply, reparameterisation
from tests.tiny import pictures, save_tiny, save_tiny_vision

VISION = ("vit", "deit-distilled", "dinov2", "swin")


def opened(name, folder, dtype=torch.float64):
    loaded = load(save_tiny_vision(name, folder))
    loaded.model.to(dtype)
    return loaded


def record_of(loaded, name, strength=1.0):
    batches = [{"x": pictures(name, 8).to(next(loaded.model.parameters()).dtype)}]
    return observed_reparameterisation(loaded, loaded.model, batches, strength, 1.0)


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_function_stays(name, strength, tmp_path):
    loaded = opened(name, tmp_path / name)
    record = record_of(loaded, name, strength)
    assert {n.removesuffix(".shift") for n in record.tensors} == set(loaded.layout.norms)
    transformed = apply(loaded, record)
    x = pictures(name, 4, seed=1).double()
    with torch.no_grad():
        before, after = loaded.model(x), transformed.model(x)
    assert (before - after).abs().max() < 1e-10 * before.abs().max()
    first = next(iter(loaded.layout.norms))
    assert not torch.equal(
        transformed.model.get_submodule(first).weight, loaded.model.get_submodule(first).weight
    )


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_the_channels_that_a_layer_reads_range_alike(name, tmp_path):
    loaded = opened(name, tmp_path / name)
    transformed = apply(loaded, record_of(loaded, name))
    batches = [{"x": pictures(name, 8).double()}]
    for layers in loaded.layout.norms.values():
        seen = observe(transformed.model, layers, batches, tokens=RANGE_TOKENS)
        low, high = channel_ranges(seen[layers[0]].inputs, 1.0)
        assert torch.allclose(low, low.mean().expand_as(low), rtol=1e-3, atol=1e-3)
        assert torch.allclose(high, high.mean().expand_as(high), rtol=1e-3, atol=1e-3)


def test_a_channel_that_never_moves_does_no_harm():
    low, high = torch.tensor([-1.0, 0.5, -2.0]), torch.tensor([1.0, 0.5, 3.0])
    record = reparameterisation({"norm": (low, high)}, 1.0, 1.0, 8)
    assert all(t.isfinite().all() for t in record.tensors.values())


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"blocks.0.norm9": torch.ones(64), "blocks.0.norm9.shift": torch.zeros(64)}, "norm9 is no norm"),
        ({"blocks.0.norm1": torch.ones(64)}, "another number of channels"),
        ({"blocks.0.norm1": torch.ones(3), "blocks.0.norm1.shift": torch.zeros(3)}, "another number"),
    ],
)
def test_a_record_of_another_model_is_refused(tensors, says, tmp_path):
    step = {"kind": "reparameterisation", "strength": 1.0, "percentile": 1.0, "images": 8}
    with pytest.raises(TransformError, match=says):
        apply(opened("vit", tmp_path / "vit"), Record((step,), tensors))


def test_transforms_of_the_other_kind_are_refused(tmp_path):
    with pytest.raises(TransformError, match="norms transforms what is a language model"):
        apply(opened("vit", tmp_path / "vit"), Record(({"kind": "norms"},)))
    step = {"kind": "reparameterisation", "strength": 1.0, "percentile": 1.0, "images": 8}
    tensors = {"model.layers.0.input_layernorm": torch.ones(64)}
    tensors["model.layers.0.input_layernorm.shift"] = torch.zeros(64)
    with pytest.raises(TransformError, match="reparameterisation transforms what classifies pictures"):
        apply(load(save_tiny("llama", tmp_path / "llama")), Record((step,), tensors))
