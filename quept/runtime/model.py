"""ElasticModel: one loaded model, any number of views of it, each at its own precision.

A view is an ordinary module of Hugging Face's transformers or of timm: a clone of the module tree (a few
hundred small objects, about a millisecond) that shares every tensor with its siblings and carries a bound
linear at each layer the plan speaks of, and embeddings over rounded values where it gives them a width.
Nothing is mutated by making or running one, so two threads at two precisions never see each other and
A -> B -> A gives bit-identical results.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from quept.artifact import Artifact, Source, resolve_source
from quept.models import LoadedModel, ModelLayout, load
from quept.models.clone import clone, shallow_copy
from quept.models.context import check_context
from quept.numerics.grid import Quantized
from quept.plan import FULL, Bits, PlanError, PrecisionPlan
from quept.presets import presets

from .bank import WeightBank
from .baselines import BaselineLayers, baseline_named
from .generate import Sampling, Stream, stream
from .kvcache import make_cache
from .linear import BoundLinear
from .memory import release_freed
from .sizes import Sizes

# Bytes the bank may keep: two uniform widths of a 135M model dense in float32, and every width packed.
DEFAULT_BUDGET = 1_250_000_000
MANY = 32  # weights made at once, after which freed memory is given back


def compute_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype this device multiplies fastest in without losing a model: bfloat16 where the hardware has it,
    else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = torch.cpu.get_capabilities()
    fast = has.get("avx512_bf16") or has.get("amx_bf16")
    used = torch.backends.cpu.get_cpu_capability() == "AVX512"  # not where ATEN_CPU_CAPABILITY asks for less
    return torch.bfloat16 if device.type == "cpu" and fast and used else torch.float32


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
        base, loaded = loaded, artifact.prepared(loaded)
        if loaded is base:
            self.__dict__["_base"] = base
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or compute_dtype(self.device)
        self.artifact, self.source, self.title = artifact, loaded.source, _title(loaded, artifact)
        self.origin = Source(loaded.source, loaded.source)  # `open` knows better
        self.fingerprint, self.provenance = loaded.fingerprint, loaded.provenance
        self.base_identity = base.identity
        self.kind, self.vision = loaded.kind, loaded.vision
        self.processor, self.questions = loaded.processor, loaded.questions
        self.layout: ModelLayout = loaded.layout
        self.layers: tuple[str, ...] = loaded.layout.layers
        self.embeddings: tuple[str, ...] = loaded.embeddings
        untouched = Sizes.of(base, artifact.group)
        self.sizes = Sizes.of(loaded, artifact.group, untouched.parameters)
        self._tokenizer = loaded.tokenizer
        self._weights = {name: loaded.model.get_submodule(name).weight.data for name in self.layers}
        self._moved: dict[int, nn.Parameter] = {}
        self._skeleton = _skeleton(loaded.model, self.layers, self.device, self.dtype, self._moved)
        self._unbound = {
            name: _unbound(
                self._skeleton.get_submodule(name), name in loaded.online, artifact.engine.static(name)
            )
            for name in self.layers
        }
        self._full_bytes = sum(p.nbytes for p in self._skeleton.parameters() if not p.is_meta)
        self._prepared = loaded
        self._base_fixed = untouched.fixed + untouched.embeddings[FULL]
        self.bank = WeightBank(self._make, self.dtype, budget)
        self._baselines = BaselineLayers(
            {name: tuple(weight.shape) for name, weight in self._weights.items()},
            lambda layer: self._base.model.get_submodule(layer),
            self.dtype,
            self.device,
        )

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        progress: Callable[[str, float | None], None] | None = None,
        base: LoadedModel | None = None,
        **options,
    ) -> ElasticModel:
        """Open an artifact folder; a built-in model with the artifact that comes with it ("smollm2-135m", or
        another one, "smollm2-135m:weight-act"); or any model by hub id or folder, then with round-to-nearest
        at the default group, as "smollm2-135m:rtn" does for a built-in one.

        base: the model already loaded, to share it between artifacts. Options: device, dtype, budget (bytes).
        Raises ArtifactError or LoadError in words."""
        origin = resolve_source(source)
        artifact = Artifact.open(origin.artifact) if origin.artifact else None
        loaded = base or load(origin.base, progress)
        origin.check_cached(loaded.fingerprint)
        opened = cls(loaded, artifact or Artifact.rtn(loaded, loaded.group), **options)
        opened.origin = origin
        return opened

    @property
    def identity(self) -> str:
        """What numbers measured with it belong to: the base's identity (weights, config, tokenizer) and the
        artifact's (method, grid, transforms, what was learned). `base_identity`: the former alone, for what
        the full-precision model or another tool's answers."""
        return hashlib.sha256(f"{self.base_identity} {self.artifact.identity}".encode()).hexdigest()

    def is_named(self, identity: str) -> bool:
        """Whether a table or front of this identity is of this model. Files written before configs counted
        name its artifact or its weights alone, and are taken at their word."""
        return identity in (self.identity, self.artifact.identity, self.artifact.weights_id)

    @property
    def base(self) -> nn.Module:
        """The model in 16 bits, transformed as the artifact says: what every width is made from, and what an
        export stores of the rest. Never write to it."""
        return self._prepared.model

    @property
    def config(self):
        """Of a model of transformers its config; of a classifier of pictures the content of its
        config.json."""
        return self._skeleton.config if self.vision is None else self.vision.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of a language model or vision-language model; ValueError for a classifier of pictures."""
        self._check_language("has no tokenizer")
        return self._tokenizer

    @property
    def presets(self) -> list[PrecisionPlan]:
        """The named plans that fit. A vision-language model takes those without rules, which say nothing of
        what sees (see `ModelLayout.guarded`)."""
        plans = [p for p in presets(Path(self.source).name, self.layers) if p.kv == FULL or not self.vision]
        if self.kind == "vision-language":
            return [self.layout.guarded(plan) for plan in plans if not plan.rules]
        return plans

    def view(self, plan: PrecisionPlan) -> nn.Module:
        """The model at this plan; raises PlanError if the plan does not fit it. Weights not yet in the bank
        are made now."""
        if plan.kv != FULL and self.vision:
            raise PlanError(f"{self.title} classifies pictures and has no KV cache: leave KV out of the plan")
        filled = self.bank.filled
        bound = {
            name: self._unbound[name].bound(self._values(name, bits.weights), bits)
            for name, bits in plan.resolve(self.layers).items()
        }
        if plan.embeddings != FULL:
            bound |= self._embeddings_at(plan.embeddings)
        if self.bank.filled - filled >= MANY:
            release_freed()
        return self._dressed(bound)

    def baseline(self, name: str) -> nn.Module:
        """The model as another tool quantizes it: "nf4" or "int8", see `baselines`; made from the weights as
        they were loaded, whatever transforms our widths start from. Layers not made yet are made now, which
        takes seconds; `prepare_baseline` does it in steps. BaselineError in words."""
        return self._dressed(self._baselines.bound(name), self._untransformed)

    def prepare_baseline(self, name: str) -> Iterator[float]:
        """Make a baseline's layers one at a time; yields the share done after each, nothing if all
        are there."""
        return self._baselines.make(name)

    def baseline_bytes(self, name: str) -> int:
        """The deploy bytes of a baseline: its codes and scales, and the rest in 16 bits as in every plan."""
        return self._base_fixed + self._baselines.nbytes(baseline_named(name).name)

    def with_weights(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A view of the model as it was loaded with these dense weights (out, in) in its layers: what another
        tool made of them. Raises ValueError where one is missing, unknown or of another shape."""
        odd = sorted(set(weights) ^ set(self.layers))
        odd += [name for name in self.layers if name not in odd and weights[name].shape != self._shape(name)]
        if odd:
            raise ValueError(
                f"one weight of its shape is needed for each of the {len(self.layers)} layers; "
                f"look at {odd[0]!r}"
            )
        linears = {name: self._untransformed.get_submodule(name) for name in self.layers}
        return self._dressed(
            {
                name: BoundLinear(weights[name].to(self.device, self.dtype), linear.bias, Bits())
                for name, linear in linears.items()
            },
            self._untransformed,
        )

    def reference(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Logits of the full-precision model as it was loaded, computed in float32 whatever the compute
        dtype: what plans are measured against. Token ids (n, t) give (n, t, vocabulary), prepared pictures
        (n, channels, height, width) give (n, classes); a vision-language model takes all arguments of its
        forward by name.

        References are computed once and cached by whoever asks."""
        model = self.full_precision()
        with torch.inference_mode():
            if self.vision:
                return model(inputs.to(self.device, torch.float32))
            if isinstance(inputs, Tensor):
                inputs = {"input_ids": inputs}
            check_context(inputs["input_ids"].shape[-1], model)
            inputs = {name: t.to(self.device) for name, t in inputs.items()}
            return model(**inputs, use_cache=False).logits

    def full_precision(self) -> nn.Module:
        """The full-precision model as it was loaded, which computes in float32 whatever the compute dtype.
        Where that is narrower, or the weights are transformed, its weights are float32 copies: let it go
        soon."""
        if self.dtype != torch.float32:
            return _skeleton(self._base.model, (), self.device, torch.float32)
        if self._prepared is self._base:
            return self.view(PrecisionPlan.full())
        return self.with_weights({n: self._base.model.get_submodule(n).weight for n in self.layers})

    def make_cache(self, plan: PrecisionPlan) -> Cache:
        """An empty key-value cache at the plan's width, for one conversation; ValueError for a classifier of
        pictures."""
        self._check_language("keeps no keys and values")
        return make_cache(self.config, plan.kv)

    def stream(
        self,
        plan: PrecisionPlan,
        messages: str | Sequence[Mapping[str, Any]],
        sampling: Sampling | None = None,
        **options,
    ) -> Stream:
        """Answers a prompt, or a conversation `[{"role", "content"}, ...]`, at a plan, a bounded step at a
        time. options: system, pictures, conversation, top; see `generate.stream`."""
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        tokenizer, cache = self.tokenizer, lambda: self.make_cache(plan)
        return stream(self.view(plan), tokenizer, asked, sampling, cache, processor=self.processor, **options)

    def generate(
        self, plan: PrecisionPlan, messages: str | Sequence[Mapping[str, Any]], *args, **options
    ) -> str:
        """Returns the whole answer that `stream` gives."""
        return "".join(event.text for event in self.stream(plan, messages, *args, **options))

    def packed(self, layer: str, bits: int) -> Quantized:
        """One layer, or one of `embeddings`, as it is deployed at this width (2..8)."""
        return self.bank.packed(layer, bits)

    @property
    def resident_bytes(self) -> int:
        """The *elastic* memory: bytes of all weights in memory now, source, unquantized parts, bank
        and baselines."""
        weights = sum(w.nbytes for w in self._weights.values())
        made = self.bank.resident_bytes + self._baselines.resident_bytes
        return weights + self._full_bytes + made

    def _check_language(self, lack: str) -> None:
        if self.vision:
            raise ValueError(f"{self.title} classifies pictures and {lack}: this is for language models")

    def _dressed(self, linears: Mapping[str, nn.Module], skeleton: nn.Module | None = None) -> nn.Module:
        view = clone(self._skeleton if skeleton is None else skeleton, linears)
        if self.vision is None:
            view.generation_config = copy.copy(view.generation_config)
        return view

    @cached_property
    def _base(self) -> LoadedModel:
        """The model as it was loaded. Where it was transformed it was let go, and is read again for the few
        who ask: a reference that is not cached yet, a baseline."""
        base = load(self.artifact.base)
        self.artifact.check_base(base)
        return base

    @cached_property
    def _untransformed(self) -> nn.Module:
        """The skeleton of the model as it was loaded; what no transform touched is shared with the views'."""
        if self._prepared is self._base:
            return self._skeleton
        return _skeleton(self._base.model, self.layers, self.device, self.dtype, self._moved)

    def _shape(self, layer: str) -> torch.Size:
        return self._weights[layer].shape

    def _values(self, layer: str, bits: int) -> Tensor:
        source = self._weights[layer]
        if bits == FULL and (source.dtype, source.device) == (self.dtype, self.device):
            return source  # nothing to make, and nothing for the bank to count a second time
        return self.bank.dense(layer, bits)

    def _embeddings_at(self, bits: int) -> dict[str, nn.Module]:
        """The embedding and the heads over their values at 2..8 bits: over the same ones where they share
        them."""
        owner, values = self.embeddings[0], {name: self.bank.dense(name, bits) for name in self.embeddings}
        ends = {name: self._skeleton.get_submodule(name) for name in self.layout.ends}
        return {
            name: _over(end, values.get(name, values[owner]))
            for name, end in ends.items()
            if hasattr(end, "weight")  # a model that only gives features has nothing for a head
        }

    def _make(self, layer: str, bits: int) -> tuple[Quantized | None, Tensor]:
        weight = self._weights.get(layer)
        if weight is None:  # of the embeddings
            weight = self._prepared.model.get_submodule(layer).weight.data.flatten(1)  # a patch is a row
        weight = weight.to(self.device)
        if bits == FULL:
            return None, weight
        return self.artifact.engine.quantize(layer, weight, bits)


def _title(loaded: LoadedModel, artifact: Artifact) -> str:
    """The model's title, and by which recipe it was calibrated, if it was."""
    recipe = str(artifact.manifest.recipe.get("name", ""))
    for model in (loaded.source, loaded.source.partition("-")[0]):
        recipe = recipe.removeprefix(f"{model}-")
    return f"{loaded.title} · {recipe}" if recipe else loaded.title


def _skeleton(
    model: nn.Module,
    layers: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    moved: dict[int, nn.Parameter] | None = None,
) -> nn.Module:
    """The model without the weights that plans speak of; the rest in the compute dtype on the device, but for
    buffers that are held in more than 16 bits (rotary frequencies) and keep them. Ties are kept. moved: what
    another skeleton moved before, by the id of the parameter, and is shared."""
    hollow = {name: _hollow(model.get_submodule(name)) for name in layers}
    skeleton = clone(model, hollow)
    moved = {} if moved is None else moved
    for module in skeleton.modules():
        module.__dict__["_parameters"] = {
            key: p
            if p is None or p.is_meta
            else moved.setdefault(id(p), nn.Parameter(p.to(device, dtype), requires_grad=False))
            for key, p in module._parameters.items()
        }
        for key, buffer in module._buffers.items():
            if buffer is not None:
                narrow = buffer.dtype in (torch.float16, torch.bfloat16)
                module._buffers[key] = buffer.to(device, dtype if narrow else buffer.dtype)
    return skeleton


def _hollow(linear: nn.Linear) -> nn.Linear:
    """The linear layer without its weight."""
    hollow = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    hollow.bias = linear.bias
    return hollow.requires_grad_(False)


def _over(module: nn.Module, weight: Tensor) -> nn.Module:
    """The module over another weight (out, in), which it holds as a bound linear does."""
    other, shape = shallow_copy(module), module.weight.shape
    del other._parameters["weight"]
    if weight.shape != shape:  # of a convolution
        other.__dict__["rows"] = weight  # the bank's own tensor object, which its weak reference follows
        weight = weight.view(shape)
    other.register_buffer("weight", weight, persistent=False)
    return other


def _unbound(linear: nn.Linear, online: bool, static: Mapping[int, Tensor]) -> BoundLinear:
    """The layer as a view holds it, still without values."""
    bias = None if linear.bias is None else linear.bias.data
    return BoundLinear(linear.weight, bias, Bits(), online, static)
