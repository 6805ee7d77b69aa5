"""How a convolutional classifier names photographs at every width, by full precision and round-to-nearest.

    python benchmarks/photo_quality.py [--model ARTIFACT] [--distilled ARTIFACT] [--pictures FOLDER]

The pictures are the 20 of ImageNet's that the wheel foolbox 3.3.4 holds, read from the wheel (--pictures: a
folder of files named as they are there, ..._CLASS.jpg); none is calibrated on. "fp_of_20": how many full
precision names right. "agree": the share of 200 of them (each whole, and nine crops of a half of it or more)
that a plan names as full precision does; stem and depthwise convolutions have 8 bits, and in w8a8 and w6a6
inputs of layers are rounded too. "agree_rtn": the same of weights rounded to nearest, "right_rtn" how many of
the 20 it has right; "agree_distilled": of --distilled, an artifact whose recipe has data of the kind
"distilled".
"ms_per_photo": one prepared photograph at W4 and full precision by timm as it is, by turns, and "ratio".
Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import statistics
import time
import zipfile
from pathlib import Path

import torch
from report import report
from torch import Tensor, nn

from quept import ElasticModel, PrecisionPlan
from quept.data.images import read_picture, transform_of
from quept.zoo import MODELS
from quept.zoo.sources import Wheel, fetch_wheel

FOOLBOX = Wheel(
    "foolbox", "3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb", 1_677_112
)
PLANS = {f"w{bits}": PrecisionPlan.uniform(bits, embeddings=8) for bits in (8, 6, 5, 4, 3)} | {
    f"w{bits}a{bits}": PrecisionPlan.uniform(bits, bits, embeddings=8) for bits in (8, 6)
}
CROPS, SMALLEST = 10, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="efficientnet-lite0", help="artifact")
    parser.add_argument("--distilled", help="another one, calibrated on distilled pictures")
    parser.add_argument("--pictures", type=Path, help="folder of pictures in place of foolbox's")
    parser.add_argument("--repeats", type=int, default=15, help="forward passes that are timed")
    options = parser.parse_args()

    elastic = ElasticModel.open(options.model, dtype=torch.float32)
    whole, labels, parts = photographs(elastic, options.pictures)
    full = answers(elastic.full_precision(), whole), answers(elastic.full_precision(), parts)
    base = elastic.artifact.base
    rtn = ElasticModel.open(f"{base}:rtn" if base in MODELS else base, dtype=torch.float32)
    figures = {"fp_of_20": int((full[0] == labels).sum())}
    figures |= {"agree": agreement(elastic, parts, full[1]), "agree_rtn": agreement(rtn, parts, full[1])}
    if options.distilled:
        distilled = ElasticModel.open(options.distilled, dtype=torch.float32)
        figures["agree_distilled"] = agreement(distilled, parts, full[1])
    for name, opened in (("right", elastic), ("right_rtn", rtn)):
        right = {key: answers(opened.view(plan), whole) == labels for key, plan in PLANS.items()}
        figures[name] = {key: int(found.sum()) for key, found in right.items()}
    figures |= timing(elastic, whole[:1], options.repeats)
    report("Photographs", figures, model=options.model, pictures=len(labels), crops=len(parts))


def photographs(elastic: ElasticModel, folder: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures (n, 3, height, width), their classes (n,), and CROPS views of each, itself the first."""
    if folder:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    else:
        with zipfile.ZipFile(fetch_wheel(FOOLBOX)) as wheel:
            names = [n for n in wheel.namelist() if n.startswith("foolbox/data/imagenet_")]
            files = {name: wheel.read(name) for name in names}
    found = [(int(m[1]), files[n]) for n in sorted(files) if (m := re.search(r"_(\d+)\.(jpg|png)$", n))]
    prepare, draw, whole, parts = transform_of(elastic.vision), random.Random(0), [], []
    for _, content in found:
        picture = read_picture(io.BytesIO(content), elastic.vision.channels)
        whole.append(prepare(picture))
        parts += [whole[-1], *(prepare(picture.crop(box(picture.size, draw))) for _ in range(CROPS - 1))]
    return torch.stack(whole), torch.tensor([label for label, _ in found]), torch.stack(parts)


def box(size: tuple[int, int], draw: random.Random) -> tuple[int, int, int, int]:
    """A crop of SMALLEST of the area or more, in the picture's shape."""
    share = draw.uniform(SMALLEST, 1) ** 0.5
    width, height = (round(share * side) for side in size)
    x, y = draw.randint(0, size[0] - width), draw.randint(0, size[1] - height)
    return x, y, x + width, y + height


@torch.inference_mode()
def answers(model: nn.Module, pictures: Tensor) -> Tensor:
    """The class of each picture, (n,)."""
    return torch.cat([model(part).argmax(-1) for part in pictures.split(20)])


def agreement(elastic: ElasticModel, pictures: Tensor, full: Tensor) -> dict[str, float]:
    """Percent of the pictures that each plan names as full precision does."""
    same = {name: answers(elastic.view(plan), pictures) == full for name, plan in PLANS.items()}
    return {name: round(100 * float(found.float().mean()), 1) for name, found in same.items()}


@torch.inference_mode()
def timing(elastic: ElasticModel, picture: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of one picture in a view and in timm's own model, one after the other, medians."""
    from timm import create_model

    architecture, classes = elastic.vision.config["architecture"], len(elastic.vision.labels)
    plain = create_model(architecture, pretrained=False, num_classes=classes).eval()
    models, taken = (elastic.view(PLANS["w4"]), plain), ([], [])
    for model in models:
        model(picture)
    for _ in range(repeats):
        for model, times in zip(models, taken, strict=True):
            began = time.perf_counter()
            model(picture)
            times.append(1000 * (time.perf_counter() - began))
    ours, theirs = (statistics.median(times) for times in taken)
    return {
        "ms_per_photo": round(ours, 2),
        "ms_per_photo_timm": round(theirs, 2),
        "ratio": round(ours / theirs, 3),
    }


if __name__ == "__main__":
    main()
