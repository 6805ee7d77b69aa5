"""What calibration learns of a model, and the model at any plan while it is being learned.

A `TrainableLayer` holds one linear layer's frozen weight and its few learned tensors: the cascaded adapter
(B, A) and, for every width that clips, the logits of two clip factors per group of columns. `values(bits)` is
the weight on its grid as a differentiable function of them:

    x' = round_to_grid(W + B[:, :r] @ A[:r], bits, low = sigmoid(clip[0]), high = sigmoid(clip[1]))

and, where its activations are rounded on static grids, the logarithms of how far the two ends of each site's
range have moved from where they started.

A `Trainable` is a model whose layers are such. As at run time precision is an argument: `view(plan)` is a
clone of the module tree whose leaves compute their weights from the shared parameters at the plan's widths,
so that the gradient of any loss on the view reaches them. What is learned leaves as `learned()`, in the form
in which an artifact stores it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from quept.engines.quept import LayerParameters
from quept.models import ModelLayout
from quept.models.clone import clone
from quept.models.slots import Slot
from quept.numerics.adapters import RankSchedule, adapted, new_adapter
from quept.numerics.grid import group_size, quantize
from quept.numerics.hadamard import hadamard_transform
from quept.numerics.static import grid_between
from quept.numerics.ste import round_static, round_to_grid, round_tokens
from quept.plan import FULL, Bits, PrecisionPlan


class TrainableLayer(nn.Module):
    """Learned tensors of one linear layer. weight (out, in) and bias (out,) or None are frozen; the weight's
    dtype is the one that is computed in.

    clip_start: `{bits: logit that both clip factors start from}`; a width that is missing is not clipped.
    static: `{bits: (2, sites)}`, the ends that static grids start from; a width that is missing is rounded
    per token. Sites are the input and, of a layer that gives query, key and value, these three."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        schedule: RankSchedule,
        clip_start: Mapping[int, float],
        group: int,
        generator: torch.Generator,
        online: bool = False,
        static: Mapping[int, Tensor] | None = None,
    ):
        super().__init__()
        rows, columns = weight.shape
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.schedule, self.group, self.online = schedule, group, online
        pairs = [new_adapter(rows, columns, step, generator) for step in schedule.steps]
        self.b = nn.ParameterList(b.to(weight.device) for b, _ in pairs)  # one entry for each bit group's own
        self.a = nn.ParameterList(a.to(weight.device) for _, a in pairs)  # ranks: a low width trains no other
        shape = (2, rows, -(-columns // group))
        self.clips = nn.ParameterDict(
            {
                str(bits): nn.Parameter(torch.full(shape, float(start), device=weight.device))
                for bits, start in clip_start.items()
            }
        )
        self._ends = {bits: ends.to(weight.device) for bits, ends in (static or {}).items()}
        self.static = nn.ParameterDict(
            {str(bits): nn.Parameter(torch.zeros_like(ends)) for bits, ends in self._ends.items()}
        )

    def forward(self, x: Tensor, bits: Bits, drop: float = 0.0) -> Tensor:
        """x (..., in) -> (..., out) at these widths. drop: the share of activations left as they are, drawn
        at random (QDrop, arXiv 2203.05740)."""
        if self.online:
            x = hadamard_transform(x)
        width = bits.activations
        if width == FULL:
            return linear(x, self.values(bits.weights), self.bias)
        if str(width) not in self.static:
            return linear(_dropped(x, round_tokens(x, width), drop), self.values(bits.weights), self.bias)
        low, high = self._ends_at(width)
        x = _dropped(x, round_static(x, low[:1], high[:1], width), drop)
        y = linear(x, self.values(bits.weights), self.bias)
        return _dropped(y, round_static(y, low[1:], high[1:], width), drop) if len(low) > 1 else y

    def _ends_at(self, bits: int) -> Tensor:
        """(2, sites): the ends as they are learned by now."""
        return self._ends[bits] * self.static[str(bits)].exp()

    def values(self, bits: int) -> Tensor:
        """The weight (out, in) at 2..8 bits, or as it is at 16."""
        if bits == FULL:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):  # as exact as what will be stored
            x = adapted(self.weight, *self._adapter(bits), self.schedule, bits)
        if str(bits) in self.clips:
            low, high = self.clips[str(bits)].sigmoid()
        else:
            low = high = torch.ones((), device=x.device).expand(x.shape[0], -(-x.shape[1] // self.group))
        return round_to_grid(x, bits, self.group, low, high)

    def learns(self, bits: int) -> bool:
        """Whether this width has anything to learn: ranks of its own group, clip factors or static ends."""
        own = self.schedule.group_of(bits)
        return (
            str(bits) in self.clips or str(bits) in self.static or (own >= 0 and self.schedule.steps[own] > 0)
        )

    def _adapter(self, bits: int) -> tuple[Tensor, Tensor]:
        """B and A of this width, with borrowed ranks held constant."""
        own = self.schedule.group_of(bits)
        b = [part if g == own else part.detach() for g, part in enumerate(self.b) if g <= own]
        a = [part if g == own else part.detach() for g, part in enumerate(self.a) if g <= own]
        return (torch.cat(b, 1), torch.cat(a)) if b else (self.weight[:, :0], self.weight[:0])

    def learned(self, bits: Iterable[int]) -> LayerParameters:
        """What was learned for these widths, rounded to what an artifact stores."""
        factors = {b: self.clips[str(b)].detach().sigmoid() for b in bits if str(b) in self.clips}
        return LayerParameters.rounded(
            self.schedule,
            torch.cat([b.detach() for b in self.b], 1),
            torch.cat([a.detach() for a in self.a]),
            factors,
            tuple(bits),
            {width: self.grid(width) for width in self._ends},
        )

    def plain(self) -> LayerParameters:
        """The static grids alone, where they started; every width of the weight is rounded to nearest."""
        empty = torch.zeros(0, 0)
        grids = {width: self.grid(width, learned=False) for width in self._ends}
        return LayerParameters.rounded(self.schedule, empty, empty, {}, (), grids)

    def grid(self, bits: int, learned: bool = True) -> Tensor:
        """The static grid (2, sites) at this width: as learned, or as it started."""
        ends = self._ends_at(bits) if learned else self._ends[bits]
        return grid_between(*ends.detach(), bits)


def _dropped(x: Tensor, rounded: Tensor, share: float) -> Tensor:
    return torch.where(torch.rand_like(x) < share, x, rounded) if share else rounded


class _AtWidth(nn.Module):
    """The leaf of a view: the layer at one width."""

    def __init__(self, layer: TrainableLayer, bits: Bits, drop: float = 0.0):
        super().__init__()
        self.__dict__["layer"], self.bits = layer, bits  # not a child: it is shared by all views
        self.drop = drop
        self.out_features, self.in_features = layer.weight.shape

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.bits, self.drop)


class Trainable:
    """A model (its layers' weights in the dtype to compute in) and one TrainableLayer for each of `layers`.

    online: layers whose input passes through a Hadamard transform, as `LoadedModel.online` names them.
    static: `{layer: {bits: (2, sites)}}`, ends of the static grids that activations start from; none: they
    are rounded per token."""

    def __init__(
        self,
        model: nn.Module,
        layout: ModelLayout,
        schedule: RankSchedule,
        clip_start: Mapping[int, float],
        group: int | str,
        seed: int,
        online: Collection[str] = (),
        static: Mapping[str, Mapping[int, Tensor]] | None = None,
    ):
        self.layout, self._model, self._group = layout, model, group
        self._rounded: dict[int, dict[str, nn.Module]] = {}
        generator = torch.Generator().manual_seed(seed)
        self.layers: dict[str, TrainableLayer] = {}
        for name in layout.layers:
            source = model.get_submodule(name)
            bias = None if source.bias is None else source.bias.detach()
            weight = source.weight.detach().flatten(1)
            columns = weight.shape[1]
            self.layers[name] = TrainableLayer(
                weight,
                bias,
                schedule,
                clip_start,
                group_size(columns, group),
                generator,
                name in online,
                (static or {}).get(name),
            )

    def view(self, plan: PrecisionPlan, checkpointed: bool = False, drop: float = 0.0) -> nn.Module:
        """The model at this plan. checkpointed: keep only the blocks' inputs for the backward pass and
        compute the rest again. drop: see `TrainableLayer.forward`."""
        plans = plan.resolve(self.layers)
        bound = {name: _AtWidth(self.layers[name], bits, drop) for name, bits in plans.items()}
        ends = {} if plan.embeddings == FULL else self._embeddings_at(plan.embeddings)
        view = clone(self._model, {**self.layout.in_place(bound), **ends})
        if checkpointed:
            for block in self.layout.blocks:
                module = view.get_submodule(block.name)
                module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        return view

    def _embeddings_at(self, bits: int) -> dict[str, nn.Module]:
        """What a plan calls the embeddings, rounded to nearest: nothing of them is learned."""
        if bits not in self._rounded:
            slots = {name: Slot(name, name) for name in self.layout.ends}
            weights = {name: slot.weight(self._model) for name, slot in slots.items()}
            values = {
                n: quantize(w, bits, group_size(w.shape[1], self._group))[1] for n, w in weights.items()
            }
            self._rounded[bits] = {name: slots[name].over(self._model, values[name]) for name in slots}
        return self._rounded[bits]

    def block(self, index: int, plan: PrecisionPlan, drop: float = 0.0) -> nn.Module:
        """One decoder block at this plan, by itself."""
        block, bits = self.layout.decoder_blocks[index], plan.resolve(self.layers)
        bound = {name: _AtWidth(self.layers[name], bits[name], drop) for name in block.layers.values()}
        return clone(self._model.get_submodule(block.name), bound, block.name)

    def parameters(
        self, kind: str, layers: Iterable[str] | None = None, group: int | None = None
    ) -> list[nn.Parameter]:
        """The learned tensors of a kind, "adapters", "clips" or "static": of these layers, or of all; of
        adapters those that one bit group owns, or all."""
        chosen = [self.layers[name] for name in (self.layers if layers is None else layers)]
        if kind == "clips":
            return [p for layer in chosen for p in layer.clips.values()]
        if kind == "static":
            return [p for layer in chosen for p in layer.static.values()]
        owned = slice(None) if group is None else slice(group, group + 1)
        return [p for layer in chosen for p in (*layer.b[owned], *layer.a[owned]) if p.numel()]

    def state(self, layers: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The learned tensors of these layers (None: of all) by name, shared with the layers."""
        return {
            f"{name}.{key}": p.data
            for name in (self.layers if layers is None else layers)
            for key, p in self.layers[name].named_parameters()
        }

    def load_state(self, state: Mapping[str, Tensor], layers: Iterable[str] | None = None) -> None:
        """Copy tensors of the same names and shapes back in, those of these layers or of all."""
        for name, tensor in self.state(layers).items():
            tensor.copy_(state[name])

    def plain(self) -> dict[str, LayerParameters]:
        """Nothing learned: the static grids alone, where they started."""
        return {name: layer.plain() for name, layer in self.layers.items()}

    def learned(self, widths: Mapping[str, Iterable[int]]) -> dict[str, LayerParameters]:
        """widths: of each layer those that are kept."""
        return {name: layer.learned(tuple(widths[name])) for name, layer in self.layers.items()}
