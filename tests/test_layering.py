"""Imports point down only, and the library knows nothing of the app."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEVELS = (
    {"numerics", "files", "mapped", "checked", "brief", "stage", "progress"},
    {"models", "zoo"},
    {"engines", "kernels"},
    {"plan", "presets"},
    {"transforms"},
    {"artifact"},
    {"runtime"},
    {"data"},
    {"config"},
    {"calibrate", "evaluate", "export"},
    {"allocate", "report", "costs"},
    {"flow"},
    {"cli", "__main__"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted((ROOT / "quept").rglob("*.py"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Full dotted names of everything a file imports, wherever in the file it does."""
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def stage(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "quept" and len(parts) > 1 else None


def graph() -> dict[str, set[str]]:
    """`{stage: stages it imports}` of the library."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        own = path.relative_to(ROOT).with_suffix("").parts[1]
        if own != "__init__":
            edges.setdefault(own, set()).update(
                s for s in map(stage, imported(path)) if s in LEVEL and s != own
            )
    return edges


def test_every_stage_has_its_level():
    assert set(graph()) <= set(LEVEL)


def test_imports_point_down_only():
    upwards = {(own, other) for own, below in graph().items() for other in below if LEVEL[other] > LEVEL[own]}
    assert not upwards, f"(stage, imported from above): {upwards}"


def test_no_two_stages_import_each_other():
    edges = graph()

    def below(own: str, seen: tuple[str, ...] = ()) -> None:
        assert own not in seen, " -> ".join([*seen, own])
        for other in edges.get(own, ()):
            below(other, (*seen, own))

    for own in edges:
        below(own)


def test_the_library_imports_neither_gradio_nor_the_app():
    for path in FILES:
        forbidden = {"gradio", "gradio_client"} | ({"app"} if path.parent.name != "cli" else set())
        assert not forbidden & {name.split(".")[0] for name in imported(path)}, path  # `quept app` starts it


def test_the_library_never_trusts_what_comes_with_a_model():
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}
    for path in FILES:
        assert not forbidden & {name.split(".")[0] for name in imported(path)}, path
        text = path.read_text()
        loads = re.findall(r"torch\.load\([^)]*\)", text)
        assert all("weights_only=True" in load for load in loads), path
        assert "trust_remote_code=True" not in text, path


def test_every_package_names_what_lies_in_it():
    for package in [*(ROOT / "quept").rglob("__init__.py"), ROOT / "app" / "__init__.py"]:
        named = set(re.findall(r"\w+", ast.get_docstring(ast.parse(package.read_text())) or ""))
        inside = {path.stem for path in package.parent.glob("*.py")} - {"__init__", "__main__"}
        inside |= {path.parent.name for path in package.parent.glob("*/__init__.py")}
        assert inside <= named, f"{package.parent.relative_to(ROOT)} does not name {sorted(inside - named)}"
