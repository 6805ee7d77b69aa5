"""Turns are taken in order of arrival, and a place in line is known."""

from __future__ import annotations

import threading
import time

import pytest

from app.gate import CLIENT, FREE_S, Admission, Client, Gate, Unwanted


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
    first_short, last_short = log.index("short"), len(log) - 1 - log[::-1].index("short")
    assert last_short - first_short < 30  # of sixty long steps few came between five short ones


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


def for_client(client: Client, work) -> threading.Thread:
    """A thread that works in the name of a client."""

    def run() -> None:
        CLIENT.set(client)
        work()

    return threading.Thread(target=run)


def test_the_gate_is_shared_by_time_and_not_by_turns():
    now, log = [0.0], []
    gate = Gate(clock=lambda: now[0], returns=0.5)

    def steps(name: str, count: int, seconds: float) -> None:
        for _ in range(count):
            with gate:
                log.append(name)
                now[0] += seconds

    slow = for_client(Client("a", "slow"), lambda: steps("slow", 6, 0.5))
    quick = for_client(Client("b", "quick"), lambda: steps("quick", 60, 0.05))
    with gate:
        slow.start(), quick.start()
        waiting_for(gate, 2)
    slow.join(10), quick.join(10)
    fourth = [i for i, name in enumerate(log) if name == "slow"][3]
    assert 20 <= log[:fourth].count("quick") <= 40  # ten short steps for each long one


def test_a_first_answer_comes_before_what_makes_others_better_and_starves_nobody():
    now, log = [0.0], []
    gate = Gate(clock=lambda: now[0], returns=0.0)

    def step(name: str, seconds: float, turn) -> None:
        with turn:
            log.append(name)
            now[0] += seconds

    def refine() -> None:
        for _ in range(8):
            step("better", 1.0, gate)

    def ask() -> None:
        for _ in range(8):
            step("first", 1.0, gate.turn(first=True))

    refining = for_client(Client("a", "refining"), refine)
    asking = for_client(Client("a", "asking"), ask)
    with gate:
        refining.start()
        waiting_for(gate, 1)
        asking.start()
        waiting_for(gate, 2)
    refining.join(10), asking.join(10)
    assert log[0] == "first"
    assert log.index("better") < 6  # a stream of first answers has a head start and no more


def test_a_long_step_rests_for_a_first_answer_and_for_nothing_else():
    gate, log = Gate(returns=0.0), []
    waits = threading.Event()

    def step(name: str, turn) -> None:
        with turn:
            log.append(name)

    def long() -> None:
        with gate as turn:
            log.append("begins")
            waits.set()
            waiting_for(gate, 1)
            turn.pause()  # for one who makes a number better it goes on
            log.append("goes on")
            first.start()
            waiting_for(gate, 2)
            turn.pause()
            log.append("ends")

    better = for_client(Client("b", "better"), lambda: step("better", gate))
    first = for_client(Client("b", "first"), lambda: step("first", gate.turn(first=True)))
    working = for_client(Client("a", "long"), long)
    working.start()
    waits.wait(5)
    better.start()
    for thread in (working, better, first):
        thread.join(10)
    assert log == ["begins", "goes on", "first", "ends", "better"]


def test_who_rests_does_so_until_a_first_answer_of_several_turns_is_there():
    gate, log, waits = Gate(returns=0.5), [], threading.Event()

    def first() -> None:
        for part in ("weights", "estimate"):
            with gate.turn(first=True):
                log.append(part)

    def long() -> None:
        with gate as turn:
            waits.set()
            waiting_for(gate, 1)
            for _ in range(3):
                turn.pause()
                log.append("block")

    working = for_client(Client("a", "long"), long)
    working.start()
    waits.wait(5)
    asking = for_client(Client("b", "first", asked=0.0), first)
    asking.start()
    for thread in (working, asking):
        thread.join(10)
    assert log == ["weights", "estimate", "block", "block", "block"]


def test_first_answers_come_in_the_order_in_which_they_were_asked_for():
    gate, log = Gate(returns=0.0), []

    def step(name: str) -> None:
        with gate.turn(first=True):
            log.append(name)

    asking = [for_client(Client("a", f"{i}", asked=-i), lambda i=i: step(str(i))) for i in range(4)]
    with gate:
        for count, thread in enumerate(asking):
            thread.start()
            waiting_for(gate, count + 1)
    for thread in asking:
        thread.join(10)
    assert log == ["3", "2", "1", "0"]


def test_releases_wait_for_each_other_alone_whatever_one_page_and_all_refiners_ask_for():
    now, log = [0.0], []
    gate = Gate(clock=lambda: now[0], returns=0.05)

    def step(name: str, seconds: float, first: bool) -> None:
        with gate.turn(first=first):
            log.append(name)
            now[0] += seconds

    def release(name: str) -> None:
        step(name, 0.2, True)  # the weights
        step(name, 0.1, True)  # the estimate

    refiners = [for_client(Client("a", f"r{i}"), lambda: step("better", 1.0, False)) for i in range(12)]
    greedy = [for_client(Client("a", "g", asked=0.0), lambda: step("greedy", 0.3, True)) for _ in range(79)]
    visitors = [for_client(Client("a", f"{i}", asked=i), lambda i=i: release(str(i))) for i in range(1, 13)]
    with gate:
        for count, thread in enumerate([*refiners, *greedy, *visitors]):
            thread.start()
            waiting_for(gate, count + 1)
    for thread in [*refiners, *greedy, *visitors]:
        thread.join(10)
    assert [name for name in log if name.isdigit()] == [str(i) for i in range(1, 13) for _ in range(2)]
    before = log[: log.index("12")]
    assert before.count("greedy") * 0.3 <= 2 * FREE_S and "better" not in before
    assert "better" in log[: log.index("12") + 20]  # nor do 79 jobs of one page keep those waiting who refine


def test_what_nobody_wants_any_more_ends_as_its_turn_comes_and_in_the_middle():
    gate, wanted = Gate(), True
    with pytest.raises(Unwanted), gate.turn(wanted=lambda: wanted) as turn:
        turn.pause()
        wanted = False
        turn.pause()
        raise AssertionError("it went on")
    with pytest.raises(Unwanted), gate.turn(wanted=lambda: wanted):
        raise AssertionError("it began")
    with gate:
        pass


def test_many_jobs_of_one_page_do_not_keep_another_page_waiting():
    gate, log = Gate(), []

    def step(name: str) -> None:
        with gate:
            log.append(name)
            time.sleep(0.002)

    greedy = [for_client(Client("a", "greedy"), lambda: step("greedy")) for _ in range(40)]
    other = for_client(Client("a", "other"), lambda: step("other"))
    with gate:
        for thread in greedy:
            thread.start()
        waiting_for(gate, 40)
        other.start()
        waiting_for(gate, 41)
    for thread in [*greedy, other]:
        thread.join(10)
    assert log.index("other") <= 2


def test_many_pages_of_one_machine_do_not_keep_another_machine_waiting():
    gate, log = Gate(returns=0.5), []  # a busy machine is slow to come back

    def steps(name: str) -> None:
        for _ in range(3):
            with gate:
                log.append(name)
                time.sleep(0.002)

    greedy = [for_client(Client("a", f"page {i}"), lambda: steps("greedy")) for i in range(30)]
    other = for_client(Client("b", "page"), lambda: steps("other"))
    with gate:
        for thread in greedy:
            thread.start()
        waiting_for(gate, 30)
        other.start()
        waiting_for(gate, 31)
    for thread in [*greedy, other]:
        thread.join(10)
    assert len(log) - 1 - log[::-1].index("other") < 12


def test_admission_prefers_who_has_nothing_under_way():
    admission, places = Admission(2), []
    for client in (Client("a", "1"), Client("a", "1"), Client("a", "1"), Client("b", "2")):
        token = CLIENT.set(client)
        places.append(admission.enter())
        CLIENT.reset(token)
    entered = []
    for place, client in zip(places, "aaab", strict=True):
        token = CLIENT.set(Client(client, client))
        entered.append(place.__enter__())
        CLIENT.reset(token)
    assert [next(p.wait(0.01), 0) for p in entered] == [0, 0, 2, 1]
    for place in reversed(places):
        place.__exit__(None, None, None)
