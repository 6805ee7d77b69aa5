"""Products, values and rows of packed weights against those that numerics.grid unpacks."""

from dataclasses import replace

import pytest
import torch

from quept import kernels
from quept.kernels.build import LEVELS, BuildError, build, machine
from quept.kernels.packed import PackedWeight, packed_nbytes
from quept.kernels.rows import PackedRows
from quept.numerics.grid import Quantized, dequantize, quantize
from quept.numerics.packing import pack

INSTRUCTIONS = ("plain", *LEVELS.get(machine(), ()))
SHAPES = [(33, 576, 64), (16, 200, 64), (5, 588, 588), (48, 130, 100), (1, 3, 32), (17, 64, 7)]

if why := kernels.missing():
    pytest.skip(why, allow_module_level=True)


@pytest.fixture(params=INSTRUCTIONS)
def level(request) -> kernels.Library:
    """One instruction set; those that this machine does not run are skipped."""
    try:
        return kernels.loaded_at(request.param)
    except kernels.Missing as error:
        pytest.skip(str(error))


def any_weight(rows: int, columns: int, bits: int, group: int) -> Quantized:
    """Codes, scales and zero-points of any value that fits, not only of those that rounding makes."""
    groups = -(-columns // group)
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8)
    zeros = torch.randint(2**bits, (rows, groups), dtype=torch.uint8)
    scales = torch.randn(rows, groups).half()
    scales[0, 0] = 2.0**-24  # subnormal
    return Quantized(bits, group, columns, pack(codes, bits), scales, pack(zeros, bits))


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_of_codes_are_those_that_were_packed(bits):
    for rows, columns, group in SHAPES:
        stored = any_weight(rows, columns, bits, group)
        for given in (stored, replace(stored, zeros=None)):
            codes, scales, zeros = PackedWeight.pack(given).rows_of_codes()
            assert torch.equal(codes, given.codes) and torch.equal(scales, given.scales)
            assert zeros is None if given.zeros is None else torch.equal(zeros, given.zeros)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_rows_and_bytes_are_those_of_the_grid(bits, level):
    for shape in SHAPES:
        stored, values = quantize(torch.randn(shape[:2]), bits, shape[2])
        weight = PackedWeight.pack(stored)
        assert torch.equal(weight.unpack(library=level), values)
        narrow = weight.unpack(torch.empty(shape[:2], dtype=torch.bfloat16), library=level)
        assert torch.equal(narrow, values.bfloat16())
        ids = torch.randint(shape[0], (2, 3))
        assert torch.equal(weight.rows(ids), values[ids])
        assert weight.nbytes == packed_nbytes(*shape[:2], bits, shape[2])


@pytest.mark.parametrize("bits", range(2, 9))
def test_products_are_those_of_the_values(bits, level):
    for rows, columns, group in SHAPES:
        stored = any_weight(rows, columns, bits, group)
        weight, values = PackedWeight.pack(stored), dequantize(stored).double()
        x, bias = torch.randn(3, columns) + 0.5, torch.randn(rows)
        expected = x.double() @ values.T + bias
        for threads in (1, 2, 3):
            assert relative(weight.matmul(x, bias, threads=threads, library=level), expected) < 1e-5
            assert (
                relative(weight.matmul(x, bias, fast=True, threads=threads, library=level), expected) < 0.03
            )
    assert weight.matmul(x[:0]).shape == (0, rows)


def test_fast_rounds_the_input_and_nothing_else(level):
    """Against the same rounding in torch: one scale for at most 128 columns of a group."""
    stored = any_weight(40, 700, 5, 350)
    x = torch.randn(700) * torch.logspace(-3, 3, 700)
    rounded = []
    for span in (part for group in x.split(350) for part in group.split(128)):
        scale = span.abs().max() / 127
        rounded.append((span / scale).round() * scale)
    expected = dequantize(stored).double() @ torch.cat(rounded).double()
    assert relative(PackedWeight.pack(stored).matmul(x, fast=True, library=level), expected) < 1e-5


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_every_product(fast, odd, level):
    x = torch.randn(64)
    x[40] = odd
    y = PackedWeight.pack(any_weight(20, 64, 4, 32)).matmul(x, fast=fast, library=level)
    assert not y.isfinite().any()


def test_an_input_of_zeros_gives_the_bias(level):
    weight, bias = PackedWeight.pack(any_weight(20, 64, 3, 32)), torch.randn(20)
    for fast in (False, True):
        assert torch.equal(weight.matmul(torch.zeros(64), bias, fast=fast, library=level), bias)


def test_what_does_not_fit_is_refused_before_c_sees_it():
    stored = any_weight(20, 64, 4, 32)
    weight = PackedWeight.pack(stored)
    with pytest.raises(ValueError, match="multiplies"):
        weight.matmul(torch.zeros(63))
    with pytest.raises(ValueError, match="contiguous"):
        weight.unpack(torch.empty(64, 20).T)
    with pytest.raises(IndexError, match="from 0 to 19"):
        weight.rows(torch.tensor([3, 20]))
    with pytest.raises(ValueError, match="codes of 4 bits"):
        PackedWeight.pack(Quantized(4, 32, 96, stored.codes, stored.scales, stored.zeros))
    with pytest.raises(ValueError, match="not finite"):
        PackedWeight.pack(Quantized(4, 32, 64, stored.codes, stored.scales * float("inf"), stored.zeros))


def test_without_the_library_there_is_a_reason(monkeypatch):
    monkeypatch.setenv("QUEPT_KERNELS", "off")
    assert "switched off" in kernels.missing()
    monkeypatch.setenv("QUEPT_KERNELS", "mmx")
    assert "no instruction set 'mmx'" in kernels.missing()


def test_without_a_compiler_there_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BuildError, match="install gcc or clang"):
        build(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits_are_read_where_they_lie(dtype, level):
    for rows, columns, _ in SHAPES:
        values = torch.randn(rows, columns).to(dtype)
        values[0, 0] = 2.0**-24  # subnormal in float16
        weight, x = PackedWeight.dense(values), torch.randn(3, columns) + 0.5
        assert weight.codes is values and weight.nbytes == values.nbytes
        assert torch.equal(weight.unpack(library=level), values.float())
        narrow = weight.unpack(torch.empty(rows, columns, dtype=torch.bfloat16), library=level)
        assert torch.equal(narrow, values.bfloat16())
        ids = torch.randint(rows, (2, 3))
        assert torch.equal(weight.rows(ids), values[ids].float())
        assert relative(weight.matmul(x, library=level), x.double() @ values.double().T) < 1e-5


def test_parts_are_rows_over_the_same_memory():
    values = torch.randn(70, 96)
    for weight in (PackedWeight.pack(quantize(values, 3, 32)[0]), PackedWeight.dense(values.half())):
        parts = [weight.part(0, 32), weight.part(32, 64), weight.part(64, 96)]
        assert torch.equal(torch.cat([part.unpack() for part in parts]), weight.unpack())
        assert sum(part.nbytes for part in parts) == weight.nbytes
        assert parts[1].codes.untyped_storage().data_ptr() == weight.codes.untyped_storage().data_ptr()


@pytest.fixture
def half_by_default():
    """As it is in all threads while transformers opens a model of 16 bits in one of them."""
    torch.set_default_dtype(torch.float16)
    yield
    torch.set_default_dtype(torch.float32)


def test_what_c_writes_to_has_room_whatever_type_tensors_have_by_default(half_by_default):
    made = [quantize(torch.randn(16, 64, dtype=torch.float32), bits, 64) for bits in (4, 3)]
    parts, values = [PackedWeight.pack(stored) for stored, _ in made], torch.cat([v for _, v in made])
    ids, x = torch.arange(16), torch.randn(3, 64, dtype=torch.float32)
    for weight, expected in ((parts[0], made[0][1]), (PackedRows(tuple(parts)), values)):
        assert torch.equal(weight.unpack(), expected) and torch.equal(weight.rows(ids), expected[ids])
        found = weight.matmul(x)
        assert found.dtype == torch.float32 and relative(found, x.double() @ expected.double().T) < 1e-5
