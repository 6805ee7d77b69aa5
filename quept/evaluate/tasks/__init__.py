"""The tasks that plans are measured by: one file each, and this table.

tasks = tasks_of(elastic)          # {"text": TextTask}: the first one is the default

base       the contract: EvalTask, Metric, TaskEstimate
text       perplexity and divergence on a text; on code, German, chat turns
choice     accuracy on multiple choice and cloze tasks, as lm-evaluation-harness scores them
image      accuracy on labelled pictures
vqa        accuracy of answers about pictures
agreement  what both accuracies share
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import EvalTask, Metric, TaskEstimate, reported
from .choice import ChoiceTask
from .image import ImageTask
from .text import ChatTask, CodeTask, GermanTask, Sample, TextTask
from .vqa import VqaTask

if TYPE_CHECKING:
    from quept.runtime import ElasticModel

TASKS: dict[str, type[EvalTask]] = {
    task.name: task for task in (TextTask, ChoiceTask, CodeTask, GermanTask, ChatTask, ImageTask, VqaTask)
}


def fitting(elastic: ElasticModel) -> dict[str, type[EvalTask]]:
    """Returns the tasks for models of this kind, by name."""
    return {name: task for name, task in TASKS.items() if task.kind == elastic.kind}


def tasks_of(
    elastic: ElasticModel, cache: Path | None = None, given: Mapping[str, Any] | None = None
) -> dict[str, EvalTask]:
    """Returns the tasks of a model by name, those that lack nothing first; see `EvalTask` for the
    arguments."""
    tasks = [task(elastic, cache, given) for task in fitting(elastic).values()]
    return {task.name: task for task in sorted(tasks, key=lambda task: bool(task.lacking))}


def estimate_of(payload: Mapping[str, Any]) -> Any:
    """Returns the estimate that a stored payload spells, of the first task whose it can be; ValueError where
    it is none's."""
    for task in TASKS.values():
        with suppress(ValueError, TypeError, KeyError):
            return task.result.from_dict(payload)
    raise ValueError("this is no estimate of any task")


def metrics_of(payload: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Returns the metrics of a stored payload by the first task that can read it; none where none can."""
    for task in TASKS.values():
        with suppress(ValueError, TypeError, KeyError):
            task.result.from_dict(payload)
            return task(None).metrics(payload) + reported(payload)
    return ()
