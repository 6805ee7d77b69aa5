"""Other people's quantization of the same loaded model, to stand ours beside: bitsandbytes NF4 and LLM.int8.

nf4   Linear4bit: 4-bit codes of the normal-float table, a float32 absmax for each 64 weights, not quantized
      a second time. x (..., in) times the dequantized weight, in the dtype of x.
int8  Linear8bitLt: 8-bit codes with a float32 scale a row; x is rounded to 8 bits per token, but for the
      input columns in which some token exceeds 6, which are multiplied unrounded. Which ones those are is
      decided over all tokens of a forward pass together: text read at once and text read in two parts give
      slightly different logits, so it is not `steady`. bitsandbytes casts x to float16 to round it, whatever
      its dtype.

Both run on a CPU in float32 at about the speed of a plain layer: SmolLM2-135M, one thread of a busy machine,
64 tokens in 0.49 s (nf4) and 0.44 s (dense), one token in 0.08 s (nf4), 0.18 s (int8) and 0.10 s (dense). On
processors with bfloat16 instructions Linear4bit would repack its weight in its first forward and multiply in
bfloat16; that is switched off here, because it writes into what views share.

bitsandbytes is optional. Without it nothing can be made here, and asking says what to install.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quept.models.clone import shallow_copy

from .base import Engine, Listing

NF4_BLOCK = 64  # weights that share an absmax
INT8_THRESHOLD = 6.0  # the LLM.int8 paper's: input columns with a larger value stay unrounded
_CAST = "MatMul8bitLt: inputs will be cast"


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer of bitsandbytes without its bias, and the tensors that it needs."""

    layer: nn.Module
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)


class BitsAndBytes(Engine):
    title = "bitsandbytes"
    runs_itself = True

    @classmethod
    def read(cls, listing: Listing, tensors: Mapping[str, Tensor]) -> BitsAndBytes:
        return cls()

    def quantize(self, layer: str, weight: Tensor, setting: str) -> tuple[StoredLayer, None]:
        return {"nf4": _nf4, "int8": _int8}[setting](weight), None

    def nbytes(self, rows: int, columns: int, setting: str) -> int:
        if setting == "int8":
            return rows * columns + 4 * rows
        return -(-rows * columns // 2) + 4 * -(-rows * columns // NF4_BLOCK)

    def module(self, stored: StoredLayer, setting: str, bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
        layer = shallow_copy(stored.layer)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        if hasattr(layer, "state"):  # Linear8bitLt notes there what it saw in its last forward
            layer.state = copy.copy(layer.state)
        else:
            layer.compute_dtype, layer.compute_type_is_set = dtype, True
        return layer

    def steady(self, setting: str) -> bool:
        return setting != "int8"

    def key(self, setting: str) -> str:
        if setting == "int8":
            return f"bitsandbytes int8 threshold {INT8_THRESHOLD:g}"
        return f"bitsandbytes nf4 block {NF4_BLOCK}"

    @classmethod
    def missing(cls) -> str:
        if importlib.util.find_spec("bitsandbytes"):
            return ""
        return (
            "NF4 and LLM.int8 need bitsandbytes, which is not installed: type `pip install bitsandbytes` and "
            "start again"
        )

    def conditions(self) -> dict[str, str]:
        return {"bitsandbytes": importlib.metadata.version("bitsandbytes")}


def _nf4(weight: Tensor) -> StoredLayer:
    from bitsandbytes.nn import Linear4bit, Params4bit

    options = {"quant_type": "nf4", "compress_statistics": False}
    layer = Linear4bit(*weight.shape[::-1], bias=False, device="meta", **options)
    packed = Params4bit(weight, requires_grad=False, blocksize=NF4_BLOCK, **options).to(weight.device)
    layer.weight, layer.quant_state = packed, packed.quant_state
    layer.support_avx512bf16_for_cpu = False  # see the module's docstring
    layer.eval()  # in training both compute something else
    return StoredLayer(layer, (packed.data, packed.quant_state.absmax))


def _int8(weight: Tensor) -> StoredLayer:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    # It says for every layer of every forward pass what the module's docstring says once.
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if _not_about_the_cast not in logger.filters:
        logger.addFilter(_not_about_the_cast)
    layer = Linear8bitLt(
        *weight.shape[::-1], bias=False, has_fp16_weights=False, threshold=INT8_THRESHOLD, device="meta"
    )
    layer.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(weight.device)
    layer.init_8bit_state()  # else the first forward does it
    layer.eval()
    return StoredLayer(layer, (layer.state.CB, layer.state.SCB))


def _not_about_the_cast(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CAST)
