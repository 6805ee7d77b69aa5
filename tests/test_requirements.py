"""What requirements.txt brings is enough to run: an environment with the test extra hides what is missing."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "app.py", *(ROOT / "app").rglob("*.py"), *(ROOT / "quept").rglob("*.py")]
REQUIRED = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def names(requirements):
    return {canonicalize_name(re.match(r"[\w.-]+", line).group()) for line in requirements}


def brought(requirements):
    """The distributions that installing these requirements brings here, their own requirements with them."""
    found, ahead = set(), [Requirement(line) for line in requirements]
    while ahead:
        wanted = ahead.pop()
        name = canonicalize_name(wanted.name)
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        with_extras = {"", *wanted.extras}
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in with_extras):
                needed.marker = None
                ahead.append(needed)
    return found


def imported(path):
    """(package, whether the module cannot be imported without it) of every import of a file."""
    tree = ast.parse(path.read_text())
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else ()
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module]
        for module in modules:
            package = module.partition(".")[0]
            if package not in sys.stdlib_module_names and package not in ("app", "quept"):
                yield package, id(node) in at_once


def test_every_import_is_of_a_requirement_or_late_and_of_an_extra():
    provided = metadata.packages_distributions()
    required, optional = brought(REQUIRED), names(line for lines in EXTRAS.values() for line in lines)
    required.add("triton")  # torch brings it where it works; the file of its kernels is imported only there
    for path in SOURCES:
        for package, at_once in imported(path):
            known = {canonicalize_name(name) for name in provided.get(package, [package])}
            allowed = required if at_once else required | optional
            assert known & allowed, f"{path.relative_to(ROOT)} imports {package}, which no requirement brings"
