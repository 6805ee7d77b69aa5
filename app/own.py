"""What was measured on the visitor's own conversation: how far the answers of each plan are from full
precision, for the line under an answer and for points of the plot. Kept in the visitor's state alone.

A turn of a chat holds `"scored": {side: {"plan": name, "key": of the plan, "bytes", "bits_per_param",
"kl": [of each scored token], "same": how many had the same top token}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from app.conversation import Answer
from app.small_numbers import small_words
from quept.evaluate import wilson
from quept.evaluate.intervals import mean_and_error
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel

Z = 1.96


def scored(elastic: ElasticModel, plan: PrecisionPlan, answer: Answer) -> dict:
    """What a turn keeps of one side."""
    return {
        "plan": plan.name,
        "key": plan.key(elastic.layers),
        "bytes": elastic.sizes.deploy(plan),
        "bits_per_param": elastic.sizes.bits_per_parameter(plan),
        "kl": [round(score.kl, 5) for score in answer.scores],
        "same": sum(score.same for score in answer.scores),
    }


def conversations(turns: Sequence[Mapping]) -> list[dict]:
    """One entry per plan that anything was scored at: those of `scored`, all its answers together."""
    found: dict[str, dict] = {}
    for one in _all(turns):
        if one["kl"]:
            whole = found.setdefault(one["key"], {**one, "kl": [], "same": 0})
            whole |= {"kl": whole["kl"] + one["kl"], "same": whole["same"] + one["same"]}
    return list(found.values())


def figure(turns: Sequence[Mapping], key: str, what: str = "conversation") -> str:
    """The running figure of a plan, in words; "" where nothing of it was scored. what: the visitor's own."""
    one = next((one for one in conversations(turns) if one["key"] == key), None)
    if one is None:
        return ""
    tokens = len(one["kl"])
    mean = small_words(sum(one["kl"]) / tokens)
    return f"On your own {what}: KL {mean}, same top {100 * one['same'] / tokens:.0f} %, {tokens:,} tokens"


def points(turns: Sequence[Mapping], what: str = "conversation") -> list[dict]:
    """Each plan's answers as a point of the plot, with 95 % intervals."""
    made = []
    for number, one in enumerate(conversations(turns)):
        kl, error = mean_and_error(torch.tensor(one["kl"], dtype=torch.float64))
        tokens, same = len(one["kl"]), one["same"]
        low, high = wilson(same, tokens)
        made.append(
            {
                "id": f"{what}:{number}",
                "label": f"Your {what}, {one['plan']}",
                "bytes": one["bytes"],
                "bits_per_param": one["bits_per_param"],
                **{"kl": kl, "kl_low": max(0.0, kl - Z * error), "kl_high": kl + Z * error},
                **{"same_top": same / tokens, "same_top_low": low, "same_top_high": high},
            }
        )
    return made


def _all(turns: Sequence[Mapping]) -> Iterator[Mapping]:
    return (one for turn in turns for one in turn.get("scored", {}).values())
