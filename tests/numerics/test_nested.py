"""Nested codes: reading fewer bits is the coarser model, and no shape or weight breaks them."""

import pytest
import torch

from quept.numerics.nested import (
    BITS,
    DEPTHS,
    codes_of,
    fitted,
    nested,
    nested_bytes,
    read,
)
from quept.numerics.packing import pack

WIDTHS = range(2, 9)


def weight(rows=24, columns=96, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 8


def by_hand(x: torch.Tensor, bits: int) -> list[float]:
    """One group, value by value, on cells of the width itself."""
    lo, hi = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = float(torch.tensor((hi - lo) / 4).half()) / 64
    zero = min(255, max(0, round(-lo / step)))
    found = []
    for value in x.tolist():
        fine = min(255, max(0, int(torch.tensor(value).div(step).add(zero).floor())))
        cell = 2 ** (8 - bits)
        found.append(step * ((fine // cell + 0.5) * cell - zero))
    return found


@pytest.mark.parametrize("bits", WIDTHS)
def test_values_are_the_middles_of_nested_cells(bits):
    w = weight(3, 64)
    stored = nested(w, 64)
    values = read(stored.leading(bits), bits, stored.grid, 64)
    assert torch.allclose(values, torch.tensor([by_hand(row, bits) for row in w]), atol=1e-6)


@pytest.mark.parametrize("columns", (64, 96, 7))
@pytest.mark.parametrize("bits", WIDTHS)
def test_truncating_codes_is_the_coarser_model_bit_for_bit(bits, columns):
    w = weight(columns=columns)
    codes, grid = codes_of(w, 32)
    stored = nested(w, 32)
    assert torch.equal(stored.leading(8), codes)
    assert torch.equal(stored.leading(bits), codes >> (8 - bits))
    for deeper in range(bits, 9):
        again = stored.leading(deeper) >> (deeper - bits)
        assert torch.equal(read(again, bits, grid, 32), read(codes >> (8 - bits), bits, grid, 32))


def test_a_depth_reads_only_its_slices():
    stored = nested(weight(), 32)
    for slices, depth in enumerate(DEPTHS, 1):
        stored.slices[slices:] = 255
        assert torch.equal(stored.leading(depth), nested(weight(), 32).leading(depth))
        stored = nested(weight(), 32)


def test_each_slice_quarters_the_error():
    w = weight(64, 256)
    stored = nested(w, 64)
    errors = [(read(stored.leading(b), b, stored.grid, 64) - w).square().mean().sqrt() for b in DEPTHS]
    assert all(3.5 < a / b < 4.5 for a, b in zip(errors, errors[1:], strict=False))
    step = stored.grid.scales.float().repeat_interleave(64, 1) / 64
    assert ((read(stored.leading(8), 8, stored.grid, 64) - w).abs() <= 1.1 * step).all()


@pytest.mark.parametrize("make", (torch.abs, lambda w: -w.abs(), torch.zeros_like))
def test_one_sided_groups_and_zeros_keep_their_values(make):
    w = make(weight())
    stored = nested(w, 32)
    for bits in WIDTHS:
        values = read(stored.leading(bits), bits, stored.grid, 32)
        assert torch.isfinite(values).all() and (values - w).abs().max() <= 0.9 * w.abs().max() / 2 ** (
            bits - 1
        )
    with pytest.raises(ValueError, match="not finite"):
        nested(w.index_fill(0, torch.tensor([1]), torch.inf), 32)


def test_a_grid_of_its_own_comes_nearer_and_a_constant_group_keeps_its_own():
    w = weight(64, 256)
    w[0] = 0
    codes, grid = codes_of(w, 64)
    for bits in (2, 4):
        scales, zeros = fitted(w, codes, bits, grid, 64)
        own = type(grid)(scales.half(), zeros.round().to(torch.uint8))
        before, after = ((read(codes >> (BITS - bits), bits, g, 64) - w).square().mean() for g in (grid, own))
        assert after < before
        assert not read(codes >> (BITS - bits), bits, own, 64)[0].any()


def test_sizes_are_those_of_what_is_stored():
    stored = nested(weight(columns=96), 64)
    assert stored.nbytes == nested_bytes(24, 96, 8, 64)
    two = pack(stored.leading(2), 2)
    assert nested_bytes(24, 96, 2, 64) == two.nbytes + stored.grid.nbytes
