"""Which layer suffers at which width, and the best bits for a budget.

table        SensitivityTable: the measured figures, as a file people can read, and predictions from them
measure      measuring one: a layer at a time, on several processes or machines (workers), each pass started
             at the changed block (passes) and compared with full precision to the last digit (kl)
proxies      cheap stand-ins for it: weight error, weighted by the activations or by gradients
constraints  what an allocation may choose from: pins, floors, ceilings, layers that share a width
solve        the plan of the least summed sensitivity within so many bytes, exactly; a budget slider's path
knapsack     the solver behind it
best         that plan, or one that was measured whole and is known to be better
budget       "60 MB", "3.2 bits", "2 % worse": what people type, in bytes
uniform      what uniform plans would show at the same bytes: the yardstick
refine       better plans by measuring whole ones (race), within the budget (space), with costs that the
             measured plans correct (correction)
front        the measured front of a model, from its smallest plan to its largest, as a file
"""

from importlib import import_module

from .table import SensitivityError, SensitivityTable

LATER = {
    "WorkersError": "workers",
    "agreement": "proxies",
    "proxy": "proxies",
    "rank_correlation": "proxies",
    "sensitivity": "measure",
}
__all__ = ["SensitivityError", "SensitivityTable", *LATER]


def __getattr__(name: str):
    """What runs a model arrives when first asked for: reading a table and allocating from it need none, and a
    worker process should start at once. No module here may be called as one of these is: it would hide it."""
    if name in LATER:
        return getattr(import_module(f".{LATER[name]}", __name__), name)
    raise AttributeError(f"module 'quept.allocate' has no attribute {name!r}")
