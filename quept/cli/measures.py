"""What `quept evaluate` measures on: text for a language model, labelled pictures for a classifier of them,
questions about pictures for a vision-language model.

Each of the three knows its options, its data, how a view is measured on them and how the figures are written;
the command does the rest. Options of another kind are refused.
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
TEXT_OPTIONS = ("text", "tokens", "context")
OPTIONS = {
    "language": TEXT_OPTIONS,
    "vision": ("data", "labels", "images"),
    "vision-language": ("data", "questions"),
}
WHAT = {  # who takes these options, what such a model does
    "language": ("language models", "is a language model"),
    "vision": ("classifiers of pictures", "classifies pictures"),
    "vision-language": ("vision-language models", "answers questions about pictures"),
}


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
        help="pictures to classify, in a folder for each class as ImageNet has them; for a vision-language "
        "model a folder of pictures and pairs.json, a list of entries like "
        '{"image": "cat.jpg", "question": "What is on the sofa?", "answer": "A cat."} '
        "(default: what comes with the model)",
    )
    p.add_argument(
        "--labels", metavar="FILE", help="a line for each picture or folder in --data: its path and its class"
    )
    p.add_argument("--images", type=count, metavar="N", help="how many pictures (default: all)")
    p.add_argument(
        "--questions", type=count, metavar="N", help="how many questions about pictures (default: all)"
    )


def measure_of(options: argparse.Namespace, elastic: ElasticModel, progress: Progress) -> Measure:
    """By the kind of the model; ValueError for options of another kind."""
    own = OPTIONS[elastic.kind]
    for kind, names in OPTIONS.items():
        for name in names:
            if name not in own and getattr(options, name):
                others, does = WHAT[kind][0], WHAT[elastic.kind][1]
                raise ValueError(f"--{name} is for {others}, and {elastic.title} {does}: leave it out")
    if elastic.kind == "language":
        return OnText(options, elastic, progress)
    return OnImages(options, elastic) if elastic.vision else OnQuestions(options, elastic)


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
        self._reference = Reference.open(elastic.base_identity, self._windows, elastic.reference, cache)
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
        self._reference = ImageReference.open(elastic.base_identity, self._images, elastic.reference, cache)
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


class OnQuestions:
    """Accuracy of answers, and agreement with full precision, on questions about pictures."""

    head = ("accuracy (95 %)", "KL", "same answer (95 %)", "lost", "gained", "by type")

    def __init__(self, options: argparse.Namespace, elastic: ElasticModel):
        from quept import zoo
        from quept.evaluate import VqaReference, question_folder, stored_questions

        if options.data:
            self._questions = question_folder(Path(options.data), elastic.processor, options.questions)
        elif elastic.questions:
            self._questions = stored_questions(elastic.questions, elastic.processor, options.questions)
        else:
            raise ValueError(
                f"{elastic.title} comes without questions: give --data FOLDER, which holds pictures and "
                "pairs.json"
            )
        cache, full = zoo.cache_dir() / "reference", elastic.full_precision
        self._reference = VqaReference.open(elastic.base_identity, self._questions, full, cache)
        self.data = self._questions.id
        self.conditions = {"data": self._questions.name, "questions": len(self._questions)}

    def estimates(self, subject: Subject) -> Iterator[tuple[str, float, dict]]:
        from quept.evaluate import vqa

        for found in vqa(subject.view(), self._questions, self._reference, subject.make_cache):
            share = (found.questions + found.skipped) / len(self._questions)
            words = f"accuracy {100 * found.top1:.1f} %, KL {found.kl:.4f}"
            yield words, share, found.to_dict()

    def figures(self, e: Mapping) -> tuple[str, ...]:
        types = ", ".join(f"{kind} {100 * t['right'] / t['questions']:.1f}" for kind, t in e["types"].items())
        return (
            _share(e, "top1"),
            f"{short(e['kl'])} ± {short(e['kl_se'])}",
            _share(e, "same_top"),
            str(e["lost"]),
            str(e["gained"]),
            types,
        )

    def sentence(self) -> str:
        return f"{self.conditions['questions']:,} questions of {self.conditions['data']}"


def _share(e: Mapping, name: str) -> str:
    """A share in percent and its interval."""
    share, low, high = (100 * e[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{share:.1f} ({low:.1f} to {high:.1f}) %"
