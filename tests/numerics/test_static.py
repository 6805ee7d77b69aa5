"""The static grid of activations: values, gradients, and the ends that are found."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quept.numerics.static import fake_quantize_static, grid_between, search
from quept.numerics.ste import round_static

BITS = (4, 5, 6, 7, 8)


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_sites(grid):
    return tuple((scale, int(zero)) for scale, zero in grid.T.tolist())


@given(
    bits=st.sampled_from(BITS),
    ends=st.lists(st.tuples(st.floats(-9, 0), st.floats(0, 9)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_every_value_is_the_nearest_that_its_site_can_hold(bits, ends, seed):
    low, high = torch.tensor(ends).T
    grid = grid_between(low, high, bits)
    x = 4 * sample(5, 6 * len(ends), seed=seed)
    found = fake_quantize_static(x, as_sites(grid), bits).unflatten(-1, (len(ends), -1))
    for site, (scale, zero) in enumerate(as_sites(grid)):
        assert 0 <= zero < 2**bits
        levels = (torch.arange(2**bits) - zero) * scale
        mine = x.unflatten(-1, (len(ends), -1))[:, site]
        nearest = (mine[..., None] - levels).abs().amin(-1)
        assert torch.allclose((found[:, site] - mine).abs(), nearest, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_training_and_running_give_the_same_values(bits):
    low, high = torch.tensor([-1.0, -2.0, -0.1]), torch.tensor([1.5, 0.7, 2.0])
    x = sample(4, 5, 24)
    grid = grid_between(low, high, bits)
    assert torch.equal(round_static(x, low, high, bits), fake_quantize_static(x, as_sites(grid), bits))


def oracle(x, low, high, bits):
    """Straight-through rounding by autograd: inside the range s * round(x / s) with LSQ's gradient of s,
    outside the end itself."""
    top = 2**bits - 1
    parts = x.unflatten(-1, (len(low), -1))
    scale = ((high - low) / top)[:, None]
    zero = (-low[:, None] / scale).round()
    q = (parts / scale).round() + zero
    kept = parts / scale.detach()
    inside = scale * (kept.round() - kept).detach() + parts
    ends = torch.where(q > top, high[:, None], low[:, None])
    return torch.where((q >= 0) & (q <= top), inside, ends).flatten(-2)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_straight_through_rounding(bits):
    """For ends that lie whole steps from zero, where rounding the zero-point changes nothing."""
    x = sample(4, 5, 24).requires_grad_()
    low, high = torch.tensor([-1.0, -2.0, -0.1]), torch.tensor([1.5, 0.7, 2.0])
    scale = (high - low) / (2**bits - 1)
    low = (low / scale).round() * scale
    low, high = low.requires_grad_(), (low + (2**bits - 1) * scale).detach().requires_grad_()
    weight = sample(4, 5, 24, seed=1)
    ours, theirs = (
        torch.autograd.grad((f(x, low, high, bits) * weight).sum(), (x, low, high))
        for f in (round_static, oracle)
    )
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_heavy_tail_is_cut_at_few_bits_and_kept_at_many():
    x = sample(100_000) * sample(100_000, seed=1).abs() ** 2
    found = search(x, BITS, (0.99, 0.999, 1.0))
    assert found[4][1] < x.max() and found[4][1] < found[8][1]


def test_the_ends_lose_least_of_all_that_were_tried():
    x = sample(2000).abs() - 0.17  # as behind a GELU
    percentiles = (0.95, 0.99, 1.0)
    low, high = search(x, (4,), percentiles)[4]

    def lost(ends):
        grid = grid_between(*(torch.tensor([end]) for end in ends), 4)
        return (fake_quantize_static(x, as_sites(grid), 4) - x).square().sum()

    ordered = x.sort().values
    tried = [
        (ordered[-round(p * 2000)], ordered[round(q * 2000) - 1]) for p in percentiles for q in percentiles
    ]
    assert all(lost((low, high)) <= lost((float(a.clamp(max=0)), float(b))) for a, b in tried)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_site_that_never_moves_is_kept(value):
    x = torch.full((7, 2), value)
    ends = search(x, (4,), (0.999,))[4]
    grid = grid_between(*(torch.tensor([end]) for end in ends), 4)
    assert torch.allclose(fake_quantize_static(x, as_sites(grid), 4), x, atol=1e-5)
