"""The packed backend against the dense one, over the same models and plans."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from quept import ElasticModel, PrecisionPlan, load
from quept.artifact import Artifact
from quept.kernels import FEW, missing
from quept.numerics.grid import dequantize, quantize
from quept.plan import QUANTIZED_BITS, Bits
from quept.runtime.backends import Dense, Packed, backend_for, packed
from tests.tiny import FAMILIES, close, save_tiny, token_ids

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    return load(save_tiny(request.param, tmp_path_factory.mktemp("packed") / request.param))


def both(loaded, monkeypatch, dtype=torch.float32):
    """The same model over packed codes and over values."""
    packed = ElasticModel(loaded, Artifact.rtn(loaded), device="cpu", dtype=dtype)
    monkeypatch.setenv("QUEPT_KERNELS", "off")
    dense = ElasticModel(loaded, Artifact.rtn(loaded), device="cpu", dtype=dtype)
    monkeypatch.delenv("QUEPT_KERNELS")
    return packed, dense


@torch.no_grad()
def logits(view, ids):
    return view(ids).logits


PLANS = [
    *(PrecisionPlan.uniform(bits, embeddings=bits) for bits in (*QUANTIZED_BITS, 16)),
    PrecisionPlan.of({"*.v_proj": 8, "*.k_proj": 3}, default=5, embeddings=4),
    PrecisionPlan.uniform(4, embeddings=4.5),
]


def test_a_token_is_the_dense_views_within_the_order_of_summation(loaded, monkeypatch):
    packed, dense = both(loaded, monkeypatch)
    ids = token_ids(1, 9)
    for plan in PLANS:
        views, caches = [one.view(plan) for one in (packed, dense)], [DynamicCache(), DynamicCache()]
        for start in (0, 7, 8):  # a short prompt, then token by token
            chunk = ids[:, start : {0: 7}.get(start, start + 1)]
            with torch.no_grad():
                found, expected = (v(chunk, cache=c).logits for v, c in zip(views, caches, strict=True))
            assert close(found, expected), (plan.name, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_is_the_dense_views_to_the_bit(loaded, monkeypatch, dtype):
    packed, dense = both(loaded, monkeypatch, dtype)
    ids = token_ids(2, FEW)
    for plan in (*PLANS, PrecisionPlan.uniform(5, 8)):
        assert torch.equal(logits(packed.view(plan), ids), logits(dense.view(plan), ids)), plan.name


def test_a_view_holds_no_values_of_its_layers(loaded):
    elastic = ElasticModel(loaded, Artifact.rtn(loaded), device="cpu", dtype=torch.float32)
    view = elastic.view(PrecisionPlan.uniform(3, embeddings=3))
    logits(view, token_ids())
    largest = max(p.numel() for n, p in loaded.model.named_parameters() if "norm" in n or "bias" in n)
    named = [*view.named_parameters(), *view.named_buffers()]
    assert not [n for n, t in named if t.numel() > largest and "position" not in n and "rotary" not in n]
    codes = {id(weight): weight.nbytes for weight in view.made_of}
    assert elastic.bank.resident_bytes == sum(codes.values()) < elastic.sizes.deploy(PrecisionPlan.uniform(5))


@pytest.mark.parametrize("bits", QUANTIZED_BITS)
def test_what_is_deployed_is_read_from_the_view_and_not_rounded_again(loaded, monkeypatch, bits):
    packed, dense = both(loaded, monkeypatch)
    view = packed.view(PrecisionPlan.uniform(bits, embeddings=bits))
    monkeypatch.setattr(packed.bank, "_make", None)
    for name in (*packed.layers, *packed.embeddings):
        found, expected = packed.packed(name, bits), dense.packed(name, bits)
        assert (found.bits, found.group, found.columns) == (bits, expected.group, expected.columns)
        for part in ("codes", "scales", "zeros"):
            one, other = getattr(found, part), getattr(expected, part)
            assert one is other is None or torch.equal(one, other)
    del view


def test_full_precision_is_read_where_it_was_loaded(loaded):
    elastic = ElasticModel(loaded, Artifact.rtn(loaded), device="cpu", dtype=torch.float32)
    before, view = elastic.resident_bytes, elastic.view(PrecisionPlan.full())
    assert elastic.resident_bytes == before and elastic.bank.resident_bytes == 0
    at = {p.data_ptr() for p in loaded.model.parameters()}
    assert {view.get_submodule(name).codes.codes.data_ptr() for name in elastic.layers} <= at


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("static", [{}, {8: torch.tensor([[0.05], [120.0]])}], ids=["per-token", "static"])
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1])
def test_activations_are_rounded_as_in_the_dense_layer(rows, static, online):
    stored, values = quantize(torch.randn(40, 64), 4, 32)
    bias, x = torch.randn(40), torch.randn(rows, 64)
    dense = Dense(torch.float32).linear((40, 64), bias, online, static)
    layer = Packed(torch.float32).linear((40, 64), bias, online, static)
    weight = Packed(torch.float32).ready(stored, lambda: values)
    for bits in (Bits(4), Bits(4, 8), Bits(4, 4)):
        assert close(layer.bound(weight, bits)(x), dense.bound(values, bits)(x))
        assert close(layer.bound(weight, Bits(4)).at(bits)(x), dense.bound(values, bits)(x))
    assert close(layer.bound(values, Bits(4))(x), dense.bound(values, Bits(4))(x))  # values of somebody else


def test_a_large_head_goes_part_by_part(monkeypatch):
    monkeypatch.setattr(packed, "PART", 64 * 48)
    stored, values = quantize(torch.randn(130, 64), 3, 64)
    head = nn.Linear(64, 130)
    backend, x = Packed(torch.float32), torch.randn(2, FEW, 64)
    over = backend.over(head, backend.ready(stored, lambda: values))
    with torch.no_grad():
        assert close(over(x), nn.functional.linear(x, values, head.bias))
    assert backend.scratch_bytes == 4 * 64 * 48
    backend.let_go()
    assert backend.scratch_bytes == 0


def test_gradients_pass_through_a_packed_layer():
    stored, values = quantize(torch.randn(32, 64), 4, 64)
    backend = Packed(torch.float32)
    layer = backend.linear((32, 64), None, False, {}).bound(backend.ready(stored, lambda: values), Bits(4))
    for rows in (1, 2 * FEW):
        x = torch.randn(rows, 64, requires_grad=True)
        layer(x).sum().backward()
        assert torch.allclose(x.grad, values.sum(0).expand(rows, -1), atol=1e-5)


def test_where_there_are_no_kernels_values_are_multiplied(monkeypatch):
    assert type(backend_for(CPU, torch.float32)) is Packed
    assert type(backend_for(CPU, torch.float64)) is Dense and "float64" in Packed.missing(CPU, torch.float64)
    monkeypatch.setenv("QUEPT_KERNELS", "off")
    assert type(backend_for(CPU, torch.float32)) is Dense and "QUEPT_KERNELS" in Packed.missing(
        CPU, torch.float32
    )


def test_copies_of_a_layer_share_its_codes():
    stored, values = quantize(torch.randn(32, 64), 4, 64)
    backend = Packed(torch.float32)
    weight = backend.ready(stored, lambda: values)
    layer = backend.linear((32, 64), None, False, {}).bound(weight, Bits(4))
    assert layer.codes is weight and layer.at(Bits(4, 8)).codes is weight
    assert torch.equal(layer.weight, dequantize(stored)) and copy.copy(layer).codes is weight
