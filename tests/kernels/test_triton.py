"""The CUDA kernels in Triton's interpreter, on the CPU: in a process of its own, since Triton decides on it
when it is first imported."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from quept import kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed"),
    pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing()),
]
PROGRAM = """
import torch
from quept.kernels import triton_packed
from quept.kernels.packed import PackedWeight
from quept.numerics.grid import quantize

for bits in range(2, 9):
    for rows, columns, group in ((33, 200, 64), (5, 130, 100)):
        stored, values = quantize(torch.randn(rows, columns), bits, group)
        weight = PackedWeight.pack(stored)
        assert torch.equal(triton_packed.unpack(weight, torch.empty(rows, columns)), values), (bits, group)
        for inputs in (1, 3, 17):
            x = torch.randn(inputs, columns)
            expected = x @ values.T
            found = triton_packed.matmul(weight, x)
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max(), (bits, group, inputs)
"""


def test_products_and_values_are_those_of_the_grid():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
