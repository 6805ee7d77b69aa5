"""What one side of the Chat and Ask pages answers at: a menu's value as a plan with the name to show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from quept.engines import engine_class, engine_with, named_settings
from quept.plan import FULL, PrecisionPlan
from quept.runtime import ElasticModel

EQUALIZER = "equaliser"
LLAMA = "llama.cpp"  # the plan on the equaliser, as a file that llama.cpp runs
OWN = {EQUALIZER: "your plan", LLAMA: "your plan in llama.cpp"}
LETTERS = {
    "W": "every layer at {} bits",
    "A": "activations at {}",
    "E": "embeddings at {}",
    "KV": "KV cache at {}",
}
_OLD = "baseline:"  # before the settings of other tools in menus and links of earlier releases


def setting_named(choice: str) -> PrecisionPlan | None:
    """The plan of a setting of the whole model, "nf4"; None for a value that means something else."""
    word = choice.removeprefix(_OLD)
    return PrecisionPlan.uniform(word) if word in named_settings() else None


def setting_choices(elastic: ElasticModel) -> list[tuple[str, str]]:
    """Menu entries (label, value) of such settings that this model has and that can run here."""
    return [
        (title, word)
        for word, title in elastic.settings.items()
        if not engine_class(engine_with(word)).missing()
    ]


def side_of(
    plan_of: Callable[[str, str, Mapping[str, Any] | None], PrecisionPlan],
    model: str,
    choice: str,
    plan_json: Mapping[str, Any] | None,
) -> PrecisionPlan:
    """The plan behind a menu value; `plan_of(model, choice, plan_json)` knows the plans. ValueError in
    words."""
    plan = setting_named(choice) or plan_of(model, EQUALIZER if choice in OWN else choice, plan_json)
    name = plainly(plan) if plan.name else "own bits"
    return replace(plan, name=f"{OWN[choice]}, {name}" if choice in OWN else name)


def plainly(plan: PrecisionPlan, embeddings: bool = True) -> str:
    """A plan's name with what its letters mean: "W3 (every layer at 3 bits, embeddings at 16)".
    embeddings: whether the model has some that a plan gives a width."""
    name = plan.name
    if re.fullmatch(r"W\d+(?:(?:A|KV|E)[\d.]+)*", name):
        widths = {"E": str(FULL)} if embeddings else {}
        widths |= dict(re.findall(r"([A-Z]+)([\d.]+)", name))
        said = {letter: words.format(widths[letter]) for letter, words in LETTERS.items() if letter in widths}
        if kept := sorted({bits.weights for _, bits in plan.rules} - {int(widths["W"])}):
            said["W"] = f"layers at {widths['W']} bits, some at {', '.join(map(str, kept))}"
        return f"{name} ({', '.join(said.values())})"
    return re.sub(r"\bE(?=[\d.]+(?:,|$))", "embeddings at ", name)
