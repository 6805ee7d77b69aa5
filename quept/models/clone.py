"""Copies of a module tree that share every tensor: what views and transformed models are
made of.

A shallow copy is a new module object with the same attributes, dictionaries of its own (parameters,
buffers, children, hooks), and the very same tensors in them. Hanging a hook on one, or putting
another parameter into it, does not show on the other; writing into a tensor does, and so does
`.to(another dtype)`, which writes into parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


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
