"""Which layer suffers at which width, and what that predicts for a whole plan.

table        SensitivityTable: the measured figures, as a file people can read, and the prediction made from
them sensitivity  measuring one: a layer at a time, each pass started at the changed block
"""

from .sensitivity import sensitivity
from .table import SensitivityError, SensitivityTable

__all__ = ["SensitivityError", "SensitivityTable", "sensitivity"]
