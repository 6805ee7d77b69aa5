"""What lies at a path that was given as a model, told from the names and first bytes of its files.

`instead(path)` is what to say of a path that holds no model in the format that is read here, and what to give
instead: an adapter, one file of a model, ONNX, pickled weights, an unfinished download. It opens no weights
and asks nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
LFS = b"version https://git-lfs"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHERS = {  # suffix -> what it is; the first that is found tells
    **dict.fromkeys(PICKLED, "pickled weights, which can run code and are never opened"),
    ".onnx": "an ONNX export, whose weights are part of a program",
    ".h5": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".npz": "weights of MLX",
    ".tflite": "a TensorFlow Lite export",
    ".mlmodel": "a Core ML export",
    ".mlpackage": "a Core ML export",
    ".engine": "a TensorRT export",
    ".xml": "an OpenVINO export",
}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
ORIGINAL = "give the folder of the original model, with config.json and model.safetensors"


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that `path` is or, where it is a folder without a config.json, the only one in it."""
    if not path.is_dir():
        return path if path.suffix.lower() == ".gguf" else None
    if (path / CONFIG).exists():
        return None
    found = [file for file in path.iterdir() if file.suffix.lower() == ".gguf"]
    return found[0] if len(found) == 1 else None


def instead(path: Path) -> str | None:
    """What lies at `path`, a file or a folder, and what to give instead of it; None where it may be a model.
    The sentence goes on behind the path's name."""
    return _file(path) if path.is_file() else _folder(path)


def _file(path: Path) -> str | None:
    if _begins(path, LFS):
        return _pointer(path)
    if path.suffix.lower() == ".gguf":
        return None if _begins(path, b"GGUF") else "is named like a GGUF file and is none: fetch it again"
    kind = OTHERS.get(path.suffix.lower())
    if kind:
        return f"holds {kind}: {ORIGINAL}"
    if path.suffix == ".safetensors" or path.name in (CONFIG, INDEX):
        return f"is one file of a model: give the folder that it lies in, {path.parent}"
    return f"is a file: a model is {ORIGINAL.removeprefix('give ')}, or a GGUF file"


def _folder(path: Path) -> str | None:
    files = {file.name: file for file in sorted(path.iterdir())}
    if "adapter_config.json" in files:
        base = str(_read(files["adapter_config.json"]).get("base_model_name_or_path") or "its base model")
        return (
            f"holds an adapter (PEFT) for {base}, not a model: merge it with PEFT's merge_and_unload(), save "
            "the result with save_pretrained(), and give that folder"
        )
    if "manifest.json" in files and (base := _read(files["manifest.json"]).get("base")):
        return f"holds an artifact, made from a model: give that one, {base}"
    listed = _read(files[INDEX]).get("weight_map") if INDEX in files else {}
    parts = list(listed.values()) if isinstance(listed, dict) else [listed]
    for name in parts:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            return (
                f"names weights that lie outside of it, {name!r:.80} in {INDEX}: copy the whole model afresh"
            )
    if "model.safetensors" not in files and (gone := sorted(set(parts) - set(files))):
        return f"lacks {gone[0]}, a part of its weights that {INDEX} names: fetch it again"
    weights = [file for name, file in files.items() if fnmatch(name, "model*.safetensors") or name in parts]
    if CONFIG in files and weights:
        return _damaged([*weights, files[CONFIG], *(files[n] for n in TOKENIZERS if n in files)]) or _unread(
            _read(files[CONFIG]), files
        )
    if not any(not name.startswith(".") for name in files):
        return f"is an empty folder: {ORIGINAL}"
    if "model_index.json" in files:
        return f"is a pipeline of diffusers, which makes pictures: {ORIGINAL}"
    ggufs = [name for name in files if name.lower().endswith(".gguf")]
    if ggufs and CONFIG not in files:
        return None if len(ggufs) == 1 else f"holds {len(ggufs)} GGUF files: give one, such as {ggufs[0]}"
    below = [folder for folder in _below(path) if (folder / CONFIG).is_file()]
    if CONFIG not in files and below:
        return f"is no model itself; there is one in {below[-1]}: give that folder"
    for name in files:
        kind = OTHERS.get(Path(name).suffix.lower())
        if kind and not weights:
            return f"holds {kind} ({name}): {ORIGINAL}"
    if weights and _begins(weights[0], LFS):
        return _pointer(weights[0])
    if CONFIG not in files:
        return f"has no {CONFIG}{' beside its weights' if weights else ''}: {ORIGINAL}"
    return f"has a {CONFIG} and no weights: model.safetensors, or the parts that {INDEX} names, are missing"


def _below(path: Path) -> Iterable[Path]:
    """Folders in which a model's files may lie when a person gives the one above: a hub cache's snapshots
    among them."""
    for folder in (path, path / "snapshots"):
        if folder.is_dir():
            yield from sorted(f for f in folder.iterdir() if f.is_dir())


def _unread(config: dict, files: dict[str, Path]) -> str | None:
    """Why a folder with config and weights is nothing that is read here."""
    if "quantization" in config and "quantization_config" not in config:
        return "holds weights that MLX has quantized already: give the model that they were made from"
    if "model_type" not in config or "tokenizer.json" in files:
        return None
    if not any(name in files for name in TOKENIZERS):
        return "has no tokenizer (tokenizer.json): copy it from the original model"
    if "tokenizer.model" in files and not find_spec("sentencepiece"):
        return (
            "has its tokenizer only as tokenizer.model, which takes sentencepiece to read: copy "
            "tokenizer.json from the original model, or pip install sentencepiece protobuf"
        )
    return None


def _damaged(files: Iterable[Path]) -> str | None:
    """What is wrong with the first file that is not what its name says."""
    for file in files:
        if not file.exists():  # a link of the hub's cache into nothing
            return f"lacks {file.name}, a link to a file that is gone: fetch it again"
        if _begins(file, LFS):
            return _pointer(file)
        if file.suffix == ".safetensors" and (problem := _cut(file)):
            return f"has a {file.name} that {problem}: fetch it again"
    return None


def _cut(file: Path) -> str | None:
    """What is wrong with the size and header of a safetensors file."""
    size = file.stat().st_size
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if size < 8 or length > min(size, 100_000_000) or content.read(1) != b"{":
            return "is not a safetensors file, or is cut short" if size else "is empty"
        try:
            header = json.loads(b"{" + content.read(length - 1))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return "has a damaged header"
    expected = 8 + length + max(ends, default=0)
    return f"has {size:,} of {expected:,} bytes" if size < expected else None


def _pointer(file: Path) -> str:
    return f"holds a git-lfs pointer in place of {file.name}: run `git lfs pull` in its folder"


def _begins(file: Path, mark: bytes) -> bool:
    with open(file, "rb") as content:
        return content.read(len(mark)) == mark


def _read(file: Path) -> dict:
    """A JSON object; an empty one for a file that holds none, which whoever opens the model refuses."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
