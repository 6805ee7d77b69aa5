"""Other people's quantization of the same loaded model, to stand ours beside: bitsandbytes NF4 and LLM.int8.

`elastic.baseline("nf4")` is a view like any other, only that its linear layers are bitsandbytes' own:

nf4   Linear4bit: 4-bit codes of the normal-float table, a float32 absmax for each 64 weights, not quantized
      a second time. x (..., in) times the dequantized weight, in the dtype of x.
int8  Linear8bitLt: 8-bit codes with a float32 scale a row; x is rounded to 8 bits per token, but for the
      input columns in which some token exceeds 6, which are multiplied unrounded. Which ones those are is
      decided over all tokens of a forward pass together: text read at once and text read in two parts give
      slightly different logits, so `steady` is false. bitsandbytes casts x to float16 to round it, whatever
      its dtype.

Both run on a CPU in float32 at about the speed of a plain layer: SmolLM2-135M, one thread of a busy machine,
64 tokens in 0.49 s (nf4) and 0.44 s (dense), one token in 0.08 s (nf4), 0.18 s (int8) and 0.10 s (dense). On
processors with bfloat16 instructions Linear4bit would repack its weight in its first forward and multiply in
bfloat16; that is switched off here, because it writes into what views share.

bitsandbytes is optional. Without it nothing here is available, and asking says what to install.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quept.models.clone import shallow_copy

NF4_BLOCK = 64  # weights that share an absmax
INT8_THRESHOLD = 6.0  # the LLM.int8 paper's: input columns with a larger value stay unrounded
_CAST = "MatMul8bitLt: inputs will be cast"


class BaselineError(ValueError):
    """A baseline that does not exist or cannot be made here; the message says what to do."""


@dataclass(frozen=True)
class Baseline:
    """One of them. `key` is its identity in the results store, `nbytes(rows, columns)` what a layer's tensors
    take, `make` its layer from a weight (out, in), a bias and the compute dtype; `stored` are the tensors
    that a layer needs."""

    name: str
    title: str
    key: str
    steady: bool
    nbytes: Callable[[int, int], int]
    make: Callable[[Tensor, Tensor | None, torch.dtype, torch.device], nn.Module]
    stored: Callable[[nn.Module], Iterable[Tensor]]


def available() -> bool:
    """Whether bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def check_available(baseline: Baseline) -> None:
    """BaselineError where it cannot run here."""
    if not available():
        raise BaselineError(
            f"{baseline.title} needs bitsandbytes, which is not installed: "
            "type `pip install bitsandbytes` and start again"
        )


def baseline_named(name: str) -> Baseline:
    """The baseline of this name; BaselineError if there is none."""
    if name not in BASELINES:
        raise BaselineError(f"there is no baseline {name!r}; choose {' or '.join(BASELINES)}")
    return BASELINES[name]


class BaselineLayers:
    """The linear layers of every baseline, each made once when first wanted and kept. Safe between threads.

    shapes: (out, in) by layer; source: the layer itself by its name, asked for when it is made."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        source: Callable[[str], nn.Linear],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self._shapes, self._source, self._dtype, self._device = shapes, source, dtype, device
        self._made: dict[str, dict[str, nn.Module]] = {name: {} for name in BASELINES}
        self._lock = threading.Lock()

    def make(self, name: str) -> Iterator[float]:
        """Make what is missing, one layer at a time: yields the share done after each, so that whoever holds
        a gate can let others in between. Nothing is yielded when all is there."""
        baseline, made = baseline_named(name), self._made[name]
        check_available(baseline)
        for layer in self._shapes:
            with self._lock:
                if layer in made:
                    continue
                linear = self._source(layer)
                bias = None if linear.bias is None else linear.bias.data.to(self._device, self._dtype)
                made[layer] = baseline.make(linear.weight.data, bias, self._dtype, self._device)
            yield len(made) / len(self._shapes)

    def bound(self, name: str) -> dict[str, nn.Module]:
        """Every layer as a new module over the shared tensors, by its name; what is missing is made now."""
        for _ in self.make(name):
            pass
        return {layer: _own(module) for layer, module in self._made[name].items()}

    def is_made(self, name: str) -> bool:
        return len(self._made[baseline_named(name).name]) == len(self._shapes)

    def nbytes(self, name: str) -> int:
        """Bytes of the codes and scales of all layers: counted from the tensors once they are there, from the
        shapes before (a test holds the two equal)."""
        baseline = baseline_named(name)
        if self.is_made(name):
            return _bytes_of(baseline, self._made[name].values())
        return sum(baseline.nbytes(*shape) for shape in self._shapes.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes that the layers made so far hold."""
        return sum(_bytes_of(BASELINES[name], list(made.values())) for name, made in self._made.items())


def _bytes_of(baseline: Baseline, modules: Iterable[nn.Module]) -> int:
    return sum(tensor.nbytes for module in modules for tensor in baseline.stored(module))


def _own(module: nn.Module) -> nn.Module:
    """A shallow copy with a state of its own: Linear8bitLt notes there what it saw in its last forward."""
    other = shallow_copy(module)
    if hasattr(module, "state"):
        other.__dict__["state"] = copy.copy(module.state)
    return other


def _nf4(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    options = {"quant_type": "nf4", "compress_statistics": False}
    layer = Linear4bit(*weight.shape[::-1], bias=False, compute_dtype=dtype, device="meta", **options)
    packed = Params4bit(weight, requires_grad=False, blocksize=NF4_BLOCK, **options).to(device)
    layer.weight, layer.quant_state = packed, packed.quant_state
    layer.support_avx512bf16_for_cpu = False  # see the module's docstring
    return _finished(layer, bias)


def _int8(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    # It says for every layer of every forward pass what the module's docstring says once.
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if _not_about_the_cast not in logger.filters:
        logger.addFilter(_not_about_the_cast)
    layer = Linear8bitLt(
        *weight.shape[::-1], bias=False, has_fp16_weights=False, threshold=INT8_THRESHOLD, device="meta"
    )
    layer.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
    layer.init_8bit_state()  # else the first forward does it
    return _finished(layer, bias)


def _finished(layer: nn.Linear, bias: Tensor | None) -> nn.Module:
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return layer.eval()  # in training both compute something else


def _not_about_the_cast(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CAST)


BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline(
            name="nf4",
            title="bitsandbytes NF4",
            key=f"bitsandbytes nf4 block {NF4_BLOCK}",
            steady=True,
            nbytes=lambda rows, columns: -(-rows * columns // 2) + 4 * -(-rows * columns // NF4_BLOCK),
            make=_nf4,
            stored=lambda layer: (layer.weight.data, layer.weight.quant_state.absmax),
        ),
        Baseline(
            name="int8",
            title="bitsandbytes LLM.int8",
            key=f"bitsandbytes int8 threshold {INT8_THRESHOLD:g}",
            steady=False,
            nbytes=lambda rows, columns: rows * columns + 4 * rows,
            make=_int8,
            stored=lambda layer: (layer.state.CB, layer.state.SCB),
        ),
    )
}
