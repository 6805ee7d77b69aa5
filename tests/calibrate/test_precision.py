"""Bfloat16 products change the loss by little, and what is learned stays in float32."""

import torch

from quept.calibrate import precision
from quept.calibrate.trainable import Trainable
from quept.models import load
from quept.numerics.adapters import RankSchedule
from quept.plan import PrecisionPlan
from tests.tiny import save_tiny, token_ids


def test_bfloat16_products_are_close_and_train_float32_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "compute_dtype", lambda device: torch.bfloat16)
    loaded = load(save_tiny("llama", tmp_path))
    model = loaded.model.float()
    schedule = RankSchedule(((4,), (2,)), (2, 2))
    trainable = Trainable(model, loaded.layout, schedule, {2: 1.0, 4: 4.0}, 32, seed=0)
    view = trainable.view(PrecisionPlan.uniform(4))
    with precision.fast_products(torch.device("cpu")):
        fast = view(input_ids=token_ids()).logits
    exact = view(input_ids=token_ids()).logits
    assert fast.dtype == torch.bfloat16 and (fast.float() - exact).abs().max() < 0.1 * exact.abs().max()
    fast.float().square().mean().backward()
    clip = next(iter(trainable.layers.values())).clips["4"]
    assert clip.grad.dtype == torch.float32 and clip.grad.any()
    weight = next(iter(trainable.layers.values()))
    with precision.fast_products(torch.device("cpu")):
        inside = weight.values(4)
    assert torch.equal(inside, weight.values(4))
