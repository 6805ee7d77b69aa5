"""A plan as a file: one module per target format, every export read back and compared.

packed  the packed tensors of one plan in a safetensors file
"""

from quept.stage import make_callable

from .packed import ExportError, PackedModel, export, open_packed

__all__ = ["ExportError", "PackedModel", "export", "open_packed"]

make_callable(__name__)
