"""One window at full precision, and passes over it that change something and start where they change it.

The pass at full precision keeps what goes into the head (see kl), the pass at the base plan the hidden state
that enters each block. A pass that changes layers of block k then starts there: the blocks before it become
stubs that hand on the kept state, and it ends before the head. It computes what a whole pass over
`elastic.view(...)` computes, and a test holds the two equal, or with `quick`, where the processor is made for
it, the same but for noise in the fourth digit (see moved); but the changed weight is made for this pass alone
and goes by the bank, which would fill with weights that nobody wants twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import LongTensor, Tensor, nn

from quept.models.behind import head_of, inner_of, is_linear
from quept.models.clone import clone
from quept.plan import FULL, Bits, PrecisionPlan
from quept.runtime.backends import BoundLinear
from quept.runtime.model import ElasticModel

from .kl import Bent, Expected
from .moved import Moved, Recorded, moved, moving

Head = nn.Module | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FullPass:
    """What later passes over one window start from: its ids (1, t); a view at the base plan, and the hidden
    state that enters each of its blocks; its head, if that is not full precision's; what full precision
    expects at the first t - 1 positions; KL(full precision || base); the layers that need not multiply
    anew what the base pass did."""

    ids: LongTensor
    view: nn.Module
    states: tuple[Tensor, ...]
    head: Head | None
    expected: Expected | Bent
    base_kl: float
    moved: Mapping[str, Moved] = field(default_factory=dict)


@torch.inference_mode()
def full_pass(
    elastic: ElasticModel, ids: LongTensor, base: PrecisionPlan | None = None, *, quick: bool = False
) -> FullPass:
    """Run one window (t,) at full precision, and at `base` if that is another plan."""
    full = PrecisionPlan.full()
    ids, view = ids[None].to(elastic.device), elastic.view(full)
    linear = is_linear(view, elastic.layout)
    hidden, states, layers = _kept(elastic, view, ids, linear, quick and base in (None, full))
    head = _head(elastic, view, linear)
    expected = Expected.of(hidden, head) if linear else Bent(hidden, head)
    if base in (None, full):
        return FullPass(ids, view, states, None, expected, 0.0, layers)
    view = elastic.view(base)
    hidden, states, layers = _kept(elastic, view, ids, linear, quick)
    head = None if base.embeddings == FULL else _head(elastic, view, linear)
    return FullPass(ids, view, states, head, expected, expected.kl(hidden, head), layers)


@torch.inference_mode()
def changed_kl(elastic: ElasticModel, start: FullPass, changes: Mapping[str, Bits], block: int) -> float:
    """Mean over positions of KL(full precision || the base with `changes`, all in block number `block`)."""
    return start.expected.kl(changed_hidden(elastic, start, changes, block), start.head)


@torch.inference_mode()
def cached_kl(elastic: ElasticModel, start: FullPass, bits: int, block: int) -> float:
    """The same with the keys and values of that block at so many bits, and no other change."""
    before = [b.name for b in elastic.layout.blocks[:block]]
    stubs = dict.fromkeys(before, Given(start.states[block])) | {elastic.layout.head: Through()}
    cache = elastic.make_cache(PrecisionPlan.of({}, kv_blocks={elastic.layout.blocks[block].name: bits}))
    hidden = clone(start.view, stubs)(input_ids=start.ids, cache=cache, use_cache=True).logits[0, :-1]
    return start.expected.kl(hidden, start.head)


@torch.inference_mode()
def plan_kl(elastic: ElasticModel, start: FullPass, plan: PrecisionPlan) -> float:
    """The same of any plan, by a whole pass."""
    view, linear = elastic.view(plan), isinstance(start.expected, Expected)
    head = None if plan.embeddings == FULL else _head(elastic, view, linear)
    return start.expected.kl(_kept(elastic, view, start.ids, linear)[0], head)


@torch.inference_mode()
def changed_hidden(elastic: ElasticModel, start: FullPass, changes: Mapping[str, Bits], block: int) -> Tensor:
    """What goes into the head (t - 1, d) at the base with these layers changed, computed from that block
    on."""
    before = [b.name for b in elastic.layout.blocks[:block]]
    stubs = dict.fromkeys(before, Given(start.states[block]))
    bound = {name: _bound(elastic, start.view.get_submodule(name), name, b) for name, b in changes.items()}
    changed = stubs | start.moved | bound
    return _headless(elastic, start.view, changed, start.ids, isinstance(start.expected, Expected))


def _head(elastic: ElasticModel, view: nn.Module, linear: bool) -> Head:
    """The head, or all that the model does behind its blocks where that is no product."""
    return view.get_submodule(elastic.layout.head) if linear else head_of(view, inner_of(elastic.layout))


def _bound(elastic: ElasticModel, layer: BoundLinear, name: str, bits: Bits) -> BoundLinear:
    """The layer at other widths; its weight is made new if that is what changes."""
    if bits.weights == layer.bits.weights:
        return layer.at(bits)
    return layer.bound(elastic.values(name, bits.weights).to(elastic.dtype), bits)


def _kept(
    elastic: ElasticModel, view: nn.Module, ids: LongTensor, linear: bool, quick: bool = False
) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Moved]]:
    """What goes into the head, (t - 1, d), and into each block; if `quick`, the layers that moved can do."""
    states: list[Tensor] = []
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    layers = moving(elastic, view, ids.numel()) if quick else {}
    recorded = clone(view, {name: Recorded(name, layer, seen) for name, layer in layers.items()})
    kept = {block.name: Kept(recorded.get_submodule(block.name), states) for block in elastic.layout.blocks}
    return _headless(elastic, recorded, kept, ids, linear), tuple(states), moved(layers, seen)


def _headless(
    elastic: ElasticModel, view: nn.Module, changed: Mapping[str, nn.Module], ids: LongTensor, linear: bool
) -> Tensor:
    """What goes into the head, (t - 1, d); where logits are linear in it, times the scale that they have."""
    through = Through()
    out = clone(view, changed | {elastic.layout.head: through})(input_ids=ids, use_cache=False)
    return (out.logits if linear else through.seen)[0, :-1]


class Kept(nn.Module):
    """A block that remembers the hidden state it was given."""

    def __init__(self, block: nn.Module, states: list[Tensor]):
        super().__init__()
        self.block, self.states = block, states

    def forward(self, hidden: Tensor, *args, **kwargs) -> Tensor:
        self.states.append(hidden)
        return self.block(hidden, *args, **kwargs)


class Given(nn.Module):
    """A stub for a block before the changed one: answers with the state it was made with, whatever it is
    given."""

    def __init__(self, state: Tensor):
        super().__init__()
        self.state = state

    def forward(self, hidden: Tensor, *args, **kwargs) -> Tensor:
        return self.state


class Through(nn.Module):
    """In place of the head: the model answers with what goes into it, which is `seen`."""

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return hidden
