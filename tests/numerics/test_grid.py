import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.numerics import dequantize, fake_quantize_tokens, group_size, quantize, unpack
from quept.numerics.grid import quantized_bytes

WIDTHS = range(2, 9)
GROUPS = (1, 3, 32, 40, 128)
F16_TINY = 2.0**-14


def normal(rows: int = 6, columns: int = 96, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {
    "normal": normal(),
    "normal in float16": normal().half(),
    "normal in bfloat16": normal().bfloat16(),
    "wide range": normal() * 10.0 ** torch.arange(-3, 3)[:, None],
    "positive": normal().abs() + 0.5,
    "negative": -normal().abs() - 0.5,
    "zeros": torch.zeros(6, 96),
    "some zero groups": normal() * (torch.arange(96) >= 64),
    "constant": torch.full((6, 96), 0.37),
    "huge": normal(scale=2000.0),
    "tiny": normal(scale=1e-4),
    "below any scale": normal(scale=1e-8),
    "one outlier": torch.where(torch.arange(96) == 5, 50.0, normal()),
    "one column": normal(6, 1),
    "one row": normal(1, 96),
    "ragged": normal(5, 83),
    "one weight": torch.tensor([[-0.3]]),
}


def every_weight(test):
    """The claim for each of WEIGHTS, at every width."""

    def at_every_width(weight):
        for bits in WIDTHS:
            test(weight, bits)

    at_every_width.__name__ = test.__name__
    return pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)(at_every_width)


def nearest_f16(x: float) -> float:
    return struct.unpack("e", struct.pack("e", x))[0]


def f32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


def oracle(weight: torch.Tensor, bits: int, group: int, low: float = 1.0, high: float = 1.0):
    """The formulas of quept/numerics/grid.py, group by group: lists of codes, scales, zeros, values."""
    top = 2**bits - 1
    codes, scales, zeros, values = [], [], [], []
    for row in weight.float().tolist():
        codes.append([])
        values.append([])
        scales.append([])
        zeros.append([])
        for at in range(0, len(row), group):
            x = row[at : at + group]
            lo, hi = f32(min(0.0, min(x)) * low), f32(max(0.0, max(x)) * high)
            span = f32(2 * max(-lo, hi)) / (top - 1) if bits == 8 else f32(hi - lo) / top
            s = nearest_f16(max(f32(span), F16_TINY)) if span else 1.0
            z = 128 if bits == 8 else min(max(round(f32(-lo / s)), 0), top)
            q = [min(max(round(f32(v / s)) + z, 0), top) for v in x]
            codes[-1] += q
            scales[-1].append(s)
            zeros[-1].append(z)
            values[-1] += [f32((c - z) * s) for c in q]
    return codes, scales, zeros, values


def zeros_of(packed) -> torch.Tensor:
    groups = packed.scales.shape[1]
    return (
        torch.full(packed.scales.shape, 128)
        if packed.zeros is None
        else unpack(packed.zeros, packed.bits, groups)
    )


@every_weight
def test_quantize_equals_the_loop(weight, bits):
    for group in GROUPS:
        packed, values = quantize(weight, bits, group)
        codes, scales, zeros, expected = oracle(weight, bits, group)
        assert packed.scales.tolist() == scales
        assert zeros_of(packed).tolist() == zeros
        assert unpack(packed.codes, bits, weight.shape[1]).tolist() == codes
        assert values.tolist() == expected


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from(WIDTHS),
    st.integers(1, 50),
    st.integers(-7, 4),
    st.integers(0, 2**31),
)
def test_quantize_equals_the_loop_for_any_shape(rows, columns, bits, group, magnitude, seed):
    weight = normal(rows, columns, 10.0**magnitude, seed)
    packed, values = quantize(weight, bits, group)
    assert values.tolist() == oracle(weight, bits, group)[3]
    assert torch.equal(dequantize(packed), values)


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.8), (0.5, 1.0), (1.0, 0.25)])
@pytest.mark.parametrize("bits", WIDTHS)
def test_learned_clipping_shrinks_the_range_as_the_loop_does(bits, low, high):
    packed, values = quantize(normal(), bits, 32, low, high)
    assert values.tolist() == oracle(normal(), bits, 32, low, high)[3]
    factors = torch.full((6, 3, 1), low), torch.full((6, 3, 1), high)
    assert torch.equal(quantize(normal(), bits, 32, *factors)[1], values)


@every_weight
def test_dequantize_gives_the_very_values_of_quantize(weight, bits):
    for group in GROUPS:
        packed, values = quantize(weight, bits, group)
        assert values.dtype == torch.float32 and values.shape == weight.shape and values.is_contiguous()
        assert torch.equal(dequantize(packed), values)


@every_weight
def test_values_lie_on_the_grid_and_zero_is_one_of_them(weight, bits):
    packed, values = quantize(weight, bits, 32)
    scale = packed.scales.float().repeat_interleave(32, 1)[:, : weight.shape[1]]
    zero = zeros_of(packed).float().repeat_interleave(32, 1)[:, : weight.shape[1]]
    steps = values / scale
    assert torch.equal(steps, steps.round())
    assert ((steps + zero >= 0) & (steps + zero <= 2**bits - 1)).all()
    assert (values[weight == 0] == 0).all()


@every_weight
def test_the_error_is_at_most_half_a_step_inside_the_range(weight, bits):
    packed, values = quantize(weight, bits, 32)
    x = weight.float()
    scale = packed.scales.float().repeat_interleave(32, 1)[:, : weight.shape[1]]
    zero = zeros_of(packed).float().repeat_interleave(32, 1)[:, : weight.shape[1]]
    inside = (x >= -zero * scale) & (x <= (2**bits - 1 - zero) * scale)
    error = (values - x).abs()
    assert (error[inside] <= 0.5 * scale[inside] * (1 + 1e-5)).all()
    assert (error <= scale).all()  # what float16 scales and rounded zero-points may cut off at the ends


@every_weight
def test_scales_are_positive_finite_float16_and_match_the_values(weight, bits):
    packed, _ = quantize(weight, bits, 32)
    assert packed.scales.dtype == torch.float16
    assert ((packed.scales >= F16_TINY) & packed.scales.isfinite()).all()


@every_weight
def test_computed_bytes_are_the_bytes(weight, bits):
    for group in GROUPS:
        packed, _ = quantize(weight, bits, group)
        tensors = [t for t in (packed.codes, packed.scales, packed.zeros) if t is not None]
        assert packed.nbytes == sum(t.untyped_storage().nbytes() for t in tensors)
        assert packed.nbytes == quantized_bytes(*weight.shape, bits, group)


def test_eight_bits_are_symmetric_and_store_no_zero_points():
    packed, values = quantize(normal(), 8, 32)
    assert packed.zeros is None
    assert torch.equal(quantize(-normal(), 8, 32)[1], -values)
    assert unpack(packed.codes, 8, 96).min() >= 1  # -128 is never used


@pytest.mark.parametrize("bits", WIDTHS)
def test_values_that_already_lie_on_a_grid_stay(bits):
    steps = torch.arange(64) % (2**bits if bits < 8 else 255) - 2 ** (bits - 1) + (bits == 8)
    steps[:2] = torch.tensor([-(2 ** (bits - 1)) + (bits == 8), 2 ** (bits - 1) - 1])
    weight = steps[None] * 0.25
    assert torch.equal(quantize(weight, bits, 64)[1], weight)


def test_more_bits_are_closer():
    errors = [(quantize(normal(), bits, 32)[1] - normal()).pow(2).mean().item() for bits in WIDTHS]
    assert errors == sorted(errors, reverse=True)


def test_groups_do_not_see_each_other():
    weight = normal()
    changed = weight.clone()
    changed[:, 64:] *= 100
    for bits in WIDTHS:
        assert torch.equal(quantize(weight, bits, 32)[1][:, :64], quantize(changed, bits, 32)[1][:, :64])


def test_the_weight_is_left_alone():
    for dtype in (torch.float32, torch.float16):
        weight = normal().to(dtype)
        quantize(weight, 3, 32)
        assert torch.equal(weight, normal().to(dtype))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_weights_that_no_scale_can_hold_are_refused(bits, bad):
    weight = normal()
    weight[2, 7] = bad
    with pytest.raises(ValueError, match="not finite, or its range does not fit"):
        quantize(weight, bits, 32)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="non-empty .* matrix"):
        quantize(torch.zeros(shape), 4, 32)


@pytest.mark.parametrize(
    ("columns", "group", "size"),
    [
        (576, "auto", 64),
        (1536, "auto", 128),
        (96, "auto", 32),
        (100, "auto", 100),
        (100, "row", 100),
        (100, 32, 32),
        (20, 32, 20),
    ],
)
def test_group_size(columns, group, size):
    assert group_size(columns, group) == size


@pytest.mark.parametrize("group", [0, -1, True, 1.5, None, "rows"])
def test_a_group_that_is_none_is_refused(group):
    with pytest.raises(ValueError, match="group must be"):
        group_size(96, group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
def test_activations_are_rounded_token_by_token(bits, dtype):
    x = (normal(5, 40) * 10.0 ** torch.arange(-2, 3)[:, None]).to(dtype)
    rounded = fake_quantize_tokens(x, bits)
    assert rounded.dtype == dtype
    for token, result in zip(x, rounded, strict=True):
        assert torch.equal(fake_quantize_tokens(token, bits), result)
        scale = token.float().abs().max() / (2 ** (bits - 1) - 1)
        slack = (
            0.5 + 2 ** (bits - 1) * {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
        )
        assert ((result - token).float().abs() <= slack * scale).all()
        assert len(result.unique()) < 2**bits
    assert torch.equal(fake_quantize_tokens(x.view(1, 5, 40), bits)[0], rounded)


@pytest.mark.parametrize("bits", [4, 8])
def test_activations_equal_the_loop(bits):
    x, top = normal(7, 33), 2 ** (bits - 1) - 1
    for token, result in zip(x.tolist(), fake_quantize_tokens(x, bits).tolist(), strict=True):
        scale = f32(max(map(abs, token)) / top)
        assert result == pytest.approx([round(f32(v / scale)) * scale for v in token], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zero_tokens_stay_zero_and_no_tokens_are_fine(dtype):
    x = torch.zeros(2, 3, 16, dtype=dtype)
    x[0, 1] = 1
    assert torch.equal(fake_quantize_tokens(x, 4), x)
    assert fake_quantize_tokens(x[:, :0], 4).shape == (2, 0, 16)
    least = torch.full((1, 16), torch.finfo(dtype).smallest_normal, dtype=dtype) / 64
    assert fake_quantize_tokens(least, 8).isfinite().all()


def test_activations_are_left_alone():
    x = normal()
    fake_quantize_tokens(x, 4)
    assert torch.equal(x, normal())


@every_weight
def test_the_second_nearest_point_is_on_the_other_side_of_a_weight(weight, bits):
    near, far = (quantize(weight, bits, 32, second=second)[1] for second in (None, torch.ones(weight.shape)))
    steps = quantize(weight, bits, 32)[0].scales.float().repeat_interleave(32, 1)[:, : weight.shape[1]]
    assert ((far - near).abs() <= steps * 1.001).all()
    inside = (far != near) & (near != weight)
    assert (((far - weight) * (near - weight))[inside] <= 0).all()
    assert torch.equal(quantize(weight, bits, 32, second=torch.zeros(weight.shape))[1], near)
