"""What `quept evaluate` measures on: text for a language model, labelled pictures for a classifier of them.

Each of the two knows its options, its data, how a view is measured on them and how the figures are written;
the command does the rest. Options of the other kind are refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quept.progress import Progress

from .shared import DEFAULT_TEXT, count, name_of, short, text_options, windows_of

if TYPE_CHECKING:
    from quept.runtime import ElasticModel

    from .evaluate import Subject

TOKENS, CONTEXT = 4096, 512
TEXT_OPTIONS, IMAGE_OPTIONS = ("text", "tokens", "context"), ("data", "labels", "images")


class Measure(Protocol):
    """data: the id of what is measured on. conditions: what belongs beside the numbers. head: the titles of
    the figures."""

    data: str
    conditions: dict
    head: tuple[str, ...]

    def estimates(self, subject: Subject) -> Iterator[tuple[str, float, dict]]:
        """(what is known so far in words, the share done, the same as JSON), until all is measured."""

    def figures(self, estimate: Mapping) -> tuple[str, ...]:
        """The cells under `head`."""

    def sentence(self) -> str:
        """What was measured on, in words."""


def data_options(p: argparse.ArgumentParser) -> None:
    text_options(p, TOKENS)
    p.set_defaults(**dict.fromkeys(TEXT_OPTIONS))  # so that one that was given can be told
    p.add_argument(
        "--data",
        metavar="FOLDER",
        help="pictures to classify, in a folder for each class as ImageNet has them "
        "(default: those that come with the model)",
    )
    p.add_argument(
        "--labels", metavar="FILE", help="a line for each picture or folder in --data: its path and its class"
    )
    p.add_argument("--images", type=count, metavar="N", help="how many pictures (default: all)")


def measure_of(options: argparse.Namespace, elastic: ElasticModel, progress: Progress) -> Measure:
    """By the kind of the model; ValueError for options of the other kind."""
    vision = elastic.kind == "vision"
    given = [name for name in (TEXT_OPTIONS if vision else IMAGE_OPTIONS) if getattr(options, name)]
    if given:
        other, what = ("language models", "classifies pictures")
        if not vision:
            other, what = ("classifiers of pictures", "is a language model")
        raise ValueError(f"--{given[0]} is for {other}, and {elastic.title} {what}: leave it out")
    return OnImages(options, elastic) if vision else OnText(options, elastic, progress)


class OnText:
    """Perplexity and divergence from full precision on windows of a text."""

    head = ("perplexity", "KL", "same top")

    def __init__(self, options: argparse.Namespace, elastic: ElasticModel, progress: Progress):
        from quept import zoo
        from quept.evaluate import Reference

        given = {name: getattr(options, name) for name in TEXT_OPTIONS if getattr(options, name)}
        chosen = argparse.Namespace(**{"text": DEFAULT_TEXT, "tokens": TOKENS, "context": CONTEXT} | given)
        self._windows = windows_of(chosen, elastic, chosen.tokens, progress)
        cache = zoo.cache_dir() / "reference"
        self._reference = Reference.open(elastic.fingerprint, self._windows, elastic.reference, cache)
        self.data = self._windows.id
        self.conditions = {
            "text": name_of(chosen.text),
            "tokens": self._windows.ids.numel(),
            "context": self._windows.context,
        }

    def estimates(self, subject: Subject) -> Iterator[tuple[str, float, dict]]:
        from quept.evaluate import divergence

        make_cache = subject.make_cache
        for found in divergence(subject.view(), self._reference, self._windows, make_cache=make_cache):
            share = found.tokens / self._windows.scored
            yield f"perplexity {found.ppl:.1f}, KL {found.kl:.4f}", share, found.to_dict()

    def figures(self, e: Mapping) -> tuple[str, ...]:
        return (
            f"{short(e['ppl'])} ± {short(e['ppl_se'])}",
            f"{short(e['kl'])} ± {short(e['kl_se'])}",
            f"{100 * e['same_top']:.1f} ± {100 * e['same_top_se']:.1f} %",
        )

    def sentence(self) -> str:
        c = self.conditions
        return f"{c['tokens']:,} tokens of {c['text']}, context {c['context']}"


class OnImages:
    """Accuracy, and agreement with full precision, on labelled pictures."""

    head = ("top-1 (95 %)", "KL", "same top (95 %)", "lost", "gained")

    def __init__(self, options: argparse.Namespace, elastic: ElasticModel):
        from quept import zoo
        from quept.evaluate import ImageReference, image_folder, stored_images

        vision = elastic.vision
        if options.data:
            self._images = image_folder(Path(options.data), vision, options.labels, options.images)
        elif options.labels:
            raise ValueError("--labels tells the classes of the pictures in --data: give that folder too")
        elif vision.images:
            self._images = stored_images(vision.images, vision, options.images)
        else:
            raise ValueError(
                f"{elastic.title} comes without pictures: give --data FOLDER, which holds a folder of "
                "pictures for each class"
            )
        cache = zoo.cache_dir() / "reference"
        self._reference = ImageReference.open(elastic.fingerprint, self._images, elastic.reference, cache)
        self.data = self._images.id
        self.conditions = {
            "data": self._images.name,
            "images": len(self._images),
            "input": list(vision.data["input_size"]),
        }

    def estimates(self, subject: Subject) -> Iterator[tuple[str, float, dict]]:
        from quept.evaluate import accuracy

        for found in accuracy(subject.view(), self._images, self._reference):
            share = (found.images + found.skipped) / len(self._images)
            words = f"top-1 {100 * found.top1:.1f} %, KL {found.kl:.4f}"
            yield words, share, found.to_dict()

    def figures(self, e: Mapping) -> tuple[str, ...]:
        return (
            _share(e, "top1"),
            f"{short(e['kl'])} ± {short(e['kl_se'])}",
            _share(e, "same_top"),
            str(e["lost"]),
            str(e["gained"]),
        )

    def sentence(self) -> str:
        c = self.conditions
        return f"{c['images']:,} pictures of {c['data']}, input {' x '.join(map(str, c['input']))}"


def _share(e: Mapping, name: str) -> str:
    """A share in percent and its interval."""
    share, low, high = (100 * e[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{share:.1f} ({low:.1f} to {high:.1f}) %"
