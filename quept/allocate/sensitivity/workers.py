"""Many independent tasks on several processes, GPUs or machines: what comes back is what one process would
give.

A Job says how: `state = job.open()` makes what every task needs (a loaded model), once a worker;
`job.do(state, task)` answers one task with something JSON can hold. Jobs and tasks travel to other
processes, so both are plain picklable values, and whatever `open` reads must be there on every machine.

    for task, metrics in run(job, tasks, workers=2): ...    # in the order in which they are done

workers=1 works here, in this process. executor="processes" starts fresh Python processes on this machine
(a script that does so needs `if __name__ == "__main__":`); on a machine with several GPUs they take turns
on them. executor="ray" starts Ray actors, on the cluster at `address` or on one of its own. Every pass
runs on `threads` threads, by default the machine's cores shared out over the workers; answers can depend
on that number in their last digits, not on the number of workers.

A worker that dies (killed, out of memory, its machine gone) costs only the task it was at: another worker
is started in its place and the task is given out again; LOSSES deaths over one task end the run with
WorkersError. An exception raised by a task is raised here as it is. Stopping (Ctrl-C, closing the
generator) ends the workers.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

LOSSES = 3  # workers that may die over one task


class WorkersError(RuntimeError):
    """Workers keep dying, or cannot be had; the message says over what and what to try."""


class Job(Protocol):
    """How tasks are done; see the module docstring."""

    def open(self) -> Any: ...

    def do(self, state: Any, task: Any) -> Any: ...


class Lost(Exception):
    """A worker died before it answered; says how, as far as is known."""


def run(
    job: Job,
    tasks: Sequence[Any],
    workers: int = 1,
    *,
    executor: str = "processes",
    threads: int | None = None,
    state: Any = None,
    address: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, metrics) as tasks are done, each task once.

    state: an open state, for a run in this process. address, options: the Ray cluster, and what an actor
    asks of it ({"num_gpus": 1}). ValueError for an unknown executor or no workers; WorkersError see above."""
    if executor not in TEAMS:
        raise ValueError(f"executor must be one of {', '.join(TEAMS)}; got {executor!r}")
    if workers < 1:
        raise ValueError(f"at least one worker is needed; got {workers}")
    if not tasks:
        return
    if workers == 1 and executor == "processes":
        yield from _here(job, tasks, threads, state)
        return
    team = TEAMS[executor](job, threads or max(1, _cores() // workers), address, options or {})
    try:
        yield from _shared_out(team, tasks, min(workers, len(tasks)))
    finally:
        team.close()


def _here(job: Job, tasks: Sequence[Any], threads: int | None, state: Any) -> Iterator[tuple[Any, Any]]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        state = job.open() if state is None else state
        for task in tasks:
            yield task, job.do(state, task)
    finally:
        torch.set_num_threads(before)


def _shared_out(team, tasks: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """The loop that both kinds of workers share; a worker has give(task) and answer()."""
    waiting, lost = deque(range(len(tasks))), Counter()
    idle, busy = [team.worker(number) for number in range(workers)], {}
    while waiting or busy:
        while waiting and idle:
            worker, number = idle.pop(0), waiting.popleft()
            worker.give(tasks[number])
            busy[worker] = number
        for worker in team.answering(list(busy)):
            number = busy.pop(worker)
            try:
                metrics = worker.answer()
            except Lost as reason:
                lost[number] += 1
                if lost[number] == LOSSES:
                    raise WorkersError(
                        f"{LOSSES} workers died over {tasks[number]}, the last one {reason}; what was done "
                        "before is not lost: try fewer workers (each holds a model of its own)"
                    ) from None
                waiting.appendleft(number)
                worker.stop()
                idle.append(team.worker(worker.number))
                continue
            idle.append(worker)
            yield tasks[number], metrics


class _Processes:
    """Workers that are processes of this machine, each at the other end of a pipe."""

    def __init__(self, job: Job, threads: int, address: str | None, options: Mapping[str, Any]):
        if address or options:
            raise ValueError('address and options are for executor="ray"')
        self.job, self.threads, self.workers = job, threads, []

    def worker(self, number: int) -> _Process:
        self.workers.append(_Process(self.job, self.threads, number))
        return self.workers[-1]

    def answering(self, workers: Sequence[_Process]) -> list[_Process]:
        ready = wait([worker.pipe for worker in workers])  # a pipe whose other end died is ready as well
        return [worker for worker in workers if worker.pipe in ready]

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()


class _Process:
    def __init__(self, job: Job, threads: int, number: int):
        fresh = multiprocessing.get_context("spawn")  # a fork would inherit locked locks of other threads
        self.number = number
        self.pipe, theirs = fresh.Pipe()
        self.process = fresh.Process(target=_serve, args=(theirs, job, threads, number), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, task: Any) -> None:
        with suppress(OSError):  # it died: answer() says so
            self.pipe.send(task)

    def answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            raise Lost(f"by signal {-code}" if code and code < 0 else f"with exit code {code}") from None
        return _metrics(answer)

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(1)  # an idle one ends by itself when the pipe closes
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection, job: Job, threads: int, number: int) -> None:
    """A worker process: answers tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first ends the others
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    worker = _Worker(job, threads)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(worker.do(pipe.recv()))


class _Worker:
    """A worker at work. It answers with (metrics, None) or (None, exception), and opens the job with its
    first task, so that what goes wrong with that is reported as well."""

    def __init__(self, job: Job, threads: int):
        torch.set_num_threads(threads)
        self.job, self.opened = job, False

    def do(self, task: Any) -> tuple[Any, Exception | None]:
        try:
            if not self.opened:
                self.state, self.opened = self.job.open(), True
            return self.job.do(self.state, task), None
        except Exception as error:
            return None, _portable(error)


def _metrics(answer: tuple[Any, Exception | None]) -> Any:
    metrics, error = answer
    if error is not None:
        raise error
    return metrics


def _portable(error: Exception) -> Exception:
    """The exception, or one that says the same and survives the way to another process."""
    try:
        copy.copy(error)  # is made the same way
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


class _Ray:
    """Workers that are Ray actors."""

    def __init__(self, job: Job, threads: int, address: str | None, options: Mapping[str, Any]):
        try:
            import ray
        except ImportError:
            raise WorkersError('executor="ray" needs Ray: pip install "ray>=2.40"') from None
        self.ray, self.threads, self.options, self.workers = ray, threads, options, []
        self.began = not ray.is_initialized()
        if self.began:
            ray.init(address=address, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        self.job = ray.put(job)

    def worker(self, number: int) -> _RayWorker:
        actor = self.ray.remote(_Worker).options(**self.options).remote(self.job, self.threads)
        self.workers.append(_RayWorker(self.ray, actor, number))
        return self.workers[-1]

    def answering(self, workers: Sequence[_RayWorker]) -> list[_RayWorker]:
        ready, _ = self.ray.wait([worker.future for worker in workers])
        return [worker for worker in workers if worker.future in ready]

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        if self.began:
            self.ray.shutdown()


class _RayWorker:
    def __init__(self, ray, actor, number: int):
        self.ray, self.actor, self.number, self.future = ray, actor, number, None

    def give(self, task: Any) -> None:
        self.future = self.actor.do.remote(task)

    def answer(self) -> Any:
        try:
            answer = self.ray.get(self.future)
        except self.ray.exceptions.RayActorError as error:
            raise Lost(f"({str(error).splitlines()[0]})") from None
        return _metrics(answer)

    def stop(self) -> None:
        self.ray.kill(self.actor)


TEAMS = {"processes": _Processes, "ray": _Ray}


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
