"""Transforms of a model that leave its function as it is and make its weights or activations easier to round.

    record = rotation_record(seed=0)               # settings alone
    record = search_scales(loaded, ids)            # settings and tensors, found on calibration text
    record = reparameterisation(ranges, ...)       # the same for a vision transformer's norms, on pictures
    transformed = apply(loaded, record)            # another model with the same logits; `loaded` is untouched

A record is all that is needed to do it again on a freshly loaded base: steps as JSON, tensors as safetensors.

record    Record: the steps and their tensors, checked
normalization  what a norm computes: w or 1 + w, bias, mean
norms     fold norm weights and biases into the linear layers that read them
rotation  rotate the residual stream and every value head; Hadamard inputs of `down` as the model runs
scaling   channel scales between two layers, moved from one into the other
search    the scales that round best (AWQ)
reparameterisation   scales and shifts behind the norms of vision transformers (RepQ-ViT)
rewriter     the model being rewritten: edits noted in float64, one rounding at the end
online    the linear layer that transforms its input
probe     whether a transformed model answers as its base does
apply     a record's steps, in order, on a rewriter, and that probe
cached    the same with the weights in a file that is mapped, made once
"""

from .apply import apply, check_kinds
from .cached import transformed
from .record import Record, TransformError
from .reparameterisation import reparameterisation
from .rotation import rotation_record
from .search import search_scales
