"""A transform proves on a probe that it kept the function, whatever the table of families says."""

import pytest
import torch
from torch import nn

from quept.models import load
from quept.transforms import Record, TransformError, apply, reparameterisation, rotation_record
from quept.transforms.probe import difference
from quept.transforms.scaling import edges_of
from tests.tiny import VISION, save_tiny_vision, tiny_model
from tests.transforms.models import wrapped


class OnePlus(nn.Module):
    """Gemma's norm: x / rms(x) * (1 + w)."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = nn.Parameter(weight - 1)

    def forward(self, x):
        return (
            x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6).to(x.dtype) * (1 + self.weight)
        )


def gemma_like(dtype=torch.float16):
    model = tiny_model("llama", dtype=dtype)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, OnePlus(module.weight))
    return wrapped(model)


def scales(loaded) -> Record:
    """Some scale for every edge."""
    draw = torch.Generator().manual_seed(0)
    edges = [edge for found in edges_of(loaded.model, loaded.layout, ()).values() for edge in found]
    tensors = {edge.source: torch.rand(edge.channels, generator=draw) + 0.5 for edge in edges}
    how = {"kind": "scaling", "bits": [4], "group": "auto", "grid": 2, "tokens": 1}
    return Record((how,), tensors)


def ranges(loaded) -> dict:
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name in loaded.layout.norms:
        width = len(loaded.model.get_submodule(name).weight)
        low, high = torch.rand(2, width, generator=draw)
        found[name] = (-low - 0.1, 3 * high + 0.1)
    return found


class ClampedEmbedding(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids).clamp(-0.1, 0.1)


class SineLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x).mul(3).sin()


def bent(dtype=torch.float16):
    """A Llama by the names of its layers, with a clamp or a sine behind two kinds of them."""
    model = tiny_model("llama", dtype=dtype)
    model.model.embed_tokens.__class__ = ClampedEmbedding
    for block in model.model.layers:
        block.mlp.up_proj.__class__ = SineLinear
    return wrapped(model)


BOTH = {"scaling": scales, "rotation": lambda loaded: rotation_record()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("record", BOTH.values(), ids=BOTH)
def test_norms_that_multiply_by_one_plus_w_are_known_by_what_they_compute(record, dtype):
    loaded = gemma_like(dtype)
    apply(loaded, record(loaded))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("record", BOTH.values(), ids=BOTH)
def test_a_model_wired_in_another_way_is_noticed(record, dtype):
    loaded = bent(dtype)
    with pytest.raises(TransformError, match="do not keep the function .* norms or layers are not wired"):
        apply(loaded, record(loaded))


def test_a_vit_with_norms_behind_its_layers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(VISION, "rpn", ("vit_base_patch16_rpn_224", {"img_size": 32, "embed_dim": 48}, 5))
    loaded = load(save_tiny_vision("rpn", tmp_path))
    with pytest.raises(TransformError, match="reparameterisation.* do not keep the function"):
        apply(loaded, reparameterisation(ranges(loaded), 1.0, 1.0, 8))


@pytest.mark.parametrize(("name", "classes"), [("vit", 10), ("swin", 10), ("vit", 1)])
def test_the_same_transform_is_taken_where_it_keeps_the_function(name, classes, tmp_path):
    loaded = load(save_tiny_vision(name, tmp_path, num_classes=classes))
    transformed = apply(loaded, reparameterisation(ranges(loaded), 1.0, 1.0, 8))
    assert 0 < difference(loaded, transformed) < 0.01


def test_the_probe_leaves_the_model_as_narrow_as_it_was():
    loaded = wrapped(tiny_model("llama"))
    assert difference(loaded, loaded) == 0
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float16}
