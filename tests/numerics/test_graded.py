"""Rows of an embedding at several widths, each stretch on the grid of its own."""

import pytest
import torch

from quept.engines import GRADED_WIDTHS
from quept.numerics.graded import dequantize_graded, graded_bytes, quantize_graded, stretches
from quept.numerics.grid import quantize


def bits_of(rows, width):
    """The slow way: how many powers of three the row lies below."""
    lowest, found = int(width), []
    for row in range(rows):
        more = sum(row < rows // (3**k * 16) * 16 for k in range(1, 9))
        found.append(min(8, lowest + more))
    return found


@pytest.mark.parametrize("width", GRADED_WIDTHS)
@pytest.mark.parametrize("rows", [1, 15, 48, 100, 49152])
def test_a_row_has_a_bit_more_for_every_third_that_it_lies_in(rows, width):
    found = [bits for part, bits in stretches(rows, width) for _ in range(part.start, part.stop)]
    assert found == bits_of(rows, width)


@pytest.mark.parametrize("width", GRADED_WIDTHS[:-1])
def test_a_large_table_has_half_a_bit_more_than_its_rare_rows(width):
    mean = sum((part.stop - part.start) * bits for part, bits in stretches(49152, width)) / 49152
    assert mean == pytest.approx(width, abs=0.03)


@pytest.mark.parametrize("width", GRADED_WIDTHS)
def test_every_stretch_is_what_its_width_makes_of_these_rows(width):
    weight = torch.randn(150, 48, generator=torch.Generator().manual_seed(0))
    packed, values = quantize_graded(weight, width, 32)
    expected = torch.cat([quantize(weight[part], bits, 32)[1] for part, bits in stretches(150, width)])
    assert torch.equal(values, expected) and torch.equal(dequantize_graded(packed), values)
    assert packed.nbytes == graded_bytes(150, 48, width, 32)
