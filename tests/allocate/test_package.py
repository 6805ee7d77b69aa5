"""Allocating loads no model; what goes wrong in it reaches a terminal as a sentence."""

import subprocess
import sys

import pytest

from quept import cli
from quept.allocate import SensitivityError
from quept.allocate.front import FrontError
from quept.allocate.search.race import RefineError
from quept.allocate.sensitivity.workers import WorkersError
from quept.allocate.solve.constraints import AllocationError

LIGHT = (
    "solve.best",
    "solve.budget",
    "solve.solver",
    "solve.uniform",
    "sensitivity.table",
    "sensitivity.workers",
)


@pytest.mark.slow
def test_allocating_and_starting_a_worker_load_no_model_library():
    lines = [f"import quept.allocate.{name}" for name in LIGHT]
    lines += ["import sys", "sys.exit(bool({'transformers', 'quept.runtime'} & set(sys.modules)))"]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)]).returncode == 0


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
