"""Fashion-MNIST is read from its own files only; a training run that is cut ends with the same bytes."""

import gzip
import hashlib
import json
import struct

import numpy as np
import pytest
import torch

from quept.data import fashion_mnist
from quept.zoo import SourceError
from tests.training import script

pytestmark = pytest.mark.slow

timm = pytest.importorskip("timm")
fashion_vit = script("fashion-vit")
Run, Settings, accuracy = fashion_vit.Run, fashion_vit.Settings, fashion_vit.accuracy
create, train = fashion_vit.create, fashion_vit.train
QUICK = Settings(epochs=2, batch=8, warmup=0.5, sparse=0.5)


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 28, 28), np.uint8), draw.integers(0, 10, count).astype(np.uint8)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of files in the published format, and the table of hashes made to fit them."""
    files = {}
    for split, count in (("train", 24), ("test", 12)):
        pairs = []
        for name, values in zip(
            (name for name, _ in fashion_mnist.FILES[split]), pictures(count), strict=True
        ):
            packed = gzip.compress(idx(values))
            (tmp_path / name).write_bytes(packed)
            pairs.append((name, hashlib.sha256(packed).hexdigest()))
        files[split] = tuple(pairs)
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    return tmp_path


def test_the_files_are_read_as_they_were_written(folder):
    for split, count in (("train", 24), ("test", 12)):
        for read, made in zip(fashion_mnist.fashion_mnist(split, folder), pictures(count), strict=True):
            assert read.dtype == np.uint8 and np.array_equal(read, made)


def test_a_file_that_is_not_the_published_one_is_refused(folder):
    path = folder / fashion_mnist.FILES["test"][1][0]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(SourceError, match="not the file that Fashion-MNIST was published with"):
        fashion_mnist.fashion_mnist("test", folder)


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(SourceError, match="does not hold the four files"):
        fashion_mnist.fashion_mnist("train", tmp_path)


def test_without_debian_packages_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "none")
    monkeypatch.setattr(fashion_mnist.shutil, "which", lambda name: None)
    with pytest.raises(SourceError, match="give a folder that holds"):
        fashion_mnist.fashion_mnist("train")


def test_a_run_that_is_cut_ends_with_the_same_weights():
    images, labels = map(torch.tensor, pictures(32))
    whole, first, second = (Run(QUICK, images, labels.long()) for _ in range(3))
    whole.train_epoch(), whole.train_epoch()
    first.train_epoch()
    second.load_state(first.state())
    second.train_epoch()
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_training_makes_a_folder_that_timm_opens(folder, tmp_path):
    out = tmp_path / "model"
    said = []
    found = train(out, QUICK, folder, lambda *report: said.append(report))
    opened = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    test = tuple(map(torch.tensor, fashion_mnist.fashion_mnist("test", folder)))
    assert accuracy(opened, *test) == found
    lines = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and len(said) == 2
    config = json.loads((out / "config.json").read_text())
    assert config["training"]["test_accuracy"] == found
    assert config["pretrained_cfg"]["label_names"] == list(fashion_mnist.CLASSES)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors", "training.jsonl"]


def test_augmentation_only_shifts_and_mirrors():
    images, labels = map(torch.tensor, pictures(16))
    run = Run(QUICK, images, labels.long())
    padded = torch.nn.functional.pad(images, (2,) * 4)
    for index, x in run._batches(torch.Generator().manual_seed(3)):
        pixels = (x[:, 0] * fashion_vit.STD + fashion_vit.MEAN).mul(255).round().to(torch.uint8)
        for i, picture in zip(index, pixels, strict=True):
            windows = padded[i].unfold(0, 28, 1).unfold(1, 28, 1).reshape(-1, 28, 28)
            assert any(torch.equal(picture, w) or torch.equal(picture, w.flip(1)) for w in windows)


def test_leaving_out_no_patch_is_the_model_itself():
    model = create().eval()
    x = fashion_vit._normalised(torch.tensor(pictures(3)[0]))
    every = torch.arange(49).expand(3, -1)
    with torch.no_grad():
        assert torch.allclose(fashion_vit._forward(model, x, None), model(x), atol=1e-6)
        assert torch.allclose(fashion_vit._forward(model, x, every), model(x), atol=1e-5)
        assert not torch.allclose(fashion_vit._forward(model, x, every[:, :20]), model(x), atol=1e-3)


class Cut(Exception):
    """Stands for a machine that went away."""


def test_a_second_cycle_starts_from_the_first_and_goes_on_where_it_was_cut(folder, tmp_path):
    cycles = (QUICK, Settings(epochs=1, batch=8, rate=1e-4, warmup=0.5, seed=1))

    def cut(stage, fraction):
        if f"epoch {stop[0]} of 3" in stage:
            stop.pop(0)
            raise Cut

    whole = train(tmp_path / "whole", cycles, folder)
    stop = [2, 3]  # at the end of the first cycle, and of the second before anything is written
    for _ in range(2):
        with pytest.raises(Cut):
            train(tmp_path / "cut", cycles, folder, cut)
    assert train(tmp_path / "cut", cycles, folder) == whole
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    alone = train(tmp_path / "alone", QUICK, folder)
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() != weights[0] and alone is not None
