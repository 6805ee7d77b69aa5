"""A model being rewritten: every step notes its edits, and at the end each weight is read, edited and rounded
once.

An edit is a function on (weight, bias) in float64. They are kept as a list per layer and run one layer at a
time when the rewriter is finished, so that a large model never lies in memory in float64. Only the norms,
which are small, are held and changed at once. The model that was given is never written to: the new one is a
clone that shares whatever nobody edited.

Results are float16 where the model has 16 bits, bfloat16 included (its eight digits are fewer than a rotated
weight needs); a model in float32 or float64 stays as wide as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from quept.models import LoadedModel, ModelLayout
from quept.models.clone import clone, shallow_copy

from .normalization import Norm
from .online import HadamardLinear
from .record import Record, TransformError

OnTensor = Callable[[Tensor], Tensor]
Edit = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class Rewriter:
    """The working copy of one model. `norms` by name; `readers` names the linear layers behind each norm, the
    head behind the last; `embeddings` everything that is looked up and added to the residual stream."""

    def __init__(self, loaded: LoadedModel):
        self.loaded = loaded
        self.model: nn.Module = loaded.model
        self.layout: ModelLayout = loaded.layout
        self.online: set[str] = set()
        self.untied = False
        self._edits: dict[str, list[Edit]] = {}
        self.readers = readers(self.model, self.layout)
        self.norms = {name: Norm.of(self.model.get_submodule(name)) for name in self.readers}
        self._found = dict(self.norms)
        self.embeddings = [n for n, m in self.model.named_modules() if isinstance(m, nn.Embedding)]

    def columns(self, name: str, change: OnTensor) -> None:
        """Change a weight along its last axis: a linear layer's inputs, an embedding's features."""
        self.edit(name, lambda weight, bias: (change(weight), bias))

    def rows(self, name: str, change: OnTensor) -> None:
        """Change a linear layer's outputs, its bias included; `change` works along the last axis."""
        self.edit(name, lambda weight, bias: (change(weight.mT).mT, None if bias is None else change(bias)))

    def edit(self, name: str, edit: Edit) -> None:
        self._edits.setdefault(name, []).append(edit)

    def untie(self) -> None:
        """Give the head a weight of its own."""
        self.untied = True
        self._edits.setdefault(self.layout.head, [])

    def finish(self, record: Record, made: Mapping[str, Tensor] | None = None) -> LoadedModel:
        """The transformed model; TransformError if a weight does not fit its dtype any more. made: what came
        out another time, `{name of the parameter: values}`, to be taken instead."""
        changed = {name: self._edited(name, edits, made) for name, edits in self._edits.items()}
        for name, norm in self.norms.items():
            if norm is not self._found[name]:
                changed[name] = self._with_norm(name, norm)
        model = clone(self.model, changed)
        kept: dict[int, nn.Parameter] = {}  # what nobody edited, ties included
        for name, module in model.named_modules():
            for key, p in module._parameters.items():
                if p is not None and p.dtype != _storage(p.dtype):
                    values = made[f"{name}.{key}"] if made and id(p) not in kept else p
                    module._parameters[key] = kept.setdefault(id(p), _parameter(values, p.dtype))
        if hasattr(self.model, "config"):
            self._describe(model)
        return replace(self.loaded, model=model, record=record, online=frozenset(self.online))

    def _describe(self, model: nn.Module) -> None:
        """Say in the config of transformers what has changed."""
        config, old = copy.deepcopy(self.model.config), self.model.config
        config.dtype = next(model.parameters()).dtype
        if self.untied:
            config.tie_word_embeddings = False
            model.all_tied_weights_keys = {}
        for module in model.modules():
            if module.__dict__.get("config") is old:
                module.config = config

    def _edited(self, name: str, edits: list[Edit], made: Mapping[str, Tensor] | None) -> nn.Module:
        module = shallow_copy(self.model.get_submodule(name))
        dtype = module.weight.dtype
        old = getattr(module, "bias", None)
        if made:
            weight, bias = made[f"{name}.weight"], made.get(f"{name}.bias")
        else:
            weight, bias = module.weight.detach().double(), None if old is None else old.detach().double()
            for edit in edits:
                weight, bias = edit(weight, bias)
        module._parameters["weight"] = _parameter(weight, dtype, name)
        if bias is not None:
            module._parameters["bias"] = _parameter(bias, dtype, name)
        return HadamardLinear.of(module) if name in self.online else module

    def _with_norm(self, name: str, norm: Norm) -> nn.Module:
        old = self.model.get_submodule(name)
        dtype = next(chain(old.parameters(), self.model.parameters())).dtype
        return norm.put_into(old, lambda values: _parameter(values, dtype, name))


def readers(model: nn.Module, layout: ModelLayout) -> dict[str, tuple[str, ...]]:
    """`{norm: the linear layers that read it}` by full name; of a language model the final norm and the head
    last. TransformError for a language model that is wired in another way than the families are."""
    if layout.kind != "language":
        return layout.norms
    named = dict(model.named_modules())
    found = layout.norms | {layout.final_norm: (layout.head,)}
    known = {*layout.layers, layout.head}
    others = [n for n, m in named.items() if isinstance(m, nn.Linear) and n not in known]
    if layout.fused:
        raise TransformError(
            f"this {layout.family} model cannot be transformed: {min(layout.fused)} holds query, key and "
            "value head by head; calibrate it without transforms"
        )
    if layout.routers:
        raise TransformError(
            f"this {layout.family} model cannot be transformed: {layout.routers[0]} chooses experts by what "
            "the norm before it gives; calibrate it without transforms"
        )
    if others or layout.final_norm not in named or not getattr(model.config, "do_layer_norm_before", True):
        raise TransformError(
            f"this {layout.family} model cannot be transformed: its norms come after the layers, or "
            f"linear layers stand between ({', '.join(others) or 'none'}); calibrate it without transforms"
        )
    return found


def _storage(dtype: torch.dtype) -> torch.dtype:
    return torch.float16 if dtype == torch.bfloat16 else dtype


def _parameter(values: Tensor, dtype: torch.dtype, name: str = "a weight") -> nn.Parameter:
    values = values.detach().to(_storage(dtype)).contiguous()
    if not torch.isfinite(values).all():
        raise TransformError(f"{name} is not finite in {_storage(dtype)} after the transforms")
    return nn.Parameter(values, requires_grad=False)
