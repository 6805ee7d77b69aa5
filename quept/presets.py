"""Named plans, as files people can read: `presets/*.json`, each a plan with a `note` that says what it is
good for.

A preset may name the model it was made for; one that names none fits every model that has the layers its
patterns speak of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from quept.plan import PlanError, PrecisionPlan

FOLDER = Path(__file__).parent.parent / "presets"
RECIPES = FOLDER / "recipes"


def presets(model: str, layers: Iterable[str], folder: str | Path = FOLDER) -> list[PrecisionPlan]:
    """The presets that fit this model, in order of their file names. A file that is no plan raises PlanError
    naming it."""
    layers = list(layers)
    fitting = []
    for path in _files(folder):
        text = path.read_bytes()
        plan = PrecisionPlan.load(path)
        try:
            PrecisionPlan.from_json(text, model).resolve(layers)
        except PlanError:
            continue
        fitting.append(plan)
    return fitting


def notes(folder: str | Path = FOLDER) -> dict[str, str]:
    """`{plan name: its note}` of all presets."""
    plans = (json.loads(path.read_bytes()) for path in _files(folder))
    return {plan["name"]: plan.get("note", "") for plan in plans}


def named(name: str, model: str | tuple[str, ...], folder: str | Path = FOLDER) -> PrecisionPlan | None:
    """The preset of this name, or None; PlanError if it was made for another model."""
    for path in _files(folder):
        if PrecisionPlan.load(path).name == name:
            return PrecisionPlan.load(path, model)
    return None


def recipes() -> list[str]:
    """Names of the calibration recipes that come along; `quept.config.Recipe.load` reads one."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _files(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("*.json"))
