"""GPTQ by GPTQModel: columns rounded in turn, each one's error pushed into those still to come.

Asymmetric; otherwise the tool's defaults, which order columns by group (`act_group_aware`), a later addition
to the method that helps it. Scales in float16.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from job import Job, linears, run
from torch import Tensor

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with fewer, so on two cores, it refuses to load a model
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402


def quantize(job: Job) -> Mapping[str, Tensor]:
    names = list(linears(job.load()))
    config = QuantizeConfig(
        bits=job.bits,
        group_size=job.group,
        sym=False,
        format="gptq_v2",  # the older one stores zero-points less one, unknown to `dequantize_weight`
        offload_to_disk=False,
    )
    model = GPTQModel.load(str(job.model), config, device="cpu", dtype=torch.float32)
    calibration = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in job.ids]
    model.quantize(calibration, batch_size=1, backend=BACKEND.GPTQ_TORCH)
    return {name: model.model.get_submodule(name).dequantize_weight().T for name in names}


if __name__ == "__main__":
    run(quantize, ("gptqmodel",), {"sym": False, "act_group_aware": True})
