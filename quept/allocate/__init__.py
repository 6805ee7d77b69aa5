"""Which layer suffers at which width, and the best bits for a budget.

table        SensitivityTable: the measured figures, as a file people can read, and predictions from them
sensitivity  measuring one: a layer at a time, on several processes or machines (workers), each pass started
             at the changed block (passes) and compared with full precision to the last digit (kl)
proxy        a cheap stand-in for it: weight error, weighted by the activations
constraints  what an allocation may choose from: pins, floors, ceilings, layers that share a width
solve        the plan of the least summed sensitivity within so many bytes, exactly; a budget slider's path
knapsack     the solver behind it
budget       "60 MB", "3.2 bits", "2 % worse": what people type, in bytes
refine       better plans by measuring whole ones (race), with costs that they correct (correction)
front        the measured front of a model, from its smallest plan to its largest, as a file
"""

from .sensitivity import sensitivity
from .table import SensitivityError, SensitivityTable

__all__ = ["SensitivityError", "SensitivityTable", "sensitivity"]
