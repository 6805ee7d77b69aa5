"""AutoRound: rounding and clipping of each block tuned by signed gradient descent on calibration text.

Asymmetric, float32 throughout (`amp=False`), otherwise the tool's defaults: 8 windows a step, scales in
float16.
"""

from __future__ import annotations

from collections.abc import Mapping

from auto_round import AutoRound
from job import Job, linears, run
from torch import Tensor
from transformers import AutoTokenizer


def quantize(job: Job) -> Mapping[str, Tensor]:
    model = job.load()
    names = list(linears(model))
    tuner = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job.model),
        bits=job.bits,
        group_size=job.group,
        sym=False,
        iters=job.iterations,
        dataset=[row[None] for row in job.ids],
        nsamples=len(job.ids),
        seqlen=job.ids.shape[1],
        amp=False,
        device_map="cpu",
        enable_torch_compile=False,
        low_cpu_mem_usage=False,
    )
    model, _ = tuner.quantize()
    return {name: model.get_submodule(name).weight.data for name in names}


if __name__ == "__main__":
    run(quantize, ("auto-round",), {"sym": False, "amp": False})
