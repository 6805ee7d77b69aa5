"""One window at full precision, and passes over it that change something and start where they change it.

The pass at full precision keeps what goes into the head (see kl), the pass at the base plan the hidden state
that enters each block. A pass that changes layers of block k then starts there: the blocks before it become
stubs that hand on the kept state, and it ends before the head. It computes what a whole pass over
`elastic.view(...)` computes, and a test holds the two equal; but the changed weight is made for this pass
alone and goes by the bank, which would fill with weights that nobody wants twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import LongTensor, Tensor, nn

from quept.models.clone import clone
from quept.plan import FULL, Bits, PrecisionPlan
from quept.runtime.backends import BoundLinear
from quept.runtime.model import ElasticModel

from .kl import Expected


@dataclass(frozen=True)
class FullPass:
    """What later passes over one window start from: its ids (1, t); a view at the base plan, and the hidden
    state that enters each of its blocks; its head, if that is not full precision's; what full precision
    expects at the first t - 1 positions; KL(full precision || base)."""

    ids: LongTensor
    view: nn.Module
    states: tuple[Tensor, ...]
    head: nn.Module | None
    expected: Expected
    base_kl: float


@torch.inference_mode()
def full_pass(elastic: ElasticModel, ids: LongTensor, base: PrecisionPlan | None = None) -> FullPass:
    """Run one window (t,) at full precision, and at `base` if that is another plan."""
    full = PrecisionPlan.full()
    ids, view = ids[None].to(elastic.device), elastic.view(full)
    hidden, states = _kept(elastic, view, ids)
    expected = Expected.of(hidden, view.get_submodule(elastic.layout.head))
    if base in (None, full):
        return FullPass(ids, view, states, None, expected, 0.0)
    view = elastic.view(base)
    hidden, states = _kept(elastic, view, ids)
    head = None if base.embeddings == FULL else view.get_submodule(elastic.layout.head)
    return FullPass(ids, view, states, head, expected, expected.kl(hidden, head))


@torch.inference_mode()
def changed_kl(elastic: ElasticModel, start: FullPass, changes: Mapping[str, Bits], block: int) -> float:
    """Mean over positions of KL(full precision || the base with `changes`, all in block number `block`)."""
    return start.expected.kl(changed_hidden(elastic, start, changes, block), start.head)


@torch.inference_mode()
def plan_kl(elastic: ElasticModel, start: FullPass, plan: PrecisionPlan) -> float:
    """The same of any plan, by a whole pass."""
    view = elastic.view(plan)
    head = None if plan.embeddings == FULL else view.get_submodule(elastic.layout.head)
    return start.expected.kl(_kept(elastic, view, start.ids)[0], head)


@torch.inference_mode()
def changed_hidden(elastic: ElasticModel, start: FullPass, changes: Mapping[str, Bits], block: int) -> Tensor:
    """What goes into the head (t - 1, d) at the base with these layers changed, computed from that block
    on."""
    before = [b.name for b in elastic.layout.blocks[:block]]
    stubs = dict.fromkeys(before, Given(start.states[block])) | {elastic.layout.head: Through()}
    bound = {name: _bound(elastic, start.view.get_submodule(name), name, b) for name, b in changes.items()}
    return clone(start.view, stubs | bound)(input_ids=start.ids, use_cache=False).logits[0, :-1]


def _bound(elastic: ElasticModel, layer: BoundLinear, name: str, bits: Bits) -> BoundLinear:
    """The layer at other widths; its weight is made new if that is what changes."""
    if bits.weights == layer.bits.weights:
        return layer.at(bits)
    return layer.bound(elastic.values(name, bits.weights).to(elastic.dtype), bits)


def _kept(elastic: ElasticModel, view: nn.Module, ids: LongTensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What goes into the head, (t - 1, d), and into each block."""
    states: list[Tensor] = []
    kept = {block.name: Kept(view.get_submodule(block.name), states) for block in elastic.layout.blocks}
    headless = clone(view, kept | {elastic.layout.head: Through()})
    return headless(input_ids=ids, use_cache=False).logits[0, :-1], tuple(states)


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
    """In place of the head: the model answers with what goes into it."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden
