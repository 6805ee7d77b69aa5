"""Cascaded adapters: nested ranks, a start at the plain weight, and no gradient from low widths upwards."""

import pytest
import torch
from torch import nn

from quept.calibrate.trainable import TrainableLayer
from quept.numerics.adapters import RankSchedule, adapted, new_adapter
from quept.numerics.grid import quantize

SCHEDULE = RankSchedule(((7, 8), (5, 6), (3, 4), (2,)), (0, 3, 2, 4))


def layer(schedule=SCHEDULE, **clip):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    start = clip or {2: 1.0, 3: 3.0, 4: 4.0}
    return TrainableLayer(weight, None, schedule, start, 16, torch.Generator().manual_seed(1))


def test_ranks_are_nested_from_high_widths_to_low():
    assert [SCHEDULE.ranks(bits) for bits in (8, 7, 6, 5, 4, 3, 2)] == [0, 0, 3, 3, 5, 5, 9]
    assert SCHEDULE.total == 9 and SCHEDULE.widths == (2, 3, 4, 5, 6, 7, 8)


def test_a_width_in_no_group_has_no_adapter():
    schedule = RankSchedule(((4,), (2,)), (3, 3))
    assert schedule.ranks(8) == 0
    assert torch.equal(layer(schedule).values(8), quantize(layer().weight, 8, 16)[1])


def test_calibration_starts_at_the_plain_grid():
    b, a = new_adapter(6, 32, 9, torch.Generator().manual_seed(0))
    weight = torch.randn(6, 32)
    assert torch.equal(adapted(weight, b, a, SCHEDULE, 2), weight) and a.std() > 0
    for bits in (5, 6, 7, 8):  # no clip there
        assert torch.equal(layer().values(bits), quantize(layer().weight, bits, 16)[1])


def test_the_adapter_uses_the_first_ranks_only():
    b, a, weight = torch.randn(6, 9), torch.randn(9, 32), torch.randn(6, 32)
    slow = weight.clone()
    for rank in range(5):
        slow += torch.outer(b[:, rank], a[rank])
    torch.testing.assert_close(adapted(weight, b, a, SCHEDULE, 3), slow)


@pytest.mark.parametrize(("bits", "group"), [(2, 3), (3, 2), (4, 2), (5, 1)])
def test_a_width_trains_its_own_ranks_and_no_other(bits, group):
    trained = layer()
    with torch.no_grad():
        for b in trained.b:
            b.normal_(std=0.01, generator=torch.Generator().manual_seed(2))
    trained.values(bits).square().sum().backward()
    for own, (b, a) in enumerate(zip(trained.b, trained.a, strict=True)):
        assert (b.grad is not None and a.grad is not None) == (own == group)
    assert [key for key, clip in trained.clips.items() if clip.grad is not None] == [str(bits)] * (bits <= 4)


def test_what_is_stored_makes_the_values_that_were_trained():
    trained = layer()
    with torch.no_grad():
        for b in trained.b:
            b.normal_(std=0.01, generator=torch.Generator().manual_seed(2))
        stored = trained.learned((2, 3, 4, 5, 6))
        for bits in (2, 3, 4, 5, 6):
            values, ours = trained.values(bits), stored.quantize(trained.weight, bits, 16)[1]
            # clip factors are stored in steps of 1/256 and adapters in float16: a few codes change by one
            assert (values - ours).abs().mean() < 0.05 * values.abs().mean()


def test_learned_tensors_are_parameters_and_the_weight_is_not():
    names = {name for name, _ in layer().named_parameters()}
    assert names == {f"{p}.{g}" for p in "ab" for g in range(4)} | {"clips.2", "clips.3", "clips.4"}
    assert not isinstance(layer().weight, nn.Parameter)


@pytest.mark.parametrize(
    ("groups", "steps", "told"),
    [
        (((4,), (2,)), (1,), "as many rank steps"),
        (((4,), (4,)), (1, 1), "belongs to one bit group"),
        (((2,), (4,)), (1, 1), "from high widths to low"),
        (((4,), (2,)), (1, -1), "0 or more"),
        ((), (), "as many"),
        (((4,), ()), (1, 1), "one bit group"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(groups, steps, told):
    with pytest.raises(ValueError, match=told):
        RankSchedule(groups, steps)
