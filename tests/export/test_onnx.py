"""Classifiers as ONNX: codes lie in MatMulNBits as it unpacks them, and onnxruntime answers as the view."""

import numpy as np
import pytest
import torch

from quept.export import ExportError, exporter
from quept.export.onnx import HELD, _group, _parts
from quept.numerics.grid import quantize
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import VISION, in_turn, pictures, save_tiny, save_tiny_vision

PLANS = {
    **{f"W{bits}": PrecisionPlan.uniform(bits) for bits in (2, 4, 8)},
    "mixed": PrecisionPlan.of({"*.attn.*": 5, "*blocks.0.mlp.fc1*": 16}, default=7, name="mixed"),
}

TRACED = [family for family in VISION if not family.startswith("eva")]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns, group", [(96, 32), (192, 64), (80, 80), (120, 24)])
def test_groups_of_codes_and_zero_points_unpack_to_the_values(bits, columns, group):
    packed, values = quantize(torch.randn(3, columns), bits, group)
    if not (size := _group(columns, group)):
        assert group == 24  # eight columns are too few
        return
    parts, held, groups = _parts(packed), HELD[bits], -(-columns // size)
    scales = parts["scales"].view(3, groups)
    for row in range(3):
        for column in range(columns):
            block, place = divmod(column, size)
            byte, shift = divmod(place * held, 8)
            code = int(parts["B"][row, block, byte]) >> shift & (1 << held) - 1
            zero = 128
            if bits < 8:
                byte, shift = divmod(block * held, 8)
                zero = int(parts["zero_points"][row, byte]) >> shift & (1 << held) - 1
            assert scales[row, block].item() * (code - zero) == values[row, column].item()


def test_language_models_are_refused_in_words(tmp_path):
    elastic = ElasticModel.open(save_tiny("llama", tmp_path / "llama"), device="cpu")
    assert "is a language model, and ONNX is not for these" in exporter("onnx").refuses(
        elastic, PrecisionPlan.uniform(4)
    )


@pytest.fixture
def vit(tmp_path):
    pytest.importorskip("onnx", reason="the package onnx writes these files: pip install onnx")
    return ElasticModel.open(save_tiny_vision("vit", tmp_path / "vit"), device="cpu", dtype=torch.float32)


def test_products_are_asked_for_in_float32(vit, tmp_path):
    """At accuracy_level 4 inputs are rounded to 8 bits, and one row was wrong without AVX-512."""
    import onnx

    exporter("onnx").write(vit, PLANS["W4"], tmp_path / "a.onnx")
    nodes = [node for node in onnx.load(tmp_path / "a.onnx").graph.node if node.op_type == "MatMulNBits"]
    assert nodes and not any(one.name == "accuracy_level" for node in nodes for one in node.attribute)


def test_a_runtime_that_computes_one_picture_wrongly_is_told_in_words(vit, tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs them: pip install onnxruntime")
    run = runtime.InferenceSession.run

    def wrong_alone(self, names, given):
        found = run(self, names, given)
        return [found[0] * 1.5] if len(given["pixels"]) == 1 else found

    monkeypatch.setattr(runtime.InferenceSession, "run", wrong_alone)
    with pytest.raises(ExportError, match="computes one picture wrongly on this processor, by 50%"):
        exporter("onnx").write(vit, PLANS["W4"], tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("family", ["eva02", "eva02-split"])
def test_a_model_that_torch_cannot_trace_is_refused_in_words(family, tmp_path):
    elastic = ElasticModel.open(save_tiny_vision(family, tmp_path), device="cpu")
    assert "torch cannot trace the attention of eva" in exporter("onnx").refuses(
        elastic, PrecisionPlan.uniform(4)
    )


@pytest.mark.parametrize(("family", "name"), in_turn(TRACED, PLANS))
def test_onnxruntime_answers_as_the_view_from_a_file_of_the_bytes_that_were_said(family, name, tmp_path):
    pytest.importorskip("onnx", reason="the package onnx writes these files: pip install onnx")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs them: pip install onnxruntime")
    folder = save_tiny_vision(family, tmp_path / family)
    elastic, target = ElasticModel.open(folder, device="cpu", dtype=torch.float32), exporter("onnx")
    plan = target.nearest(elastic, PLANS[name])
    written = target.write(elastic, plan, tmp_path / "a.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert len(content) == written.nbytes == target.sizes(elastic).deploy(plan)
    if family == "vit":
        target.write(elastic, plan, tmp_path / "b.onnx")
        assert content == (tmp_path / "b.onnx").read_bytes()
    session = runtime.InferenceSession(content)
    for count in (1, 3):  # one token at a time was wrong in some releases, so one picture counts
        x = pictures(family, count)
        with torch.no_grad():
            wanted = elastic.view(plan)(x).numpy()
        np.testing.assert_allclose(session.run(None, {"pixels": x.numpy()})[0], wanted, rtol=1e-3, atol=1e-4)
