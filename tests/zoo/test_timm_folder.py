"""Checkpoints under other names become folders that timm reads; nothing in them is run."""

import pickle

import pytest
import torch
from timm import create_model

from quept import load, zoo
from quept.zoo.timm_folder import _in_transformers, convert_in_order

ARCHITECTURE = "test_efficientnet"


def test_tensors_are_paired_in_order(tmp_path):
    model = create_model(ARCHITECTURE, pretrained=False)
    torch.save({f"other.{i}": t for i, t in enumerate(model.state_dict().values()) if t.ndim},
               tmp_path / "a.pth")  # fmt: skip
    (tmp_path / "out").mkdir()
    convert_in_order(tmp_path / "a.pth", tmp_path / "out", None, ARCHITECTURE)
    loaded = load(tmp_path / "out")
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight.half())


def test_other_tensors_are_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(zoo.SourceError, match="does not hold the tensors of timm's test_efficientnet"):
        convert_in_order(tmp_path / "a.pth", tmp_path, None, ARCHITECTURE)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").write_text, ("done",))

    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": Harm()}))
    with pytest.raises(zoo.SourceError, match="holds no plain tensors"):
        convert_in_order(tmp_path / "a.pth", tmp_path, None, ARCHITECTURE)
    assert not (tmp_path / "harm").exists()


def test_dinov2s_tensors_have_two_names():
    assert _in_transformers("blocks.3.attn.qkv.bias") == [
        f"backbone.encoder.layer.3.attention.attention.{kind}.bias" for kind in ("query", "key", "value")
    ]
    assert _in_transformers("norm.weight") == ["backbone.layernorm.weight"]
    assert _in_transformers("blocks.0.ls1.gamma") == ["backbone.encoder.layer.0.layer_scale1.lambda1"]
