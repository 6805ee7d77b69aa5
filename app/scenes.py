"""Pictures that questions are asked about, and what a vision-language model was taught of such things.

`Gallery` is one opened model with the questions stored beside it, if any: they give example pictures, each
with questions whose answers are known, and with their name comes a `World`, the little that such a model was
taught, which says when a question or a picture lies outside of it. A picture from a visitor comes in
through `read_upload` or `read_sent` of app/pictures.py, and is kept, made smaller, in an `Album`.
Nothing here knows of Gradio.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from quept.data.easy_vqa import ANSWERS, COLOURS, TYPES, Questions, question_type, read_questions
from quept.runtime import ElasticModel

from .pictures import shown

EXAMPLES, SUGGESTED = 12, 4
THUMBNAIL_PX = 80
KEPT_PX = 1024  # the longer side of a visitor's picture
ANY = (
    "What is in the picture?",
    "What colours are there?",
    "Is there a person?",
    "Describe the picture in one sentence.",
)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture in RGB. source: data URL of a small copy. questions: suggestions. answers: those that are
    known, by question."""

    id: str
    name: str
    picture: Image.Image
    source: str
    questions: tuple[str, ...] = ()
    answers: dict[str, str] = field(default_factory=dict)

    @cached_property
    def thumbnail(self) -> str:
        """Data URL of a still smaller one."""
        return shown(self.picture, THUMBNAIL_PX)


@dataclass(frozen=True)
class World:
    """All that a model was taught. words: about it, for people; questions: forms of those it can answer."""

    words: str
    questions: tuple[str, ...]

    def outside(self, question: str, picture: Image.Image, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Why an answer is a guess, as a sentence; None where it is not."""
        reason = _odd_question(question, tokenizer) or _odd_picture(picture)
        return reason and f"{reason}, so the answer is a guess."


EASY_VQA = World(
    "This small model was taught one thing: pictures of one coloured shape on a plain, light background, and "
    "questions about that shape and its colour.",
    (
        "what color is the shape?",
        "what shape is in the image?",
        "is there a circle?",
        "is there not a red shape?",
    ),
)
WORLDS = {"easy-VQA": EASY_VQA}  # by how the name of the stored questions begins


class Gallery:
    """A model's examples and suggestions. stored: the questions beside its weights, if any."""

    def __init__(self, elastic: ElasticModel, stored: Questions | None):
        self.elastic, self._stored = elastic, stored
        name = stored.name if stored else ""
        self.world = next((world for key, world in WORLDS.items() if name.startswith(key)), None)

    @classmethod
    def of(cls, elastic: ElasticModel) -> Gallery:
        return cls(elastic, read_questions(elastic.questions) if elastic.questions else None)

    @property
    def suggestions(self) -> tuple[str, ...]:
        """For a picture of which nothing is known."""
        return self.world.questions if self.world else ANY

    @cached_property
    def examples(self) -> dict[str, Scene]:
        """By id: the first pictures, no two of which show the same as far as the answers tell."""
        found: dict[str, Scene] = {}
        seen = set()
        for row, asked in enumerate(self._stored.by_picture() if self._stored else ()):
            known = frozenset(q.answer for q in asked if q.answer in ANSWERS[:-2])
            if known in seen or len(asked) < 3:
                continue
            seen.add(known)
            kinds = {question_type(q.text): q.text for q in reversed(asked)}
            picture = Image.fromarray(self._stored.pixels[row].numpy())
            found[f"example:{row}"] = Scene(
                f"example:{row}",
                f"Example {len(found) + 1}",
                picture,
                shown(picture),
                tuple(kinds[kind] for kind in TYPES if kind in kinds)[:SUGGESTED],
                {q.text: q.answer for q in asked},
            )
            if len(found) == EXAMPLES:
                break
        return found

    def own(self, picture: Image.Image) -> Scene:
        """A picture that a visitor gave."""
        small = picture.copy()
        small.thumbnail((KEPT_PX, KEPT_PX))
        small.info.clear()
        return Scene(f"own:{secrets.token_hex(8)}", "Your picture", small, shown(small), self.suggestions)

    def drawn(self, picture: Image.Image) -> Scene:
        """A picture that a visitor drew; the same drawing has the same id."""
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        return Scene(f"drawn:{digest[:16]}", "Your drawing", picture, shown(picture), self.suggestions)


def _odd_question(question: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What it was never asked: words that its tokenizer has to spell, or words in another order."""
    words = dict.fromkeys(re.findall(r"[^\W\d_]+|\d+", question.lower()))
    unknown = [word for word in words if len(tokenizer.encode(f" {word}", add_special_tokens=False)) > 1]
    if unknown:
        return f"This model never read {_listed(unknown[:3])}"
    try:
        question_type(question)
    except ValueError:
        return "This model was never asked in such words"
    return None


def _listed(words: Sequence[str]) -> str:
    quoted = [f"“{word[:20]}”" for word in words]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _odd_picture(picture: Image.Image) -> str | None:
    """Why this is not one coloured shape on a plain, light background."""
    pixels = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), dtype=int)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(edge, axis=0)
    away = np.abs(pixels - background).max(-1)
    if background.min() < 200 or (np.abs(edge - background).max(-1) > 24).mean() > 0.4:
        return "This model only ever saw plain, light backgrounds"
    inside = pixels[away > 48] - background
    if len(inside) < 12:
        return "This model only ever saw pictures with a shape in them"
    full = inside[np.abs(inside).max(-1) > 0.9 * np.abs(inside).max()].mean(
        0
    )  # the shape, its soft edge left out
    share = (inside @ full / (full @ full)).clip(
        0, 1
    )  # of the shape in each pixel, if there is but one colour
    if (np.abs(inside - share[:, None] * full).max(-1) > 60).mean() > 0.1 or len(inside) > 0.6 * away.size:
        return "This model only ever saw one shape of one colour at a time"
    colour = background + full
    if min(np.abs(colour - known).max() for known in PAINTS.values()) > 90:
        return f"This model only ever saw {', '.join(COLOURS[:-1])} and {COLOURS[-1]}"
    return None


PAINTS = {  # the colours of easy-VQA
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
