"""Which layer suffers at which width, and the best bits for a budget.

sensitivity/  what rounding each layer costs by itself: measuring it, and the table that is kept
solve/        the plan of the least summed sensitivity within a budget, exactly
search/       better plans by measuring whole ones
rules/        published rules of thumb in place of measured costs, and their trial
front         the measured front of a model, from its smallest plan to its largest, as a file
"""

from quept.stage import make_callable

from .sensitivity import SensitivityError, SensitivityTable

make_callable(__name__)
