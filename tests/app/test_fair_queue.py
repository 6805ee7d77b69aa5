"""Gradio's queue shared out: whose turn it is, how much of it one page may fill, and answers nobody reads."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import gradio as gr
import pytest

from app import fair_queue
from app.fair_queue import CROWDED, OFTEN, RUNNING, SPARED, UNREAD_S, WAITING, FairQueue, share_out


@pytest.fixture
def queue() -> FairQueue:
    with gr.Blocks(analytics_enabled=False) as demo:
        button = gr.Button()
        button.click(lambda: None, concurrency_id="measure", concurrency_limit=8)
    demo.queue()
    share_out(demo)
    queue = demo._queue
    queue.active_jobs = [None] * 40
    return queue


def ask(queue: FairQueue, session: str, machine: str = "10.0.0.1") -> bool:
    body = SimpleNamespace(fn_index=0, session_hash=session, event_id=None, simple_format=False)
    request = SimpleNamespace(client=SimpleNamespace(host=machine))
    return asyncio.run(queue.push(body, request, None))[0]


def start(queue: FairQueue) -> str | None:
    """The session whose event is next; it is at work from then on."""
    found = queue.get_events()
    if found is None:
        return None
    queue.active_jobs[queue.active_jobs.index(None)] = found[0]
    queue.event_queue_per_concurrency_id[found[2]].current_concurrency += 1
    return found[0][0].session_hash


def test_a_page_may_fill_a_part_of_the_line_and_others_still_come_in(queue):
    assert [ask(queue, "greedy") for _ in range(79)].count(True) == WAITING
    assert all(ask(queue, f"visitor {i}") for i in range(12))


def test_a_machine_of_many_pages_fills_a_part_of_the_line(queue):
    asked = [ask(queue, f"greedy {i}") for i in range(CROWDED + 20)]
    assert asked == [True] * CROWDED + [False] * 20
    assert ask(queue, "visitor", "10.0.0.2")


def test_the_page_with_the_least_at_work_is_next(queue):
    for session in ["greedy"] * 10 + ["a", "b"]:
        ask(queue, session)
    assert [start(queue) for _ in range(5)] == ["greedy", "a", "b", "greedy", None]
    assert RUNNING == 2


def test_a_page_that_begins_much_is_slowed_down_while_others_have_something_at_work(queue, monkeypatch):
    def end() -> None:
        queue.active_jobs[:] = [None] * 40
        queue.event_queue_per_concurrency_id["measure"].current_concurrency = 0

    def begun(page: str) -> int:
        count = 0
        while start(queue) == page:
            count += 1
            queue.active_jobs[:] = [
                job for job in queue.active_jobs if not job or job[0].session_hash != page
            ]
            queue.active_jobs.append(None)
            queue.event_queue_per_concurrency_id["measure"].current_concurrency = 0
        return count

    for session in ["greedy"] * (OFTEN + 2):
        ask(queue, session)
    assert begun("greedy") == OFTEN + 2  # alone it is served as it comes
    end()
    for session in ["visitor", *["greedy"] * 10]:
        ask(queue, session)
    assert start(queue) == "visitor"
    assert begun("greedy") == 0
    monkeypatch.setattr(fair_queue, "PACE_S", 0.0)
    assert begun("greedy") > 0


def test_one_machine_leaves_slots_to_others(queue):
    for i in range(20):
        ask(queue, f"greedy {i}")
    ask(queue, "other", "10.0.0.2")
    started = [start(queue) for _ in range(9)]
    assert started.index("other") == 1 and sum(s is not None for s in started) == 8 - 8 // SPARED + 1


def test_an_answer_that_nobody_reads_ends(queue):
    ask(queue, "gone")
    event = queue.get_events()[0][0]
    message = SimpleNamespace(event_id=None)
    queue.send_message(event, message)
    assert event.alive
    event.enqueue_time -= UNREAD_S + 1
    queue.pending_messages_per_session["gone"].read_at = time.monotonic() - UNREAD_S - 1
    queue.send_message(event, message)
    assert not event.alive


def test_a_page_that_was_idle_for_long_gets_its_next_answer(queue):
    ask(queue, "idle")
    start(queue)
    queue.active_jobs = [None] * 40
    queue.pending_messages_per_session["idle"].read_at = time.monotonic() - 100 * UNREAD_S
    ask(queue, "idle")  # the page opens its stream a moment after the first messages
    event = queue.get_events()[0][0]
    for _ in range(3):
        queue.send_message(event, SimpleNamespace(event_id=None))
    assert event.alive


def test_a_page_that_is_gone_costs_no_error(queue):
    ask(queue, "gone")
    event = queue.get_events()[0][0]
    del queue.pending_messages_per_session["gone"]
    queue.send_message(event, SimpleNamespace(event_id=None))
    assert not event.alive
