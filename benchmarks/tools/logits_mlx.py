"""Logits and greedy tokens of a folder in mlx-lm, in float32: used inside a virtual environment of its own.

    python logits_mlx.py FOLDER --ids FILE --greedy 64 --out FILE

In:  token ids (n, context), the tensor "ids" of a safetensors file.
Out: a safetensors file: "logits" (n, context, vocabulary) float32, and "greedy" (n, tokens), the likeliest
     token after each row, then after that one, and so on.
"""

from __future__ import annotations

import argparse

import mlx.core as mx
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache


def greedy(model, ids: mx.array, count: int) -> mx.array:
    """ids (1, t) -> (count,)."""
    cache, found = make_prompt_cache(model), []
    for _ in range(count):
        ids = model(ids, cache=cache)[:, -1].argmax(-1, keepdims=True)
        found.append(ids.item())
    return mx.array(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--ids", required=True)
    parser.add_argument("--greedy", type=int, required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    model, _ = load(options.folder)
    model.set_dtype(mx.float32)
    ids = mx.load(options.ids)["ids"].astype(mx.int32)
    found = {
        "logits": model(ids),
        "greedy": mx.stack([greedy(model, row[None], options.greedy) for row in ids]),
    }
    mx.save_safetensors(options.out, found)


if __name__ == "__main__":
    main()
