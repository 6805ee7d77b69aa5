"""The scripts in assets/ that trained the built-in models, imported by path."""

import importlib.util
import sys
from functools import cache
from types import ModuleType

from quept.zoo.catalogue import ASSETS


@cache
def script(model: str) -> ModuleType:
    """assets/MODEL/train.py as a module, what lies beside it importable as when Python runs it."""
    name, folder = f"train_{model.replace('-', '_')}", ASSETS / model
    sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / "train.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
