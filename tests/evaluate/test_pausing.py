"""A pass of any task lets others go first before each block: a release waits for a block and no longer."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from quept import ElasticModel, PrecisionPlan
from quept.data.images import save_images
from quept.evaluate import TASKS, EvalTask, Sample
from tests.tiny import save_tiny, save_tiny_vision
from tests.tiny_vlm import picture, save_tiny_vlm

SAMPLE = Sample("The quick brown fox jumps over the lazy dog. " * 20, "foxes", tokens=64, context=64)


def opened(folder: Path) -> ElasticModel:
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


def text(folder: Path) -> EvalTask:
    return TASKS["text"](opened(save_tiny("llama", folder / "model")), folder, {"text": SAMPLE})


def choice(folder: Path) -> EvalTask:
    items = folder / "items.json"
    items.write_text(json.dumps({"context": "A cat says", "choices": [" meow", " woof"], "right": 0}))
    return TASKS["choice"](opened(save_tiny("llama", folder / "model")), folder, {"choices": str(items)})


def image(folder: Path, family: str = "vit") -> EvalTask:
    model = save_tiny_vision(family, folder / "model")
    shape = (8, 16, 16) if family == "vit" else (8, 32, 32, 3)
    save_images(
        model / "images.safetensors", "black", torch.zeros(shape, dtype=torch.uint8), torch.arange(8) % 5
    )
    return TASKS["image"](opened(model), folder)


def vqa(folder: Path) -> EvalTask:
    picture(0).save(folder / "0.png")
    (folder / "pairs.json").write_text(json.dumps([{"image": "0.png", "question": "What?", "answer": "a"}]))
    return TASKS["vqa"](opened(save_tiny_vlm("llava", folder / "model")), folder, {"data": str(folder)})


@pytest.mark.parametrize("make", [text, choice, image, lambda f: image(f, "swin"), vqa])
def test_a_pass_of_a_task_pauses_before_each_block(make: Callable[[Path], EvalTask], tmp_path: Path):
    task, pauses = make(tmp_path), []
    plan = PrecisionPlan.uniform(4)
    view = task.elastic.view(plan)
    hooks = [len(module._forward_pre_hooks) for module in view.modules()]

    @contextmanager
    def gate():
        pauses.append(0)
        yield SimpleNamespace(pause=lambda: pauses.append(pauses.pop() + 1))

    list(task.estimates(view, plan, gate))
    assert max(pauses) >= len(task.elastic.layout.blocks)
    assert [len(module._forward_pre_hooks) for module in view.modules()] == hooks
