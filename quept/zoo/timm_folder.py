"""A checkpoint of a classifier of pictures -> a folder that `quept.models.vision` reads: config.json, which
names timm's architecture, and model.safetensors in float16.

Another repository's names say little about timm's, but both list an architecture's tensors in the order of
its forward pass: `convert_in_order` pairs them so, and refuses a pair of different shapes. `convert_dinov2`
takes the backbone out of an ONNX graph, whose initializers keep the names of transformers and whose matrices
are known by the nodes that multiply by them. The file's sha256 was checked before it comes here, and it is
read as plain tensors: nothing in it is run.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

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


def convert_dinov2(source: Path, folder: Path, progress: Progress | None, architecture: str) -> None:
    """The same of a DINOv2 inside an ONNX graph, at the size of the graph's pictures, without a head."""
    try:
        import onnx
    except ImportError:
        raise SourceError(f"{source.name} is read with the package onnx: pip install onnx") from None
    from timm import create_model

    say(progress, f"converting {source.name}")
    graph = onnx.load(source).graph
    held = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    for node in graph.node:
        matrices = [held[name].mT for name in node.input if node.op_type == "MatMul" and name in held]
        if matrices:
            held[node.name.strip("/").replace("/", ".").removesuffix("MatMul") + "weight"] = matrices[0]
    concat, reshape = (
        next(n for n in graph.node if n.name == f"/backbone/embeddings/{name}")
        for name in ("Concat_6", "Reshape_1")
    )
    first, rest = held[concat.input[0]], held[reshape.input[0]]
    size = graph.input[0].type.tensor_type.shape.dim[2].dim_value
    model = create_model(architecture, pretrained=False, img_size=size, num_classes=0)
    side, cells = round(rest.shape[1] ** 0.5), model.patch_embed.grid_size
    grid = rest.view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, cells, mode="bicubic").flatten(2).mT
    tensors = {"pos_embed": torch.cat([first, grid], 1)}
    for name in model.state_dict():
        if name not in tensors:
            parts = [held[there] for there in _in_transformers(name)]
            tensors[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    tensors = {name: t.half().contiguous() for name, t in tensors.items()}
    write_folder(folder, architecture, model, tensors, {"img_size": size})


def _in_transformers(name: str) -> list[str]:
    """Where transformers keeps a tensor of timm's DINOv2; query, key and value by themselves."""
    for ours, theirs in (
        ("blocks.", "encoder.layer."),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("cls_token", "embeddings.cls_token"),
        ("attn.proj", "attention.output.dense"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
    ):
        name = name.replace(ours, theirs)
    name = f"backbone.{name}" if not name.startswith("norm.") else f"backbone.layer{name}"
    kinds = ("query", "key", "value") if "attn.qkv" in name else ("",)
    return [name.replace("attn.qkv", f"attention.attention.{kind}") for kind in kinds]


def write_folder(
    folder: Path,
    architecture: str,
    model: torch.nn.Module,
    tensors: dict[str, Tensor],
    arguments: dict[str, int] | None = None,
) -> None:
    """Write config.json and model.safetensors of a model of timm; arguments: those it was made with."""
    about = {key: value for key, value in model.pretrained_cfg.items() if value is not None}
    about["num_classes"] = model.num_classes
    if arguments and "img_size" in arguments:
        about["input_size"] = (3, arguments["img_size"], arguments["img_size"])
    config = {"architecture": architecture, "num_classes": model.num_classes, "pretrained_cfg": about}
    config |= {"model_args": arguments} if arguments else {}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _tensors(source: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever kind its bytes provoke
        raise SourceError(f"{source.name} holds no plain tensors: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise SourceError(f"{source.name} holds no table of tensors")
    return found
