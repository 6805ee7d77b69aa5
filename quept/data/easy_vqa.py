"""easy-VQA: 64 x 64 pictures of one coloured shape each and questions about them (Victor Zhou 2019, the
Python package easy-vqa 1.0, MIT licence; pictures and questions are made by a program). 4,000 pictures with
38,575 questions to train on, 1,000 with 9,673 to test. An answer is a word: one of three shapes, eight
colours, yes or no.

`easy_vqa("train")` reads them out of the package's wheel, which is fetched into the cache as every other
source is and never unpacked or installed, or out of a folder that is given. What was read is checked by
sha256.

`question_type` says which of `TYPES` a question is of; `save_questions` and `read_questions` keep a slice of
questions with their pictures in one file.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quept.files import write_tensors
from quept.zoo.cache import Progress, SourceError
from quept.zoo.sources import Wheel, fetch_wheel

SIZE = 64  # pixels
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
ANSWERS = (*SHAPES, *COLOURS, "yes", "no")
TYPES = ("shape", "colour", "shape present", "colour present", "shape absent", "colour absent")

WHEEL = Wheel(
    "easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f", 3_215_672
)
IN_WHEEL = "easy_vqa/data/"
DIGESTS = {  # split -> `Questions.digest`
    "train": "332a0beb0f230d45b7f03a4317ff5ffeb24b899092ecc4482dfdb81eb2c4c7ef",
    "test": "5aec8044ef90f359be7df8f5be335d87639a7bf47e91ea58a77126813470ef5c",
}
FORMAT, VERSION = "quept-questions", 1


@dataclass(frozen=True)
class Question:
    """picture: the row of `Questions.pixels` that it is about."""

    text: str
    answer: str
    picture: int


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions about pictures: pixels (n, 64, 64, 3) uint8."""

    name: str
    pixels: Tensor
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def by_picture(self) -> list[list[Question]]:
        """The questions about each picture, in its row."""
        found: list[list[Question]] = [[] for _ in self.pixels]
        for question in self.questions:
            found[question.picture].append(question)
        return found

    @property
    def digest(self) -> str:
        """sha256 of the pixels, then of the questions as JSON."""
        rows = [[q.text, q.answer, q.picture] for q in self.questions]
        return hashlib.sha256(self.pixels.numpy().tobytes() + json.dumps(rows).encode()).hexdigest()


def easy_vqa(split: str, folder: str | Path | None = None, progress: Progress | None = None) -> Questions:
    """The questions of "train" or "test". folder: where the package's wheel lies, or what it has in
    easy_vqa/data (a folder for each split with questions.json and images/0.png and so on). SourceError in
    words when the data cannot be had or are not the published ones."""
    place = _given(Path(folder)) if folder else fetch_wheel(WHEEL, progress)
    root = place if place.is_dir() else zipfile.Path(place, IN_WHEEL)
    try:
        rows = json.loads((root / split / "questions.json").read_text("utf-8"))
        questions = tuple(Question(text, answer, picture) for text, answer, picture in rows)
        count = 1 + max(q.picture for q in questions)
        files = ((root / split / "images" / f"{i}.png").read_bytes() for i in range(count))
        found = Questions(f"easy-VQA, {split}", torch.stack([_pixels(file) for file in files]), questions)
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise SourceError(f"easy-VQA cannot be read from {place}: {error}") from None
    if found.digest != DIGESTS[split]:
        raise SourceError(f"{place} is not the {split} part of easy-VQA as it was published: delete it")
    return found


def _given(folder: Path) -> Path:
    if (folder / WHEEL.file_name).is_file():
        return folder / WHEEL.file_name
    if (folder / "train" / "questions.json").is_file():
        return folder
    raise SourceError(
        f"{folder} holds neither {WHEEL.file_name} (`pip download --no-deps easy-vqa==1.0` fetches it) nor "
        "train/questions.json with train/images, and the same in test"
    )


def _pixels(file: bytes) -> Tensor:
    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as picture:
            picture = picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(error) from None
    if picture.size != (SIZE, SIZE):
        raise ValueError(f"a picture of {picture.size} pixels instead of {SIZE} x {SIZE}")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3)


def question_type(question: str) -> str:
    """Which of TYPES a question of the data is of: what shape or colour there is ("what is the red shape?",
    "what color is the circle?"), or whether one is present or absent ("is there a circle?", "is no red shape
    present?"). ValueError for a question of another kind."""
    words = set(re.findall(r"[a-z]+", question.lower()))
    if "what" in words and words & {"color", "colour"}:
        return "colour"
    if "what" in words and "shape" in words:
        return "shape"
    about = "colour" if words & set(COLOURS) else "shape"
    if words & {"is", "does"} and words & {*SHAPES, *COLOURS}:
        return f"{about} {'absent' if words & {'no', 'not'} else 'present'}"
    raise ValueError(f"easy-VQA has no questions like {question!r}")


def save_questions(path: str | Path, source: Questions, count: int = 1000) -> None:
    """Keep the first `count` questions and the pictures they are about in one safetensors file, which appears
    whole or not at all:

    pixels   (n, 64, 64, 3) uint8
    picture  (count,) int64, the row of `pixels` that each question is about
    metadata: format "quept-questions", version, name, and JSON lists of strings `questions` and `answers`
    """
    kept = source.questions[:count]
    rows = sorted({q.picture for q in kept})
    tensors = {
        "pixels": source.pixels[rows].contiguous(),
        "picture": torch.tensor([rows.index(q.picture) for q in kept]),
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "name": f"{source.name}, the first {len(kept):,} questions",
        "questions": json.dumps([q.text for q in kept]),
        "answers": json.dumps([q.answer for q in kept]),
    }
    write_tensors(path, tensors, metadata)


def read_questions(path: str | Path) -> Questions:
    """What `save_questions` wrote; ValueError for a file that is none."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if (metadata.get("format"), metadata.get("version")) != (FORMAT, str(VERSION)):
                raise ValueError(f'{path} is no file of questions ("format" {FORMAT}, "version" {VERSION})')
            pixels, picture = file.get_tensor("pixels"), file.get_tensor("picture")
            texts, answers = (json.loads(metadata.get(key, "")) for key in ("questions", "answers"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{path} is damaged: it has no lists of questions and answers") from None
    sound = (
        (pixels.dtype, pixels.ndim, pixels.shape[-1:]) == (torch.uint8, 4, (3,))
        and (picture.dtype, picture.ndim) == (torch.int64, 1)
        and all(isinstance(words, list) and len(words) == len(picture) > 0 for words in (texts, answers))
        and all(isinstance(text, str) and text.strip() for text in (*texts, *answers))
        and 0 <= picture.min() <= picture.max() < len(pixels)
    )
    if not sound:
        raise ValueError(f"{path} is damaged: its questions, answers and pictures do not fit")
    name = metadata.get("name", Path(path).stem)
    return Questions(name, pixels, tuple(map(Question, texts, answers, picture.tolist())))
