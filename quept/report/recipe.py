"""A recipe, as an artifact's manifest holds it, in the TOML that recipe files are written in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tomlkit

from quept.config import migrated

from .words import without_folder


def as_toml(recipe: Mapping[str, Any]) -> str:
    """Entries that say nothing (null) are left out; of text files that were given by path, the name is
    kept."""
    recipe = migrated(json.loads(json.dumps(recipe)))  # a copy
    data = recipe.get("data")
    if isinstance(data, dict) and isinstance(data.get("sources"), dict):
        data["sources"] = {without_folder(name): share for name, share in data["sources"].items()}
    return tomlkit.dumps(_said(recipe)).strip() + "\n"


def _said(value: object) -> object:
    """Without what is null, at any depth; plain entries before tables, as TOML wants them."""
    if isinstance(value, list):
        return [_said(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _said(item) for key, item in value.items() if item is not None}
    return dict(sorted(kept.items(), key=lambda entry: isinstance(entry[1], dict) or _is_tables(entry[1])))


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)
