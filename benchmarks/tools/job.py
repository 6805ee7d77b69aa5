"""What every tool's script gets and gives, whatever the tool: used inside the tool's own virtual environment.

    python with_TOOL.py --model FOLDER --ids FILE --bits 4 --group 64 --iterations 200 --out FILE

In:  a model folder that transformers can load; calibration token ids (n, context), the tensor "ids" of a
     safetensors file.
Out: a safetensors file with the dequantized weight (out, in) of every linear layer in the model's blocks, in
     float32 and named by the layer; its metadata holds, as JSON under "tool", the versions, the settings and
     the seconds that quantizing took. The file appears whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Job:
    """`ids` (n, context) int64; `iterations` matters to AutoRound only."""

    model: Path
    ids: Tensor
    bits: int
    group: int
    iterations: int

    def load(self) -> PreTrainedModel:
        """The model in float32 on the CPU."""
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks by name: all but the head."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in found.items() if name != "lm_head"}


def run(
    quantize: Callable[[Job], Mapping[str, Tensor]], packages: tuple[str, ...], settings: Mapping[str, object]
) -> None:
    """Read the command line, quantize, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    ids = load_file(options.ids)["ids"]
    job = Job(options.model, ids, options.bits, options.group, options.iterations)
    start = time.perf_counter()
    weights = quantize(job)
    told = {
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in (*packages, "torch", "transformers")},
        "settings": dict(settings),
    }
    temporary = options.out.with_name(options.out.name + ".part")
    tensors = {name: weight.detach().float().contiguous() for name, weight in weights.items()}
    save_file(tensors, temporary, metadata={"tool": json.dumps(told)})
    os.replace(temporary, options.out)
