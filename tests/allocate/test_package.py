"""What the package offers comes when asked for; what goes wrong in it reaches a terminal as a sentence."""

import subprocess
import sys

import pytest

import quept.allocate
from quept import cli
from quept.allocate import SensitivityError, WorkersError
from quept.allocate.constraints import AllocationError
from quept.allocate.front import FrontError
from quept.allocate.refine import RefineError

LIGHT = ("budget", "constraints", "knapsack", "solve", "table", "uniform", "workers")


def test_allocating_and_starting_a_worker_load_no_model_library():
    lines = [f"import quept.allocate.{name}" for name in LIGHT]
    lines += ["import sys", "sys.exit(bool({'transformers', 'quept.runtime'} & set(sys.modules)))"]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)]).returncode == 0


def test_every_name_is_there_whatever_was_imported_before():
    modules = {f"quept.allocate.{module}" for module in quept.allocate.LATER.values()}
    lines = [f"import {module}" for module in sorted(modules)]
    lines += ["from quept.allocate import *", "import quept.allocate as package"]
    lines += ["assert all(callable(getattr(package, name)) for name in package.__all__)"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = quept.allocate.nothing


@pytest.mark.parametrize(
    ("error", "code"),
    [(AllocationError, 2), (FrontError, 2), (RefineError, 2), (SensitivityError, 2), (WorkersError, 1)],
)
@pytest.mark.parametrize("command", ["sensitivity", "allocate", "front"])
def test_errors_end_a_command_as_one_sentence(monkeypatch, capsys, command, error, code):
    def fail(options, progress):
        raise error("3 workers died\nover one task")

    monkeypatch.setattr(f"quept.cli.{command}.opened", fail)
    argv = {"allocate": ["m", "1 MB"]}.get(command, ["m", "--out", "x.json"])
    assert cli.main([command, *argv]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"quept {command}: 3 workers died over one task"
