"""lm-evaluation-harness on a view of a plan, for whoever has it (`pip install lm-eval`) and a network.

The harness fetches its tasks' data from the hub by itself; a folder of its own YAML files may be given for
tasks whose data lie here. It scores through its own `HFLM`, so its numbers are its own; ours on the same
items are equal (see tasks.choice, and the test that holds the two together).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from quept.models.clone import shallow_copy

BATCH = 8


def harness(
    view: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    limit: int | None = None,
    include: Path | None = None,
) -> dict[str, Any]:
    """Returns the harness's results by task: `{"results": {task: {"acc,none": ...}}, "samples": ...}`. limit:
    items of each task at most; include: a folder of task files. ValueError where the harness is not installed
    or has no such task."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError("--lm-eval needs lm-evaluation-harness: pip install lm-eval") from None
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise ValueError(f"lm-evaluation-harness has no task {unknown[0]!r}: `lm_eval ls tasks` lists them")
    whole = shallow_copy(view)
    whole.__dict__["tie_weights"] = lambda: None  # the ends of a view are tied, and are no parameters
    model = HFLM(pretrained=whole, tokenizer=tokenizer, batch_size=BATCH)
    found = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=0
    )
    return {key: found[key] for key in ("results", "samples")}
