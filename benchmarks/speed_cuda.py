"""Products with packed weights on an NVIDIA GPU against torch's own in bfloat16; `speed.py --device cuda`
runs it.

For each width and shape: microseconds of one product of 1 and of 16 inputs, over several weights in turn so
that none waits in the cache, in a CUDA graph so that launches do not count, and their ratio to a dense
product of the same shape (above 1: faster). Needs torch, Triton and a C compiler, nothing else. Random
weights: speed does not depend on values.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from quept.kernels import build
from quept.kernels.packed import PackedWeight
from quept.numerics.grid import Quantized, dequantize, quantize

SHAPES = {"135M up": (1536, 576), "7B o": (4096, 4096), "7B up": (11008, 4096)}
SETTINGS = [(128, 2), (128, 4), (256, 4), (512, 4), (512, 8)]  # columns at a time, warps
CACHE = 150e6  # bytes of weights used in turn: more than the GPU keeps near


def main(repeats: int = 5) -> dict:
    """Prints a table, and returns its figures."""
    from quept.kernels import triton_packed

    build.build(Path(build.__file__).parent, f"libquept-{build.source_key()}.so")  # lays the weights out
    figures: dict = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    figures["max_rel"] = worst_difference(triton_packed.matmul)
    weight = random_weight(4096, 4096, 4)
    x = torch.randn(1, 4096, dtype=torch.bfloat16, device="cuda")
    tried = {
        setting: microseconds([lambda s=setting: triton_packed.matmul(weight, x, *s)] * 20, repeats)
        for setting in SETTINGS
    }
    part, warps = best = min(tried, key=tried.get)
    figures["settings_us"] = {f"{columns}x{warps}": round(us, 1) for (columns, warps), us in tried.items()}
    print(f"max relative difference {figures['max_rel']:.1e}; columns x warps: {figures['settings_us']}")
    for name, (rows, columns) in SHAPES.items():
        copies = copies_of(2 * rows * columns)
        dense = [torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") for _ in range(copies)]
        for inputs in (1, 16):
            x = torch.randn(inputs, columns, dtype=torch.bfloat16, device="cuda")
            plain = microseconds([lambda w=w, x=x: x @ w.T for w in dense], repeats)
            for bits in (2, 3, 4, 8):
                one = random_weight(rows, columns, bits)
                weights = [one, *(copied(one) for _ in range(copies_of(one.nbytes) - 1))]
                steps = [lambda w=w, x=x: triton_packed.matmul(w, x, part, warps) for w in weights]
                took = microseconds(steps, repeats)
                figures[f"{name} W{bits} x{inputs}"] = {
                    "us": round(took, 2),
                    "vs_bf16": round(plain / took, 3),
                }
                said = f"{took:8.1f} us, bfloat16 {plain:8.1f}, ratio {plain / took:5.2f}"
                print(f"{name:<8} W{bits} {inputs:>2} inputs {said}, {one.nbytes / took / 1e3:6.0f} GB/s")
        del dense
    figures["best"] = best
    print(json.dumps(figures))
    return figures


def worst_difference(matmul: Callable) -> float:
    """The largest relative difference from the values multiplied in float64: all widths, ragged groups."""
    worst = 0.0
    for bits in range(2, 9):
        stored, values = quantize(torch.randn(200, 700), bits, 96)
        assert torch.equal(dequantize(stored), values)
        weight = on_cuda(stored)
        for inputs in (1, 5):
            x = torch.randn(inputs, 700)
            expected = x.double() @ values.double().T
            found = matmul(weight, x.cuda()).cpu().double()
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def random_weight(rows: int, columns: int, bits: int) -> PackedWeight:
    return on_cuda(quantize(torch.randn(rows, columns), bits, 64)[0])


def on_cuda(stored: Quantized) -> PackedWeight:
    from quept.kernels.triton_packed import TritonWeight  # here: only who has CUDA has Triton

    return TritonWeight.of(PackedWeight.pack(stored), "cuda")


def copied(weight: PackedWeight) -> PackedWeight:
    zeros = None if weight.zeros is None else weight.zeros.clone()
    return replace(weight, codes=weight.codes.clone(), scales=weight.scales.clone(), zeros=zeros)


def copies_of(nbytes: int) -> int:
    return min(100, max(2, -(-int(CACHE) // nbytes)))


def microseconds(steps: Sequence[Callable], repeats: int) -> float:
    """Median time of one step, all of them in one CUDA graph."""
    for step in steps[:2]:  # compiles
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [step() for step in steps]
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(steps))
    del kept
    return statistics.median(times)
