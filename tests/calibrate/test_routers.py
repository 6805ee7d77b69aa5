"""What tokens' bits are worth: routers find it, thresholds spend an average, a map without tokens spends the
same."""

import pytest
import torch

from quept.calibrate.routers import FURTHER, Seen, learned_router, spent, static_map, threshold_for
from quept.config import Routing

WINDOWS, TOKENS, WIDE = 12, 128, 16


def seen(noise: float = 1.0) -> tuple[Seen, torch.Tensor]:
    """Tokens of two kinds, told apart by one input, and what they truly cost; samples are noisy."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(WINDOWS * TOKENS, WIDE, generator=draw)
    dear = torch.where(x[:, 0] > 1, 1.0, 0.01)
    truth = dear[:, None] * torch.tensor([1.0, 0.1, 0.01])
    sample = torch.randn(len(x), 1, generator=draw).square()
    return Seen(x.half(), truth * (1 + noise * (sample - 1)), WINDOWS), truth


def settings(router: str, epochs: int = 30) -> Routing:
    return Routing(router, 8, WINDOWS, epochs, 1e-2)


def test_a_learned_router_finds_the_tokens_that_cost():
    found, truth = seen()
    router = learned_router(found, settings("mlp"), None, torch.Generator().manual_seed(0))
    scores = router.scores(found.inputs)
    assert torch.corrcoef(torch.stack([scores[:, 0], truth[:, 0].log()]))[0, 1] > 0.5
    assert scores.exp().mean(0).log().sub(truth.mean(0).log()).abs().max() < 0.5


def test_where_nothing_can_be_told_the_mean_is_kept():
    found, _ = seen()
    shuffled = found.costs[torch.randperm(len(found.costs), generator=torch.Generator().manual_seed(1))]
    router = learned_router(
        Seen(found.inputs, shuffled, WINDOWS), settings("mlp"), None, torch.Generator().manual_seed(0)
    )
    scores = router.scores(found.inputs)
    assert (scores.std(0) < 0.3).all()
    assert torch.allclose(scores.mean(0).exp(), shuffled.mean(0), rtol=0.3)


@pytest.mark.parametrize("kind", ["norm", "projection"])
def test_estimates_without_learning_have_the_right_mean(kind):
    found, _ = seen()
    error = torch.randn(24, WIDE, generator=torch.Generator().manual_seed(2))
    router = learned_router(found, settings(kind), error, torch.Generator().manual_seed(0))
    assert torch.allclose(router.scores(found.inputs).exp().mean(0), found.costs.mean(0), rtol=0.05)


@pytest.mark.parametrize("average", [2.3, 3.0, 4.4, 7.0])
def test_one_threshold_spends_an_average(average):
    scores = torch.randn(4000, 3, FURTHER, generator=torch.Generator().manual_seed(0)).sort(
        -1, descending=True
    )
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    bits = spent(scores.values, threshold_for(average, scores.values, weights))
    assert abs(float((bits * weights).sum() / weights.sum()) - average) < 0.02


def test_a_map_spends_no_more_and_gives_slices_in_order():
    scores = torch.tensor([[[0.0, -1, -9], [-2, -3, -9], [-0.5, -4, -9]]])
    leaders = {"q": "q", "k": "q", "o": "o", "up": "up"}
    weights = dict.fromkeys(leaders, 10)
    assert static_map(3.5, scores, leaders, weights) == {"q": 4, "k": 4, "o": 2, "up": 4}
    assert static_map(2.0, scores, leaders, weights) == dict.fromkeys(leaders, 2)
    for average in (2.5, 3, 4, 5, 6):
        found = static_map(average, scores, leaders, weights)
        assert sum(found.values()) / 4 <= average
