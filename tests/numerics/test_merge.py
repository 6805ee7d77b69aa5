"""Merging bit groups: the vectorised expression is the obvious loop over tokens."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quept.numerics.merge import merge


def similarity(a, b):
    """Cosine of two vectors, 0 where one of them is zero."""
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def slow(outputs, weights, keep):
    """One token after the other, as the method is told; outputs (groups, tokens, features)."""
    groups, tokens, features = outputs.shape
    found = [similarity(outputs[0, t].tolist(), outputs[-1, t].tolist()) for t in range(tokens)]
    ranked = sorted(range(tokens), key=lambda t: -found[t])  # stable: of equals the earlier first
    kept = set(ranked[: int(keep * tokens)])
    merged = torch.zeros(tokens, features)
    for t in range(tokens):
        for c in range(features):
            merged[t, c] = (
                outputs[0, t, c]
                if t in kept
                else sum(weights[g].item() * outputs[g, t, c].item() for g in range(groups))
            )
    return merged, sorted(set(found))


@settings(max_examples=80)
@given(
    groups=st.integers(1, 4),
    features=st.integers(2, 6),
    order=st.lists(st.integers(0, 5), min_size=1, max_size=12),  # tokens come again: equal similarities
    keep=st.sampled_from((0.0, 0.25, 0.5, 0.9, 1.0)),
    seed=st.integers(0, 999),
)
def test_merge_is_the_loop_over_tokens(groups, features, order, keep, seed):
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randn(groups, 6, features, generator=generator)
    distinct[:, 0] = 0  # a token of zeros, in every group
    distinct[-1, 1] = 0  # and in the lowest only
    outputs = distinct[:, order]
    weights = torch.rand(groups, generator=generator)
    weights /= weights.sum()
    expected, levels = slow(outputs, weights, keep)
    assume(
        all(b - a > 1e-5 for a, b in zip(levels, levels[1:], strict=False)) or groups == 1 and keep in (0, 1)
    )
    assert torch.allclose(merge(outputs, weights, keep), expected, atol=1e-5)


def test_of_equally_similar_tokens_the_earlier_keep_the_highest_group():
    outputs = torch.stack([torch.ones(4, 3), torch.full((4, 3), 3.0)])
    merged = merge(outputs, torch.tensor([0.5, 0.5]), keep=0.5)
    assert merged[:, 0].tolist() == [1, 1, 2, 2]


def test_tokens_of_zeros_stay_zeros():
    assert not merge(torch.zeros(3, 2, 5, 4), torch.full((3,), 1 / 3)).any()


def test_tokens_are_ranked_over_the_whole_batch():
    high = torch.ones(2, 2, 3)  # (sequences, tokens, features)
    low = high.clone()
    low[0, :, 0] = -1
    merged = merge(torch.stack([high, low]), torch.tensor([0.0, 1.0]), keep=0.5)
    assert torch.equal(merged[1], high[1]) and torch.equal(merged[0], low[0])


def test_settings_that_are_none_are_refused():
    with pytest.raises(ValueError, match="2 bit groups need as many merge weights"):
        merge(torch.zeros(2, 3, 4), torch.ones(3))
    with pytest.raises(ValueError, match="between 0 and 1; got 1.5"):
        merge(torch.zeros(2, 3, 4), torch.ones(2) / 2, keep=1.5)
