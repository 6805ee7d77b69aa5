"""Classifiers of pictures, in the format of timm: a folder or a hub id with config.json, which names one of
timm's architectures, and model.safetensors.

`read(where, config)` gives the model, its weights in 16 bits but for those that batch norm was folded into,
and a `Vision`: what else one needs to show it pictures and to understand its answers. Only model.safetensors
is ever read: timm itself would fall back to pickled weights, or fetch a file that the config names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn
from transformers.utils import cached_file

from quept.mapped import passing

from .batchnorm import Statistics, fold
from .complete import CONFIG, WEIGHTS, of_timm, stored, unquantized

IMAGES = "images.safetensors"


@dataclass(frozen=True)
class Vision:
    """What a classifier needs beside its weights.

    config: its config.json, from which timm builds it. data: how a picture becomes its input, as timm's
    `create_transform` takes it. labels: what people call its classes, by number; names: what data sets call
    them (for ImageNet the folders n01440764, ...); both are empty for a model without a classification head.
    images: labelled pictures that lie beside the weights (see `quept.data.images`), if any do. statistics:
    of a convolutional model what `batchnorm.fold` found."""

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    images: Path | None = None
    statistics: Statistics = field(default_factory=dict, compare=False, repr=False)

    @property
    def channels(self) -> int:
        return self.data["input_size"][0]

    @property
    def of_photographs(self) -> bool:
        """Whether it names what is on photographs: the 1,000 classes of ImageNet, by their folders' names."""
        return self.channels == 3 and len(self.names) == 1000 and self.names[0] == "n01440764"


def config_of(where: str) -> dict[str, Any]:
    """The config.json of a folder or hub id; OSError where there is none, ValueError for a damaged one."""
    try:
        config = json.loads(Path(cached_file(where, CONFIG)).read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"its {CONFIG} is not valid JSON") from None
    if not isinstance(config, dict):
        raise ValueError(f"its {CONFIG} is no JSON object")
    return config


def is_from_timm(config: Mapping[str, Any]) -> bool:
    return "architecture" in config and "model_type" not in config


def read(where: str, config: Mapping[str, Any], wide: bool = True) -> tuple[nn.Module, Vision]:
    """The model that `config`, the config.json of a folder or hub id, describes, with its weights. wide:
    whether what batch norm was folded into stays in 32 bits.

    Raises OSError where the weights are missing, and nearly anything else for damaged files."""
    from timm import create_model, is_model
    from timm.data import resolve_model_data_config

    if not is_model(str(config["architecture"])):
        raise ValueError(f"timm knows no architecture {config['architecture']!r}")
    weights = Path(cached_file(where, WEIGHTS))
    tensors = stored([str(weights)])
    unquantized(config, tensors)
    folder = f"local-dir:{weights.parent}"
    try:
        with passing([weights]):
            model = create_model(folder, pretrained=True)
    except EntryNotFoundError:
        raise ValueError(
            f"timm builds a part of {config['architecture']} with weights that it fetches from the hub by "
            "itself, which does not answer"
        ) from None
    size = tuple((model.pretrained_cfg.get("input_size") or (0,))[1:])
    embedded = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size and embedded not in (None, size) and "img_size" not in config.get("model_args", {}):
        model = create_model(folder, pretrained=True, img_size=size)  # else it resizes what its file holds
    declared = model.pretrained_cfg["num_classes"]
    if model.num_classes != declared:  # timm would go on with random numbers in the head
        raise ValueError(f"its {CONFIG} tells of {declared} classes and also of {model.num_classes}")
    of_timm(model, weights)
    data = resolve_model_data_config(model)
    channels = data["input_size"][0]
    if not {len(data["mean"]), len(data["std"])} <= {1, channels}:
        raise ValueError(f"its pictures have {channels} channels, and mean and std another number of them")
    labels, names = _classes(model)
    images = weights.with_name(IMAGES)
    statistics = fold(model, data["input_size"])
    vision = Vision(config, data, labels, names, images if images.is_file() else None, statistics)
    for module in model.modules():  # or else timm multiplies by the layer's weight without running the layer
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True
    _narrow(model, _storage(tensors), vision.statistics if wide else {})
    return model, vision


def _narrow(model: nn.Module, dtype: torch.dtype, wide: Collection[str]) -> None:
    """Holds what came from a file in 16 bits; what was computed (rotary positions, the coordinates of a
    window, the `wide` modules) stays as it is."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and name.rpartition(".")[0] not in wide:
            tensor.data = tensor.data.to(dtype)


def class_logits(logits: Tensor) -> Tensor:
    """Logits (..., classes) that answers are compared by: of a model with one class those of yes and no,
    whose softmax is its sigmoid. As it stands one class would be every answer, certain at any precision."""
    return torch.nn.functional.pad(logits, (0, 1)) if logits.shape[-1] == 1 else logits


def _classes(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(labels, names): from the config, else of the ImageNet with so many classes, else their numbers."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config, count = model.pretrained_cfg, model.num_classes
    names, described = config.get("label_names"), config.get("label_descriptions") or {}
    subset = infer_imagenet_subset(model) if count else None
    if not names and subset:
        info = ImageNetInfo(subset)
        names, described = info.label_names(), info.label_descriptions(as_dict=True)
    names = tuple(map(str, names or range(count)))
    if len(names) != count:
        raise ValueError(f"its {CONFIG} names {len(names)} classes, and its head has {count}")
    return tuple(str(described.get(name, name)) for name in names), names


def _storage(tensors: Mapping[str, str]) -> torch.dtype:
    """bfloat16 for a file that holds only that, else float16: as for language models."""
    return torch.bfloat16 if set(tensors.values()) == {"BF16"} else torch.float16
