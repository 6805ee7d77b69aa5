"""Packages that are called by their own name: `quept.evaluate(elastic, plan)` runs `quept.flow.evaluate`.

The packages of the stages and the functions of the flow have the same names. A module object that can be
called is both, whichever was imported first.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class Stage(ModuleType):
    """The package of a stage."""

    @property
    def _function(self) -> Callable[..., Any]:
        return getattr(import_module("quept.flow"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    def __call__(self, *args, **options):
        return self._function(*args, **options)


def make_callable(package: str) -> None:
    """Lets an imported package, by its full name, be called."""
    sys.modules[package].__class__ = Stage
