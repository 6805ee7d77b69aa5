"""Logits and greedy tokens of a folder in transformers, in float32: used inside a virtual environment
that has what the folder needs, such as compressed-tensors.

    python logits_transformers.py FOLDER --ids FILE --greedy 64 --out FILE

In and out as for logits_mlx.py.
"""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def greedy(model: nn.Module, ids: Tensor, count: int) -> Tensor:
    """ids (1, t) -> (count,)."""
    cache, found = None, []
    for _ in range(count):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        found.append(ids.item())
    return torch.tensor(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--ids", required=True)
    parser.add_argument("--greedy", type=int, required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32).eval()
    ids = load_file(options.ids)["ids"]
    with torch.no_grad():
        found = {
            "logits": model(ids).logits.contiguous(),
            "greedy": torch.stack([greedy(model, row[None], options.greedy) for row in ids]),
        }
    save_file(found, options.out)


if __name__ == "__main__":
    main()
