"""What the small vision-language model's tower learns before the rest: to tell shapes and colours apart.

From the answers of a language model alone it would take very long to find out that shapes matter (7 epochs
leave it guessing); the towers of published models come trained as well. Here it is a classifier of what the
questions about each picture give away, from the mean of the tower's patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .easy_vqa import COLOURS, SHAPES, Questions, question_type

UNKNOWN = -1  # no question tells
WARMUP = 100  # steps


def train_tower(
    tower: nn.Module,
    data: Questions,
    prepared: Callable[[Tensor, torch.Generator], Tensor],
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
) -> float:
    """Train `tower` (pixels -> patches with a class token first) in place, and freeze it; returns the last
    epoch's mean loss.

    prepared(rows, generator): the pixels of these pictures as the tower takes them, changed at random."""
    labels = given_away(data)
    tower.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(tower.config.hidden_size, len(SHAPES) + len(COLOURS))
    parameters = [*tower.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, rate, (0.9, 0.95), weight_decay=0.05, fused=True)
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
        for group in optimiser.param_groups:
            group["lr"] = rate * share
        seen = head(tower(prepared(rows, generator)).last_hidden_state[:, 1:].mean(1))
        shape, colour = seen.split((len(SHAPES), len(COLOURS)), -1)
        loss = _loss(shape, labels[rows, 0]) + _loss(colour, labels[rows, 1])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
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
