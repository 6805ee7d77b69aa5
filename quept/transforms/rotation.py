"""Rotate a model so that no channel is an outlier and its function is the same: QuaRot (arXiv 2404.00456).

Q = diag(signs) H / sqrt(n), orthogonal, n = hidden_size; the residual stream x (T, n) becomes x Q:

    embeddings  E' = E Q                          writers  (o, down)       W' = Q^T W,  b' = b Q
    head        W' = W Q                          readers  (q, k, v, gate, up)  W' = W Q

A plain RMSNorm commutes with Q. A LayerNorm first becomes one: the mean it subtracts is linear in what was
written to the stream, so it is taken out of every embedding, writer and writer's bias, and nothing is left to
subtract. RMSNorm models are never centred.

heads: each value head is turned by R = H / sqrt(head_dim), the same for all, which attention passes on: the
rows of v by R^T, its bias by R, the columns of o that read the head by R, for every query head of a group.

online: the input of `down` passes through hadamard_transform as the model runs, and the weight through the
same along its columns: (x G) (W G)^T = x W^T. The activation function stands in the way of anything cheaper.
Where a width has no Hadamard order, G and R are block-diagonal (see quept.numerics.hadamard).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from quept.models.unfused import head_size
from quept.numerics.hadamard import hadamard_order, hadamard_transform, random_signs

from .record import Record, TransformError
from .rewriter import Rewriter


def rotation_record(seed: int = 0, heads: bool = True, online: bool = True) -> Record:
    """The record of a rotation, norms folded first: settings alone, for any model."""
    return Record(({"kind": "norms"}, {"kind": "rotation", "seed": seed, "heads": heads, "online": online}))


def rotate(rewriter: Rewriter, seed: int, heads: bool, online: bool) -> None:
    """Rotate with the signs of this seed; TransformError unless the norms are plain."""
    if rough := [name for name, norm in rewriter.norms.items() if not norm.plain]:
        raise TransformError(
            f"{rough[0]} still has a weight: put the step 'norms' before 'rotation', and 'scaling' before "
            "'norms' or after 'rotation'"
        )
    if behind := rewriter.layout.norms_after:
        raise TransformError(
            f"this {rewriter.layout.family} model cannot be rotated: {behind[0]} stands behind a layer and "
            "multiplies what the residual stream gets channel by channel; leave 'rotation' out of the recipe"
        )
    blocks = [block.layers for block in rewriter.layout.blocks]
    writers = [layers[role] for layers in blocks for role in ("o", "down")]
    rewriter.untie()
    if not all(norm.rms for norm in rewriter.norms.values()):
        _centre(rewriter, writers)
    width = rewriter.model.get_submodule(rewriter.layout.head).in_features
    turn = partial(hadamard_transform, signs=random_signs(width, seed))
    for name in rewriter.embeddings:
        rewriter.columns(name, turn)
    for name in (reader for readers in rewriter.readers.values() for reader in readers):
        rewriter.columns(name, turn)
    for name in writers:
        rewriter.rows(name, turn)
    for layers in blocks if heads else ():
        turn_heads = partial(_per_head, size=head_size(rewriter.model.config))
        rewriter.rows(layers["v"], turn_heads)
        rewriter.columns(layers["o"], turn_heads)
    for layers in blocks if online else ():
        if hadamard_order(rewriter.model.get_submodule(layers["down"]).in_features) > 1:
            rewriter.columns(layers["down"], hadamard_transform)
            rewriter.online.add(layers["down"])


def _per_head(x: Tensor, size: int) -> Tensor:
    """x (..., heads * size), each head transformed by itself."""
    return hadamard_transform(x.unflatten(-1, (-1, size))).flatten(-2)


def _centre(rewriter: Rewriter, writers: list[str]) -> None:
    """Nothing written to the residual stream has a mean over its channels, and LayerNorms become
    RMSNorms."""
    for name in rewriter.embeddings:
        rewriter.columns(name, _without_mean)
    for name in writers:
        rewriter.rows(name, _without_mean)
    for name, norm in rewriter.norms.items():
        rewriter.norms[name] = replace(norm, bias=None, rms=True)


def _without_mean(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)
