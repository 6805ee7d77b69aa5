"""Pictures that a visitor looks at, and what a classifier at some plan answers to them.

`Classifier` is one opened model with its example pictures. It answers at any plan, behind the gate, and keeps
its newest answers. `Album` holds the pictures that visitors gave, in memory only, until they leave. A picture
from a visitor comes in through `read_upload` alone, which checks it and is called inside the gate, since
unpacking takes a second and 200 MB at most; of it a small copy and the model's input are kept.
Nothing here knows of Gradio.
"""

from __future__ import annotations

import base64
import io
import secrets
import statistics
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from quept.data.images import ImageError, transform_of
from quept.evaluate import Images, read_picture
from quept.models.strips import LONGEST
from quept.models.vision import class_logits
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from quept.zoo import PhotoEntry

EXAMPLES = 18
SHOWN_PX = 256  # the longer side of a picture that the page shows
TINY_PX = 64  # up to here a picture is shown without loss
MOST_BYTES = 10_000_000
MOST_PIXELS = 50_000_000
ANSWERS_KEPT = 4096
OWN_KEPT, VISITORS_KEPT = 6, 100
DAMAGED = "this picture is damaged"
REFUSALS = {  # what the reader says, and what a visitor reads
    "cannot identify": "this is no picture that can be read here",
    "exceeds limit": "this picture holds too many pixels",
    "a strip": f"this picture is a narrow strip; up to {LONGEST} times as long as wide is taken",
    "conversion from": "this kind of picture cannot be read here: save it as PNG or JPEG",
    "million pixels": f"this picture has too many pixels; up to {MOST_PIXELS / 1e6:.0f} million are taken",
    "truncated": "this picture is cut short: a part of its file is missing",
}
CELLS, WINDOW = 8, 2  # a side of a picture, and of what is covered of it
QUICK_S = 0.05  # a forward pass shorter than this is timed thrice


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: (channels, height, width), prepared. source, seen: data URLs of the picture and of what the
    model sees of it; seen is "" where they are the same. label: its class where that is known. note: whose it
    is, and its licence. hint: why the model may not know such pictures."""

    id: str
    name: str
    source: str
    pixels: Tensor
    label: int | None = None
    seen: str = ""
    note: str = ""
    hint: str = ""


@dataclass(frozen=True, eq=False)
class Answer:
    """shares: (classes,), what the model gives each class. ms: how long it took by itself, if timed."""

    shares: Tensor
    ms: float | None = None

    @property
    def top(self) -> int:
        return int(self.shares.argmax())

    def divergence(self, other: Answer) -> float:
        """KL of the other answer from this one, in nats."""
        p, q = self.shares.double().clamp(min=1e-12), other.shares.double().clamp(min=1e-12)
        return max(0.0, float((p * (p.log() - q.log())).sum()))

    def best(self, count: int = 5) -> list[tuple[int, float]]:
        """(class, share) of the first `count`, the likeliest first."""
        values, classes = self.shares.topk(min(count, len(self.shares)))
        return list(zip(classes.tolist(), values.tolist(), strict=True))


class Classifier:
    """An opened classifier. `images` are the labelled pictures beside it, if there are any; else `photos` of
    packages are its examples."""

    def __init__(
        self,
        elastic: ElasticModel,
        images: Images | None,
        photos: Sequence[tuple[PhotoEntry, Path]] = (),
    ):
        self.elastic, self.images, self.photos = elastic, images, photos
        labels = elastic.vision.labels
        self.labels = labels if len(labels) > 1 else (*labels, "none of it")
        self.transform = transform_of(elastic.vision)
        self._answers: OrderedDict[tuple[str, str], Answer] = OrderedDict()
        self._lock = threading.Lock()
        self._examples: dict[int, Picture] = {}

    @property
    def examples(self) -> list[int]:
        """Numbers of the pictures that are shown at first: the first of each class in turn."""
        if self.images is None:
            return list(range(len(self.photos)))
        found: dict[int, list[int]] = {}
        for row, label in enumerate(self.images.labels.tolist()):
            found.setdefault(label, []).append(row)
        ordered = [found[label] for label in sorted(found)]
        depth = max(map(len, ordered))
        rows = [rows[i] for i in range(depth) for rows in ordered if i < len(rows)]
        return rows[:EXAMPLES]

    def example(self, row: int) -> Picture:
        """A labelled picture, or a photograph; ImageError for a number that none has."""
        if not 0 <= row < len(self.photos if self.images is None else self.images):
            raise ImageError("this picture is not here any more: choose another one")
        with self._lock:
            known = self._examples.get(row)
        if known:
            return known
        made = self._photo(row) if self.images is None else self._labelled(row)
        with self._lock:
            while len(self._examples) >= 20 * EXAMPLES:
                self._examples.pop(next(iter(self._examples)))
            self._examples[row] = made
        return made

    def _labelled(self, row: int) -> Picture:
        picture, label = self.images.picture(row), int(self.images.labels[row])
        return Picture(f"example:{row}", f"Picture {row + 1}", shown(picture), self.transform(picture), label)

    def _photo(self, row: int) -> Picture:
        entry, path = self.photos[row]
        picture = read_picture(path, self.elastic.vision.channels)
        note = f"{entry.provenance}; {entry.licence}"
        return Picture(
            f"example:{row}", entry.title, shown(picture), self.transform(picture), None, note=note
        )

    def own(self, picture: Image.Image, name: str) -> Picture:
        """A visitor's picture, prepared."""
        pixels, (channels, height, width) = self.transform(picture), self.elastic.vision.data["input_size"]
        hint = ""
        if channels == 1 or max(height, width) < 64:
            grey = " grey" if channels == 1 else ""
            taught = f"It was taught{grey} pictures of {width} x {height} pixels"
            hint = f"{taught}, and sees of yours what stands beside it"
        return Picture(
            f"own:{secrets.token_hex(8)}", name, shown(picture), pixels, None, self._seen(pixels), hint=hint
        )

    def regions(
        self, plan: PrecisionPlan, picture: Picture, gate: Callable[[], AbstractContextManager]
    ) -> tuple[int, str]:
        """Returns the class that a plan gives a picture, and which regions decide that: a data URL of what
        the model sees, dark where covering it changes nothing.

        A square of WINDOW of CELLS x CELLS cells is covered with the mean color at each place in turn
        (Zeiler and Fergus, arXiv 1311.2901); a cell counts as the class's share falls while it is covered.
        The gate is held for one row of places at a time."""
        size = picture.pixels.shape[1:]
        edges = [
            torch.linspace(0, side, CELLS + 1, dtype=torch.float32).round().int().tolist() for side in size
        ]
        places = range(CELLS - WINDOW + 1)
        with gate(), torch.inference_mode():
            view = self.elastic.view(plan)
            shares = self._shares(view, picture.pixels[None])[0]
        top = int(shares.argmax())
        fallen, counts = torch.zeros(2, CELLS, CELLS, dtype=torch.float32)
        for row in places:
            covered = picture.pixels.repeat(len(places), 1, 1, 1)
            for column in places:
                rows, columns = (
                    slice(e[at], e[at + WINDOW]) for e, at in zip(edges, (row, column), strict=True)
                )
                covered[column, :, rows, columns] = 0.0
            with gate(), torch.inference_mode():
                left = self._shares(view, covered)[:, top]
            for column in places:
                fallen[row : row + WINDOW, column : column + WINDOW] += shares[top] - left[column]
                counts[row : row + WINDOW, column : column + WINDOW] += 1
        return top, self._lit(picture.pixels, (fallen / counts).clamp(min=0))

    def _lit(self, pixels: Tensor, weight: Tensor) -> str:
        """The picture as the model sees it, as bright as each cell weighs."""
        light = 0.15 + 0.85 * weight / weight.max().clamp(min=1e-6)
        light = interpolate(light[None, None], pixels.shape[1:], mode="bilinear")[0]
        return shown(self._as_picture(pixels, light))

    def answers(
        self,
        plan: PrecisionPlan,
        pictures: Sequence[Picture],
        gate: Callable[[], AbstractContextManager],
        timed: Picture | None = None,
    ) -> dict[str, Answer]:
        """By picture id; those not known yet go through the model together, in one turn at the gate, and
        `timed` by itself. FloatingPointError with a sentence where the model answers NaN."""
        key = plan.key(self.elastic.layers)
        wanted = {picture.id: picture for picture in [*pictures, *([timed] if timed else [])]}
        with self._lock:
            found = {i: self._answers[key, i] for i in wanted if (key, i) in self._answers}
        if timed and timed.id in found and found[timed.id].ms is None:
            del found[timed.id]
        if len(found) < len(wanted):
            with gate(), torch.inference_mode():
                view = self.elastic.view(plan)
                if timed and timed.id not in found:
                    found[timed.id] = self._timed(view, timed)
                rest = [picture for i, picture in wanted.items() if i not in found]
                if rest:
                    shares = self._shares(view, torch.stack([picture.pixels for picture in rest]))
                    found |= {p.id: Answer(s) for p, s in zip(rest, shares, strict=True)}
        with self._lock:
            for i, answer in found.items():
                self._answers[key, i] = answer
                self._answers.move_to_end((key, i))
            while len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)
        return found

    def forget(self, pictures: Sequence[Picture]) -> None:
        """Drop what was answered to these."""
        gone = {picture.id for picture in pictures}
        with self._lock:
            for key in [key for key in self._answers if key[1] in gone]:
                del self._answers[key]

    def _timed(self, view: torch.nn.Module, picture: Picture) -> Answer:
        taken: list[float] = []
        while len(taken) < 3:
            start = time.perf_counter()
            shares = self._shares(view, picture.pixels[None])[0]
            taken.append(time.perf_counter() - start)
            if taken[0] > QUICK_S:
                break
        return Answer(shares, 1000 * statistics.median(taken))

    def _shares(self, view: torch.nn.Module, pixels: Tensor) -> Tensor:
        logits = view(pixels).float().cpu()
        shares = class_logits(logits).softmax(-1)
        if not shares.isfinite().all():
            raise FloatingPointError("at this plan the model answers no numbers: try more bits")
        return shares

    def _seen(self, pixels: Tensor) -> str:
        """The prepared pixels as a picture again."""
        return shown(self._as_picture(pixels))

    def _as_picture(self, pixels: Tensor, light: Tensor | float = 1.0) -> Image.Image:
        data = self.elastic.vision.data
        mean, std = (torch.tensor(data[key], dtype=torch.float32).view(-1, 1, 1) for key in ("mean", "std"))
        values = (255 * (pixels * std + mean) * light).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(values.permute(1, 2, 0).squeeze(-1).numpy())


class Album:
    """The newest pictures of each visitor, in memory only. Safe between threads."""

    def __init__(self, own: int = OWN_KEPT, visitors: int = VISITORS_KEPT):
        self._most, self._visitors = own, visitors
        self._kept: OrderedDict[tuple[str, str], list[Picture]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, visitor: str, model: str, picture: Picture) -> list[Picture]:
        """Keep it; returns what had to go for it."""
        with self._lock:
            kept = self._kept.setdefault((visitor, model), [])
            kept.append(picture)
            self._kept.move_to_end((visitor, model))
            gone = kept[: -self._most]
            del kept[: -self._most]
            while len(self._kept) > self._visitors:
                gone += self._kept.popitem(last=False)[1]
        return gone

    def of(self, visitor: str, model: str) -> list[Picture]:
        """The visitor's pictures for a model, the newest first."""
        with self._lock:
            return list(reversed(self._kept.get((visitor, model), ())))

    def forget(self, visitor: str) -> list[Picture]:
        """The visitor has left, or wants them gone."""
        with self._lock:
            keys = [key for key in self._kept if key[0] == visitor]
            return [picture for key in keys for picture in self._kept.pop(key)]


def read_upload(path: str | Path, channels: int) -> Image.Image:
    """The picture in a file that a visitor sent. ImageError with a sentence that never repeats what is in
    it."""
    try:
        size = Path(path).stat().st_size
        if size > MOST_BYTES:
            raise ImageError(f"this file has {size / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} are taken")
        data = Path(path).read_bytes()
    except OSError:
        raise ImageError("the file did not arrive: send it again") from None
    return read_sent(data, channels)


def read_sent(data: bytes, channels: int) -> Image.Image:
    """The same of the content of a file."""
    try:
        return read_picture(io.BytesIO(data), channels, MOST_PIXELS)
    except ImageError as error:
        said = str(error)
        reason = next((words for sign, words in REFUSALS.items() if sign in said), DAMAGED)
        raise ImageError(reason) from None


def remove_upload(path: str | Path) -> None:
    """Remove the file, and the folder that was made for it."""
    with suppress(OSError):
        Path(path).unlink(missing_ok=True)
        Path(path).parent.rmdir()  # only if nothing else is in it


def shown(picture: Image.Image, px: int = SHOWN_PX) -> str:
    """A picture as a data URL for the page, at most `px` on its longer side, without anything that was
    written into its file."""
    tiny = max(picture.size) <= TINY_PX
    small = picture.copy()
    small.thumbnail((px, px))
    small.info.clear()
    out = io.BytesIO()
    if tiny:
        small.save(out, "PNG")
    else:
        small.save(out, "JPEG", quality=85)
    kind = "png" if tiny else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
