"""What the small vision-language model's tower and projector learn before the rest: to call shapes and
colours by their names.

From the answers of a language model alone it would take very long to find out that shapes matter (7 epochs
leave it guessing), and to compare what is asked about with what is there. The towers of published models come
trained with words as well, and their projectors are aligned first. Here the mean of the projected patches has
to lie nearer to the embeddings of the picture's own shape and colour than to those of the others, as far as
the questions about it give them away.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from quept.data.easy_vqa import COLOURS, SHAPES, Questions, question_type

UNKNOWN = -1  # no question tells
WARMUP = 100  # steps
SHARPNESS = 20.0  # what cosines are multiplied with


def train_tower(
    tower: nn.Module,
    projector: nn.Module,
    words: nn.Parameter,
    data: Questions,
    prepared: Callable[[Tensor, torch.Generator], Tensor],
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
) -> float:
    """Train tower (pixels -> patches with a class token first), projector and word embeddings in place, and
    freeze the tower; returns the last epoch's mean loss.

    words (shapes and colours, hidden): embeddings that the projected patches are compared with.
    prepared(rows, generator): the pixels of these pictures as the tower takes them, changed at random."""
    labels = given_away(data)
    tower.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    parameters = [*tower.parameters(), *projector.parameters(), words]
    optimizer = torch.optim.AdamW(parameters, rate, (0.9, 0.95), weight_decay=0.05, fused=True)
    per_epoch = math.ceil(len(labels) / batch)
    total = 0.0
    for number in range(epochs * per_epoch):
        at = number % per_epoch
        if at == 0:
            order, total = torch.randperm(len(labels), generator=generator), 0.0
        rows = order[at * batch : (at + 1) * batch]
        share = (
            min(1.0, (number + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * number / (epochs * per_epoch)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        seen = projector(tower(prepared(rows, generator)).last_hidden_state[:, 1:]).mean(1)
        nearness = SHARPNESS * normalize(seen, dim=-1) @ normalize(words, dim=-1).T
        shape, colour = nearness.split((len(SHAPES), len(COLOURS)), -1)
        loss = _loss(shape, labels[rows, 0]) + _loss(colour, labels[rows, 1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        total += loss.item()
    tower.requires_grad_(False)
    return total / per_epoch


def given_away(data: Questions) -> Tensor:
    """(pictures, 2): numbers of shape and colour where a question of the picture tells them, else UNKNOWN."""
    found = torch.full((len(data.pixels), 2), UNKNOWN)
    for picture, questions in enumerate(data.by_picture()):
        for question in questions:
            kind, said = question_type(question.text), question.answer
            about, _, asked = kind.partition(" ")
            if asked and said == {"present": "yes", "absent": "no"}[asked]:
                words = re.findall(r"[a-z]+", question.text.lower())
                kind, said = about, next(word for word in words if word in (*SHAPES, *COLOURS))
            if kind == "shape":
                found[picture, 0] = SHAPES.index(said)
            elif kind == "colour":
                found[picture, 1] = COLOURS.index(said)
    return found


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the pictures whose label is known; 0 where none is."""
    return cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum") / max(
        1, int((labels != UNKNOWN).sum())
    )
