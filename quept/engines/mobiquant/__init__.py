"""MoBiQuant (arXiv 2602.20191): one nested 8-bit store, read at 2, 4, 6 or 8 bits layer by layer or, by a
router, token by token.

engine  what is stored of a layer and made of an artifact; its settings
router  how many bits a token gets in a layer: scores of its input against thresholds
planes  its slices in the layout of the kernels, where there are some
linear  the module that multiplies each token by the bits that it got
"""

from .engine import MoBiQuant

__all__ = ["MoBiQuant"]
