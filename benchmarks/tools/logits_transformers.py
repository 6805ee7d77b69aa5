"""Logits and greedy tokens of a folder in transformers, in float32: used inside a virtual environment
that has what the folder needs, such as compressed-tensors.

    python logits_transformers.py FOLDER --ids FILE --greedy 64 --out FILE

In and out as for logits_mlx.py.

transformers 5.24 with compressed-tensors 0.18 to 0.20 builds the empty model with zero-points that are not
packed, and then refuses the packed ones of every asymmetric file: `packed_zeros` mends that, and no more.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec

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


def packed_zeros() -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor as Packed

    compress = Packed.compress

    def mended(state, scheme):
        found, zeros = compress(state, scheme), "weight_zero_point"
        if zeros in found and found[zeros].is_meta and not scheme.weights.symmetric:
            rows, groups = found[zeros].shape
            words = -(-rows * scheme.weights.num_bits // 32)
            found[zeros] = torch.empty(words, groups, dtype=torch.int32, device="meta")
        return found

    Packed.compress = mended


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--ids", required=True)
    parser.add_argument("--greedy", type=int, required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    if find_spec("compressed_tensors"):
        packed_zeros()
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
