"""Many processes give what one gives; one that dies loses nothing that was done."""

import multiprocessing
import os
import signal
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from quept.allocate.sensitivity.workers import LOSSES, WorkersError, run

pytestmark = pytest.mark.slow


class OwnError(ValueError):
    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


@dataclass(frozen=True)
class Squares:
    """Answers n with n * n. At `dies_at` its process kills itself, `times` times, counted in files of
    `folder`."""

    folder: Path
    dies_at: int | None = None
    times: int = 1
    raises_at: int | None = None
    opens: bool = True

    def open(self) -> int:
        if not self.opens:
            raise ValueError("there is no such model")
        (self.folder / f"opened by {os.getpid()}").touch()
        return 2

    def do(self, state: int, task: int) -> dict:
        deaths = len(list(self.folder.glob("death *")))
        if task == self.dies_at and deaths < self.times:
            (self.folder / f"death {deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task == self.raises_at:
            raise OwnError("task", task)
        (self.folder / f"did {task} at {time.time_ns()}").touch()
        return {"square": task**state, "threads": torch.get_num_threads()}


def squares(answers) -> dict[int, int]:
    got = [(task, figures["square"]) for task, figures in answers]
    assert len(dict(got)) == len(got)  # each task once
    return dict(got)


def test_one_worker_works_in_this_process(tmp_path):
    assert list(run(Squares(tmp_path), range(3), threads=1)) == [
        (n, {"square": n * n, "threads": 1}) for n in range(3)
    ]
    assert (tmp_path / f"opened by {os.getpid()}").exists()


def test_an_open_state_is_not_opened_again(tmp_path):
    assert squares(run(Squares(tmp_path, opens=False), range(3), state=3)) == {0: 0, 1: 1, 2: 8}


def test_threads_are_as_before_afterwards(tmp_path):
    before = torch.get_num_threads()
    list(run(Squares(tmp_path), [1], threads=before + 1))
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def cluster():
    """Ray on two cores of this machine, once for all tests; test_measure lets `run` start its own."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(params=["processes", "ray"])
def executor(request):
    """Each kind of workers."""
    if request.param == "ray":
        request.getfixturevalue("cluster")
    yield request.param
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_the_task_of_a_worker_that_dies_is_given_to_another_and_nothing_is_done_twice(executor, tmp_path):
    answers = list(run(Squares(tmp_path, dies_at=5), range(12), 2, executor=executor, threads=3))
    assert squares(answers) == {n: n * n for n in range(12)}
    assert {figures["threads"] for _, figures in answers} == {3}
    done = [path.name.split()[1] for path in tmp_path.glob("did *")]
    assert sorted(map(int, done)) == list(range(12))
    assert len(list(tmp_path.glob("opened by *"))) <= 3


@pytest.mark.slow
def test_a_task_that_kills_every_worker_ends_the_run_in_words(tmp_path):
    with pytest.raises(WorkersError, match=f"{LOSSES} workers died over 3, the last one by signal 9"):
        list(run(Squares(tmp_path, dies_at=3, times=100), range(5), 2))
    assert len(list(tmp_path.glob("death *"))) == LOSSES
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"), [({"raises_at": 1}, "task: 1"), ({"opens": False}, "there is no such model")]
)
def test_what_a_task_raises_is_raised_here(executor, tmp_path, how, words):
    with pytest.raises((ValueError, RuntimeError), match=words):
        list(run(Squares(tmp_path, **how), range(3), 2, executor=executor))


@pytest.mark.slow
def test_stopping_in_the_middle_ends_the_workers(executor, tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        closing(run(Squares(tmp_path), range(12), 2, executor=executor)) as answers,
    ):
        for _ in answers:
            raise KeyboardInterrupt
    opened = [int(path.name.split()[-1]) for path in tmp_path.glob("opened by *")]
    assert opened and all(ended(process) for process in opened)


def ended(process: int, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_nothing_to_do_starts_nobody(tmp_path):
    assert list(run(Squares(tmp_path), [], 8)) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"executor": "threads"}, "executor must be one of processes, ray"),
        ({"workers": 0}, "at least one worker"),
        ({"workers": 2, "address": "head:6379"}, 'executor="ray"'),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        list(run(Squares(tmp_path), [1], **wrong))
