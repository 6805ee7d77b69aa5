"""Gradio imported without its type stubs. It parses the source of every class of component and writes a stub
for editors beside it, each time it is imported and for our own components too: two fifths of what its import
takes.

`leave_out_stubs()` before the first import of Gradio; it does nothing afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType

MODULE, WRITES = "gradio.component_meta", "create_or_modify_pyi"


def leave_out_stubs() -> None:
    """Has the module of Gradio that writes stubs loaded without the function that does."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name == MODULE else None
        if found is None or not isinstance(found.loader, SourceFileLoader):
            return None
        return spec_from_file_location(name, found.origin, loader=_Loader(name, found.origin))


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        setattr(module, WRITES, lambda *_: None)
