import pytest
import torch

from quept.models import fingerprint_of
from quept.numerics import quantize
from quept.transforms import TransformError, apply, rotation_record, search_scales
from quept.transforms.scaling import edges_of
from quept.transforms.search import candidate, loss
from tests.tiny import FAMILIES, all_but_few_slow, in_turn, tiny_model, token_ids
from tests.transforms.models import exact, logits, wrapped


def edges(loaded):
    found = edges_of(loaded.model, loaded.layout, loaded.online).values()
    return [edge for edges in found for edge in edges]


def inputs(loaded, layer):
    """What reaches a layer (T, in), in float64."""
    seen = []
    hook = loaded.model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(loaded)
    hook.remove()
    return seen[0].flatten(0, -2)


def outlying(name, **changes):
    """A tiny model in which a few channels are large, so that scales have something to win."""
    loaded = exact(name, **changes)
    with torch.no_grad():
        for n, p in loaded.model.named_parameters():
            if p.ndim == 1 and "norm" in n:
                p[:4] *= 10
    return loaded


@pytest.mark.parametrize("name", all_but_few_slow(FAMILIES, ("llama", "opt")))
def test_scales_never_lose_by_their_own_measure_and_mostly_win(name):
    loaded = outlying(name)
    record = search_scales(loaded, token_ids(), bits=(3, 4), group=32)
    assert {edge.source for edge in edges(loaded)} == set(record.tensors)
    won = 0
    for edge in edges(loaded):
        x = inputs(loaded, edge.readers[0])
        weights = [loaded.model.get_submodule(reader).weight for reader in edge.readers]
        scale = edge.spread(record.tensors[edge.source])
        with_scale = loss(x, weights, scale, (3, 4), 32)
        without = loss(x, weights, torch.ones_like(scale), (3, 4), 32)
        assert with_scale <= without * (1 + 1e-6)
        won += with_scale < 0.95 * without
    assert won >= len(edges(loaded)) // 2


@pytest.mark.parametrize("name", all_but_few_slow(FAMILIES, ("llama", "opt")))
def test_the_scaled_model_computes_the_same(name):
    loaded = outlying(name)
    scaled = apply(loaded, search_scales(loaded, token_ids()))
    torch.testing.assert_close(logits(scaled), logits(loaded), rtol=0, atol=1e-10)


def test_the_loss_is_the_error_of_the_rounded_layer():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 64, generator=generator), torch.randn(3, 64, generator=generator)
    scale = torch.rand(64, generator=generator) + 0.5
    expected = 0.0
    for bits in (2, 5):
        rounded = quantize(weight * scale, bits, 32)[1]
        for row in x:
            expected += float((rounded @ (row / scale) - weight @ row).square().sum())
    assert loss(x, [weight], scale, (2, 5), 32) == pytest.approx(expected, rel=1e-4)


def test_candidates_go_from_none_to_the_magnitudes():
    magnitude = torch.tensor([4.0, 1.0, 0.25, 1.0])
    assert torch.equal(candidate(magnitude, 0.0), torch.ones(4))
    torch.testing.assert_close(candidate(magnitude, 1.0), magnitude)
    torch.testing.assert_close(candidate(3 * magnitude, 0.5), magnitude.sqrt())
    dead = candidate(torch.tensor([1.0, 0.0]), 1.0)
    assert torch.isfinite(dead).all() and (dead > 0).all()
    assert torch.equal(candidate(torch.zeros(3), 1.0), torch.ones(3))


def test_heads_that_share_a_value_share_its_scales():
    loaded = exact("llama")  # 4 query heads, 2 value heads of 16 channels
    edge = next(edge for edge in edges(loaded) if edge.source.endswith("v_proj"))
    s = torch.arange(32.0)
    heads = edge.spread(s).view(4, 16)
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[2], heads[3])
    assert torch.equal(heads[::2].flatten(), s) and torch.equal(edge.gather(edge.spread(s)), s)


@pytest.mark.parametrize(("activation", "count"), [("relu", 4), ("gelu", 3)])
def test_only_a_relu_lets_scales_through(activation, count):
    assert len(edges(exact("opt", activation_function=activation))) == 2 * count


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_rotated_model_gets_scales_on_top(name):
    base = exact(name)
    rotated = apply(base, rotation_record(2))
    record = search_scales(rotated, token_ids())
    assert [step["kind"] for step in record.steps] == ["norms", "rotation", "scaling"]
    assert not any(source.endswith(("up_proj", "fc1")) for source in record.tensors)
    torch.testing.assert_close(logits(apply(base, record)), logits(base), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "dtype"), in_turn(FAMILIES, [torch.float16, torch.bfloat16]))
def test_the_search_leaves_the_model_alone_and_repeats_itself(name, dtype):
    loaded = wrapped(tiny_model(name, dtype=dtype))
    before = fingerprint_of(loaded.model)
    first = search_scales(loaded, token_ids())
    assert first == search_scales(loaded, token_ids())
    assert fingerprint_of(loaded.model) == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in loaded.model.modules())
    apply(loaded, first)


def test_progress_is_told():
    told = []
    search_scales(wrapped(tiny_model("llama")), token_ids(), progress=lambda stage, f: told.append(f))
    assert told == [0.5, 1.0]


def test_scales_are_searched_once():
    loaded = wrapped(tiny_model("llama"))
    scaled = apply(loaded, search_scales(loaded, token_ids()))
    with pytest.raises(TransformError, match="has scales already"):
        search_scales(scaled, token_ids())


@pytest.mark.parametrize(
    "settings", [{"bits": ()}, {"bits": (1,)}, {"bits": (16,)}, {"grid": 1}, {"rows": 0}, {"group": 0}]
)
def test_settings_that_are_none_are_refused(settings):
    with pytest.raises(ValueError, match="needs bits of 2 to 8|group must be"):
        search_scales(wrapped(tiny_model("llama")), token_ids(), **settings)


@pytest.mark.parametrize("ids", [torch.zeros(4).long(), torch.zeros(0, 4).long(), torch.zeros(1, 4)])
def test_ids_that_are_none_are_refused(ids):
    with pytest.raises(ValueError, match="token ids are whole numbers"):
        search_scales(wrapped(tiny_model("llama")), ids)
