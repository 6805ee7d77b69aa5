"""ElasticModel: one loaded model, any number of views of it, each at its own precision.

A view is an ordinary Hugging Face module: a clone of the module tree (a few hundred small objects, about a
millisecond) that shares every tensor with its siblings and carries a bound linear at each layer the plan
speaks of. Nothing is mutated by making or running one, so two threads at two precisions never see each other
and A -> B -> A gives bit-identical results.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from quept.artifact import Artifact
from quept.models import Anatomy, LoadedModel, load
from quept.numerics.grid import Quantised
from quept.plan import FULL, Bits, PrecisionPlan

from .bank import WeightBank
from .clone import clone
from .kvcache import make_cache
from .linear import BoundLinear
from .sizes import Sizes

# Bytes the bank may keep: two uniform widths of a 135M model dense in float32, and every width packed.
DEFAULT_BUDGET = 1_250_000_000


def compute_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype this device multiplies fastest in without losing a model: bfloat16 where the hardware has it,
    else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = (
        getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile")
    )
    return torch.bfloat16 if device.type == "cpu" and any(has) else torch.float32


class ElasticModel:
    """Open once with `ElasticModel.open(...)`, or build from a loaded model and its artifact; safe to share
    between threads."""

    def __init__(
        self,
        loaded: LoadedModel,
        artifact: Artifact,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        budget: int = DEFAULT_BUDGET,
    ):
        artifact.check_base(loaded)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or compute_dtype(self.device)
        self.artifact, self.source, self.title = artifact, loaded.source, loaded.title
        self.fingerprint, self.provenance = loaded.fingerprint, loaded.provenance
        self.tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self.anatomy: Anatomy = loaded.anatomy
        self.layers: tuple[str, ...] = loaded.anatomy.layers
        self.sizes = Sizes.of(loaded.model, self.layers, artifact.group)
        self._weights = {name: loaded.model.get_submodule(name).weight.data for name in self.layers}
        self._skeleton = _skeleton(loaded.model, self.layers, self.device, self.dtype)
        self._unbound = {name: _unbound(self._skeleton.get_submodule(name)) for name in self.layers}
        self._full_bytes = sum(p.nbytes for p in self._skeleton.parameters() if not p.is_meta)
        self._loaded = loaded
        self.bank = WeightBank(self._make, self.dtype, budget)

    @classmethod
    def open(
        cls, source: str | Path, *, progress: Callable[[str, float | None], None] | None = None, **options
    ) -> ElasticModel:
        """Open an artifact folder, or a model by zoo name, hub id or folder (then with round-to-nearest at
        the default group).

        Options: device, dtype, budget (bytes). Raises ArtifactError or LoadError in words."""
        if Artifact.is_one(source):
            artifact = Artifact.open(source)
            return cls(load(artifact.base, progress), artifact, **options)
        loaded = load(source, progress)
        return cls(loaded, Artifact.rtn(loaded, loaded.group), **options)

    @property
    def base(self) -> PreTrainedModel:
        """The model that was loaded, in 16 bits: what every width is made from, and what an export stores of
        the rest. Never write to it."""
        return self._loaded.model

    @property
    def config(self):
        return self._skeleton.config

    def view(self, plan: PrecisionPlan) -> PreTrainedModel:
        """The model at this plan; raises PlanError if the plan does not fit it. Weights not yet in the bank
        are made now."""
        bound = {
            name: self._unbound[name].bound(self._values(name, bits.weights), bits)
            for name, bits in plan.resolve(self.layers).items()
        }
        view = clone(self._skeleton, bound)
        view.generation_config = copy.copy(view.generation_config)
        return view

    def reference(self, ids: Tensor) -> Tensor:
        """Logits (n, t, vocabulary) of the full-precision model, computed in float32 whatever the compute
        dtype: what plans are measured against.

        Where the compute dtype is narrower a float32 copy is made for the call: references are computed once
        and cached by whoever asks."""
        exact = self.dtype == torch.float32
        model = (
            self.view(PrecisionPlan.full())
            if exact
            else _skeleton(self._loaded.model, (), self.device, torch.float32)
        )
        with torch.inference_mode():
            return model(input_ids=ids.to(self.device), use_cache=False).logits

    def make_cache(self, plan: PrecisionPlan) -> Cache:
        """An empty key-value cache at the plan's width, for one conversation."""
        return make_cache(self.config, plan.kv)

    def packed(self, layer: str, bits: int) -> Quantised:
        """One layer as it is deployed at this width (2..8)."""
        return self.bank.packed(layer, bits)

    @property
    def resident_bytes(self) -> int:
        """The *elastic* memory: bytes of all weights in memory now, source, unquantised parts and bank."""
        return sum(w.nbytes for w in self._weights.values()) + self._full_bytes + self.bank.resident_bytes

    def _values(self, layer: str, bits: int) -> Tensor:
        source = self._weights[layer]
        if bits == FULL and (source.dtype, source.device) == (self.dtype, self.device):
            return source  # nothing to make, and nothing for the bank to count a second time
        return self.bank.dense(layer, bits)

    def _make(self, layer: str, bits: int) -> tuple[Quantised | None, Tensor]:
        weight = self._weights[layer].to(self.device)
        if bits == FULL:
            return None, weight
        return self.artifact.quantise(layer, weight, bits)


def _skeleton(
    model: PreTrainedModel, layers: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """The model without the weights that plans speak of; the rest in the compute dtype on the device. Ties
    are kept."""
    hollow = {name: _hollow(model.get_submodule(name)) for name in layers}
    skeleton = clone(model, hollow)
    moved: dict[int, nn.Parameter] = {}
    for module in skeleton.modules():
        module.__dict__["_parameters"] = {
            key: p
            if p is None or p.is_meta
            else moved.setdefault(id(p), nn.Parameter(p.to(device, dtype), requires_grad=False))
            for key, p in module._parameters.items()
        }
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)
    return skeleton


def _hollow(linear: nn.Linear) -> nn.Linear:
    """The same linear layer without its weight."""
    hollow = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    hollow.bias = linear.bias
    return hollow.requires_grad_(False)


def _unbound(linear: nn.Linear) -> BoundLinear:
    """The layer as a view holds it, still without values."""
    return BoundLinear(linear.weight, None if linear.bias is None else linear.bias.data, Bits())
