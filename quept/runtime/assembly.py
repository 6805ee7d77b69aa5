"""A model without the weights that plans speak of: what views are put together from.

All else is there once, in the compute dtype on the device, and shared by every view; in place of each slot's
matrix there is an empty linear layer of the backend, waiting to be bound.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from quept.engines.base import Engine
from quept.models import LoadedModel
from quept.models.clone import Mold, clone
from quept.models.slots import emptied, put
from quept.plan import Bits

from .backends import Dense, Weight

HALVES = (torch.float16, torch.bfloat16)


class Template:
    """The template of a loaded model, rounded by `engine`. moved: parameters that another template has moved
    already, by the id of the source, to be shared."""

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Engine,
        backend: Dense,
        device: torch.device,
        moved: dict[int, nn.Parameter],
    ):
        self.slots = loaded.layout.slots
        self.weights = {name: slot.weight(loaded.model) for name, slot in self.slots.items()}
        self.untouched = {name: backend.untouched(weight) for name, weight in self.weights.items()}
        replaced = emptied(self.slots.values(), loaded.model) | _ends(loaded, backend)
        self.model = placed(loaded.model, replaced, device, backend.dtype, moved)
        if not any(not p.is_meta for p in self.model.parameters()):  # norms without weights, as OLMo's
            here = nn.Parameter(torch.empty(0, device=device, dtype=backend.dtype), requires_grad=False)
            self.model.register_parameter(
                "here", here
            )  # transformers asks the first one for device and dtype
        self.biases = {name: slot.bias(self.model) for name, slot in self.slots.items()}
        self.layers = {
            name: backend.linear(self.weights[name].shape, bias, name in loaded.online, engine.static(name))
            for name, bias in self.biases.items()
        }
        self._device, self._dtype, self._layout = device, backend.dtype, loaded.layout
        if loaded.vision:  # pictures come in whatever dtype they were prepared in
            self.model.register_forward_pre_hook(
                lambda _, pictures: tuple(part.to(device, backend.dtype) for part in pictures)
            )
        self._mold = Mold(self.model)
        plain = all(slot.whole for slot in self.slots.values())
        self._modules = {slot.module: name for name, slot in self.slots.items()} if plain else None

    def full(self) -> nn.Module:
        """Returns the view at full precision; where the backend needs copies of weights it has its own."""
        held = {
            name: self.weights[name].to(self._device, self._dtype) if weight is None else weight
            for name, weight in self.untouched.items()
        }
        return self.assemble(self.bound(dict.fromkeys(held, Bits()), held.values()), {}, ())

    def bound(self, bits: Mapping[str, Bits], weights: Iterable[Weight]) -> dict[str, nn.Module]:
        """Returns layers with their weights, by slot: those of `bits`, in that order."""
        layers, each = self.layers, zip(bits.items(), weights, strict=True)
        return {name: layers[name].bound(weight, width) for (name, width), weight in each}

    def assemble(
        self, layers: Mapping[str, nn.Module], others: Mapping[str, nn.Module], made_of: Iterable[object]
    ) -> nn.Module:
        """Returns a view: `layers` by slot and `others` by module put in their places. It keeps `made_of`, so
        that the bank knows what is in use."""
        layers = self._layout.in_place(layers)
        if self._modules is None:
            placed = put(self.slots.values(), layers, self.model)
        else:
            placed = {module: layers[name] for module, name in self._modules.items()}
        view = self._mold.cast(placed | others)
        view.__dict__["made_of"] = tuple(made_of)
        if hasattr(view, "generation_config"):
            view.generation_config = copy.copy(view.generation_config)
        return view


def _ends(loaded: LoadedModel, backend: Dense) -> dict[str, nn.Module]:
    """Embedding and heads over the very weights of the loaded model, where the backend has modules for it."""
    found, tied = {}, {}
    for name in loaded.layout.ends:
        module = loaded.model.get_submodule(name)
        weight = getattr(module, "weight", None)  # a head may be none
        if weight is not None and id(weight) not in tied:
            tied[id(weight)] = backend.untouched(weight.data)
        held = tied.get(id(weight))
        if held is not None and not isinstance(held, Tensor) and (over := backend.over(module, held)):
            found[name] = over
    return found


def placed(
    model: nn.Module,
    replaced: Mapping[str, nn.Module],
    device: torch.device,
    dtype: torch.dtype,
    moved: dict[int, nn.Parameter],
) -> nn.Module:
    """Returns the model with modules replaced and the rest in a dtype on a device, but for buffers that
    transformers holds in more than 16 bits (rotary frequencies) and that keep them. Ties are kept."""
    copied, timm = clone(model, replaced), not hasattr(model, "config")
    for module in copied.modules():
        module.__dict__["_parameters"] = {
            key: p
            if p is None or p.is_meta
            else moved.setdefault(id(p), nn.Parameter(p.to(device, dtype), requires_grad=False))
            for key, p in module._parameters.items()
        }
        for key, buffer in module._buffers.items():
            if buffer is not None:
                narrow = (torch.is_floating_point(buffer) and timm) or buffer.dtype in HALVES
                module._buffers[key] = buffer.to(device, dtype if narrow else buffer.dtype)
    return copied
