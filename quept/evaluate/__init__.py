"""Measuring a model or a view: perplexity, divergence from full precision, speed; and the store of what was
measured.

windows   = cut(text, tokenizer, context=512, tokens=4096)
reference = Reference.open(fingerprint, windows, forward, cache_dir() / "reference")
for estimate in divergence(elastic.view(plan), reference, windows):
    ...                                                 # one Estimate per window, stop any time
results.put(ResultKey(plan.key(layers), fingerprint, windows.id), estimate.to_dict())
"""

from .divergence import Estimate, divergence
from .forward import NonFiniteLogits
from .intervals import wilson
from .perplexity import Perplexity, perplexity
from .reference import Reference
from .results import ResultKey, Results, ResultsError, Stored
from .speed import Speed, speed
from .windows import Windows, cut

__all__ = [
    "Estimate",
    "NonFiniteLogits",
    "Perplexity",
    "Reference",
    "ResultKey",
    "Results",
    "ResultsError",
    "Speed",
    "Stored",
    "Windows",
    "cut",
    "divergence",
    "perplexity",
    "speed",
    "wilson",
]
