"""Turns are taken in order of arrival, and a place in line is known."""

from __future__ import annotations

import threading
import time

import pytest

from app.gate import Admission, Gate


def waiting_for(gate: Gate, count: int) -> None:
    end = time.monotonic() + 5
    while gate.waiting < count and time.monotonic() < end:
        time.sleep(0.001)
    assert gate.waiting == count


def test_the_gate_is_passed_in_order_of_arrival_and_by_one_at_a_time():
    gate, order, inside = Gate(), [], []

    def pass_through(name: int) -> None:
        with gate:
            inside.append(name)
            order.append((name, len(inside)))
            inside.remove(name)

    threads = [threading.Thread(target=pass_through, args=(i,)) for i in range(20)]
    with gate:
        for arrived, thread in enumerate(threads):
            thread.start()
            waiting_for(gate, arrived + 1)
    for thread in threads:
        thread.join(5)
    assert order == [(i, 1) for i in range(20)]
    assert gate.waiting == 0


def test_one_who_takes_many_steps_lets_the_others_through_between_them():
    gate, log = Gate(), []

    def steps(name: str, count: int) -> None:
        for _ in range(count):
            with gate:
                log.append(name)
                time.sleep(0.002)

    long, short = (
        threading.Thread(target=steps, args=("long", 60)),
        threading.Thread(target=steps, args=("short", 5)),
    )
    long.start()
    time.sleep(0.01)
    short.start()
    long.join(10), short.join(10)
    last_short = len(log) - 1 - log[::-1].index("short")
    assert last_short < len(log) - 30  # five short steps were over long before sixty long ones


def test_the_gate_opens_again_after_an_error_inside():
    gate = Gate()
    with pytest.raises(RuntimeError), gate:
        raise RuntimeError
    with gate:
        pass


def test_admission_lets_slots_in_and_tells_the_others_their_place():
    admission = Admission(1)
    with admission.enter() as first:
        assert list(first.wait()) == []
        with admission.enter() as second, admission.enter() as third:
            assert next(second.wait(0.01)) == 1
            assert next(third.wait(0.01)) == 2
    with admission.enter() as later:
        assert list(later.wait()) == []


def test_leaving_the_line_moves_the_others_up():
    admission = Admission(1)
    first, second, third = (admission.enter() for _ in range(3))
    first.__enter__(), second.__enter__()
    waiting = third.__enter__().wait(0.01)
    assert next(waiting) == 2
    second.__exit__(None, None, None)
    assert next(waiting) == 1
    first.__exit__(None, None, None)
    assert list(waiting) == []
    third.__exit__(None, None, None)
