"""A weight slot: a matrix (out, in) of a model that a plan speaks of by name.

A slot is a view of one parameter of a module: all of a linear layer, some rows of a fused one (query, key and
value in one matrix), or one expert of a 3-D parameter, (experts, out, in) or transposed (experts, in, out),
all of it or some rows. `emptied` takes the matrices out of a model; `put` says what stands in the place of
each module when other layers compute the products: the layer itself, or the layers of its parts, whose
outputs are joined as the module joins them. Experts are run by their own module's forward, which multiplies
by what stands for each expert's matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from .clone import shallow_copy


@dataclass(frozen=True)
class Slot:
    """name: as a plan says it. module: the module that has the parameter. rows: (start, stop), or (start,
    stop, step), of a part of the matrix, None for all. expert: which matrix of a 3-D parameter, None for a
    2-D one; transposed: whether that lies there as (in, out)."""

    name: str
    module: str
    parameter: str = "weight"
    rows: tuple[int, ...] | None = None
    expert: int | None = None
    transposed: bool = False

    @property
    def whole(self) -> bool:
        """Whether the slot is all of its parameter."""
        return self.rows is None and self.expert is None

    def weight(self, model: nn.Module) -> Tensor:
        """Returns the matrix (out, in), shared with the model; kernels of a convolution are its rows."""
        weight = getattr(model.get_submodule(self.module), self.parameter).data
        matrix = weight.flatten(1) if self.expert is None else weight[self.expert]
        matrix = matrix.mT if self.transposed else matrix
        return matrix if self.rows is None else matrix[slice(*self.rows)]

    def bias(self, model: nn.Module) -> Tensor | None:
        """Returns what is added to the product, (out,), or None. What is added to an expert's product its
        module adds itself."""
        bias = getattr(model.get_submodule(self.module), "bias", None)
        if bias is None or self.expert is not None:
            return None
        return bias.data if self.rows is None else bias.data[slice(*self.rows)]

    def over(self, model: nn.Module, weight: Tensor) -> nn.Module:
        """Returns the module of a whole slot over another matrix (out, in), sharing all else."""
        module = model.get_submodule(self.module)
        other, shape = shallow_copy(module), module.weight.shape
        del other._parameters["weight"]
        weight = weight if weight.shape == shape else weight.view(shape)  # ties are tensors, not values
        other.register_buffer("weight", weight, persistent=False)
        return other


def emptied(slots: Iterable[Slot], model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules that slots are of without the parameters, by name; ValueError where the slots of a
    parameter are not all of it."""
    found: dict[str, nn.Module] = {}
    for module, parts in _by(slots, "module").items():
        found[module] = shallow_copy(model.get_submodule(module))
        for parameter, of in _by(parts, "parameter").items():
            full = getattr(model.get_submodule(module), parameter)
            if sum(slot.weight(model).numel() for slot in of) != full.numel():
                raise ValueError(f"the slots of {module}.{parameter} are not the whole of it")
            found[module]._parameters[parameter] = nn.Parameter(full.data.to("meta"), requires_grad=False)
    return found


def put(slots: Iterable[Slot], layers: Mapping[str, nn.Module], model: nn.Module) -> dict[str, nn.Module]:
    """Returns what takes the place of each module, by its name, when `layers` (by slot) compute the
    products; model: the one that `emptied` gave modules of."""
    found: dict[str, nn.Module] = {}
    for module, parts in _by(slots, "module").items():
        if parts[0].whole:
            found[module] = layers[parts[0].name]
        elif parts[0].expert is None:
            found[module] = _joined(parts, layers)
        else:
            found[module] = _experts(model.get_submodule(module), parts, layers)
    return found


class Joined(nn.Module):
    """The layers of a matrix's rows in their order, each under its own name: x (..., in) -> their outputs
    side by side (..., out)."""

    def __init__(self, parts: Mapping[str, nn.Module]):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self._modules.values()], -1)


class _Products:
    """What stands in the place of a 3-D parameter while experts run: `linear(x, it[expert])`, or `x @
    it[expert]` of a transposed one, is what the layers of that expert make of x, side by side or, of an
    interleaved parameter, in turns."""

    def __init__(self, experts: nn.Module, names: tuple[str, ...], interleaved: bool, expert: int = -1):
        self._of = experts, names, interleaved
        self._expert = expert

    def __getitem__(self, expert: Tensor | int) -> _Products:
        return _Products(*self._of, int(expert))

    def __call__(self, x: Tensor) -> Tensor:
        experts, names, interleaved = self._of
        parts = experts._modules[str(self._expert)]._modules
        outputs = [parts[name](x) for name in names]
        if len(outputs) == 1:
            return outputs[0]
        return torch.stack(outputs, -1).flatten(-2) if interleaved else torch.cat(outputs, -1)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        multiplies = function in (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)
        if not multiplies or not isinstance(args[1], cls):
            return NotImplemented
        product = args[1](args[0])
        return product + args[2] if len(args) > 2 and args[2] is not None else product


def _short(slot: Slot) -> str:
    return slot.name.rpartition(".")[2]


class OverChannels(nn.Module):
    """A linear layer as a convolution of 1 x 1: x (n, in, height, width) -> (n, out, height, width)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _joined(parts: Iterable[Slot], layers: Mapping[str, nn.Module]) -> Joined:
    return Joined({_short(slot): layers[slot.name] for slot in _in_order(parts)})


def _in_order(parts: Iterable[Slot]) -> list[Slot]:
    return sorted(parts, key=lambda slot: slot.rows or ())


def _experts(module: nn.Module, parts: list[Slot], layers: Mapping[str, nn.Module]) -> nn.Module:
    """Returns a copy of the module with a child for each expert, which holds the expert's layers, and a
    forward that multiplies by these where it read its parameters."""
    products = {
        parameter: (
            tuple(dict.fromkeys(map(_short, _in_order(of)))),
            any(len(slot.rows or ()) > 2 for slot in of),
        )
        for parameter, of in _by(parts, "parameter").items()
    }
    found = shallow_copy(module)
    found.__class__ = _with_products(type(module), tuple(products.items()))
    for parameter in products:
        del found._parameters[parameter]
    for expert, of in sorted(_by(parts, "expert").items()):
        found._modules[str(expert)] = held = nn.Module()
        for slot in of:
            held.add_module(_short(slot), layers[slot.name])
    if hasattr(found, "config"):  # transformers has other forwards, which read the parameter as one tensor
        found.config = copy.copy(found.config)
        found.config._experts_implementation = "eager"
    return found


@cache
def _with_products(
    kind: type[nn.Module], products: tuple[tuple[str, tuple[tuple[str, ...], bool]], ...]
) -> type[nn.Module]:
    """Returns the class of experts whose parameters are made of their children when they are read."""
    made = {
        parameter: property(
            partial(lambda self, names, turns: _Products(self, names, turns), names=n, turns=t)
        )
        for parameter, (n, t) in products
    }
    return type(kind.__name__, (kind,), made | {"products": dict(products)})


def _by(slots: Iterable[Slot], field: str) -> dict[str | int, list[Slot]]:
    found: dict[str | int, list[Slot]] = {}
    for slot in slots:
        found.setdefault(getattr(slot, field), []).append(slot)
    return found
