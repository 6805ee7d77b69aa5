"""What the layers of a full-precision model are given and give: samples of activations for static grids and
for the reparameterisation of norms.

Every layer is shown all pictures once; of each batch some tokens are kept, the same positions in all layers
of the same shape, so that memory stays bounded: tokens x features floats a site.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from quept.data.batches import samples
from quept.models import LoadedModel
from quept.models.clone import clone
from quept.numerics.static import search
from quept.transforms import Record, TransformError, reparameterisation

Ends = Mapping[str, Mapping[int, Tensor]]  # {layer: {bits: (2, sites)}}
RANGE_TOKENS, GRID_TOKENS = 4096, 1024  # samples of a site: for the range of each channel; of all together


@dataclass(frozen=True)
class Samples:
    """Of one layer: inputs (tokens, in); outputs (tokens, out) where they were asked for, else None. ends:
    the least and the greatest value of every token that passed, (2, sites) of the input and, of such outputs,
    of query, key and value: a class token is one of hundreds, and may be in no sample."""

    inputs: Tensor
    outputs: Tensor | None
    ends: Tensor

    @property
    def sites(self) -> list[Tensor]:
        return [self.inputs, *(self.outputs.chunk(3, -1) if self.outputs is not None else ())]


def observe(
    model: nn.Module,
    layers: Collection[str],
    batches: Iterable[Mapping[str, Tensor]],
    with_outputs: Collection[str] = (),
    tokens: int = GRID_TOKENS,
) -> dict[str, Samples]:
    """Samples of these linear layers while the model runs on `batches`, inputs of its forward. At most
    `tokens` a layer, spread evenly over the batches."""
    batches = list(batches)
    each = max(1, tokens // len(batches))
    watched = {name: _Watched(model.get_submodule(name), each, name in with_outputs) for name in layers}
    view = clone(model, watched)
    with torch.inference_mode():
        for inputs in batches:
            view(**inputs)
    return {name: layer.samples() for name, layer in watched.items()}


def channel_ranges(samples: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """(tokens, channels) -> lowest and highest value (channels,) between which lies a share `percentile` of
    each channel's values on either side; 1: all of them."""
    ordered = samples.sort(0).values
    kept = min(len(ordered), max(1, round(percentile * len(ordered))))
    return ordered[-kept], ordered[kept - 1]


def observed_reparameterisation(
    loaded: LoadedModel,
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    strength: float,
    percentile: float,
) -> Record:
    """The record for the norms of `loaded`. model: the same in the dtype to compute in."""
    batches = list(batches)
    images = sum(samples(inputs) for inputs in batches)
    first = {norm: readers[0] for norm, readers in loaded.layout.norms.items()}
    if not first:
        raise TransformError(
            f"{loaded.title} has no norm before a layer to reparameterise: calibrate it by a recipe without "
            "transforms"
        )
    seen = observe(model, list(first.values()), batches, tokens=RANGE_TOKENS)
    ranges = {norm: channel_ranges(seen[layer].inputs, percentile) for norm, layer in first.items()}
    return reparameterisation(ranges, strength, percentile, images)


def static_ends(seen: Mapping[str, Samples], widths: Collection[int], percentiles: Collection[float]) -> Ends:
    """The ends of static grids, lowest and highest values: of a layer's input and, where one gives query, key
    and value, of these; of the percentiles those with the least squared error. 1 alone: all values seen."""
    if set(percentiles) == {1.0}:
        return {name: dict.fromkeys(widths, layer.ends) for name, layer in seen.items()}
    found = {}
    for name, layer in seen.items():
        ends = [search(site, widths, percentiles) for site in layer.sites]
        found[name] = {bits: torch.tensor([end[bits] for end in ends]).T.contiguous() for bits in widths}
    return found


class _Watched(nn.Module):
    """A linear layer, or a convolution of 1 x 1, that keeps some of what passes through it."""

    def __init__(self, layer: nn.Linear, tokens: int, with_outputs: bool):
        super().__init__()
        self.__dict__["layer"], self._tokens, self._with_outputs = layer, tokens, with_outputs
        self.out_features, self.in_features = layer.weight.shape[:2]
        self._convolves = isinstance(layer, nn.Conv2d)
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._ends: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        if self._convolves:
            y, x = self.layer(x), x.movedim(1, -1)
        else:
            y = linear(x, self.layer.weight, self.layer.bias)
        sites = [x, *(y.chunk(3, -1) if self._with_outputs else ())]
        ends = torch.stack([torch.stack(site.aminmax()) for site in sites], 1).float().cpu()
        self._ends = (
            ends
            if self._ends is None
            else torch.stack([torch.minimum(self._ends[0], ends[0]), torch.maximum(self._ends[1], ends[1])])
        )
        count = x.shape[:-1].numel()
        generator = torch.Generator().manual_seed(count)
        kept = torch.randperm(count, generator=generator)[: self._tokens].to(x.device)
        self._inputs.append(x.flatten(0, -2)[kept].float().cpu())
        if self._with_outputs:
            self._outputs.append(y.flatten(0, -2)[kept].float().cpu())
        return y

    def samples(self) -> Samples:
        outputs = torch.cat(self._outputs) if self._with_outputs else None
        return Samples(torch.cat(self._inputs), outputs, self._ends.clone())  # made outside of inference
