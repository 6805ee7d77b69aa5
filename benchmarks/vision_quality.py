"""Accuracy of the built-in image classifier at every width, against round-to-nearest and against calibrations
for one width alone.

    python benchmarks/vision_quality.py [--model ARTIFACT ...] [--data FOLDER] [--singles] [--shapes]

Top-1 in percent on the 10,000 test pictures of Fashion-MNIST (--data: the folder of its original files, where
they are not fetched). "w4a4" and the like are measured on an artifact that was calibrated with activations,
"w4" and the like on one without. "..._rtn" rounds weights to nearest, with static activation grids from the
smallest to the largest value seen (recipe vit-min-max, 128 training pictures) and nothing reparameterised;
"w4a4_rtn_per_token" gives every token a range of its own instead. "embeddings": the same plan with patch
embedding and head at 8 bits too. "seconds_per_1000" is one plan on 1,000 pictures, decoding and preprocessing
included, "seconds_per_1000_prepared" without those.

--singles calibrates each width alone with each artifact's own recipe (minutes each). --shapes takes a block
of the shapes deit_tiny, vit_small and swin_tiny with random weights through the published recipe's
reconstruction on 32 pictures of noise (one epoch), and times switching and classifying. Prints a table, then
JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from report import report

from quept import ElasticModel, PrecisionPlan
from quept.calibrate import calibrate
from quept.config import Recipe
from quept.data.fashion_mnist import fashion_mnist
from quept.data.images import Images
from quept.evaluate import accuracy, image_reference, save_images, stored_images
from quept.numerics.adapters import RankSchedule

ARTIFACTS = ("fashion-vit:weight-act", "fashion-vit:weight-only")
WITH_ACTIVATIONS = {f"w{b}a{b}": PrecisionPlan.uniform(b, b) for b in (8, 7, 6, 5, 4)}
WEIGHTS_ONLY = {f"w{b}": PrecisionPlan.uniform(b) for b in range(8, 1, -1)}
SHAPES = ("deit_tiny_patch16_224", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=ARTIFACTS, help="artifacts of one base")
    parser.add_argument("--data", help="folder of the original Fashion-MNIST files")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--singles", action="store_true", help="calibrate each width alone too")
    parser.add_argument("--shapes", action="store_true", help="time blocks of three larger shapes too")
    options = parser.parse_args()

    opened = [ElasticModel.open(model) for model in options.model]
    first = opened[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        test = _test_pictures(first, options, folder)
        measured = _Accuracy(test, folder / "reference")
        figures = {"fp": measured(first, PrecisionPlan.full())}
        for elastic in opened:
            figures |= {name: measured(elastic, plan) for name, plan in _plans(elastic).items()}
            if "w4a4" in _plans(elastic):
                figures["w4a4_embeddings"] = measured(elastic, PrecisionPlan.uniform(4, 4, embeddings=8))
        figures |= _rounded(first, measured, folder)
        figures |= _speed(first, options, folder)
        if options.singles:
            for elastic in opened:
                figures |= _singles(elastic, measured, folder)
        if options.shapes:
            for shape in SHAPES:
                figures |= _shape(shape, folder)
    report("Accuracy of a vision transformer", figures, model=" ".join(options.model), images=len(test))


def _plans(elastic: ElasticModel) -> dict[str, PrecisionPlan]:
    """What the artifact was calibrated for."""
    recipe = Recipe.from_dict(elastic.artifact.manifest.recipe)
    return WITH_ACTIVATIONS if (recipe.end_to_end or recipe.block_wise).activations else WEIGHTS_ONLY


class _Accuracy:
    """Top-1 in percent of a plan, on pictures that are prepared once."""

    def __init__(self, images: Images, cache: Path):
        self._images, self._cache = images, cache

    def __call__(self, elastic: ElasticModel, plan: PrecisionPlan) -> float:
        reference = image_reference(elastic, self._images, self._cache)
        *_, last = accuracy(elastic.view(plan), self._images, reference)
        return round(100 * last.top1, 3)


def _test_pictures(elastic: ElasticModel, options: argparse.Namespace, folder: Path) -> Images:
    pixels, labels = map(torch.tensor, fashion_mnist("test", options.data))
    path = folder / "test.safetensors"
    save_images(path, "Fashion-MNIST, test pictures", pixels, labels, options.images)
    return stored_images(path, elastic.vision)


def _rounded(elastic: ElasticModel, measured: _Accuracy, folder: Path) -> dict[str, float]:
    """Round-to-nearest of the same base."""
    base = elastic.artifact.base
    calibrate(base, Recipe.load("vit-min-max").at("fashion-mnist"), folder / "rtn")
    rtn = ElasticModel.open(folder / "rtn")
    plans = WITH_ACTIVATIONS | WEIGHTS_ONLY
    found = {f"{name}_rtn": measured(rtn, plan) for name, plan in plans.items()}
    plain = ElasticModel.open(f"{base}:rtn")
    return found | {"w4a4_rtn_per_token": measured(plain, PrecisionPlan.uniform(4, 4))}


def _singles(elastic: ElasticModel, measured: _Accuracy, folder: Path) -> dict[str, float]:
    """The artifact's recipe, with one width in place of all."""
    recipe = Recipe.from_dict(elastic.artifact.manifest.recipe)
    found = {}
    for name, plan in _plans(elastic).items():
        calibrate(elastic.artifact.base, only(recipe, plan.default.weights), folder / name)
        found[f"{name}_single"] = measured(ElasticModel.open(folder / name), plan)
    return found


def only(recipe: Recipe, bits: int) -> Recipe:
    """The recipe for one width: its ranks, its clips, its grid, all steps its own."""
    group = recipe.adapters.group_of(bits)
    stages = {}
    for name in ("block_wise", "end_to_end"):
        stage = getattr(recipe, name)
        if stage:
            changed = {"adapter_rates": (stage.adapter_rates[group],)}
            changed |= {"merge": (1.0,)} if name == "block_wise" else {"draws": ((bits,),) * len(stage.draws)}
            stages[name] = dataclasses.replace(stage, **changed)
    static = recipe.static
    if static and bits in static.widths:
        static = dataclasses.replace(static, widths=(bits,))
    clip = {b: start for b, start in recipe.clip.start.items() if b == bits}
    return dataclasses.replace(
        recipe,
        adapters=RankSchedule(((bits,),), (recipe.adapters.ranks(bits),)),
        clip=dataclasses.replace(recipe.clip, start=clip),
        static=static,
        **stages,
    )


def _speed(elastic: ElasticModel, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Wall seconds of one plan on the first 1,000 pictures, with a reference that is known."""
    thousand = argparse.Namespace(**vars(options) | {"images": 1000})
    kept = _test_pictures(elastic, thousand, folder)
    fresh = dataclasses.replace(kept, most=0)
    measured = _Accuracy(kept, folder / "reference")
    measured(elastic, PrecisionPlan.uniform(4, 4))
    times = {"seconds_per_1000": [], "seconds_per_1000_prepared": []}
    for _ in range(3):
        for name, images in zip(times, (fresh, kept), strict=True):
            began = time.perf_counter()
            _Accuracy(images, folder / "reference")(elastic, PrecisionPlan.uniform(4, 4))
            times[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(seconds), 3) for name, seconds in times.items()}


def _shape(shape: str, folder: Path) -> dict[str, float]:
    """Seconds to reconstruct one block, milliseconds to switch (known widths), to classify one picture."""
    from quept.calibrate.activations import ActivationStore
    from quept.calibrate.block_wise import BlockWiseTuning
    from quept.calibrate.observe import observe, static_ends
    from quept.calibrate.trainable import Trainable
    from quept.data.batches import batches

    recipe, short = Recipe.load("vit-weight-act"), shape.split("_patch")[0]
    elastic = ElasticModel.open(_random(shape, folder / shape), dtype=torch.float32, device="cpu")
    inputs = {"x": torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0))}
    model, static = elastic.base.float(), recipe.static
    seen = observe(model, elastic.layers, batches(inputs, 8), elastic.layout.fused)
    ends = static_ends(seen, static.widths, static.percentiles)
    trainable = Trainable(model, elastic.layout, recipe.adapters, recipe.clip.start, "row", 0, static=ends)
    stage = dataclasses.replace(recipe.block_wise, epochs=1)
    with ActivationStore(folder, stage.memory) as streams:
        tuning = BlockWiseTuning(trainable, stage, inputs, 0, streams, lambda what, share: None)
        block = _milliseconds(tuning.step) / 1000
    plans = [PrecisionPlan.uniform(bits, bits) for bits in (4, 8)]
    views = [elastic.view(plan) for plan in plans]
    switch = [_milliseconds(lambda plan=plan: elastic.view(plan)) for plan in plans * 5]
    with torch.inference_mode():
        classify = [_milliseconds(lambda: views[0](inputs["x"][:1])) for _ in range(5)]
    return {
        f"{short}_block_s": round(block, 2),
        f"{short}_switch_ms": round(statistics.median(switch), 2),
        f"{short}_classify_ms": round(statistics.median(classify), 1),
    }


def _random(shape: str, folder: Path) -> Path:
    """A model of this shape with random weights, as timm's folders are."""
    from safetensors.torch import save_file
    from timm import create_model

    torch.manual_seed(0)
    model = create_model(shape, pretrained=False).half()
    folder.mkdir()
    config = {"architecture": shape, "num_classes": 1000, "pretrained_cfg": model.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def _milliseconds(run) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
