"""Train the built-in image classifier: a small vision transformer on Fashion-MNIST.

    python assets/fashion-vit/train.py --out runs/fashion-vit
    -> config.json, model.safetensors (16 bits), training.jsonl, images.safetensors (of the test set)

The model is timm's VisionTransformer: 28 x 28 grey, patches of 4, 49 + 1 tokens of 128 channels, 6 blocks of
4 heads, 1.2 M parameters. The folder is what `timm.create_model("local-dir:…")` opens. Training is AdamW with
a cosine schedule, label smoothing, flips and shifts; in all but the last epochs of a cycle half the patches
of every picture are left out, which halves an epoch's cost and regularises (arXiv 2212.00794). What is kept
is the running average of the weights; the second cycle starts from what the first one keeps.

A run is a sequence of epochs that each follow from the settings and their number; it goes on after the last
one that its checkpoint holds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quept.data.fashion_mnist import CLASSES, fashion_mnist
from quept.data.images import save_images
from quept.files import append_line, write_atomic, write_tensors
from quept.progress import Progress
from quept.zoo.cache import say

MEAN, STD = 0.2860, 0.3530  # of the training pixels, in 0..1
ARCHITECTURE = "vit_tiny_patch16_224"  # the timm entry whose class this is; the arguments say the rest
ARGUMENTS = {
    "img_size": 28,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": len(CLASSES),
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
}


@dataclass(frozen=True)
class Settings:
    """Of one cycle. sparse: the share of its epochs that leave out half the patches."""

    epochs: int = 24
    batch: int = 256
    rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 2.0  # epochs
    smoothing: float = 0.1
    shift: int = 2  # pixels
    sparse: float = 0.7
    average: float = 0.998  # decay of the running average, a step
    seed: int = 0


CYCLES = (Settings(), Settings(epochs=12, rate=1e-3, warmup=1.0, sparse=0.5, seed=1))


def train(
    out: str | Path,
    cycles: Settings | Sequence[Settings] | None = None,
    data: str | Path | None = None,
    progress: Progress | None = None,
) -> float:
    """Train into the folder `out`, going on from its checkpoint; returns the test accuracy of what was
    written. cycles: other than CYCLES; data: the folder of the original files, where they are not fetched."""
    cycles = (cycles,) if isinstance(cycles, Settings) else cycles or CYCLES
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    images, labels = map(torch.tensor, fashion_mnist("train", data, progress))
    labels, checkpoint = labels.long(), out / "checkpoint.safetensors"
    state = load_file(checkpoint) if checkpoint.is_file() else {}
    cycle = int(state.get("cycle", 0))
    run = Run(cycles[cycle], images, labels)
    if state:
        run.load_state(state)
    test = tuple(map(torch.tensor, fashion_mnist("test", data, progress)))
    epochs = sum(settings.epochs for settings in cycles)
    while True:
        if run.epoch == run.settings.epochs:
            if cycle + 1 == len(cycles):
                break
            cycle += 1
            run = Run(cycles[cycle], images, labels, start=rounded(run.average))
        began = time.monotonic()
        loss = run.train_epoch()
        number = sum(settings.epochs for settings in cycles[:cycle]) + run.epoch
        line = {"epoch": number, "of": epochs, "loss": round(loss, 4)}
        line |= {"seconds": round(time.monotonic() - began, 1), "accuracy": accuracy(run.average, *test)}
        write_tensors(checkpoint, run.state() | {"cycle": torch.tensor(cycle)})
        append_line(out / "training.jsonl", line)
        say(progress, f"epoch {number} of {epochs}: loss {loss:.3f}", number / epochs)
    found = write(run.average, out, cycles, test)
    checkpoint.unlink(missing_ok=True)
    return found


def create(**options) -> nn.Module:
    """The untrained model."""
    from timm import create_model

    return create_model(ARCHITECTURE, pretrained=False, **ARGUMENTS, **options)


def rounded(model: nn.Module) -> nn.Module:
    """A copy whose weights are those of a file of 16 bits."""
    copy = create()
    copy.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    return copy


def write(model: nn.Module, out: Path, cycles: Sequence[Settings], test: tuple[Tensor, Tensor]) -> float:
    """The folder that timm opens, weights in 16 bits; returns the test accuracy of those weights."""
    found = accuracy(rounded(model), *test)
    write_tensors(out / "model.safetensors", {key: value.half() for key, value in model.state_dict().items()})
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(CLASSES),
        "model_args": {k: v for k, v in ARGUMENTS.items() if k != "num_classes"},
        "pretrained_cfg": {
            "input_size": [1, 28, 28],
            "fixed_input_size": True,
            "mean": [MEAN],
            "std": [STD],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": len(CLASSES),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": list(CLASSES),
            "license": "apache-2.0",
        },
        "training": {
            "data": "Fashion-MNIST, 60,000 images",
            "cycles": [asdict(settings) for settings in cycles],
            "test_accuracy": found,
        },
    }
    write_atomic(out / "config.json", json.dumps(config, indent=1) + "\n")
    return found


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of pictures (N, 28, 28) uint8 whose most likely class is their label."""
    model.eval()
    right = sum(
        (model(_normalised(x)).argmax(-1) == y).sum().item()
        for x, y in zip(images.split(batch), labels.split(batch), strict=True)
    )
    return right / len(images)


class Run:
    """The state of a cycle between epochs. start: the model it starts from; None: random weights."""

    def __init__(self, settings: Settings, images: Tensor, labels: Tensor, start: nn.Module | None = None):
        self.settings, self.images, self.labels, self.epoch = settings, images, labels, 0
        torch.manual_seed(settings.seed)
        self.model, self.average = create(), create()
        if start is not None:
            self.model.load_state_dict(start.state_dict())
        self.average.load_state_dict(self.model.state_dict())
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
        groups.append({"params": vectors, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95), fused=True)

    def train_epoch(self) -> float:
        """One pass over the training images; the mean loss."""
        settings, generator = self.settings, torch.Generator().manual_seed(self.settings.seed + self.epoch)
        self.model.train()
        sparse = self.epoch < settings.sparse * settings.epochs
        total = steps = 0
        for index, x in self._batches(generator):
            self._set_rate(self.epoch + steps * settings.batch / len(self.images))
            keep = _half_of_the_patches(len(index), generator) if sparse else None
            logits = _forward(self.model, x, keep)
            loss = cross_entropy(logits, self.labels[index], label_smoothing=settings.smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            done = self.epoch * (len(self.images) // settings.batch) + steps
            decay = min(settings.average, (1 + done) / (10 + done))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.model.parameters()), 1 - decay
                )
            total, steps = total + loss.item(), steps + 1
        self.epoch += 1
        return total / steps

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, augmented images): shifted by up to `shift` pixels, mirrored at random."""
        shift = self.settings.shift
        order = torch.randperm(len(self.images), generator=generator)
        for index in order.split(self.settings.batch):
            if len(index) < self.settings.batch:
                return
            x = nn.functional.pad(self.images[index], (shift,) * 4)
            dy, dx = torch.randint(2 * shift + 1, (2, len(index)), generator=generator)
            rows, columns = dy[:, None] + torch.arange(28), dx[:, None] + torch.arange(28)
            mirrored = torch.rand(len(index), generator=generator) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
            x = x[torch.arange(len(index))[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield index, _normalised(x)

    def _set_rate(self, epoch: float) -> None:
        """Linear warm-up, then half a cosine down to nothing."""
        s = self.settings
        left = (epoch - s.warmup) / max(s.epochs - s.warmup, 1e-9)
        share = epoch / s.warmup if epoch < s.warmup else 0.5 * (1 + math.cos(math.pi * left))
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate * share

    def state(self) -> dict[str, Tensor]:
        """Everything the next epoch follows from."""
        state = {"epoch": torch.tensor(self.epoch)}
        for what, model in (("model", self.model), ("average", self.average)):
            state |= {f"{what}.{key}": value for key, value in model.state_dict().items()}
        for name, p in self.model.named_parameters():
            state |= {f"adam.{name}.{key}": m for key, m in self.optimizer.state[p].items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.epoch = int(state["epoch"])
        for what, model in (("model", self.model), ("average", self.average)):
            model.load_state_dict({key: state[f"{what}.{key}"] for key in model.state_dict()})
        for name, p in self.model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimizer.state[p] = {key: state[f"adam.{name}.{key}"].clone() for key in keys}


def _normalised(images: Tensor) -> Tensor:
    """(n, 28, 28) uint8 -> (n, 1, 28, 28) float32."""
    return images[:, None].float().div_(255).sub_(MEAN).div_(STD)


def _half_of_the_patches(count: int, generator: torch.Generator) -> Tensor:
    """Indices (count, 25) of the patches that each picture keeps."""
    patches = (ARGUMENTS["img_size"] // ARGUMENTS["patch_size"]) ** 2
    return torch.rand(count, patches, generator=generator).argsort(1)[:, : (patches + 1) // 2]


def _forward(model: nn.Module, x: Tensor, keep: Tensor | None) -> Tensor:
    """Logits (n, classes), from the patches in `keep` (n, k) alone if it is given. The class token, which
    comes first, always stays."""
    x = model._pos_embed(model.patch_embed(x))
    if keep is not None:
        patches = x[:, 1:].gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], 1)
    return model.forward_head(model.norm(model.blocks(model.norm_pre(x))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train it anew; a run that was cut goes on.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fashion-vit"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, help="folder of the original data files (default: fetch them)")
    parser.add_argument(
        "--epochs", type=int, default=0, help="passes over the data, in one cycle (default: two of 24 and 12)"
    )
    options = parser.parse_args()
    with Progress() as shown:
        found = train(options.out, options.epochs and Settings(epochs=options.epochs), options.data, shown)
        pixels, labels = map(torch.tensor, fashion_mnist("test", options.data))
        title = "Fashion-MNIST, the first 1,000 test pictures"
        save_images(options.out / "images.safetensors", title, pixels, labels)
    print(f"{options.out}: {100 * found:.2f} % of the test set")
