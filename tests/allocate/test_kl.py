"""KL against float64 from the textbook, for changes so small that float32 would lose them and so large that
it would overflow."""

import pytest
import torch
from torch import nn

from quept.allocate.sensitivity.kl import CHUNK, Expected

POSITIONS, WIDTH, WORDS = 40, 32, 5 * CHUNK + 7


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(bias: bool = False, scale: float = 0.6, seed: int = 1) -> nn.Linear:
    made = nn.Linear(WIDTH, WORDS, bias=bias).requires_grad_(False)
    made.weight.copy_(scale * torch.randn(WORDS, WIDTH, generator=seeded(seed)))
    if bias:
        made.bias.copy_(torch.randn(WORDS, generator=seeded(seed + 1)))
    return made


def states(seed: int = 0) -> torch.Tensor:
    return torch.randn(POSITIONS, WIDTH, generator=seeded(seed))


def textbook(p: torch.Tensor, ends: nn.Linear, q: torch.Tensor, others: nn.Linear | None = None) -> float:
    """Mean over positions of sum p (log p - log q) in float64."""
    logits = [
        nn.functional.linear(h.double(), e.weight.double(), None if e.bias is None else e.bias.double())
        for h, e in ((p, ends), (q, others or ends))
    ]
    log_p, log_q = (z.log_softmax(-1) for z in logits)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0])
def test_with_every_word_it_is_the_textbook_sum(size, bias):
    p, ends = states(), head(bias)
    q = p + size * states(9)
    exact = textbook(p, ends, q)
    assert Expected.of(p, ends, left_out=0).kl(q) == pytest.approx(exact, rel=1e-3)
    assert Expected.of(p, ends, left_out=0).near.all()


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 1e-1, 1.0])
def test_what_is_summed_up_instead_of_computed_is_missed_by_half_a_percent_at_most(size):
    p, ends = states(), head()
    q = p + size * states(9)
    some = Expected.of(p, ends, left_out=0.01)
    assert 0.1 < some.near.double().mean() < 0.9 and 0 < some.left_out.mean() <= 0.01
    assert some.kl(q) == pytest.approx(textbook(p, ends, q), rel=5e-3)


def test_what_is_left_out_is_not_forgotten():
    p, ends = states(), head()
    q = p + 1e-3 * states(9)
    some = Expected.of(p, ends, left_out=0.3)
    forgotten = Expected(**{**vars(some), "left_out": torch.zeros(POSITIONS)})
    exact = textbook(p, ends, q)
    assert abs(some.kl(q) / exact - 1) < 0.05 < 0.2 < abs(forgotten.kl(q) / exact - 1)


def test_a_position_that_changes_much_gets_its_whole_vocabulary():
    """The rest hardly changes, so that a mean over all positions would not notice."""
    p, ends = states(), head()
    q = p + 1e-4 * states(9)
    q[7] += 2 * states(10)[7]
    some = Expected.of(p, ends, left_out=0.05)
    exact = textbook(p[7:8], ends, q[7:8])
    assert some.each(q)[7].item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.3])
def test_another_head_is_compared_as_it_is(size):
    p, ends, others = states(), head(True), head(True)
    others.weight += 1e-3 * torch.randn(WORDS, WIDTH, generator=seeded(5))
    q = p + size * states(9)
    assert Expected.of(p, ends).kl(q, others) == pytest.approx(textbook(p, ends, q, others), rel=1e-3)


def test_the_same_states_cost_nothing():
    p, ends = states(), head()
    assert Expected.of(p, ends).kl(p) == 0
    assert Expected.of(p, ends).kl(p.clone(), ends) == 0


@pytest.mark.parametrize("size", [30.0, 300.0])
def test_changes_beyond_the_range_of_float32_are_still_the_textbook_sum(size):
    p, ends = states(), head()
    q = p + size * states(9)
    assert Expected.of(p, ends).kl(q) == pytest.approx(textbook(p, ends, q), rel=1e-3)


def test_states_that_are_no_numbers_give_no_number():
    p, ends = states(), head()
    q = p.clone()
    q[3, 5] = torch.nan
    kl = Expected.of(p, ends).kl(q)
    assert kl != kl
