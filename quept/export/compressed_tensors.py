"""compressed-tensors: a folder that vLLM runs, and transformers where that package is installed.

    {layer}.weight_packed      int32    (out, ceil(columns x bits / 32))   codes, one stream of bits a row
    {layer}.weight_scale       float16  (out, groups)                      s
    {layer}.weight_zero_point  int32    (ceil(out x bits / 32), groups)    z, likewise; not at 8 bits
    {layer}.weight_shape       int64    (2,)                               (out, columns)

    w = s (code - z), bit for bit ours; 8 bits are symmetric

The format "pack-quantized" of compressed-tensors 0.20, whose packing is dense for every width from 2 to 8.
config.json has a group of layers for each width and group size. vLLM fuses q with k and v and gate with up,
so these share a width, and ignores zero-points of embeddings, so these stay at 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quept.engines import Setting
from quept.numerics.grid import SYMMETRIC_BITS, SYMMETRIC_ZERO, Quantized
from quept.numerics.packing import pack, packed_bytes, unpack
from quept.plan import FULL, QUANTIZED_BITS
from quept.runtime import ElasticModel

from .folder import Folder, Kind, file_group, regrouped

FORMAT = "pack-quantized"


class CompressedTensors(Folder):
    """See the module docstring."""

    name, title = "compressed-tensors", "compressed-tensors"
    engines = ("vLLM from late September 2026", "transformers")
    commands = (
        "pip install vllm",
        "vllm serve {path} --port 8000",
    )
    families = ("llama", "mistral", "qwen2", "qwen3", "opt")

    def widths(self, columns: int, group: int, embedding: bool = False) -> Mapping[Setting, str]:
        fits = not embedding and file_group(columns, group)
        return {bits: f"{bits} bits" for bits in QUANTIZED_BITS if fits} | {FULL: "16 bits"}

    def ties(self, elastic: ElasticModel) -> tuple[tuple[str, ...], ...]:
        return elastic.layout.same_input

    def parts(self, rows: int, columns: int, bits: int, group: int) -> Mapping[str, Kind]:
        if not (group := file_group(columns, group)):
            return {}
        groups = columns // group
        zeros = {"weight_zero_point": (torch.int32, (_words(rows, bits), groups))}
        return {
            "weight_packed": (torch.int32, (rows, _words(columns, bits))),
            "weight_scale": (torch.float16, (rows, groups)),
            "weight_shape": (torch.int64, (2,)),
        } | (zeros if bits != SYMMETRIC_BITS else {})

    def store(self, packed: Quantized) -> Mapping[str, Tensor]:
        bits, columns, scales = packed.bits, packed.columns, packed.scales
        sizes = (columns, packed.group, file_group(columns, packed.group))
        stored = {
            "weight_packed": _as_words(unpack(packed.codes, bits, columns), bits),
            "weight_scale": regrouped(scales, *sizes),
            "weight_shape": torch.tensor([len(scales), columns]),
        }
        if packed.zeros is not None:
            zeros = regrouped(unpack(packed.zeros, bits, scales.shape[1]), *sizes)
            stored["weight_zero_point"] = _as_words(zeros.T, bits).T.contiguous()
        return stored

    def load(self, stored: Mapping[str, Tensor], packed: Quantized) -> tuple[Tensor, Tensor]:
        rows, columns = stored["weight_shape"].tolist()
        codes, zeros = _codes(stored["weight_packed"], packed.bits, columns), SYMMETRIC_ZERO
        if "weight_zero_point" in stored:
            zeros = _codes(stored["weight_zero_point"].T, packed.bits, rows).T[..., None].float()
        scales = stored["weight_scale"].float()[..., None]
        values = (codes.view(rows, scales.shape[1], -1).float() - zeros) * scales
        return codes, values.view(rows, columns)

    def quantization(self, elastic: ElasticModel, settings: Mapping[str, Setting]) -> Mapping[str, Any]:
        weights = dict(self._weights(elastic))
        groups: dict[tuple[int, int], list[str]] = {}
        for layer in elastic.layers:
            if (bits := settings[layer]) != FULL:
                _, columns, group = weights[layer]
                groups.setdefault((bits, file_group(columns, group)), []).append(layer)
        if not groups:
            return {}
        schemes = {
            f"group_{i}": {"targets": groups[bits, group], "weights": _scheme(bits, group), "format": FORMAT}
            for i, (bits, group) in enumerate(sorted(groups))
        }
        left = [layer for layer in elastic.layers if settings[layer] == FULL]
        said = {
            "quant_method": "compressed-tensors",
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": schemes,
            "ignore": ["lm_head", *left],
        }
        return {"quantization_config": said}


def _scheme(bits: int, group: int) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": bits == SYMMETRIC_BITS,
        "strategy": "group",
        "group_size": group,
    }


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // 32)


def _as_words(codes: Tensor, bits: int) -> Tensor:
    """codes (n, m) uint8 -> (n, ceil(m bits / 32)) int32."""
    n, m = codes.shape
    stream = pack(codes, bits)
    size = 4 * _words(m, bits)
    stream = torch.nn.functional.pad(stream, (0, max(0, size - stream.shape[1])))[:, :size]
    return stream.contiguous().view(torch.int32)


def _codes(words: Tensor, bits: int, count: int) -> Tensor:
    stream, size = words.contiguous().view(torch.uint8), packed_bytes(count, bits)
    stream = torch.nn.functional.pad(stream, (0, max(0, size - stream.shape[1])))[:, :size]
    return unpack(stream, bits, count)
