"""HQQ: half-quadratic quantization of each weight by itself, without calibration text.

The tool's own defaults (axis 1, so that groups lie along the input columns as ours do; the zero-point rounded
at 4 bits only); scales and zero-points stored in float16, as its layers store them in a 16-bit model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from job import Job, linears, run
from torch import Tensor


def quantize(job: Job) -> Mapping[str, Tensor]:
    config = BaseQuantizeConfig(nbits=job.bits, group_size=job.group)
    made = {}
    for name, linear in linears(job.load()).items():
        layer = HQQLinear(
            linear, config, compute_dtype=torch.float16, device="cpu", initialize=True, del_orig=False
        )
        made[name] = layer.dequantize().float()
    return made


if __name__ == "__main__":
    run(quantize, ("hqq",), {"axis": 1, "calibration": "none"})
