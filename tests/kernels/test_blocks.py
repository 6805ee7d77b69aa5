"""Blocks that C writes and reads are those of quept.export.gguf.blocks, bit for bit."""

from dataclasses import replace

import pytest
import torch

from quept import kernels
from quept.export.gguf import blocks
from quept.kernels import blocks as in_c
from quept.kernels.packed import PackedWeight
from quept.numerics.grid import Quantized, quantize
from tests.kernels.test_packed import any_weight

if why := kernels.missing():
    pytest.skip(why, allow_module_level=True)

SHAPES = [(33, 576, 64), (5, 192, 192), (1, 32, 32), (40, 96, 32), (17, 160, 128)]


def rows_of(stored: Quantized, order: torch.Tensor) -> Quantized:
    return replace(stored, codes=stored.codes[order], scales=stored.scales[order], zeros=stored.zeros[order])


@pytest.mark.parametrize("bits", range(2, 9))
def test_blocks_are_those_that_torch_writes_in_any_order_of_rows(bits):
    kind = blocks.SMALL[bits]
    for rows, columns, group in SHAPES:
        stored = any_weight(rows, columns, bits, group)
        weight, order = PackedWeight.pack(stored), torch.randperm(rows)
        for threads in (1, 3):
            assert torch.equal(in_c.to_blocks(weight, None, threads), blocks.to_blocks(stored, kind))
            found = in_c.to_blocks(weight, order, threads)
            assert torch.equal(found, blocks.to_blocks(rows_of(stored, order), kind))
            assert in_c.difference(weight, found, order, threads) is not None


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_difference_is_the_one_that_torch_finds(bits):
    kind = blocks.SMALL[bits]
    for rows, columns, group in SHAPES:
        stored = quantize(torch.randn(rows, columns) + 0.1, bits, group)[0]
        weight, content = PackedWeight.pack(stored), blocks.to_blocks(stored, kind)
        expected = blocks.difference(content.flatten(), stored, kind)
        assert in_c.difference(weight, content) == pytest.approx(expected, rel=1e-6)
        for place in range(content.shape[-1]):
            content[rows // 2, -1, place] += 16
            assert in_c.difference(weight, content) is None
            content[rows // 2, -1, place] -= 16


def test_what_is_no_block_is_refused_before_c_sees_it():
    odd = [PackedWeight.pack(any_weight(4, *shape)) for shape in ((80, 4, 80), (96, 4, 48))]
    odd.append(PackedWeight.dense(torch.randn(4, 64).half()))
    assert not any(map(in_c.fits, [*odd, torch.zeros(4, 64), None]))
    for weight in odd:
        with pytest.raises(ValueError, match="whole 32 columns"):
            in_c.to_blocks(weight)
    weight = PackedWeight.pack(any_weight(4, 64, 4, 32))
    with pytest.raises(ValueError, match="names each of 4 rows"):
        in_c.to_blocks(weight, torch.tensor([0, 1, 2, 4]))
    with pytest.raises(ValueError, match="160 contiguous bytes"):
        in_c.difference(weight, torch.zeros(159, dtype=torch.uint8))
