"""A plan as a file: one module and one entry of EXPORTERS per target format, every export read back and
compared.

base    the contract
packed  our own: the packed tensors of one plan in a safetensors file
folder  what language models as folders have in common
mlx     for mlx-lm
compressed_tensors   for vLLM and transformers
onnx    for onnxruntime
hf      a plain folder in 16 bits
gguf    llama.cpp, LM Studio, Ollama

The table is read without importing any exporter, or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from quept.stage import make_callable

if TYPE_CHECKING:
    from .base import Exporter

EXPORTERS: Mapping[str, str] = {  # what a person types -> where its exporter is
    "gguf": "quept.export.gguf.exporter:Gguf",
    "mlx": "quept.export.mlx:Mlx",
    "compressed-tensors": "quept.export.compressed_tensors:CompressedTensors",
    "onnx": "quept.export.onnx:Onnx",
    "packed": "quept.export.packed:Packed",
    "hf": "quept.export.hf:Hf",
}
_WHERE = {
    "Compared": "base",
    "Exporter": "base",
    "ExportError": "base",
    "PackedModel": "packed",
    "export": "packed",
    "open_packed": "packed",
}

__all__ = ["EXPORTERS", "exporter", *_WHERE]


def exporter(name: str) -> Exporter:
    """Returns the exporter of a format of the table; ValueError lists them."""
    if name not in EXPORTERS:
        raise ValueError(f"{name!r:.80} is no format that is written here: give {', '.join(EXPORTERS)}")
    module, _, attribute = EXPORTERS[name].partition(":")
    return getattr(import_module(module), attribute)()


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


make_callable(__name__)
