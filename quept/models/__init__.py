"""Models: where their layers are, and how they are loaded.

families    one table entry per architecture: which module paths play which role
recognize   the family of a model whose type is in no entry: that which its modules fit
layout      the table applied to one model: its blocks, their linear layers by role, what stays as it is
unfused     a layer of its own for each part of a fused matrix and for each expert
slots       a weight as plans speak of it: a 2-D view of a parameter, and how another is put in its place
clone       copies of a module tree that share every tensor: what views and transformed models are made of
load        a zoo name, a hub id, a folder or a GGUF file -> model, tokenizer, layout
context     how many tokens a model reads at once
identity    what artifacts are bound to (fingerprint) and what numbers belong to (identity)
folder      what lies at a path that is no model, and what to give instead
complete    every tensor of a checkpoint used, every parameter found, nothing quantized already
batchnorm   of convolutional classifiers, folded into the convolutions before it
vision      classifiers of pictures in timm's format: their weights, preprocessing and labels
multimodal  what a vision-language model hands to the language model inside it
behind      what a model does behind its blocks: head, scales and soft caps of logits
strips      pictures of extreme shape, refused before they are scaled
"""

from .families import FAMILIES, Family
from .identity import fingerprint_of
from .layout import Block, ModelLayout, layout_of
from .load import LoadedModel, LoadError, load
from .vision import Vision
