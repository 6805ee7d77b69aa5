"""Every benchmark runs on a tiny model; those that keep something run again where they have been before."""

import gc
import gzip
import hashlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from quept import kernels
from quept.allocate import SensitivityTable
from quept.calibrate import calibrate, calibrate_rtn
from quept.config import Recipe
from quept.data import fashion_mnist
from quept.data.images import save_images
from quept.plan import QUANTIZED_BITS
from quept.runtime import ElasticModel
from tests.models.test_convolutional import save_tiny_cnn
from tests.tiny import save_tiny, save_tiny_vision
from tests.zoo.conftest import easy_vqa_folder  # noqa: F401
from tests.zoo.test_fashion_vit import idx, pictures

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXT = " ".join(f"{i} quick brown foxes jump over {i * i % 97} lazy dogs." for i in range(400))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny("llama", tmp_path_factory.mktemp("tiny"), max_position_embeddings=2048))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="module")
def table(model, tmp_path_factory) -> str:
    """Made-up sensitivities."""
    elastic = ElasticModel.open(model, device="cpu")
    ends = {"ppl": 20.0, "same_top": 0.5}
    made = SensitivityTable(
        model="tiny",
        fingerprint=elastic.artifact.weights_id,
        group=elastic.artifact.group,
        per="layer",
        data={"text": "words", "tokens": 64, "context": 32, "dtype": "float32"},
        reference={"ppl": 20.0, "tokens": 64, "context": 32},
        layers={name: {b: 3.0**-b for b in QUANTIZED_BITS} for name in elastic.layers},
        uniform={b: ends | {"kl": 3.0**-b} for b in QUANTIZED_BITS},
        embeddings={b: 3.0**-b for b in (4, 5, 6, 7, 8)},
    )
    path = tmp_path_factory.mktemp("table") / "table.json"
    made.save(path)
    return str(path)


@pytest.fixture
def benchmark(tmp_path, monkeypatch, capsys):
    """Runs a script with arguments, in a cache of its own; the figures of its last line."""
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *options: str) -> dict:
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        try:
            runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        finally:
            gc.unfreeze()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_speed(benchmark, model):
    """Of weights in C; without a compiler it says that it cannot."""
    if why := kernels.missing():
        with pytest.raises(SystemExit, match=why):
            benchmark("speed", "--model", model)
        return
    figures = benchmark("speed", "--model", model, "--repeats", 1, "--tokens", 4)
    ratios = ("w2_vs_w4", "w3_vs_w4", "mixed_vs_uniform", "prompt_ratio", "switch_known_ms", "resident_gb")
    assert all(figures[name] > 0 for name in ratios)
    assert figures["max_rel"] < 1e-4 and 0 <= figures["kl_fast"] < 0.01
    assert set(figures["of_limit"]) == {"w2", "w4", "w8"}


def test_switching(benchmark, model):
    for _ in range(2):
        figures = benchmark("switching", "--model", model, "--repeats", 1)
        assert figures["layer_warm_ms"] > 0 and figures["forward_ratio"] > 0


def test_export(benchmark, model, text, tmp_path):
    pytest.importorskip("xllamacpp")
    classifier = save_tiny_vision("vit", tmp_path / "vit")
    pixels = torch.randint(256, (20, 16, 16), dtype=torch.uint8)
    save_images(classifier / "images.safetensors", "noise", pixels, torch.arange(20) % 10)
    options = ("--text", text, "--context", 64, "--positions", 2, "--classifier", classifier)
    figures = benchmark("export", "--model", model, *options)
    assert figures["gguf"]["codes_equal"] and figures["bytes_equal"]
    assert figures["gguf"]["tokens_equal"] == figures["gguf"]["tokens"] == 200


def test_visitors(benchmark, model, monkeypatch):
    monkeypatch.setattr("app.opening.zoo.text", lambda name, progress=None: TEXT)
    for _ in range(2):
        figures = benchmark("visitors", "--model", model, "--minutes", 0, "--visitors", 2)
        assert figures["errors"] == figures["texts_differ"] == 0


def test_memory(benchmark, model, monkeypatch):
    monkeypatch.setattr("app.opening.zoo.text", lambda name, progress=None: TEXT)
    for _ in range(2):
        figures = benchmark("memory", model, "--visitors", 3, "--budget", 0.01)
        assert 0 < figures["packed_gb"] < 0.01 and figures["open_gb"] < figures["resident_gb"] + 0.2


def test_quality(benchmark, model, text, tmp_path):
    learned = {"sources": {text: 1}}
    stage = {"steps": 1, "batch": 1, "context": 32, "adapter_rates": [1e-3], "draws": [[4]]}
    recipe = Recipe.from_dict(
        {
            "name": "tiny",
            "note": "for tests",
            "group": 32,
            "text": learned,
            "adapters": {"groups": [[4]], "steps": [1]},
            "clip": {"start": {4: 4.0}},
            "end_to_end": stage | {"clip_rate": 1e-2},
        }
    )
    calibrate(model, recipe, tmp_path / "run", device="cpu")
    options = ("--model", model, "--text", text, "--tokens", 1024, "--only", "weight-only")
    for _ in range(2):
        assert "w2" in benchmark("quality", *options, "--weight-only", tmp_path / "run")


def test_baselines_of_ours(benchmark, model, text, tmp_path):
    calibrate_rtn(model, tmp_path / "run")
    options = ["--model", model, "--text", text, "--calibration", text, "--only", "ours", "--bits", 3]
    for _ in range(2):
        figures = benchmark("baselines", *options, "--ours", tmp_path / "run", "--tokens", 512)
        assert figures["rtn--ours_w3_kl"] > figures["full-precision_w16_kl"]


def test_ablation(benchmark, model, text, tmp_path):
    stage = {"batch": 1, "context": 32, "clip_rate": 1e-2, "adapter_rates": [1e-3, 1e-3]}
    table = {
        "note": "for tests",
        "group": 32,
        "data": {"kind": "text", "sources": {text: 1}},
        "adapters": {"groups": [[4], [2]], "steps": [1, 1]},
        "clip": {"start": {"2": 4.0}},
        "block_wise": stage | {"sequences": 2, "epochs": 2, "merge": [0.5, 0.5]},
        "end_to_end": stage | {"steps": 1, "draws": [[2]]},
    }
    recipe = tmp_path / "both.toml"
    recipe.write_text("\n".join(toml(table)))
    options = ("--recipe", recipe, "--text", text, "--tokens", 512, "--set", "block_wise.epochs=1")
    for _ in range(2):
        found = benchmark("ablation", model, *options)
        assert found["own ranks"]["w2"] > found["rtn"]["w8"]
        assert found["no ranks"]["mb"] < found["published"]["mb"] < found["own ranks"]["mb"]


def toml(table: dict, name: str = "") -> list[str]:
    """The lines of a table of tables."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = [f"[{name}]"] if name else []
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items() if key not in inner]
    return lines + [line for key, value in inner.items() for line in toml(value, f"{name}.{key}".lstrip("."))]


@pytest.mark.slow
def test_mobiquant(benchmark, model, text, tmp_path):
    stage = {"steps": 1, "batch": 1, "context": 32, "adapter_rates": [0.0, 1e-3], "clip_rate": 1e-3}
    recipe = Recipe.from_dict(
        {
            "name": "tiny",
            "note": "for tests",
            "group": 32,
            "held_out": 2,
            "data": {"kind": "text", "sources": {text: 1}},
            "adapters": {"groups": [[4, 6, 8], [2]], "steps": [0, 1]},
            "end_to_end": stage | {"draws": [[2]]},
            "routing": {"router": "norm", "hidden": 1, "sequences": 2, "epochs": 1, "rate": 1e-3},
        }
    )
    calibrate(model, recipe, tmp_path / "run", device="cpu")
    options = ("--model", tmp_path / "run", "--text", text, "--tokens", 1024, "--answer", 2)
    found = benchmark("mobiquant", *options, "--out", tmp_path / "found.json")
    assert found["depth"]["2"]["kl"] > found["depth"]["8"]["kl"] < found["routed"]["2.5"]["kl"]
    assert found["bytes"]["kept"] > found["bytes"]["read_8"] > found["bytes"]["read_2"]
    assert found["switch_ms"] > 0 < found["decode"]["tokens_per_s_W4"]


def test_allocation(benchmark, model, text, table, tmp_path):
    small = (
        "--tokens",
        1024,
        "--bits",
        3,
        "--search-text",
        text,
        "--search-tokens",
        512,
        "--verify-tokens",
        512,
    )
    for _ in range(2):
        found = benchmark(
            "allocation", "--model", model, "--text", text, "--table", table, *small, "--seconds", 1,
            "--trials", 3, "--random-plans", 6, "--random-tokens", 512, "--resume", tmp_path / "lines.jsonl",
        )  # fmt: skip
        assert found["b3"]["bytes"] <= found["b3"]["budget"] and found["solver_ms"] > 0


def test_tasks(benchmark, model, tmp_path):
    rows = [
        {"context": f"{i} quick brown foxes", "choices": [" jump", " dogs"], "right": i % 2} for i in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = benchmark(
        "tasks", "--model", model, "--choices", tmp_path / "rows.jsonl", "--items", 9, "--alone", 3,
        "--harness", 3, "--plans", 0, "--classifier", "", "--vqa", "",
    )  # fmt: skip
    assert found["harness_identical"] in (True, None) and found["batch_ratio"] > 0 < found["first_ratio"]


@pytest.mark.slow
def test_accuracy_of_the_classifier(benchmark, tmp_path, monkeypatch):
    files = {}
    for split, count in (("train", 140), ("test", 20)):
        pairs = []
        for (name, _), values in zip(fashion_mnist.FILES[split], pictures(count), strict=True):
            packed = gzip.compress(idx(values))
            (tmp_path / name).write_bytes(packed)
            pairs.append((name, hashlib.sha256(packed).hexdigest()))
        files[split] = tuple(pairs)
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path)
    figures = benchmark("vision_quality", "--images", 20)
    assert {"fp", "w4a4", "w4a4_rtn", "w2", "seconds_per_1000"} <= set(figures)


@pytest.mark.slow
def test_photographs(benchmark, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for label, color in enumerate(("red", "navy")):
        Image.new("RGB", (80, 70), color).save(folder / f"picture_{label}.png")
    save_tiny_cnn("mobilenetv3_small_050", tmp_path / "cnn")
    figures = benchmark("photo_quality", "--model", tmp_path / "cnn", "--pictures", folder, "--repeats", 2)
    assert 0 <= figures["fp_of_20"] <= 2 and figures["ms_per_photo"] > 0
    assert set(figures["agree"]) == {"w8", "w6", "w5", "w4", "w3", "w8a8", "w6a6"}


@pytest.mark.slow
def test_a_real_vision_transformer(benchmark, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for label, color in enumerate(("red", "navy", "olive")):
        Image.new("RGB", (80, 70), color).save(folder / f"picture_{label}.png")
    model = save_tiny_vision("dinov2", tmp_path / "vit")
    given = ("--data", folder, "--pictures", folder, "--steps", 1, "--crops", 4)
    figures = benchmark("vit_real", "--model", model, "--out", tmp_path / "out", *given)
    assert {"w8a8", "w6a6", "w5a5", "w4a4", "w4", "w3", "w2"} <= set(figures)
    assert {"kl", "kl_best_baseline", "cls_cosine"} <= set(figures["w8a8"])


@pytest.mark.slow
def test_accuracy_of_answers(benchmark, easy_vqa_folder):  # noqa: F811
    figures = benchmark("vqa_quality", "--data", easy_vqa_folder, "--questions", 4)
    assert {"fp", "w4", "w4_all", "w4_rtn", "seconds_per_200"} <= set(figures)


@pytest.mark.slow
def test_exploring_in_the_browser(benchmark, chromium_path, tmp_path, monkeypatch):
    monkeypatch.delenv("QUEPT_CACHE")  # the evaluation text is fetched once
    model = save_tiny("llama", tmp_path / "deep", num_hidden_layers=12, max_position_embeddings=2048)
    figures = benchmark("explore_loop", "--model", model, "--repeats", 1)
    assert figures["requests_while_dragging"] == 0 < figures["first_estimate_s"]


@pytest.mark.slow
def test_startup(benchmark, model, monkeypatch):
    monkeypatch.delenv("QUEPT_CACHE")  # where the kernels lie that were compiled once
    figures = benchmark("startup", "--model", model, "--repeats", 0)
    assert figures["usable_s"] > 0 and 0 < figures["config_bytes"] < 300_000


@pytest.mark.slow
def test_visitors_beside_a_greedy_client(benchmark, monkeypatch):
    monkeypatch.delenv("QUEPT_CACHE")  # the app's own process takes the ordinary one, without its results
    figures = benchmark("greedy", "--tiny")
    assert figures["refused"] == 0 < figures["greedy_refused"] and figures["releases"] == 2
