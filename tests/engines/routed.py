"""A toy engine that spends bits by token: two and eight bits of each weight lie side by side, and a share of
the tokens, chosen by their activations, is multiplied by the latter. A setting is the average, "spread:3.5";
all of them share what is stored."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

from quept.engines import Entry
from quept.engines.base import Engine
from quept.engines.reports import report
from quept.numerics.grid import dequantize, group_size, quantize, quantized_bytes

AVERAGES = {f"spread:{tenths / 10:g}": f"spread at {tenths / 10:g} bits" for tenths in range(20, 81)}
ENTRY = Entry("tests.engines.routed:Routed", AVERAGES, listed=("spread:3", "spread:5"))


@dataclass(frozen=True, eq=False)
class Pair:
    few: object
    many: object

    @property
    def nbytes(self):
        return self.few.nbytes + self.many.nbytes


class Routed(Engine):
    title = "routed by token"
    runs_itself = True

    @classmethod
    def read(cls, listing, tensors):
        return cls()

    def quantize(self, layer, weight, setting):
        return Pair(*(quantize(weight, bits, group_size(weight.shape[1]))[0] for bits in (2, 8))), None

    def nbytes(self, rows, columns, setting):
        return sum(quantized_bytes(rows, columns, bits, group_size(columns)) for bits in (2, 8))

    def storage(self, setting):
        return "spread"

    def module(self, stored, setting, bias, dtype):
        return RoutedLinear(stored, float(setting.partition(":")[2]), bias, dtype)


class RoutedLinear(nn.Module):
    def __init__(self, stored, average, bias, dtype):
        super().__init__()
        self.weights = [dequantize(one).to(dtype) for one in (stored.few, stored.many)]
        self.share, self.bias = (average - 2) / 6, bias

    def forward(self, x):
        chosen = (1000 * x.float().sum(-1)).frac().abs() < self.share
        report("bits per token", torch.where(chosen, 8.0, 2.0), self.weights[0].numel())
        few, many = (linear(x, weight, self.bias) for weight in self.weights)
        return torch.where(chosen[..., None], many, few)
