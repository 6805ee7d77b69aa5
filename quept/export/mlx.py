"""MLX: a folder that mlx-lm runs, on Apple's chips with Metal, elsewhere on the CPU.

    {layer}.weight   uint32   (out, columns x bits / 32)   codes, one little-endian stream of bits a row
    {layer}.scales   float16  (out, groups)                s
    {layer}.biases   float32  (out, groups)                -s z

    w = scales x code + biases, bit for bit ours

Our codes are such a stream already. There are 2, 3, 4, 5, 6 and 8 bits, in groups of 32, 64 or 128 columns;
codes of 7 bits lie in 8, and larger groups are said several times over. -s z has more digits than float16:
rounded to that, as mlx-lm's own conversions are, it moved the logits of SmolLM2 at 4 bits by 1.8e-3 of the
largest; MLX then computes in float32. Each layer has its entry under "quantization" in config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quept.engines import Setting
from quept.numerics.grid import SYMMETRIC_ZERO, Quantized
from quept.numerics.packing import pack, unpack
from quept.plan import FULL
from quept.runtime import ElasticModel

from .folder import Folder, Kind, file_group, regrouped

HELD = {2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 8, 8: 8}  # bits of a code -> bits it is stored in


class Mlx(Folder):
    """See the module docstring."""

    name, title = "mlx", "MLX"
    engines = ("mlx-lm", "LM Studio on a Mac")
    commands = (
        "pip install mlx-lm",
        'mlx_lm.generate --model {path} --prompt "Why is the sky blue?"',
        "mlx_lm.server --model {path} --port 8080",
    )
    families = ("llama", "mistral", "qwen2", "qwen3")

    def widths(self, columns: int, group: int, embedding: bool = False) -> Mapping[Setting, str]:
        held = {bits: f"{stored} bits" for bits, stored in HELD.items()} if file_group(columns, group) else {}
        return held | {FULL: "16 bits"}

    def parts(self, rows: int, columns: int, bits: int, group: int) -> Mapping[str, Kind]:
        if not (group := file_group(columns, group)):
            return {}
        groups = (rows, columns // group)
        return {
            "weight": (torch.uint32, (rows, columns * HELD[bits] // 32)),
            "scales": (torch.float16, groups),
            "biases": (torch.float32, groups),
        }

    def store(self, packed: Quantized) -> Mapping[str, Tensor]:
        group, codes = file_group(packed.columns, packed.group), packed.codes
        if HELD[packed.bits] != packed.bits:
            codes = pack(unpack(codes, packed.bits, packed.columns), HELD[packed.bits])
        scales = packed.scales.float()
        zeros = (
            SYMMETRIC_ZERO
            if packed.zeros is None
            else unpack(packed.zeros, packed.bits, scales.shape[1]).float()
        )
        parts = {"scales": packed.scales, "biases": (-scales * zeros)}
        parts = {name: regrouped(t, packed.columns, packed.group, group) for name, t in parts.items()}
        return {"weight": codes.contiguous().view(torch.uint32)} | parts

    def load(self, stored: Mapping[str, Tensor], packed: Quantized) -> tuple[Tensor, Tensor]:
        rows, groups = stored["scales"].shape
        codes = unpack(stored["weight"].view(torch.uint8), HELD[packed.bits], packed.columns)
        scales, biases = (stored[name].float()[..., None] for name in ("scales", "biases"))
        values = codes.view(rows, groups, -1).float() * scales + biases
        return codes, values.view(rows, -1)

    def quantization(self, elastic: ElasticModel, settings: Mapping[str, Setting]) -> Mapping[str, Any]:
        weights, said = dict(self._weights(elastic)), {}
        for layer, bits in settings.items():
            _, columns, group = weights[layer]
            held = {"group_size": file_group(columns, group), "bits": HELD[bits]} if bits != FULL else False
            said[layer] = held
        if not any(said.values()):
            return {}
        return {"quantization": {"group_size": 64, "bits": 4, "mode": "affine"} | said}
