import pytest
import torch

from quept.evaluate import wilson
from quept.evaluate.intervals import mean_and_error


def test_wilson_agrees_with_the_published_example():
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (20, 20), (0, 1), (1, 1)])
def test_wilson_stays_inside_and_keeps_a_width_at_the_ends(successes, n):
    low, high = wilson(successes, n)
    assert 0 <= low < high <= 1 and high - low > 0.1
    assert low - 1e-9 <= successes / n <= high + 1e-9


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match="share"):
        wilson(successes, n)


def test_mean_and_error_of_known_values():
    assert mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx((2.5, (5 / 3) ** 0.5 / 2))
    assert mean_and_error(torch.tensor([7.0])) == (7.0, 0.0)
