"""What rounding each layer costs by itself.

table    SensitivityTable: the measured numbers, as a file people can read, and predictions from them
measure  measuring one, a layer at a time, on windows of text
on_data  the same on pictures or questions, of a model that sees
agreement  how far two tables agree, measured on two texts
workers  on several processes or machines
passes   each pass started at the changed block
moved    its layers multiplied by what the change did to their inputs, on processors made for that
kl       and compared with full precision to the last digit
"""

from .table import SensitivityError, SensitivityTable
