"""A weight slot: a matrix (out, in) of a model that a plan speaks of by name.

A slot is a view of one parameter of a module, and says how the matrix is read and what stands in the
module's place when something else computes the slot's product. Today a slot is the whole weight of its
module. One that is a part of it (rows of a fused linear, an expert) is a subclass that reads its part; `put`
then gets all slots of a module at once and joins their outputs as that module does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from .clone import shallow_copy


@dataclass(frozen=True)
class Slot:
    """name: as a plan says it. module: the module whose weight it is."""

    name: str
    module: str

    def weight(self, model: nn.Module) -> Tensor:
        """Returns the matrix (out, in), shared with the model; kernels of a convolution are its rows."""
        return model.get_submodule(self.module).weight.data.flatten(1)

    def bias(self, model: nn.Module) -> Tensor | None:
        """Returns what is added to the product, (out,), or None."""
        bias = model.get_submodule(self.module).bias
        return None if bias is None else bias.data

    def empty(self, model: nn.Module) -> nn.Module:
        """Returns the linear module without its weight."""
        linear = model.get_submodule(self.module)
        empty = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        empty.bias = linear.bias
        return empty.requires_grad_(False)

    def over(self, model: nn.Module, weight: Tensor) -> nn.Module:
        """Returns the module over another matrix (out, in), sharing all else."""
        module = model.get_submodule(self.module)
        other, shape = shallow_copy(module), module.weight.shape
        del other._parameters["weight"]
        weight = weight if weight.shape == shape else weight.view(shape)  # ties are tensors, not values
        other.register_buffer("weight", weight, persistent=False)
        return other


def put(slots: Iterable[Slot], layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Returns what takes the place of each module, by its name, when `layers` (by slot) compute the
    products."""
    return {slot.module: layers[slot.name] for slot in slots}
