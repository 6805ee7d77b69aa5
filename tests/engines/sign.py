"""A toy engine, as a newcomer would write it: one bit and a scale a row, sign(w) times the mean of |w|."""

from dataclasses import dataclass

import numpy as np
import torch

from quept.engines.base import Engine


@dataclass(frozen=True, eq=False)
class Signs:
    codes: torch.Tensor
    scales: torch.Tensor
    columns: int

    @property
    def nbytes(self):
        return self.codes.nbytes + self.scales.nbytes


class Sign(Engine):
    title = "signs"

    @classmethod
    def read(cls, listing, tensors):
        return cls()

    def quantize(self, layer, weight, setting):
        scales = weight.float().abs().mean(1, keepdim=True).half()
        codes = torch.from_numpy(np.packbits((weight >= 0).cpu().numpy(), axis=1))
        return Signs(codes, scales, weight.shape[1]), None

    def values(self, stored, setting):
        bits = np.unpackbits(stored.codes.numpy(), axis=1, count=stored.columns)
        return (2.0 * torch.from_numpy(bits) - 1) * stored.scales.float()

    def nbytes(self, rows, columns, setting):
        return rows * (-(-columns // 8) + 2)
