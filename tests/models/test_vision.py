"""Classifiers in timm's format: every family opens from a folder, and what cannot be opened is refused in
words."""

import json
import shutil

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from quept.models import FAMILIES, LoadError, fingerprint_of, load
from tests.tiny import VISION, pictures, save_tiny_vision, tiny_vision, vision_config
from tests.training import script


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vision")
    return {name: save_tiny_vision(name, root / name) for name in VISION}


@pytest.fixture
def folder(folders, tmp_path):
    """A tiny ViT to damage."""
    return shutil.copytree(folders["vit"], tmp_path / "vit")


def change_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("name", VISION)
def test_every_family_loads_from_a_folder(folders, name):
    loaded = load(folders[name])
    assert (loaded.kind, loaded.tokenizer, loaded.title) == ("vision", None, name)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    x = pictures(name)
    with torch.no_grad():
        assert torch.equal(loaded.model.float()(x), tiny_vision(name)(x))


@pytest.mark.parametrize("name", VISION)
def test_the_anatomy_names_every_linear_layer_but_the_heads(folders, name):
    model, layout = load(folders[name]).model, load(folders[name]).layout
    kept = FAMILIES[layout.family].kept
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    linears = [
        path for path in linears if not path.startswith("attn_pool.") and not (kept and path.endswith(kept))
    ]
    assert list(layout.layers) == [path for path in linears if path not in layout.ends], "in data order"
    for block in layout.blocks:
        assert set(block.layers) <= set(layout.roles)
        assert all(layer.startswith(block.name + ".") for layer in block.layers.values())


@pytest.mark.parametrize("name", VISION)
def test_the_table_names_modules_that_exist(folders, name):
    loaded = load(folders[name])
    layout, family = loaded.layout, FAMILIES[loaded.layout.family]
    assert isinstance(loaded.model.get_submodule(layout.embed), nn.Conv2d)
    assert isinstance(loaded.model.get_submodule(layout.final_norm), nn.LayerNorm | nn.Identity)
    heads = [path for path in layout.ends[1:] if hasattr(loaded.model.get_submodule(path), "weight")]
    assert len(heads) == {"features": 0, "siglip": 0, "deit-distilled": 2}.get(name, 1)
    assert loaded.embeddings == (layout.embed, *heads)
    for block in layout.blocks:
        for norm, readers in family.norms.items():
            if set(readers) <= set(block.layers):
                loaded.model.get_submodule(f"{block.name}.{norm}")


def test_where_a_stage_of_swin_merges_patches_is_a_block_of_its_own(folders):
    layout = load(folders["swin"]).layout
    names = [block.name for block in layout.blocks]
    assert names[:4] == ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.downsample", "layers.1.blocks.0"]
    assert dict(layout.blocks[2].layers) == {"merge": "layers.1.downsample.reduction"}
    assert layout.roles == ("merge", "qkv", "o", "up", "down") and len(layout.blocks) == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sixteen_bit_weights_are_kept_and_wider_ones_held_in_float16(tmp_path, dtype):
    loaded = load(save_tiny_vision("swin", tmp_path, dtype=dtype))
    kept = torch.float16 if dtype == torch.float32 else dtype
    assert {p.dtype for p in loaded.model.parameters()} == {kept}
    assert loaded.fingerprint == fingerprint_of(tiny_vision("swin", dtype=kept))


def test_the_fingerprint_follows_the_weights_and_nothing_else(folders, tmp_path):
    again, other = (save_tiny_vision("vit", tmp_path / str(seed), seed=seed) for seed in (0, 1))
    change_config(again, note="of no account")
    assert load(again).fingerprint == load(folders["vit"]).fingerprint != load(other).fingerprint


def test_preprocessing_and_labels_are_those_of_the_config(tmp_path):
    names = [f"thing {i}" for i in range(10)]
    vision = load(save_tiny_vision("vit", tmp_path, label_names=names)).vision
    assert vision.labels == vision.names == tuple(names) and vision.channels == 1 and vision.images is None
    assert vision.data["input_size"] == (1, 16, 16) and tuple(vision.data["mean"]) == (0.5,)
    assert (vision.data["crop_pct"], vision.data["interpolation"]) == (0.9, "bicubic")
    described = {name: name.upper() for name in names}
    folder = save_tiny_vision("vit", tmp_path, label_names=names, label_descriptions=described)
    assert load(folder).vision.labels[3] == "THING 3" and load(folder).vision.names[3] == "thing 3"


def test_a_thousand_unnamed_classes_are_imagenets(tmp_path, folders):
    vision = load(save_tiny_vision("vit", tmp_path, num_classes=1000)).vision
    assert vision.names[0] == "n01440764" and vision.labels[0].startswith("tench")
    assert (
        load(folders["swin"]).vision.labels == tuple("0123456")
        and not load(folders["features"]).vision.labels
    )


def test_pictures_beside_the_weights_come_along(folder):
    (folder / "images.safetensors").touch()
    assert load(folder).vision.images == folder / "images.safetensors"


def test_the_folder_that_training_writes_opens(tmp_path):
    fashion_vit = script("fashion-vit")
    untrained = fashion_vit.create()
    test = (torch.zeros(2, 28, 28, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    fashion_vit.write(untrained, tmp_path, fashion_vit.CYCLES, test)
    loaded = load(tmp_path)
    assert loaded.vision.labels == fashion_vit.CLASSES and len(loaded.layout.layers) == 24


def test_another_family_of_timm_is_refused_with_the_supported_ones(tmp_path):
    from timm import create_model

    model = create_model("test_resnet", pretrained=False, num_classes=2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    about = {"num_classes": 2, "input_size": [3, 64, 64]}
    config = {"architecture": "test_resnet", "num_classes": 2, "pretrained_cfg": about}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        LoadError, match="type 'ResNet' are not supported; supported types: .*SwinTransformer"
    ):
        load(tmp_path)


def test_an_unknown_architecture_is_refused(folder):
    change_config(folder, architecture="frobnicator")
    with pytest.raises(LoadError, match="timm knows no architecture 'frobnicator'"):
        load(folder)


def test_pickled_weights_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"model\.safetensors"):
        load(folder)


def test_a_single_file_of_weights_is_refused_with_the_folder_that_it_lies_in(folder):
    with pytest.raises(LoadError, match="give the folder that it lies in"):
        load(folder / "model.safetensors")


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(LoadError, match="cannot load"):
        load(folder)


def test_missing_weights_are_refused_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["blocks.1.mlp.fc1.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(LoadError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        load(folder)


def test_a_head_of_another_size_is_refused_not_made_up(folder):
    change_config(folder, model_args=vision_config("vit")["model_args"] | {"num_classes": 12})
    with pytest.raises(LoadError, match="tells of 10 classes and also of 12"):
        load(folder)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"label_names": ["only one"]}, "names 1 classes, and its head has 10"),
        ({"mean": [0.5, 0.5, 0.5]}, "its pictures have 1 channels"),
    ],
)
def test_labels_and_preprocessing_that_do_not_fit_are_refused(tmp_path, about, words):
    with pytest.raises(LoadError, match=words):
        load(save_tiny_vision("vit", tmp_path, **about))


@pytest.mark.parametrize(
    "entries", [{"architecture": 3}, {"model_args": {"embed_dim": "wide"}}, {"pretrained_cfg": 3}]
)
def test_a_damaged_config_is_refused(folder, entries):
    change_config(folder, **entries)
    with pytest.raises(LoadError, match="cannot load"):
        load(folder)


def test_pictures_are_prepared_in_the_size_that_the_model_reads_whatever_its_config_says(tmp_path):
    folder = save_tiny_vision("vit", tmp_path / "vit")
    about = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    change_config(folder, pretrained_cfg=about | {"input_size": [1, 24, 24]})
    assert load(folder).vision.data["input_size"] == (1, 16, 16)
    change_config(
        folder, pretrained_cfg=about | {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [1] * 3}
    )
    with pytest.raises(LoadError, match="1 channels, and mean and std another number"):
        load(folder)


def test_a_part_that_timm_fetches_by_itself_is_said_to_be_one(tmp_path, monkeypatch):
    folder = save_tiny_vision("vit", tmp_path / "vit")

    def fetching(*_, **__):
        raise LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub")

    monkeypatch.setattr("timm.create_model", fetching)
    with pytest.raises(LoadError, match="a part of vit_tiny_patch16_224 with weights that it fetches"):
        load(folder)
