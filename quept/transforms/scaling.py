"""Channel scales between layers: what one is divided by, the next is multiplied by. AWQ (arXiv 2306.00978).

An edge is a place where a channel can be scaled unseen: the outputs of its `source` are divided by s (C,),
weight and bias, and the columns of the linear layers that read them are multiplied by it:

    norm -> q, k, v     norm -> gate, up     up -> down     v -> o

up -> down holds where `up` is multiplied by the gate, or its activation is a ReLU (s > 0: relu(x / s) =
relu(x) / s), and `down` does not transform its input. v -> o: a value head that several query heads share has
one scale for all the columns of `o` that read it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from quept.models import ModelLayout
from quept.models.unfused import head_size

from .normalization import Norm
from .record import TransformError
from .rewriter import Rewriter, readers


@dataclass(frozen=True)
class Edge:
    """`source`: the norm or linear layer that is divided. `readers`: linear layers, all with the same input.
    Its `channels` scales (C,) stand for columns (shared * C,): heads of `head` channels, each read `shared`
    times in a row."""

    source: str
    readers: tuple[str, ...]
    channels: int
    head: int
    shared: int = 1

    def spread(self, scale: Tensor) -> Tensor:
        """Scales of the channels (C,) -> of the columns (shared * C,)."""
        return scale.view(-1, 1, self.head).expand(-1, self.shared, -1).reshape(-1)

    def gather(self, magnitude: Tensor) -> Tensor:
        """Magnitudes of the columns (shared * C,) -> means over those that share a channel, (C,)."""
        return magnitude.view(-1, self.shared, self.head).mean(dim=1).reshape(-1)


def edges_of(model: nn.Module, layout: ModelLayout, online: Collection[str]) -> dict[str, tuple[Edge, ...]]:
    """`{block: its edges}`; `online` names the layers that transform their input. TransformError for a model
    that is wired in another way than the families are."""
    before = readers(model, layout)
    homogeneous = "gate" in layout.roles or getattr(model.config, "activation_function", None) == "relu"
    found = {}
    for block in layout.blocks:
        width = {role: model.get_submodule(name).in_features for role, name in block.layers.items()}
        edges = [
            Edge(norm, layers, *[model.get_submodule(layers[0]).in_features] * 2)
            for norm, layers in before.items()
            if norm.startswith(block.name + ".")
        ]
        up, down, v, o = (block.layers[role] for role in ("up", "down", "v", "o"))
        if homogeneous and down not in online:
            edges.append(Edge(up, (down,), width["down"], width["down"]))
        values = model.get_submodule(v).out_features
        edges.append(Edge(v, (o,), values, head_size(model.config), width["o"] // values))
        found[block.name] = tuple(edges)
    return found


def scale(rewriter: Rewriter, scales: Mapping[str, Tensor]) -> None:
    """Move these scales, `{source of an edge: (channels,)}`; edges without an entry stay. TransformError for
    an entry that fits no edge."""
    edges = {
        edge.source: edge
        for found in edges_of(rewriter.model, rewriter.layout, rewriter.online).values()
        for edge in found
    }
    for source, values in scales.items():
        edge = edges.get(source)
        if edge is None or len(values) != edge.channels:
            what = (
                f"{len(values)} scales for {edge.channels} channels"
                if edge
                else "scales, but no place for them"
            )
            raise TransformError(f"{source} has {what} in this model: was the record made for another one?")
        s = values.to(rewriter.model.get_submodule(edge.readers[0]).weight.device).double()
        if source in rewriter.norms:
            rewriter.norms[source] = _divided(rewriter.norms[source], s)
        else:
            rewriter.rows(source, lambda x, s=s: x / s)
        columns = edge.spread(s)
        for reader in edge.readers:
            rewriter.columns(reader, lambda w, s=columns: w * s)


def _divided(norm: Norm, s: Tensor) -> Norm:
    weight = 1 / s if norm.weight is None else norm.weight / s
    return replace(norm, weight=weight, bias=None if norm.bias is None else norm.bias / s)
