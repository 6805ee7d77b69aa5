"""Models: where their layers are, and how they are loaded.

families  one table entry per architecture: which module paths play which role
layout   the table applied to one model: its blocks, their linear layers by role, what stays as it is
clone     copies of a module tree that share every tensor: what views and transformed models are made of
load      a zoo name, a hub id or a folder -> model, tokenizer, layout
context   how many tokens a model reads at once
identity  what artifacts are bound to (fingerprint) and what numbers belong to (identity)
folder    what lies at a path that is no model, and what to give instead
complete  every tensor of a checkpoint used, every parameter found, nothing quantized already
vision    classifiers of pictures in timm's format: their weights, preprocessing and labels
multimodal  what a vision-language model hands to the language model inside it
"""

from .families import FAMILIES, Family
from .identity import fingerprint_of
from .layout import Block, ModelLayout, layout_of
from .load import LoadedModel, LoadError, load
from .vision import Vision

__all__ = [
    "FAMILIES",
    "ModelLayout",
    "Block",
    "Family",
    "LoadError",
    "LoadedModel",
    "Vision",
    "layout_of",
    "fingerprint_of",
    "load",
]
