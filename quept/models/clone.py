"""Copies of a module tree that share every tensor: what views and transformed models are
made of.

A shallow copy is a new module object with the same attributes, dictionaries of its own (parameters,
buffers, children, hooks), and the very same tensors in them. Hanging a hook on one, or putting
another parameter into it, does not show on the other; writing into a tensor does, and so does
`.to(another dtype)`, which writes into parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)
EVERY = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")  # module has these


def shallow_copy(module: Module) -> Module:
    """A copy of this module object. Its children are the originals."""
    copy = object.__new__(type(module))
    state = copy.__dict__
    for key, value in module.__dict__.items():
        kind = type(value)
        state[key] = value.copy() if kind is dict or kind is OrderedDict or kind is set else value
    return copy


def clone(module: Module, replaced: Mapping[str, nn.Module], name: str = "") -> Module:
    """A shallow copy of the whole tree, with the modules named in `replaced` put in place of the
    originals."""
    if name in replaced:
        return replaced[name]
    copy = shallow_copy(module)
    prefix = f"{name}." if name else ""
    children = copy.__dict__["_modules"]
    for key, child in module._modules.items():
        if child is not None:
            children[key] = clone(child, replaced, prefix + key)
    return copy


class Mold:
    """What copies of a module tree are cast from: `clone` in a third of the time. The original must not be
    changed afterwards."""

    def __init__(self, module: nn.Module):
        self._nodes: list[tuple[str, int, str, Callable[[], nn.Module], int]] = []
        self._add(module, "", -1, "")

    def _add(self, module: nn.Module, name: str, parent: int, key: str) -> None:
        own = len(self._nodes)
        self._nodes.append(())
        for child_key, child in module._modules.items():
            if child is not None:
                self._add(child, f"{name}.{child_key}" if name else child_key, own, child_key)
        kind = lighter(type(module))
        self._nodes[own] = name, parent, key, caster(module, kind), len(self._nodes)

    def cast(self, replaced: Mapping[str, nn.Module]) -> nn.Module:
        """Returns what `clone(module, replaced)` does."""
        nodes, made, at = self._nodes, [None] * len(self._nodes), 0
        while at < len(nodes):
            name, parent, key, copy, end = nodes[at]
            found = replaced.get(name)
            made[at] = module = copy() if found is None else found
            if parent >= 0:
                made[parent].__dict__["_modules"][key] = module
            at = at + 1 if found is None else end
        return made[0]


def caster(module: nn.Module, kind: type[nn.Module] | None = None) -> Callable[[], nn.Module]:
    """Returns what makes shallow copies of this module object, which must not be changed afterwards: it has
    looked once which of the attributes are dictionaries, and which of these are empty. kind: the class of the
    copies, the module's own unless given."""
    kind, state, own = kind or type(module), {}, []
    for key, value in module.__dict__.items():
        held = type(value)
        if held is dict or held is OrderedDict or held is set:
            if not value and isinstance(getattr(kind, key, None), OwnWhenAsked):
                continue
            if key not in EVERY:
                own.append((key, value.copy if value else held))
        state[key] = value
    parameters, buffers, modules, names = (state[key].copy for key in EVERY)
    new, put = object.__new__, object.__setattr__

    def copy() -> nn.Module:
        held = state.copy()
        held["_parameters"], held["_buffers"], held["_modules"] = parameters(), buffers(), modules()
        held["_non_persistent_buffers_set"] = names()
        for key, make in own:
            held[key] = make()
        made = new(kind)
        put(made, "__dict__", held)
        return made

    return copy


class OwnWhenAsked:
    """An empty dictionary of a module's own, made when somebody first asks for it: hooks, of which there are
    a dozen kinds. A class that has these saves its copies more than half their time."""

    def __set_name__(self, owner: type[nn.Module], name: str) -> None:
        self._name = name

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> OwnWhenAsked | OrderedDict:
        return self if module is None else module.__dict__.setdefault(self._name, OrderedDict())


def hooks_when_asked(kind: type[Module]) -> type[Module]:
    """Returns the class of modules with every dictionary of hooks made when it is asked for."""
    for key, value in nn.Module().__dict__.items():
        if type(value) is OrderedDict and "hooks" in key:
            own = OwnWhenAsked()
            own.__set_name__(kind, key)
            setattr(kind, key, own)
    return kind


@cache
def lighter(kind: type[Module]) -> type[Module]:
    """Returns a class that is `kind` by name and in all it does, with hooks when they are asked for. Classes
    of torch stay as they are, since people compare them, and those that want to know of their subclasses."""
    asks = any("__init_subclass__" in vars(base) for base in kind.__mro__[:-1])
    if kind.__module__.startswith("torch.") or asks:
        return kind
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return hooks_when_asked(type(kind.__name__, (kind,), named))
