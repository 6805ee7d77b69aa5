"""ElasticModel: one loaded model, any number of views of it, each at its own precision.

A view is an ordinary module of Hugging Face's transformers or of timm: a clone of the module tree (a few
hundred small objects, about a millisecond) that shares every tensor with its siblings and carries a bound
linear at each layer the plan speaks of, and embeddings over rounded values where it gives them a width.
Nothing is mutated by making or running one, so two threads at two precisions never see each other and
A -> B -> A gives bit-identical results.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from quept.artifact import Artifact, Manifest, Source, resolve_source
from quept.engines import Setting, named_settings
from quept.engines.base import Engine, EngineError, Stored
from quept.engines.rtn import Rtn
from quept.models import LoadedModel, ModelLayout, load
from quept.models.context import check_context
from quept.models.slots import Slot
from quept.numerics.grid import Quantized
from quept.plan import FULL, Bits, PlanError, PrecisionPlan, remembered
from quept.presets import presets

from .assembly import Template
from .backends import BACKENDS, Dense, Weight, backend_for
from .bank import WeightBank
from .generate import Sampling, Stream, stream
from .kvcache import cache_bytes, make_cache
from .memory import release_freed, release_weights
from .prompt import check_known
from .sizes import Sizes

# Bytes the bank may keep: of a 135M model every width packed; where they are multiplied dense two uniform
# widths in float32 besides.
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
        self._base, loaded = loaded, artifact.prepared(loaded)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        convolves, wide = loaded.layout.convolutional, loaded.vision and self.device.type == "cpu"
        # Classifiers as timm's do: of a convolutional one bfloat16 alone changes one answer in a hundred.
        self.dtype = dtype or (torch.float32 if wide else compute_dtype(self.device))
        self.artifact, self.source = artifact, loaded.source
        self.title = title_of(loaded.title, loaded.source, artifact.manifest)
        self.origin = Source(loaded.source, loaded.source)  # `open` knows better
        self.fingerprint, self.provenance = loaded.fingerprint, loaded.provenance
        self.base_identity = self._base.identity
        self.kind, self.vision = loaded.kind, loaded.vision
        self.processor, self.questions = loaded.processor, loaded.questions
        self.layout: ModelLayout = loaded.layout
        self.layers: tuple[str, ...] = loaded.layout.layers
        self.embeddings: tuple[str, ...] = loaded.embeddings
        self.online: frozenset[str] = loaded.online
        self.sizes = Sizes.of(loaded, artifact, self._base)
        self._engines = artifact.engines
        self._grid = Rtn(artifact.group)  # of the embeddings, whatever the engine of the layers
        # Each of a picture's many pixels is a row: packed weights would be unpacked again for every picture.
        self._backend = Dense(self.dtype, self.device) if convolves else backend_for(self.device, self.dtype)
        self._tokenizer, self._prepared = loaded.tokenizer, loaded
        self._moved: dict[int, nn.Parameter] = {}
        self._template = Template(loaded, artifact.engine, self._backend, self.device, self._moved)
        self.bank = WeightBank(
            self._make, self._ready, budget, self._storage, self._backend.stored, self._rounded
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
        Raises ArtifactError or LoadError with a sentence."""
        origin = resolve_source(source)
        artifact = Artifact.open(origin.artifact) if origin.artifact else None
        loaded = base or load(origin.base, progress)
        origin.check_cached(loaded.fingerprint)
        opened = cls(loaded, artifact or Artifact.rtn(loaded, loaded.group), **options)
        opened.origin = origin
        opened.let_go()
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
        return self._template.model.config if self.has_cache else self.vision.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of a language model or vision-language model; ValueError for a classifier of pictures."""
        self._check_language("has no tokenizer: this is for language models")
        return self._tokenizer

    @property
    def settings(self) -> dict[str, str]:
        """The settings that this model has besides widths and that menus offer, with their titles."""
        titles = named_settings(listed=True)
        return {setting: title for setting, title in titles.items() if setting in self._engines}

    @property
    def presets(self) -> list[PrecisionPlan]:
        """The named plans that fit. A vision-language model takes those without rules, which say nothing of
        what sees (see `PrecisionPlan.keeping`)."""
        plans = presets(Path(self.source).name, self.layers)
        vision = self.layout.vision_layers
        cached = [p for p in plans if self.has_cache or not p.rounds_cache]
        return [plan.keeping(vision) for plan in cached if not (vision and plan.rules)]

    @property
    def has_cache(self) -> bool:
        """Whether the model keeps keys and values of what it has read: all but classifiers of pictures do."""
        return self._tokenizer is not None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of every layer and every one of `embeddings`, by name."""
        slots = self.layout.slots | {name: Slot(name, name) for name in self.embeddings}
        return {name: tuple(slot.weight(self.base).shape) for name, slot in slots.items()}

    @property
    def cached_blocks(self) -> tuple[str, ...]:
        """Names of the blocks that keep keys and values, in order: what a plan's `kv_blocks` speak of."""
        return self.sizes.cached

    def view(self, plan: PrecisionPlan) -> nn.Module:
        """The model at this plan; raises PlanError if the plan does not fit it, EngineError where a setting
        cannot be made here. Weights not yet in the bank are made now."""
        steps = self.prepare(plan)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value

    def prepare(self, plan: PrecisionPlan) -> Generator[float, None, nn.Module]:
        """Puts a view together one layer at a time, so that whoever holds a gate can let others in between:
        yields the share done after each layer that had to be made, and returns the view.

        Settings of this model's artifact start from its transformed weights, those of another engine (NF4)
        from the weights as they were loaded."""
        if plan.rounds_cache:
            self._check_language("has no KV cache: leave KV out of the plan", PlanError)
            plan.resolve_cache(self.cached_blocks)
        other = self.sizes.other_setting(plan)
        if missing := other and self._engines[other].missing():
            raise EngineError(missing)
        template = self._as_loaded if other else self._template
        filled, resolved = self.bank.filled, plan.resolve(self.layers)
        settings = [bits.weights for bits in resolved.values()]
        made_of = self.bank.known(zip(resolved, settings, strict=True))
        for at, name in enumerate(resolved):
            if made_of[at] is None:
                before = self.bank.filled
                made_of[at] = self._weight(name, settings[at])
                if self.bank.filled > before:
                    yield (at + 1) / len(self.layers)
        engines = filter(None, map(self._engines.get, {*settings} - {FULL}))
        if any(engine.runs_itself for engine in engines):
            layers = self._bound(template, resolved, made_of)
        else:
            layers = template.bound(resolved, made_of)
        ends = {} if plan.embeddings == FULL else self._embeddings_at(plan.embeddings, made_of)
        if self.bank.filled - filled >= MANY:
            self.let_go()
        return template.assemble(layers, ends, made_of)

    def steady(self, plan: PrecisionPlan) -> bool:
        """Whether text read in parts gives the very logits of text read at once, so that keys and values may
        be kept between turns."""
        settings = {bits.weights for bits in plan.resolve(self.layers).values()} - {FULL}
        return all(self._engines[setting].steady(setting) for setting in settings)

    @remembered
    def filed_under(self, plan: PrecisionPlan) -> tuple[str, str]:
        """What numbers measured at this plan belong to: (plan, model) of a ResultKey. Those of another
        engine's setting name the base: how ours is quantized does not matter to them."""
        other = self.sizes.other_setting(plan)
        if other is None:
            return plan.key(self.layers), self.identity
        key = self._engines[other].key(other)
        if not plan.rounds_cache:
            return key, self.base_identity
        widths = [str(bits) for bits in plan.resolve_cache(self.cached_blocks).values()]
        return f"{key} kv {widths[0] if len(set(widths)) == 1 else ' '.join(widths)}", self.base_identity

    def conditions(self, plan: PrecisionPlan) -> dict[str, str | int]:
        """How this plan's weights are made, for people and files that read numbers: method and group, or what
        another engine says of itself."""
        other = self.sizes.other_setting(plan)
        if other is None:
            return {"method": self.artifact.manifest.method, "group": self.artifact.group}
        return self._engines[other].conditions()

    def values(self, layer: str, setting: Setting) -> Tensor:
        """One layer's weight (out, in) at a setting, float32 but for 16, made for this call and not kept."""
        stored, values = self._make(layer, setting)
        return self._engines[setting].values(stored, setting) if values is None else values

    def with_weights(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A view of the model as it was loaded with these dense weights (out, in) in its layers: what another
        tool made of them. Raises ValueError where one is missing, unknown or of another shape."""
        shapes = {name: weight.shape for name, weight in self._template.weights.items()}
        given = {name: weight.shape for name, weight in weights.items()}
        odd = [name for name in (*shapes, *sorted(given)) if shapes.get(name) != given.get(name)]
        if odd:
            raise ValueError(
                f"one weight of its shape is needed for each of the {len(self.layers)} layers; "
                f"look at {odd[0]!r}"
            )
        template = self._as_loaded
        dense = {name: weight.to(self.device, self.dtype) for name, weight in weights.items()}
        layers = {name: template.layers[name].bound(weight, Bits()) for name, weight in dense.items()}
        return template.assemble(layers, {}, ())

    def reference(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Logits of the full-precision model as it was loaded, computed in float32 whatever the compute
        dtype: what plans are measured against. Token ids (n, t) give (n, t, vocabulary), prepared pictures
        (n, channels, height, width) give (n, classes); a vision-language model takes all arguments of its
        forward by name.

        References are computed once and cached by whoever asks."""
        model = self.full_precision()
        if isinstance(inputs, Tensor) and self.has_cache:
            check_known(inputs.flatten(), model, self._tokenizer)
        with torch.inference_mode():
            if not self.has_cache:
                return model(inputs.to(self.device, torch.float32))
            if isinstance(inputs, Tensor):
                inputs = {"input_ids": inputs}
            check_context(inputs["input_ids"].shape[-1], model)
            inputs = {name: t.to(self.device) for name, t in inputs.items()}
            return model(**inputs, use_cache=False).logits

    def full_precision(self) -> nn.Module:
        """The full-precision model as it was loaded, which computes in float32 whatever the compute dtype.
        Where the backend cannot widen weights in passing, it has float32 copies of them: let it go soon."""
        if self.dtype == torch.float32:
            return self._as_loaded.full()
        wide = backend_for(self.device, torch.float32)
        return Template(self._base, self._grid, wide, self.device, {}).full()

    def make_cache(self, plan: PrecisionPlan) -> Cache:
        """An empty key-value cache at the plan's widths, for one conversation; ValueError for a classifier of
        pictures."""
        self._check_language("keeps no keys and values: this is for language models")
        widths = tuple(plan.resolve_cache(self.cached_blocks).values())
        return make_cache(self.config, widths if len(set(widths)) > 1 else widths[0])

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

    def packed(self, layer: str, setting: Setting) -> Stored:
        """One layer, or one of `embeddings`, as it is deployed at this setting."""
        engine = self._grid if layer in self.embeddings else self._engines.get(setting, self._grid)
        return engine.deployed(self.bank.stored(layer, setting), setting)

    @property
    def resident_bytes(self) -> int:
        """The *elastic* memory: bytes of all weights in memory or mapped into it now, those of the source,
        what of them was copied into the compute dtype, the bank and what it is multiplied through."""
        source = {p.data_ptr(): p.nbytes for p in self.base.parameters()}
        moved = {p.data_ptr(): p.nbytes for p in self._template.model.parameters() if not p.is_meta}
        return sum((source | moved).values()) + self.bank.resident_bytes + self._backend.scratch_bytes

    @property
    def dense(self) -> str:
        """Why weights are multiplied as values here and not as packed codes; "" if they are packed."""
        if self.layout.convolutional:
            return "Convolutions are computed with values: every picture has thousands of pixels to multiply"
        packed = BACKENDS.get(self.device.type, Dense)
        return packed.missing(self.device, self.dtype)

    def let_go(self) -> None:
        """Gives back the memory that making weights and multiplying by them took: buffers, what was freed,
        what was read of files."""
        self._backend.let_go()
        release_freed()
        learned = self.artifact.engine.tensors().values()
        release_weights(chain(self._base.model.parameters(), self.base.parameters(), learned))

    def memory(self, plan: PrecisionPlan, tokens: int = 0) -> dict[str, int]:
        """Bytes that this plan takes of the memory here: its weights as they are deployed, and their values
        where these are multiplied; keys and values of a conversation of so many tokens; what layers are
        unpacked into."""
        values = sum(self.sizes.weights.values()) * self.dtype.itemsize if self.dense else 0
        weights = self.sizes.deploy(plan) + values
        cache = self._cache_here(plan) * tokens if self.has_cache else 0
        return {"weights": weights, "cache": cache, "scratch": self._backend.scratch_bytes}

    def _cache_here(self, plan: PrecisionPlan) -> int:
        """Bytes of one token's keys and values, those at 16 bits in the compute dtype."""
        each = Counter(plan.resolve_cache(self.cached_blocks).values())
        whole = {bits: cache_bytes(self.config, bits, self.dtype) for bits in each}
        return sum(count * whole[bits] for bits, count in each.items()) // len(self.cached_blocks)

    def _check_language(self, lack: str, error: type[ValueError] = ValueError) -> None:
        if not self.has_cache:
            raise error(f"{self.title} classifies pictures and {lack}")

    @cached_property
    def _as_loaded(self) -> Template:
        """The template of the model as it was loaded; what no transform touched is shared with the views'."""
        if self._prepared is self._base:
            return self._template
        return Template(self._base, self._grid, self._backend, self.device, self._moved)

    def _weight(self, layer: str, setting: Setting) -> Weight:
        if setting == FULL and self._template.untouched[layer] is not None:
            return self._template.untouched[layer]  # nothing to make, and nothing for the bank to count
        return self.bank.weight(layer, setting)

    def _bound(
        self, template: Template, bits: Mapping[str, Bits], weights: Sequence[Weight]
    ) -> dict[str, nn.Module]:
        """What `template.bound` returns, with the modules of engines that run their layers themselves."""
        layers = {}
        for (name, width), weight in zip(bits.items(), weights, strict=True):
            engine = self._engines.get(width.weights)
            if engine is None or not engine.runs_itself:
                layers[name] = template.layers[name].bound(weight, width)
            elif width.activations == FULL:
                layers[name] = engine.module(weight, width.weights, template.biases[name], self.dtype)
            else:
                raise PlanError(f"{width.weights} rounds activations in its own way: leave A out of the plan")
        return layers

    def _embeddings_at(self, bits: int | float, made_of: list[Weight]) -> dict[str, nn.Module]:
        """The embedding and the heads over their values at 2..8 bits: over the same ones where they share
        them."""
        values = {name: self.bank.weight(name, bits) for name in self.embeddings}
        shared = values[self.embeddings[0]]
        made_of += values.values()
        has = {name: hasattr(self.base.get_submodule(name), "weight") for name in self.layout.ends}
        ends = [name for name in has if has[name]]  # a head may be none
        return {name: self._end(name, values.get(name, shared)) for name in ends}

    def _end(self, name: str, weight: Weight) -> nn.Module:
        """The embedding or a head over a weight."""
        if not isinstance(weight, Tensor):
            if found := self._backend.over(self.base.get_submodule(name), weight):
                return found
            weight = weight.unpack().to(self.dtype)  # of patches of pictures: small
        return Slot(name, name).over(self._template.model, weight)

    def _make(self, layer: str, setting: Setting) -> tuple[Stored | None, Tensor | None]:
        engine, weight = self._source(layer, setting)
        weight = weight.to(self.device)
        return (None, weight) if setting == FULL else engine.quantize(layer, weight, setting)

    def _rounded(self, layer: str, setting: Setting) -> Weight | None:
        if setting == FULL:
            return None
        engine, weight = self._source(layer, setting)
        return self._backend.rounded(lambda: engine.rounding(layer, weight, setting))

    def _source(self, layer: str, setting: Setting) -> tuple[Engine, Tensor]:
        """Who makes a layer, or one of `embeddings`, at this setting, and of which weight (out, in)."""
        if layer in self.embeddings:
            return self._grid, Slot(layer, layer).weight(self._prepared.model)
        template = self._as_loaded if setting in self.sizes.whole else self._template
        return self._engines.get(setting, self._grid), template.weights[layer]

    def _ready(self, stored: Stored | None, values: Tensor | None, setting: Setting) -> Weight:
        engine = self._engines.get(setting, self._grid)
        if engine.runs_itself:
            if not isinstance(stored, Quantized):
                return stored
            engine = self._grid  # of an embedding
        made = (lambda: engine.values(stored, setting)) if values is None else lambda: values
        return self._backend.ready(stored, made)

    def _storage(self, setting: Setting) -> Setting:
        return self._engines[setting].storage(setting) if setting in self._engines else setting


def title_of(title: str, source: str, manifest: Manifest) -> str:
    """A model's title, and by which recipe it was calibrated, if it was."""
    recipe = str(manifest.recipe.get("name", ""))
    for model in (source, source.partition("-")[0]):
        recipe = recipe.removeprefix(f"{model}-")
    return f"{title} · {recipe}" if recipe else title
