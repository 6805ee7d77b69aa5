"""Gradio's queue of events, shared out between visitors.

Gradio has one length for all visitors and serves first come, first served: one client's eighty events answer
everybody else 503. Here a page may have WAITING events in line and RUNNING of a kind at work, and begin
OFTEN in PACE_S seconds while others have some at work; next is the machine, and then the page, with the
fewest at work; and an answer that nobody has read for UNREAD_S seconds ends. What a job does is done in the
name of its `Client` (see gate).

`share_out(demo)` puts it in the place of the queue that `demo.queue()` made.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque

import gradio as gr
from gradio.queueing import Queue

from app.gate import CLIENT, Client

WAITING = 16  # events of one page in line
CROWDED = 512  # events in line: one machine has no more, and from here on a page may have one
FULL = 4096
RUNNING = 2  # events of one page and kind at work: a newer one and the older one that it ends
SPARED = 4  # of so many slots of a kind one machine leaves one to others
OFTEN, PACE_S = 8, 4.0  # what nothing at the gate counts, such as drawing a page's chart, costs as much
UNREAD_S = 20.0


class _Messages(asyncio.Queue):
    """What a page has not read yet, and when it last asked."""

    read_at = 0.0

    async def get(self):
        try:
            self.read_at = time.monotonic()
            return await super().get()
        finally:
            self.read_at = time.monotonic()


def share_out(demo: gr.Blocks) -> None:
    """Make the queue of these Blocks a fair one; after `demo.queue(...)`, before the launch."""
    demo._queue.__class__ = FairQueue


class FairQueue(Queue):
    """See the module's docstring."""

    _began: dict[str, deque[float]] = {}  # by page: when its newest OFTEN events began

    async def push(self, body, request, username):
        every = [e for queue in self.event_queue_per_concurrency_id.values() for e in queue.queue]
        own = sum(e.session_hash == body.session_hash for e in every)
        machine = _machine(request)
        theirs = sum(_address(e) == machine for e in every) if len(every) >= CROWDED else 0
        if own >= WAITING or theirs >= CROWDED or len(every) >= FULL or (own and len(every) >= CROWDED):
            return False, f"{max(own, theirs)} requests are waiting: let one of them end first", "queue_full"
        if body.session_hash and body.session_hash not in self.pending_messages_per_session:
            messages = self.pending_messages_per_session[body.session_hash] = _Messages()
            messages.read_at = time.monotonic()
        return await super().push(body, request, username)

    def get_events(self):
        for kind, queue in self.event_queue_per_concurrency_id.items():
            limit = queue.concurrency_limit
            if not queue.queue or (limit is not None and queue.current_concurrency >= limit):
                continue
            at_work = [e for job in self.active_jobs if job for e in job if e.concurrency_id == kind]
            machines = Counter(map(_address, at_work))
            pages = Counter(e.session_hash for e in at_work)
            most = limit - limit // SPARED if limit else len(at_work) + 1
            allowed = [
                e
                for e in queue.queue
                if pages[e.session_hash] < RUNNING
                and machines[_address(e)] < most
                and not self._hurries(e.session_hash)
            ]
            if allowed:
                event = min(allowed, key=lambda e: (machines[_address(e)], pages[e.session_hash]))
                queue.queue.remove(event)
                self._begins(event.session_hash)
                return [event], False, kind
        return None

    def _hurries(self, page: str) -> bool:
        """Whether a page has begun as much as it may for now, others having something at work."""
        began = self._began.get(page, ())
        often = len(began) == OFTEN and time.monotonic() - began[0] < PACE_S
        return often and any(e.session_hash != page for job in self.active_jobs if job for e in job)

    def _begins(self, page: str) -> None:
        now = time.monotonic()
        lately = {key: began for key, began in self._began.items() if now - began[-1] < PACE_S}
        self._began = lately | {page: deque([*lately.get(page, ()), now], maxlen=OFTEN)}

    async def process_events(self, events, batch, begin_time, fn):
        CLIENT.set(Client(_address(events[0]), events[0].session_hash, events[0].enqueue_time))
        await super().process_events(events, batch, begin_time, fn)

    def send_message(self, event, event_message):
        messages = self.pending_messages_per_session.get(event.session_hash)
        if messages is None:  # the page is gone
            event.alive = False
            return
        if isinstance(messages, _Messages) and not messages.empty():
            asked = max(messages.read_at, event.enqueue_time)  # a page that had nothing to read reads nothing
            event.alive = event.alive and time.monotonic() - asked < UNREAD_S
        super().send_message(event, event_message)


def _address(event) -> str:
    return _machine(event.request)


def _machine(request) -> str:
    return request.client.host if request.client else ""
