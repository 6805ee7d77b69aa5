"""What a path holds that is no model: each kind is said by name, with what to give instead."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from quept.models import LoadError, load
from tests.tiny import save_tiny

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 270000000\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("whole") / "llama")


@pytest.fixture
def folder(whole, tmp_path):
    """A tiny Llama to damage."""
    return shutil.copytree(whole, tmp_path / "llama")


def only(folder, name: str, content: bytes = b"x") -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / name).write_bytes(content)


def instead_of_weights(folder, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)


def said_by_mlx(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}))


def one_folder_deeper(folder) -> None:
    shutil.move(folder, folder.with_name("inner"))
    (folder / "snapshots").mkdir(parents=True)
    shutil.move(folder.with_name("inner"), folder / "snapshots" / "0123abcd")


def cut(folder, size: int) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:size])


FOLDERS = {
    "adapter": (
        lambda f: only(f, "adapter_config.json", b'{"base_model_name_or_path": "org/base"}'),
        r"holds an adapter \(PEFT\) for org/base.*merge_and_unload",
    ),
    "adapter of a broken config": (
        lambda f: only(f, "adapter_config.json", b"[]"),
        "adapter.*for its base model",
    ),
    "nothing": (lambda f: only(f, ".gitattributes"), "an empty folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json beside its weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has a config.json and no weights"),
    "something else": (lambda f: only(f, "holiday.txt"), "has no config.json: give the folder of the orig"),
    "pickled": (lambda f: instead_of_weights(f, "pytorch_model.bin"), "pickled weights.*pytorch_model.bin"),
    "original Llama": (lambda f: only(f, "consolidated.00.pth"), "pickled weights"),
    "ONNX": (lambda f: instead_of_weights(f, "model.onnx"), "an ONNX export"),
    "TensorFlow": (lambda f: instead_of_weights(f, "tf_model.h5"), "TensorFlow weights"),
    "Flax": (lambda f: instead_of_weights(f, "flax_model.msgpack"), "Flax weights"),
    "old MLX": (lambda f: instead_of_weights(f, "weights.npz"), "weights of MLX"),
    "OpenVINO": (lambda f: instead_of_weights(f, "openvino_model.xml"), "an OpenVINO export"),
    "MLX": (said_by_mlx, "MLX has quantized already: give the model"),
    "diffusers": (lambda f: only(f, "model_index.json"), "a pipeline of diffusers"),
    "several GGUF files": (
        lambda f: [only(f, "a.gguf"), (f / "b.gguf").write_bytes(b"x")],
        "holds 2 GGUF files: give one, such as a.gguf",
    ),
    "a git-lfs pointer": (
        lambda f: (f / "model.safetensors").write_bytes(LFS),
        "git-lfs pointer in place of model.safetensors: run `git lfs pull`",
    ),
    "a pointer for a tokenizer": (
        lambda f: (f / "tokenizer.json").write_bytes(LFS),
        "git-lfs pointer in place of tokenizer.json",
    ),
    "a hub cache": (one_folder_deeper, "is no model itself; there is one in .*0123abcd: give that"),
    "an artifact": (lambda f: only(f, "manifest.json", b'{"base": "org/base"}'), "an artifact.*org/base"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer \(tokenizer.json\)"),
    "tokenizer.model": (
        lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"),
        "only as tokenizer.model, which takes sentencepiece",
    ),
    "cut short": (lambda f: cut(f, 5000), r"model.safetensors that (has 5,000 of|is not a)"),
    "an error page": (
        lambda f: (f / "model.safetensors").write_text("<html>not found, log in</html>"),
        "model.safetensors that is not a safetensors file, or is cut short: fetch it again",
    ),
    "no bytes": (lambda f: cut(f, 0), "model.safetensors that is empty"),
    "a link to nothing": (
        lambda f: [(f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("../blobs/0")],
        "model.safetensors, a link to a file that is gone",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_holds_no_model_says_what_it_is(folder, kind):
    damage, words = FOLDERS[kind]
    damage(folder)
    with pytest.raises(LoadError, match=words) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "connect" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"x", "is one file of a model: give the folder that it lies in"),
        ("config.json", b"{}", "is one file of a model"),
        ("model.bin", b"x", "pickled weights"),
        ("model.onnx", b"x", "an ONNX export"),
        ("model.gguf", b"<html>", "is named like a GGUF file and is none"),
        ("model.gguf", LFS, "git-lfs pointer"),
        ("notes.txt", b"x", "is a file: a model is the folder"),
    ],
)
def test_a_file_is_told_by_its_kind_and_never_looked_for_on_the_hub(
    tmp_path, monkeypatch, name, content, words
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for source in (f"mine/{name}", tmp_path / "mine" / name):  # the first one looks like a hub id
        with pytest.raises(LoadError, match=words) as caught:
            load(source)
        assert "connect" not in str(caught.value)


def test_links_and_shards_open_and_a_missing_part_is_named(folder, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(sorted(weights))}
    for part in set(names.values()):
        save_file({k: v for k, v in weights.items() if names[k] == part}, blobs / part, {"format": "pt"})
        (folder / part).symlink_to(blobs / part)
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load(folder).kind == "language"
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match="lacks model-00002-of-00002.safetensors, a part of its weights"):
        load(folder)
