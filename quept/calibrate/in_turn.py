"""Rounding chosen layer after layer, where each undoes what rounding did to those before it.

`rounding` looks at what layers are given at full precision, x. At few bits they are given something else, x'
of the rounded model. Here layers are rounded in the order in which they compute, with e = W' - W each for

    E v |W' x' - W x + r|^2 = sum over rows of e H e^T + 2 e (W D + R)^T + what does not depend on e
    H = E v x' x'^T     D = E v (x' - x) x'^T     R = E v r x'^T

as GPTAQ does (arXiv 2504.02692), on two streams of hidden states that go from block to block: the
full-precision model's and the rounded one's. r is what the residual stream lost before a layer that adds to
it (`residual`), 0 of any other. In the rounded model activations are rounded too where a plan rounds them,
which at 4 bits is most of what is lost, and what a plan keeps at 8 bits, stem and depthwise convolutions of a
classifier: of EfficientNet-Lite0 at 6 bits half of what is lost. The layers behind win back much of it. At
SEARCHED bits and fewer the ends of the ranges come first (`ranges`), each column counting by the diagonal of
H; above, what that wins on the pictures that were looked at it loses on others.

v is how much an input counts: half of it alike for all, since there are few pictures, half as in `rounding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quept.engines.quept import LayerParameters
from quept.engines.rtn import Rtn
from quept.models import ModelLayout
from quept.models.clone import clone, shallow_copy
from quept.numerics.grid import group_size
from quept.plan import FULL, KEPT_BITS, Bits
from quept.runtime.backends.dense import BoundLinear

from .capture import Call, Calls
from .ranges import searched_factors
from .residual import Entered, ends_of_parts, owed, scale_of
from .rounding import Seen, second_nearest

Batch = Mapping[str, Tensor]
SEARCHED = 4


@torch.no_grad()
def chosen_in_turn(
    model: nn.Module,
    layout: ModelLayout,
    layers: Mapping[str, LayerParameters],
    bits: int,
    group: int | str,
    batches: Sequence[Batch],
    looked_at: Mapping[str, Seen],
    report: Callable[[float], None] = lambda share: None,
    activations: int = FULL,
) -> dict[str, LayerParameters]:
    """`layers` with the rounding of this width chosen, and the ends of its ranges where it has neither ranks
    nor clip factors. batches: inputs of the model's forward; looked_at: what the layers are given for them at
    full precision; activations: width of the inputs of layers in the rounded model."""
    kept = {name: _kept(name, model.get_submodule(name), group) for name in layout.other_convolutions}
    models = model, clone(model, kept)
    calls, chosen = [Calls(m, layout, batches[0]) for m in models], dict(layers)
    full: list[Tensor | None] = [None] * len(batches)  # what the last block gave
    rounded = list(full)
    for index, block in enumerate(layout.decoder_blocks):
        report(index / len(layout.decoder_blocks))
        sources = {name: model.get_submodule(name) for name in block.layers.values()}
        exact = {name: _Layer(source) for name, source in sources.items()}
        quantized = {
            name: _Layer(source, activations, layers[name].static) for name, source in sources.items()
        }
        read = {norm: readers for norm, readers in layout.norms.items() if readers[0] in exact}
        ends = ends_of_parts(list(exact), read)
        whole, lossy = ({norm: Entered(model.get_submodule(norm)) for norm in read} for _ in range(2))
        of, at = (
            clone(m.get_submodule(block.name), {**layout.in_place(leaves), **norms}, block.name)
            for m, leaves, norms in zip(models, (exact, quantized), (whole, lossy), strict=True)
        )
        own, others = (
            [call.of(index, x, before) for x, before in zip(batches, stream, strict=True)]
            for call, stream in zip(calls, (full, rounded), strict=True)
        )
        scales = _scales(of, own[0], exact, ends, whole) if ends else {}
        for name in block.layers.values():
            weight, layer, counts = exact[name].weight, chosen[name], looked_at[name].counts
            moments = shift = weight.new_zeros(weight.shape[1], weight.shape[1])
            lost = torch.zeros_like(weight)
            for wanted, given, count in zip(own, others, counts, strict=True):
                x, seen = exact[name].given(of, wanted), quantized[name].given(at, given)
                counted = seen * (count / _mean(counts) + 1)[:, None]
                moments, shift = moments + seen.T @ counted, shift + (seen - x).T @ counted
                if name in scales:
                    before, now = whole[ends[name]].stream, lossy[ends[name]].stream
                    lost = lost + owed(now, before, scales[name]).T @ counted
            columns = group_size(weight.shape[1], group)
            if bits <= SEARCHED and bits not in layer.clips and not layer.schedule.ranks(bits):
                layer = layer.clipping(bits, searched_factors(weight, bits, columns, moments.diagonal()))
            rounding = layer.rounding(weight, bits, columns)
            pull = weight @ shift + (rounding.moved - weight) @ moments + lost  # moved: by an adapter
            chosen[name] = layer.choosing(bits, second_nearest(rounding, moments, pull))
            quantized[name].weight = chosen[name].quantize(weight, bits, columns)[1].to(weight.dtype)
        full = [call.run(of) for call in own]
        rounded = [call.run(at) for call in others]
    return chosen


def _scales(
    block: nn.Module,
    call: Call,
    layers: Mapping[str, _Layer],
    ends: Mapping[str, str],
    norms: Mapping[str, Entered],
) -> dict[str, Tensor]:
    """`{layer that adds to the residual stream: its scale}` of a block, as one call of it shows."""
    given = {
        name: linear(layers[name].given(block, call), layers[name].weight, layers[name].bias) for name in ends
    }
    out = call.run(block).flatten(0, -2).float()
    streams = [*(norms[norm].stream for norm in ends.values()), out]
    found = {name: scale_of(streams[i], given[name], streams[i + 1]) for i, name in enumerate(ends)}
    return {name: scale for name, scale in found.items() if scale is not None}


def _kept(name: str, convolution: nn.Module, group: int | str) -> nn.Module:
    """A convolution that is no layer at the bits that it keeps."""
    weight, copy = convolution.weight, shallow_copy(convolution)
    rounded = Rtn(group).quantize(name, weight.flatten(1), KEPT_BITS)[1]
    copy.weight = nn.Parameter(rounded.view_as(weight).to(weight.dtype), requires_grad=False)
    return copy


def _mean(counts: Sequence[Tensor]) -> Tensor:
    """Of all rows, never zero."""
    return torch.cat(list(counts)).mean().clamp(min=torch.finfo(torch.float32).tiny)


class _Layer(BoundLinear):
    """A linear layer over a weight (out, in) of its own that tells what it multiplies."""

    def __init__(
        self, source: nn.Module, activations: int = FULL, static: Mapping[int, Tensor] | None = None
    ):
        bias = None if source.bias is None else source.bias.detach()
        super().__init__(
            source.weight.detach().flatten(1), bias, Bits(activations=activations), static=static
        )
        self._asked = False

    def product(self, x: Tensor) -> Tensor:
        if self._asked:
            raise _Given(x)
        return super().product(x)

    def given(self, block: nn.Module, call: Call) -> Tensor:
        """(rows, in): what this layer of a block multiplies in a call of the block, rounded or not."""
        self._asked = True
        try:
            call.run(block)
        except _Given as found:
            return found.x.flatten(0, -2).float()
        finally:
            self._asked = False
        raise RuntimeError("the block ran without this layer")


class _Given(Exception):
    """Ends a forward pass at the layer that was asked."""

    def __init__(self, x: Tensor):
        self.x = x
