"""`quept evaluate` on classifiers of pictures."""

import json

import pytest
import torch
from PIL import Image

from quept.cli import main
from quept.data.images import save_images
from tests.tiny import save_tiny, save_tiny_vision


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny classifier with pictures of its own."""
    folder = save_tiny_vision("vit", tmp_path_factory.mktemp("vision") / "tiny-vit")
    pixels = torch.randint(0, 256, (60, 16, 16), dtype=torch.uint8)
    save_images(folder / "images.safetensors", "noise", pixels, torch.arange(60) % 10)
    return str(folder)


def run(capsys, *argv):
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def fails(capsys, *argv):
    assert main(list(argv)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_accuracy_is_measured_printed_and_stored(model, cache, capsys):
    argv = ("evaluate", model, "--plan", "W8", "--plan", "W2")
    first = run(capsys, *argv)
    assert (first["data"], first["images"], first["input"]) == ("noise", 60, [1, 16, 16])
    high, low = first["results"]
    assert (high["plan"], low["plan"], high["images"]) == ("W8", "W2", 60)
    assert low["kl"] > high["kl"] > 0 and low["deploy_bytes"] < high["deploy_bytes"]
    assert high["top1_low"] <= high["top1"] <= high["top1_high"] and {"same_top", "classes"} <= set(high)
    assert run(capsys, *argv) == first, "the second time comes from the store, seconds and all"
    assert (cache / "results.sqlite").exists()


def test_a_table_is_printed_for_people(model, capsys):
    assert main(["evaluate", model, "--images", "20", "--presets"]) == 0
    conditions, head, *rows = capsys.readouterr().out.splitlines()
    assert "on noise, 20 pictures, " in conditions and "accuracy (95 %)" in head
    names = [row.split("  ")[0] for row in rows]
    assert names[:2] == ["full precision", "W8"] and "w4a4" in names and "w4-kv4" not in names
    assert all(" to " in row and "%" in row for row in rows)


def test_a_folder_of_pictures_can_be_given(model, tmp_path, capsys):
    for i in range(4):
        (tmp_path / "data" / str(i)).mkdir(parents=True)
        Image.new("RGB", (30, 20), (60 * i, 10, 200)).save(tmp_path / "data" / str(i) / "x.jpg")
    (tmp_path / "data" / "3" / "x.jpg").write_bytes(b"broken")
    argv = ("evaluate", model, "--data", str(tmp_path / "data"))
    assert main(list(argv)) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "1 pictures could not be read and were left out"
    assert str(tmp_path) not in out
    told = run(capsys, *argv)
    assert (told["images"], told["results"][0]["images"], told["results"][0]["skipped"]) == (4, 3, 1)
    labels = tmp_path / "labels.txt"
    labels.write_text("0 7\n1/x.jpg 8\n")
    assert set(run(capsys, *argv, "--labels", str(labels))["results"][0]["classes"]) == {"7", "8"}


def test_options_of_the_other_kind_and_missing_data_are_refused(model, tmp_path, capsys):
    language = str(save_tiny("llama", tmp_path / "tiny-llama"))
    bare = str(save_tiny_vision("swin", tmp_path / "tiny-swin"))
    for option in (("--text", "x"), ("--tokens", "64"), ("--context", "32")):
        assert f"{option[0]} is for language models, and tiny-vit is none" in fails(
            capsys, "evaluate", model, *option
        )
    for option in (("--data", "x"), ("--labels", "x"), ("--images", "3")):
        assert f"{option[0]} is for classifiers of pictures" in fails(capsys, "evaluate", language, *option)
    assert "comes without pictures: give --data FOLDER" in fails(capsys, "evaluate", bare)
    assert "--labels tells the classes" in fails(capsys, "evaluate", model, "--labels", "x")
    assert "there is no folder" in fails(capsys, "evaluate", model, "--data", "nowhere")
    assert "leave KV out of the plan" in fails(capsys, "evaluate", model, "--plan", "W4KV4")
    assert "has no tokenizer" in fails(capsys, "generate", model, "hello")
    sensitivity = fails(capsys, "sensitivity", bare, "--out", str(tmp_path / "t.json"))
    assert "no labelled pictures lie beside this model" in sensitivity
