"""Nested codes in the kernels: values, products and scores against those of torch, at every depth."""

import pytest
import torch

from quept import kernels
from quept.engines.mobiquant.planes import Planes
from quept.engines.mobiquant.router import KINDS, Router, features
from quept.kernels.nested import Choices, Correction, Depth, dense_rows
from quept.kernels.packed import PackedWeight
from quept.numerics.grid import quantize
from quept.numerics.nested import DEPTHS, Grid, nested, read

from .test_packed import INSTRUCTIONS, SHAPES, level, relative  # noqa: F401

if why := kernels.missing():
    pytest.skip(why, allow_module_level=True)

assert INSTRUCTIONS


def any_grid(rows: int, groups: int) -> Grid:
    return Grid(torch.randn(rows, groups).half(), torch.randint(256, (rows, groups), dtype=torch.uint8))


@pytest.mark.parametrize("bits", DEPTHS)
def test_values_and_products_at_a_depth_are_those_of_its_leading_bits(bits, level):  # noqa: F811
    for rows, columns, group in SHAPES:
        codes = nested(torch.randn(rows, columns), group)
        grid = any_grid(*codes.grid.scales.shape)
        weight = Planes.of(codes, {bits: grid}).read[bits]
        values = read(codes.leading(bits), bits, grid, group)
        assert torch.equal(weight.unpack(library=level), values)
        narrow = weight.unpack(torch.empty(rows, columns, dtype=torch.bfloat16), library=level)
        assert torch.equal(narrow, values.bfloat16())
        assert torch.equal(weight.rows(torch.arange(rows)), values)
        x = torch.randn(3, columns) + 0.5
        expected = x.double() @ values.double().T
        for threads in (1, 3):
            assert relative(weight.matmul(x, threads=threads, library=level), expected) < 1e-5
            assert relative(weight.matmul(x, fast=True, threads=threads, library=level), expected) < 0.03


def test_all_depths_lie_over_the_same_codes_and_truncating_them_is_exact():
    codes = nested(torch.randn(20, 96), 32)
    planes = Planes.of(codes, {})
    assert len({weight.codes.data_ptr() for weight in planes.read.values()}) == 1
    for bits in range(2, 9):
        assert torch.equal(planes.leading(bits), codes.leading(bits))


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_every_product(odd, level):  # noqa: F811
    x = torch.randn(64)
    x[40] = odd
    for weight in Planes.of(nested(torch.randn(20, 64), 32), {}).read.values():
        for fast in (False, True):
            assert not weight.matmul(x, fast=fast, library=level).isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scores_are_the_formula_s_and_a_token_s_own(kind, dtype):
    shapes = {"w1": (4, 71), "b1": (4,), "w2": (3, 4), "b2": (3,), "p": (5, 70), "offset": (3,)}
    t = {name: torch.randn(shapes[name]).to(dtype) for name in KINDS[kind]}
    x, router = torch.randn(2, 7, 70), Router(kind, t)
    t = {name: one.float() for name, one in t.items()}
    if kind == "mlp":
        expected = (features(x) @ t["w1"].T + t["b1"]).relu() @ t["w2"].T + t["b2"]
    else:
        seen = x @ t["p"].T if kind == "projection" else x
        expected = seen.square().sum(-1, keepdim=True).log() + t["offset"]
    scores = router.scores(x)
    assert torch.allclose(scores, expected, atol=1e-4)
    for i, row in enumerate(x.flatten(0, 1)):
        assert torch.equal(router.scores(row), scores.flatten(0, 1)[i])


def test_parts_that_do_not_fit_are_refused_before_c_sees_them():
    weight = Planes.of(nested(torch.randn(20, 64), 32), {}).read[4]
    a, b = (quantize(torch.randn(2, n), 8, 32)[0] for n in (64, 24))
    correction = Correction(PackedWeight.pack(a), b.codes, b.scales, 32)
    with pytest.raises(ValueError, match="another shape"):
        Depth(weight, correction)
    with pytest.raises(ValueError, match="do not fit each other"):
        Correction(PackedWeight.pack(a), b.codes, b.scales, 8)
    router = Router(
        "mlp", {"w1": torch.zeros(4, 65), "b1": torch.zeros(4), "w2": torch.zeros(3, 4), "b2": torch.zeros(3)}
    )
    with pytest.raises(ValueError, match="do not fit"):
        router.table(63)
    with pytest.raises(ValueError, match="do not fit"):
        Choices(router.table(64), ())
    assert dense_rows(torch.zeros(2, 3, dtype=torch.float64)).codes.dtype == torch.float32
