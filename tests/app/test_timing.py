from contextlib import nullcontext

import pytest

from app.timing import Timed, Timing
from quept import ElasticModel, PrecisionPlan
from tests.tiny import save_tiny

W2, W4, W8 = (PrecisionPlan.uniform(bits) for bits in (2, 4, 8))


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> ElasticModel:
    return ElasticModel.open(save_tiny("llama", tmp_path_factory.mktemp("timing") / "m"), device="cpu")


def test_a_plan_is_timed_by_answering_step_by_step(elastic):
    timing, steps = Timing(elastic), []
    assert timing.of(W4) is None and not timing.knows(W4)
    timing.measure(W4, lambda: steps.append(1) or nullcontext())
    found = timing.of(W4)
    assert timing.knows(W4) and found["origin"] == "measured" and len(steps) > 2
    assert found["tokens_per_s"] > 0 and found["first_token_ms"] > 0 and found["threads"] >= 1


def timed(elastic, **seconds) -> Timing:
    timing = Timing(elastic)
    for name, token_s in seconds.items():
        plan = PrecisionPlan.parse(name)
        timing._timed[plan.key(elastic.layers)] = Timed(elastic.sizes.deploy(plan), token_s, 0.1)
    return timing


def test_one_timed_plan_predicts_others_by_their_bytes(elastic):
    timing = timed(elastic, W4=0.01)
    predicted, size = timing.of(W8), elastic.sizes.deploy
    assert predicted["origin"] == "predicted" and predicted["first_token_ms"] is None
    assert predicted["tokens_per_s"] == pytest.approx(100 * size(W4) / size(W8))


def test_two_give_a_line_with_what_does_not_depend_on_bytes(elastic):
    size = elastic.sizes.deploy
    timing = timed(elastic, W4=0.01, W8=0.012)
    each = 0.002 / (size(W8) - size(W4))
    assert timing.of(W2)["tokens_per_s"] == pytest.approx(1 / (0.01 - each * (size(W4) - size(W2))))
    assert timing.line == pytest.approx((0.01 - each * size(W4), each))


@pytest.mark.parametrize("seconds", [{"W4": 0.012, "W8": 0.01}, {"W4": 0.001, "W8": 0.1}])
def test_a_line_that_makes_no_sense_is_not_followed(elastic, seconds):
    fixed, each = timed(elastic, **seconds).line
    assert fixed == 0 and each > 0
