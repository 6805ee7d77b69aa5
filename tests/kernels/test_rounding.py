"""A weight rounded and packed in one pass is, bit for bit, what the grid gives and `pack` lays out."""

import pytest
import torch

from quept import kernels
from quept.kernels.build import LEVELS, machine
from quept.kernels.packed import PackedWeight
from quept.numerics.grid import Rounding

if why := kernels.missing():
    pytest.skip(why, allow_module_level=True)

SHAPES = [(33, 576, 64), (16, 200, 64), (5, 588, 588), (48, 130, 100), (1, 3, 32), (17, 64, 7)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=("plain", *LEVELS.get(machine(), ())))
def level(request) -> kernels.Library:
    """One instruction set; those that this machine does not run are skipped."""
    try:
        return kernels.loaded_at(request.param)
    except kernels.Missing as error:
        pytest.skip(str(error))


def kinds_of_weights(rows: int, columns: int) -> dict[str, torch.Tensor]:
    x = torch.randn(rows, columns)
    halves = torch.randint(-9, 9, x.shape) / 2  # rounding meets ties
    return {
        "normal": x, "one-sided": x.abs(), "negative": -x.abs(), "zero": x * 0, "ties": halves,
        "constant": x * 0 + 0.3, "tiny": x * 1e-6, "subnormal": x * 1e-42, "large": x.clamp(-4, 4) * 8000,
        "outlier": x.index_fill(1, torch.tensor([columns // 2]), 900.0),
    }  # fmt: skip


def same(a: PackedWeight, b: PackedWeight) -> bool:
    zeros = a.zeros is b.zeros if a.zeros is None else torch.equal(a.zeros, b.zeros)
    parts = torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)
    return parts and zeros and (a.shape, a.bits, a.group) == (b.shape, b.bits, b.group)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_scales_and_zeros_are_those_of_the_grid(bits, level):
    for at, (rows, columns, group) in enumerate(SHAPES):
        ends = torch.randint(1, 257, (2, rows, -(-columns // group), 1)) / 256
        for name, x in kinds_of_weights(rows, columns).items():
            weight = x.to(DTYPES[at % 3])
            moved = {"added": torch.randn(x.shape), "low": 0.7}
            for given in (
                {},
                {"low": ends[0], "high": ends[1]},
                moved,
                {"second": torch.rand(x.shape) < 0.4},
            ):
                rounding = Rounding(weight, bits, group, **given)
                expected = PackedWeight.pack(rounding.quantized()[0])
                for threads in (1, 3):
                    found = PackedWeight.rounded(rounding, threads, level)
                    assert same(found, expected), (name, weight.dtype, given.keys(), threads)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
def test_a_weight_that_is_not_finite_is_refused(odd, dtype, level):
    weight = torch.randn(20, 70).to(dtype)
    weight[17, 66] = odd
    with pytest.raises(ValueError, match="not finite"):
        PackedWeight.rounded(Rounding(weight, 4, 32), library=level)


def test_a_range_beyond_float16_is_refused(level):
    with pytest.raises(ValueError, match="float16 scale"):
        PackedWeight.rounded(Rounding(torch.full((2, 32), 1e6), 4, 32), library=level)


def test_rows_of_another_weight_are_read_where_they_are():
    """A weight slot is a view: columns may be a part of a wider row."""
    wide = torch.randn(40, 300)
    for view in (wide[:, 30:130], wide.T, wide[5:]):
        rounding = Rounding(view, 3, 64)
        assert same(PackedWeight.rounded(rounding), PackedWeight.pack(rounding.quantized()[0]))


def test_what_cannot_be_rounded_is_refused_before_c_sees_it():
    weight = torch.randn(4, 32)
    for rounding, says in (
        (Rounding(weight[0], 4, 32), "matrix"),
        (Rounding(weight[:, :0], 4, 32), "matrix"),
        (Rounding(weight, 9, 32), "2..8 bits"),
        (Rounding(weight, 4, 0), "groups"),
        (Rounding(weight, 4, 32, torch.zeros(4, 31)), "its shape"),
    ):
        with pytest.raises(ValueError, match=says):
            PackedWeight.rounded(rounding)
