"""A checkpoint of a classifier of pictures -> a folder that `quept.models.vision` reads: config.json, which
names timm's architecture, and model.safetensors in float16.

Another repository's names say little about timm's, but both list an architecture's tensors in the order of
its forward pass: `convert_in_order` pairs them so, and refuses a pair of different shapes. The file's sha256
was checked before it comes here, and it is read as plain tensors (`weights_only`): nothing in it is run.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .cache import Progress, SourceError, say

COUNTER = "num_batches_tracked"  # of batch norms; says nothing about the function


def convert_in_order(source: Path, folder: Path, progress: Progress | None, architecture: str) -> None:
    """Write the folder; SourceError for a file that holds other tensors than the architecture has."""
    from timm import create_model

    say(progress, f"converting {source.name}")
    model = create_model(architecture, pretrained=False)
    wanted = {name: t for name, t in model.state_dict().items() if not name.endswith(COUNTER)}
    found = [t for name, t in _tensors(source).items() if not name.endswith(COUNTER)]
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in wanted.values()]:
        raise SourceError(f"{source.name} does not hold the tensors of timm's {architecture}")
    tensors = {name: t.half().contiguous() for name, t in zip(wanted, found, strict=True)}
    write_folder(folder, architecture, model, tensors)


def write_folder(folder: Path, architecture: str, model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors of a model of timm."""
    about = {key: value for key, value in model.pretrained_cfg.items() if value is not None}
    config = {"architecture": architecture, "num_classes": model.num_classes, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _tensors(source: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise SourceError(f"{source.name} holds no plain tensors: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise SourceError(f"{source.name} holds no table of tensors")
    return found
