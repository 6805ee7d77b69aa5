"""Key-value caches: what they return, what they weigh, and that any family runs on them."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

from quept.numerics.packing import packed_bytes
from quept.runtime.kvcache import (
    CLIP,
    GrowingLayer,
    QuantizedLayer,
    cache_nbytes,
    dequantize_tokens,
    group_size,
    make_cache,
    quantize_tokens,
    token_nbytes,
)
from tests.tiny import FAMILIES, tiny_model, token_ids

WIDTHS = tuple(CLIP)


def states(
    tokens: int = 5, head_dim: int = 16, heads: int = 2, batch: int = 1, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, tokens, head_dim, generator=generator)


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    return dequantize_tokens(*quantize_tokens(x, bits))


def logits(model, ids: torch.Tensor, cache, pieces: list[int]) -> torch.Tensor:
    """Logits of the whole window, read in pieces of these sizes."""
    with torch.inference_mode():
        parts = [model(part, cache=cache, use_cache=True).logits for part in ids.split(pieces, dim=1)]
    return torch.cat(parts, dim=1)


def test_vectorised_grid_equals_the_loop():
    bits, x = 3, states(tokens=4, head_dim=256) + 0.3
    expected = torch.empty_like(x)
    for head in range(2):
        for token in range(4):
            for g in range(2):
                group = x[0, head, token, 128 * g : 128 * (g + 1)]
                lo, hi = min(0.0, group.min().item()) * CLIP[bits], max(0.0, group.max().item()) * CLIP[bits]
                scale = float(torch.tensor((hi - lo) / (2**bits - 1)).half())
                zero = round(-lo / scale)
                for i, value in enumerate(group.tolist()):
                    code = min(max(round(value / scale) + zero, 0), 2**bits - 1)
                    expected[0, head, token, 128 * g + i] = (code - zero) * scale
    torch.testing.assert_close(rounded(x, bits), expected)


def test_error_shrinks_with_every_bit_and_eight_are_close_to_exact():
    x = states(tokens=64, head_dim=64)
    errors = [(rounded(x, bits) - x).abs().mean().item() for bits in WIDTHS]
    assert errors == sorted(errors, reverse=True)
    assert (rounded(x, 8) - x).abs().max() < 0.02


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_token_of_zeros_stays_zeros_and_one_sided_tokens_stay_finite(bits):
    assert torch.equal(rounded(torch.zeros(1, 2, 3, 16), bits), torch.zeros(1, 2, 3, 16))
    for x in (states() + 10, states() - 10, states() * 1e-7, states() * 1e6):
        assert torch.isfinite(rounded(x, bits)).all()


@pytest.mark.parametrize(
    ("head_dim", "group"), [(20, 20), (64, 64), (128, 128), (160, 80), (192, 96), (256, 128)]
)
def test_groups_divide_the_head(head_dim, group):
    assert group_size(head_dim) == group


@pytest.mark.parametrize("bits", WIDTHS)
def test_bytes_are_those_of_the_formula(bits):
    cache = make_cache(tiny_model().config, bits)
    for layer in range(2):
        for new in (70, 1, 1):
            cache.update(states(new), states(new, seed=1), layer)
    assert cache.get_seq_length() == 72
    assert cache_nbytes(cache) == 2 * 2 * 2 * 72 * (
        packed_bytes(16, bits) + 3
    )  # layers, k and v, heads, tokens
    assert token_nbytes(16, bits) == packed_bytes(16, bits) + 3


def test_bytes_at_full_precision_are_those_of_the_tensors():
    cache = make_cache(tiny_model().config)
    assert cache_nbytes(cache) == 0
    cache.update(states(70), states(70), 0)
    cache.update(states(1), states(1), 0)
    assert cache_nbytes(cache) == 2 * 2 * 71 * 16 * 4
    stock = DynamicCache()
    stock.update(states(71), states(71), 0)
    assert cache_nbytes(stock) == cache_nbytes(cache)


def test_a_growing_layer_returns_exactly_what_the_stock_cache_does():
    ours, stock = make_cache(tiny_model().config), DynamicCache()
    for step, new in enumerate((3, 1, 80, 1, 1, 200)):
        arrived = states(new, seed=step), states(new, seed=step + 50)
        for mine, theirs in zip(ours.update(*arrived, 0), stock.update(*arrived, 0), strict=True):
            assert torch.equal(mine, theirs)
    for cache in (ours, stock):
        cache.crop(-100)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([1, 0]))
    arrived = states(2, batch=2), states(2, batch=2, seed=1)
    for mine, theirs in zip(ours.update(*arrived, 0), stock.update(*arrived, 0), strict=True):
        assert torch.equal(mine, theirs)
    ours.reset()
    assert ours.get_seq_length() == 0 and cache_nbytes(ours) == 0


def test_appending_rarely_moves_the_buffers():
    for layer in (GrowingLayer(), QuantizedLayer(4)):
        places = set()
        for _ in range(500):
            layer.update(states(1), states(1))
            buffer = layer._buffers[0] if isinstance(layer, GrowingLayer) else layer._stored[0][0]
            places.add(buffer.shape[-2])
        assert places == {64, 128, 256, 512}


def test_a_quantized_layer_keeps_what_it_rounded_once():
    layer = QuantizedLayer(4)
    first, _ = layer.update(states(3), states(3, seed=1))
    for seed in range(2, 70):
        keys, values = layer.update(states(1, seed=seed), states(1, seed=seed + 100))
    assert torch.equal(keys[:, :, :3], first) and torch.equal(first, rounded(states(3), 4))
    assert torch.equal(values[:, :, -1:], rounded(states(1, seed=169), 4))
    layer.crop(-60)
    keys, _ = layer.update(states(1, seed=9), states(1, seed=9))
    assert keys.shape[-2] == layer.get_seq_length() == 12 and torch.equal(keys[:, :, :3], first)
    layer.batch_repeat_interleave(2)
    layer.reorder_cache(torch.tensor([1, 0]))
    keys, _ = layer.update(states(1, batch=2), states(1, batch=2))
    assert keys.shape == (2, 2, 13, 16) and torch.equal(keys[1:, :, :3], first)


def test_keys_and_values_of_different_widths_are_kept_apart():
    layer = QuantizedLayer(8)
    layer.update(states(2, head_dim=24), states(2, head_dim=16))
    keys, values = layer.update(states(1, head_dim=24), states(1, head_dim=16))
    assert keys.shape[-1] == 24 and values.shape[-1] == 16
    assert torch.equal(values[:, :, 2:], rounded(states(1, head_dim=16), 8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_family_gives_the_same_logits_however_the_text_is_cut(family, bits):
    model, ids = tiny_model(family, dtype=torch.float64), token_ids(2, 40)
    whole, decoded = (
        logits(model, ids, make_cache(model.config, bits), pieces) for pieces in ([40], [16, 9, *[1] * 15])
    )
    torch.testing.assert_close(whole, decoded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_precision_changes_nothing_and_every_bit_helps(family):
    model, ids = tiny_model(family, dtype=torch.float32), token_ids(2, 40)
    with torch.inference_mode():
        plain = model(ids, use_cache=False).logits
    torch.testing.assert_close(logits(model, ids, make_cache(model.config), [40]), plain)
    torch.testing.assert_close(
        logits(model, ids, make_cache(model.config), [20, 20]), plain, rtol=0, atol=1e-4
    )
    errors = [
        (logits(model, ids, make_cache(model.config, bits), [40]) - plain).abs().mean()
        for bits in (2, 4, 6, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_librarys_own_generate_runs_on_four_bits(family):
    model, ids = tiny_model(family, dtype=torch.float32), token_ids(1, 10)
    cache = make_cache(model.config, 4)
    out = model.generate(ids, cache=cache, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert out.shape == (1, 22) and cache.get_seq_length() == 21


@pytest.mark.parametrize("bits", [4, 16])
def test_a_sliding_window_model_gives_the_same_logits_at_once_and_token_by_token(bits):
    model, ids = tiny_model("mistral", dtype=torch.float64, sliding_window=8), token_ids(1, 30)
    whole, decoded = (
        logits(model, ids, make_cache(model.config, bits), pieces) for pieces in ([30], [11, *[1] * 19])
    )
    torch.testing.assert_close(whole, decoded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [0, 1, 9, 12, 17, 4.0, True, "4", None])
def test_other_widths_are_refused_in_words(bits):
    with pytest.raises(ValueError, match="KV bits must be 2..8, or 16"):
        make_cache(tiny_model().config, bits)
