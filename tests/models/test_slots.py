"""A slot may be a part of a parameter: rows of a fused linear, one expert of a 3-D one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from quept.engines.rtn import Rtn
from quept.models.slots import Slot, emptied
from quept.plan import Bits
from quept.runtime.assembly import Template
from quept.runtime.backends import Dense

CPU, GRID = torch.device("cpu"), Rtn(16)


class Attention(nn.Module):
    """Queries of 32 channels, keys and values of 16: what "a third each" is wrong for."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 64)

    def forward(self, x):
        q, k, v = self.qkv(x).split([32, 16, 16], -1)
        return torch.cat([q, k * v], -1)


FUSED = [Slot(name, "qkv", rows=rows) for name, rows in {"q": (0, 32), "k": (32, 48), "v": (48, 64)}.items()]
EXPERTS = [
    *(Slot(f"{e}.up", "experts", "gate_up_proj", (24, 48), e) for e in range(3)),
    *(Slot(f"{e}.gate", "experts", "gate_up_proj", (0, 24), e) for e in range(3)),
    *(Slot(f"{e}.down", "experts", "down_proj", expert=e) for e in range(3)),
]


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        config = MixtralConfig(hidden_size=32, intermediate_size=24, num_local_experts=3)
        self.experts = MixtralExperts(config)
        self.experts.config._experts_implementation = "grouped_mm"
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x):
        x, best = x.flatten(0, 1), torch.arange(2 * len(x.flatten(0, 1))).view(-1, 2) % 3
        return self.experts(x, best, torch.full(best.shape, 0.5))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().requires_grad_(False)


def view(model: nn.Module, slots: list[Slot], widths: dict[str, int]) -> nn.Module:
    """The model assembled with its slots at these widths, 16 where there is none."""
    layout = SimpleNamespace(ends=(), slots={slot.name: slot for slot in slots}, in_place=dict)
    loaded = SimpleNamespace(model=model, layout=layout, online=(), vision=None)
    template = Template(loaded, GRID, Dense(torch.float32), CPU, {})
    weights = template.weights | {
        name: GRID.quantize(name, template.weights[name], bits)[1] for name, bits in widths.items()
    }
    layers = {name: template.layers[name].bound(weight, Bits()) for name, weight in weights.items()}
    return template.assemble(layers, {}, ())


@pytest.mark.parametrize(("kind", "slots"), [(Attention, FUSED), (Mixture, EXPERTS)])
def test_a_view_of_parts_at_16_bits_answers_as_the_module_does(kind, slots):
    model, x = made(kind), torch.randn(2, 5, 32)
    torch.testing.assert_close(view(model, slots, {})(x), model(x))
    assert all(slot.weight(model).untyped_storage().data_ptr() in _storages(model) for slot in slots)


@pytest.mark.parametrize(
    ("kind", "slots", "widths"),
    [(Attention, FUSED, {"q": 4, "v": 2}), (Mixture, EXPERTS, {"0.gate": 2, "0.up": 3, "2.down": 4})],
)
def test_each_part_has_a_width_of_its_own(kind, slots, widths):
    model, x = made(kind), torch.randn(2, 5, 32)
    found = view(model, slots, widths)(x)
    full = model(x)
    for slot in slots:
        if slot.name in widths:
            weight = slot.weight(model)
            weight.copy_(GRID.quantize(slot.name, weight, widths[slot.name])[1])
    torch.testing.assert_close(found, model(x))
    assert not torch.allclose(found, full)


def test_a_forgotten_part_is_an_error():
    with pytest.raises(ValueError, match=r"the slots of qkv\.weight are not the whole of it"):
        emptied(FUSED[:2], made(Attention))


def _storages(model: nn.Module) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in model.parameters()}
