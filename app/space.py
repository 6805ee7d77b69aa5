"""What the hardware of a Hugging Face Space means for this app.

CPU basic: all of it works. ZeroGPU: a GPU is lent per call to a forked worker, which cannot go on from a
process that has computed already, and this app keeps its models and their weights in one process; so it
computes on the CPU there as well. The package `spaces` is imported only where it is installed, and before
torch, as it asks for; one function is lent the GPU, and never called, because a ZeroGPU Space without any is
stopped.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping

ON_ZERO = (
    "ZeroGPU lends its GPU to forked workers, which cannot share opened models: everything on this page "
    "works, and computes on the CPU. CPU basic hardware does the same for less"
)


def on_zero(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a Space with ZeroGPU hardware."""
    return "SPACE_ID" in environ and environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def settle() -> str:
    """Make ready for ZeroGPU where the app runs on it, before torch is imported; returns what to tell the
    operator and visitors, "" elsewhere. Models must then be opened on the CPU."""
    if not on_zero():
        return ""
    if importlib.util.find_spec("spaces"):
        importlib.import_module("spaces").GPU(lambda: None)
    return ON_ZERO
