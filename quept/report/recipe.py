"""A recipe, as an artifact's manifest holds it, in the TOML that recipe files are written in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from quept.config import migrated

from .words import without_folder

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_toml(recipe: Mapping[str, Any]) -> str:
    """Entries that say nothing (null) are left out; of text files that were given by path, the name is
    kept."""
    recipe = migrated(json.loads(json.dumps(recipe)))  # a copy
    data = recipe.get("data")
    if isinstance(data, dict) and isinstance(data.get("sources"), dict):
        data["sources"] = {without_folder(name): share for name, share in data["sources"].items()}
    return "\n".join(_table(recipe, "")).strip() + "\n"


def _table(table: Mapping[str, Any], name: str) -> list[str]:
    """A table's plain entries first, as TOML wants it, then the tables in it."""
    inner = {k: v for k, v in table.items() if isinstance(v, dict) or _is_tables(v)}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in table.items() if k not in inner and v is not None]
    if name and (lines or not inner):
        lines = ["", f"[{name}]", *lines]
    for key, value in inner.items():
        full = f"{name}.{_key(key)}" if name else _key(key)
        if isinstance(value, dict):
            lines += _table(value, full)
        else:
            for entry in value:
                plain = (f"{_key(k)} = {_value(v)}" for k, v in entry.items() if v is not None)
                lines += ["", f"[[{full}]]", *plain]
    return lines


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)
