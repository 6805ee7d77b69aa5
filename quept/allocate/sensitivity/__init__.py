"""What rounding each layer costs by itself.

table    SensitivityTable: the measured numbers, as a file people can read, and predictions from them
measure  measuring one, a layer at a time
workers  on several processes or machines
passes   each pass started at the changed block
kl       and compared with full precision to the last digit
proxies  cheap stand-ins for it: weight error, weighted by the activations or by gradients
"""

from .table import SensitivityError, SensitivityTable

__all__ = ["SensitivityError", "SensitivityTable"]
