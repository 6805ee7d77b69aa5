"""Training through the grid sees exactly the values that are stored, and the gradients of the docstring."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.numerics.grid import quantize
from quept.numerics.ste import round_to_grid, round_tokens

WIDTHS = range(2, 9)


def factors(rows, columns, group, seed=0, low=0.6):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, -(-columns // group))
    return (torch.rand(shape, generator=generator) * (1 - low) + low for _ in range(2))


@settings(max_examples=60)
@given(
    st.sampled_from(WIDTHS),
    st.integers(1, 7),
    st.integers(1, 70),
    st.sampled_from((1, 8, 32, 64)),
    st.integers(0, 99),
)
def test_forward_is_the_stored_grid(bits, rows, columns, group, seed):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[0] = x[0].abs()  # one-sided
    x[-1, : columns // 2] = 0
    low, high = factors(rows, columns, group, seed)
    stored = quantize(x, bits, group, low[..., None], high[..., None])[1]
    assert torch.equal(round_to_grid(x, bits, group, low, high), stored)


def reference(x, bits, group, low, high):
    """The formulas spelt out for autograd: the nearest code inside the range, its clipped ends outside."""
    through = lambda t, rounded: t + (rounded - t).detach()  # noqa: E731
    top, out = 2**bits - 1, []
    for j, part in enumerate(x.split(group, 1)):
        lo = (part.detach().amin(1).clamp(max=0) * low[:, j])[:, None]
        hi = (part.detach().amax(1).clamp(min=0) * high[:, j])[:, None]
        scale = through((hi - lo) / top, ((hi - lo) / top).half().float())
        u = through(part / scale, (part / scale).round())
        code = (u + (-lo / scale).round()).detach()
        out.append(torch.where(code < 0, lo, torch.where(code > top, hi, u * scale)))
    return torch.cat(out, 1)


@pytest.mark.parametrize("bits", range(2, 8))
def test_gradients_are_those_of_straight_through_rounding(bits):
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(bits))
    low, high = factors(5, 48, 16, bits, low=0.4)
    weights = torch.randn(5, 48, generator=torch.Generator().manual_seed(7))
    grads = []
    for function in (round_to_grid, reference):
        leaves = [t.clone().requires_grad_() for t in (x, low, high)]
        (function(leaves[0], bits, 16, *leaves[1:]) * weights).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_eight_bits_pass_the_gradient_and_clip_nothing():
    x = torch.randn(3, 32).requires_grad_()
    low, high = (torch.full((3, 1), 0.7, requires_grad=True) for _ in range(2))
    round_to_grid(x, 8, 32, low, high).sum().backward()
    assert low.grad is None and high.grad is None
    assert x.grad.max() == 1 and x.grad.min() >= 0


def test_a_group_of_zeros_and_a_zero_token_stay_finite():
    x = torch.zeros(2, 8, requires_grad=True)
    low, high = (torch.full((2, 2), 0.9, requires_grad=True) for _ in range(2))
    for bits in WIDTHS:
        value = round_to_grid(x, bits, 4, low, high)
        value.sum().backward()
        assert torch.equal(value, torch.zeros(2, 8)) and x.grad.isfinite().all() and low.grad.isfinite().all()
    assert torch.equal(round_tokens(torch.zeros(3, 4), 4), torch.zeros(3, 4))


def test_activations_pass_the_gradient_straight_through():
    x = torch.randn(4, 8, requires_grad=True)
    round_tokens(x, 4).mul(2).sum().backward()
    assert torch.equal(x.grad, torch.full((4, 8), 2.0))


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        round_to_grid(torch.full((1, 4), torch.nan), 4, 4, torch.ones(1, 1), torch.ones(1, 1))
