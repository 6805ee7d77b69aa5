"""How many bytes a plan takes: the *deploy* size, if that plan alone were shipped.

A quantized layer, and embeddings that a plan gives a width, weigh their packed codes, scales and zero-points;
what is at 16 bits, and everything that is never quantized (norms, biases, positions), weighs 2 bytes a
parameter. Tied parameters count once. The export writes exactly these tensors, and a test holds the file to
this count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from quept.artifact import Artifact
from quept.engines import ENGINES, GRADED_WIDTHS, Setting
from quept.engines.rtn import Rtn
from quept.models import LoadedModel
from quept.models.slots import Slot
from quept.plan import FULL, KV_BITS, QUANTIZED_BITS, Bits, PlanError, PrecisionPlan, remembered

from .kvcache import cache_bytes

BYTES_PER_FULL_WEIGHT = 2


@dataclass(frozen=True)
class Sizes:
    """layers: bytes of each layer's weight at each setting of its artifact, `{name: {setting: bytes}}`.
    weights: its number of weights, `{name: n}`. embeddings: bytes of embedding and heads together at each
    width. fixed: bytes of all that no plan touches. parameters: how many the model has, all counted. whole:
    bytes of the whole model at each setting of another engine, which starts from the weights as they were
    loaded. token: bytes that the keys and values of one token take at each width, float16 at 16 bits; empty
    where there is no KV cache. cached: the blocks that keep them, an equal part each. context: tokens whose
    keys and values count as part of the model."""

    layers: Mapping[str, Mapping[Setting, int]]
    weights: Mapping[str, int]
    embeddings: Mapping[int | float, int]
    fixed: int
    parameters: int
    whole: Mapping[Setting, int] = field(default_factory=dict)
    token: Mapping[int, int] = field(default_factory=dict)
    cached: tuple[str, ...] = ()
    context: int = 0

    @classmethod
    def of(cls, loaded: LoadedModel, artifact: Artifact, base: LoadedModel | None = None) -> Sizes:
        """loaded: the model as the artifact transforms it; base: as it was loaded, if it was transformed."""
        engines, grid = artifact.engines, Rtn(artifact.group)
        own = ENGINES[artifact.manifest.method].settings
        slots = loaded.layout.slots | {name: Slot(name, name) for name in loaded.embeddings}
        shapes = {name: tuple(slot.weight(loaded.model).shape) for name, slot in slots.items()}
        full = {name: BYTES_PER_FULL_WEIGHT * math.prod(shape) for name, shape in shapes.items()}
        sized = {
            shape: {s: engines[s].nbytes(*shape, s) for s in own}
            for shape in {shapes[name] for name in loaded.layout.layers}
        }
        layers = {name: sized[shapes[name]] | {FULL: full[name]} for name in loaded.layout.layers}
        ends = [shapes[name] for name in loaded.embeddings]
        rounded = (*QUANTIZED_BITS, *(GRADED_WIDTHS if loaded.kind == "language" else ()))
        embeddings = {b: sum(grid.nbytes(*shape, b) for shape in ends) for b in sorted(rounded)}
        embeddings[FULL] = sum(full[name] for name in loaded.embeddings)
        stored, parameters = (sum(p.numel() for p in m.model.parameters()) for m in (loaded, base or loaded))
        rest = BYTES_PER_FULL_WEIGHT * parameters - sum(full[name] for name in layers)
        whole = {
            setting: rest + sum(engine.nbytes(*shapes[name], setting) for name in layers)
            for setting, engine in engines.items()
            if setting not in own
        }
        fixed = BYTES_PER_FULL_WEIGHT * stored - sum(full.values())
        weights = {name: math.prod(shapes[name]) for name in layers}
        cached = KV_BITS if loaded.tokenizer is not None else ()
        token = {b: cache_bytes(loaded.model.config, b, torch.float16) for b in cached}
        blocks = tuple(block.name for block in loaded.layout.decoder_blocks) if token else ()
        return cls(layers, weights, embeddings, fixed, parameters, whole, token, blocks)

    def other_setting(self, plan: PrecisionPlan) -> Setting | None:
        """The setting of another engine that the plan gives the whole model; None for a plan of the
        artifact's own. PlanError for a plan that mixes them, and for a setting, or a graded width of
        embeddings, that this model has not."""
        if isinstance(plan.embeddings, float) and plan.embeddings not in self.embeddings:
            raise PlanError(
                f"embeddings at {plan.embeddings} bits give common tokens more bits than rare ones, which "
                "these are not: give them a whole number of bits"
            )
        own = next(iter(self.layers.values()), {})
        asked = (bits.weights for bits in (plan.default, *dict(plan.rules).values()))
        if odd := [word for word in asked if isinstance(word, str) and word not in {*own, *self.whole}]:
            raise PlanError(
                f"{odd[0]} is a setting of models with nested codes and routers, which this one is not: open "
                "smollm2-135m:mobiquant, or calibrate with a recipe that has routers"
            )
        if self.whole.keys().isdisjoint(bits.weights for bits in (plan.default, *dict(plan.rules).values())):
            return None
        found = set(plan.resolve(self.layers).values())
        setting = next((bits.weights for bits in found if bits.weights in self.whole), None)
        if setting is not None and (found != {Bits(setting)} or plan.embeddings != FULL):
            raise PlanError(
                f"{setting} is a setting of the whole model and leaves activations and embeddings alone: "
                "give every layer that setting, and leave A and E out of the plan"
            )
        return setting

    def holds(self, plan: PrecisionPlan) -> bool:
        """Whether every width of the plan is one of these: a file's may be fewer."""
        layers = plan.resolve(self.layers).items()
        return plan.embeddings in self.embeddings and all(b.weights in self.layers[n] for n, b in layers)

    def cache(self, plan: PrecisionPlan, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens at this plan."""
        if not plan.kv_blocks:
            return tokens * self.token[plan.kv]
        each = plan.resolve_cache(self.cached).values()
        return tokens * sum(self.token[bits] for bits in each) // len(self.cached)

    @remembered
    def deploy(self, plan: PrecisionPlan) -> int:
        """Bytes of the model at this plan, and of the keys and values of `context` tokens."""
        context = self.cache(plan, self.context) if self.context else 0
        if setting := self.other_setting(plan):
            return self.whole[setting] + context
        layers = plan.resolve(self.layers).items()
        blocks = sum(self.layers[name][bits.weights] for name, bits in layers)
        return self.fixed + self.embeddings[plan.embeddings] + blocks + context

    def bits_per_parameter(self, plan: PrecisionPlan) -> float:
        return 8 * self.deploy(plan) / self.parameters
