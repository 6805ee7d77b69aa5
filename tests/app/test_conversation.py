"""Two answers side by side: same seed same text, stopped within a step, queued with a place, bounded in
memory."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref

import pytest
import torch

from app.cache_pool import CachePool
from app.conversation import FRAMES_PER_SECOND, chat
from app.gate import CLIENT, Admission, Client, Gate
from app.running import Running
from quept.engines.bitsandbytes import BitsAndBytes
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.generate import Sampling
from quept.runtime.prompt import PromptError
from tests.app.tiny import tiny_elastic
from tests.tiny_vlm import picture, save_tiny_vlm

FULL, W2 = PrecisionPlan.full(), PrecisionPlan.uniform(2)
HELLO = [{"role": "user", "content": "Hello there"}]
SHORT = Sampling(temperature=1.0, top_p=1.0, max_tokens=24, seed=5)
LONGER = Sampling(temperature=1.0, top_p=1.0, max_tokens=80, seed=5)


class CountingGate(Gate):
    taken = 0

    def __enter__(self) -> None:
        self.taken += 1
        super().__enter__()


def run(
    elastic, sides=(FULL, W2), histories=(HELLO, HELLO), sampling=SHORT, gate=None, admission=None, **more
):
    more = {"scoring": 0.0} | more
    frames = chat(elastic, sides, histories, sampling, "", gate or Gate(), admission or Admission(4), **more)
    return list(frames)


def texts(frame) -> list[str]:
    return [answer.text for answer in frame.answers]


def test_both_sides_are_answered_and_say_what_they_cost(elastic):
    last = run(elastic)[-1]
    for answer, side in zip(last.answers, (FULL, W2), strict=True):
        assert answer.state == "done" and answer.text and answer.tokens > 1
        assert answer.deploy_bytes == elastic.sizes.deploy(side)
        assert answer.cache_bytes > 0 and answer.switch_ms >= 0
        assert answer.tokens_per_second > 0 and answer.first_token_s > 0


def test_pictures_are_answered_and_the_first_tokens_candidates_told(tmp_path):
    folder = save_tiny_vlm("llava", tmp_path / "llava")
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    answers = []
    for seed in (0, 1):
        greedy, pool = Sampling(temperature=0, max_tokens=4), CachePool()
        more = {"pictures": [picture(seed)], "candidates": 3, "pool": pool, "visitor": "a"}
        last = run(elastic, histories=(asked, asked), sampling=greedy, **more)[-1]
        for answer in last.answers:
            assert answer.state == "done" and len(answer.candidates) == 3
            assert answer.text.startswith(answer.candidates[0][0])
            assert 1 > answer.candidates[0][1] > answer.candidates[2][1] > 0
        answers.append(last.answers[0].candidates)
        assert len(pool) == 2
    assert answers[0] != answers[1]
    with pytest.raises(PromptError, match="fit"):
        long = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x" * 600}]}]
        run(elastic, histories=(long, asked), pictures=[picture()])


def test_same_plan_on_both_sides_gives_the_same_text(elastic):
    last = run(elastic, sides=(FULL, FULL))[-1]
    assert last.parting is None and last.same == last.answers[0].tokens
    assert texts(last)[0] == texts(last)[1]


def test_parting_names_the_first_token_that_differs(elastic):
    last = run(elastic, sampling=Sampling(temperature=0, max_tokens=24))[-1]
    left, right = texts(last)
    assert last.parting.index == last.same
    assert left[: last.parting.starts[0]] == right[: last.parting.starts[1]]
    for text, piece, start in zip((left, right), last.parting.pieces, last.parting.starts, strict=True):
        assert piece is None or text[start:].startswith(piece)
    assert last.parting.pieces[0] != last.parting.pieces[1] or "" in last.parting.pieces


def test_same_seed_gives_the_same_text_whatever_else_runs(elastic):
    alone = texts(run(elastic)[-1])
    gate, admission, results = Gate(), Admission(8), {}

    def visit(i: int) -> None:
        sides = [(FULL, W2), (W2, FULL), (PrecisionPlan.uniform(4), W2)][i % 3]
        results[i] = texts(run(elastic, sides=sides, gate=gate, admission=admission)[-1])

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[3] == alone
    assert results[1] == results[4] == alone[::-1]
    assert results[2][1] == results[5][1] == alone[1]


def test_frames_come_at_a_readers_pace_not_at_the_models(elastic):
    start = time.monotonic()
    frames = run(elastic, sampling=Sampling(temperature=1.0, top_p=1.0, max_tokens=200, seed=1))
    assert len(frames) <= FRAMES_PER_SECOND * (time.monotonic() - start) + 3


def test_whoever_waits_sees_a_place_in_line_and_then_an_answer(elastic):
    admission = Admission(1)
    with admission.enter():
        waiting = chat(elastic, (FULL, W2), (HELLO, HELLO), SHORT, "", Gate(), admission)
        first = next(waiting)
        assert [answer.state for answer in first.answers] == ["queued", "queued"]
        assert first.answers[0].position == 1
    assert all(answer.state == "done" for answer in list(waiting)[-1].answers)


def test_stop_ends_within_one_step_and_keeps_the_text(elastic, monkeypatch):
    monkeypatch.setattr("app.conversation.FRAMES_PER_SECOND", 1e6)  # else a quick machine is done by then
    stop = threading.Event()
    frames = chat(
        elastic,
        (FULL, W2),
        (HELLO, HELLO),
        Sampling(temperature=1.0, top_p=1.0, max_tokens=400, seed=2),
        "",
        Gate(),
        Admission(1),
        stopped=stop.is_set,
    )
    frame = next(f for f in frames if all(a.tokens > 2 for a in f.answers))
    before = [answer.tokens for answer in frame.answers]
    stop.set()
    rest = list(frames)
    after = [answer.tokens for answer in rest[-1].answers]
    assert all(a.state in ("stopped", "done") for a in rest[-1].answers)
    assert all(b <= a <= b + 1 for b, a in zip(before, after, strict=True))
    assert all(rest[-1].answers[i].text.startswith(frame.answers[i].text) for i in (0, 1))


def test_stop_while_waiting_leaves_the_line(elastic):
    admission, stop = Admission(1), threading.Event()
    with admission.enter():
        frames = chat(elastic, (FULL, W2), (HELLO, HELLO), SHORT, "", Gate(), admission, stopped=stop.is_set)
        next(frames)
        stop.set()
        assert [a.state for a in list(frames)[-1].answers] == ["stopped", "stopped"]
    with admission.enter() as place:
        assert list(place.wait()) == []


def test_closing_the_generator_frees_the_slot_the_gate_and_the_caches(elastic, monkeypatch):
    made, make = [], elastic.make_cache
    monkeypatch.setattr(elastic, "make_cache", lambda plan: made.append(weakref.ref(c := make(plan))) or c)
    gate, admission = Gate(), Admission(1)
    frames = chat(
        elastic,
        (FULL, W2),
        (HELLO, HELLO),
        Sampling(temperature=1.0, top_p=1.0, max_tokens=400, seed=2),
        "",
        gate,
        admission,
    )
    next(f for f in frames if all(a.tokens for a in f.answers))
    frames.close()
    with admission.enter() as place, gate:
        assert list(place.wait()) == []
    gc.collect()
    assert len(made) == 3 and all(ref() is None for ref in made)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "empty"), ("   ", "empty"), ("<|start|><|end|>", "control tokens"), ("long " * 400, "fit")],
)
def test_a_prompt_the_model_cannot_take_is_refused_before_waiting(elastic, text, words):
    history = [{"role": "user", "content": text}]
    admission = Admission(1)
    with admission.enter(), pytest.raises(PromptError, match=words):
        run(elastic, histories=(history, history), admission=admission)


@pytest.mark.skipif(bool(BitsAndBytes.missing()), reason="bitsandbytes is not installed")
def test_a_baseline_is_made_in_steps_that_let_others_in(monkeypatch):
    monkeypatch.setattr("app.conversation.PREPARE_SECONDS", 0.0)
    elastic, gate = tiny_elastic(), CountingGate()
    sides = (PrecisionPlan.uniform("nf4"), PrecisionPlan.uniform("int8"))
    last = run(elastic, sides, gate=gate)[-1]
    assert [answer.state for answer in last.answers] == ["done", "done"]
    tokens = sum(answer.tokens for answer in last.answers)
    assert gate.taken >= 2 * len(elastic.layers) + tokens
    again = run(elastic, sides, gate=(warm := CountingGate()))[-1]
    assert texts(again) == texts(last) and warm.taken <= gate.taken - 2 * len(elastic.layers)


def test_a_side_that_fails_says_so_and_the_other_goes_on(elastic, monkeypatch, caplog):
    prepare = elastic.prepare

    def broken(plan):
        if plan == W2:
            raise MemoryError("/secret/path")
        yield 1.0
        return (yield from prepare(plan))

    monkeypatch.setattr(elastic, "prepare", broken)
    good, bad = run(elastic)[-1].answers
    assert good.state == "done" and good.text
    assert bad.state == "error" and "secret" not in bad.error


def test_the_next_turn_reads_only_what_is_new_and_answers_the_same(elastic, monkeypatch):
    first = texts(run(elastic, pool=(pool := CachePool()), visitor="a")[-1])
    assert len(pool) == 2 and pool.nbytes > 0
    again = [
        [*HELLO, {"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
        for text in first
    ]
    read = []
    words = type(elastic.view(FULL).get_input_embeddings())
    forward = words.forward
    monkeypatch.setattr(words, "forward", lambda self, ids: read.append(ids.shape[-1]) or forward(self, ids))
    fresh = texts(run(elastic, histories=again)[-1])
    whole, read[:] = max(read), []
    kept = texts(run(elastic, histories=again, pool=pool, visitor="a")[-1])
    assert kept == fresh
    assert max(read) < whole - 20


def test_another_plan_starts_from_nothing(elastic):
    pool = CachePool()
    run(elastic, sides=(FULL, FULL), pool=pool, visitor="a")
    changed = run(elastic, sides=(W2, W2), pool=pool, visitor="a")[-1]
    assert texts(changed) == texts(run(elastic, sides=(W2, W2))[-1])


def test_the_shelf_is_bounded_and_forgets(elastic):
    pool = CachePool()
    run(elastic, pool=pool, visitor="a")
    budget = pool.nbytes
    pool = CachePool(budget)
    for visitor in "abc":
        run(elastic, pool=pool, visitor=visitor)
        assert pool.nbytes <= budget
    pool.forget("c")
    assert len(pool) == 0


def test_a_visitor_forgotten_mid_answer_leaves_nothing(elastic):
    pool = CachePool()
    frames = chat(
        elastic, (FULL, W2), (HELLO, HELLO), SHORT, "", Gate(), Admission(1), pool=pool, visitor="gone"
    )
    next(f for f in frames if all(a.tokens for a in f.answers))
    pool.forget("gone")
    frames.close()
    assert len(pool) == 0


def test_a_newer_answer_stops_the_older_one_and_stopping_twice_is_harmless():
    running = Running()
    running.stop("nobody")
    old = running.begin("a")
    new = running.begin("a")
    assert old.is_set() and not new.is_set() and running.is_newest("a", new)
    running.end("a", old)
    running.stop("a")
    running.stop("a")
    assert new.is_set()
    running.end("a", new)
    running.stop("a")


def test_a_stop_reaches_an_answer_that_still_waits_in_the_queue():
    running = Running()
    asked = time.monotonic()
    running.stop("visitor")
    token = CLIENT.set(Client(session="visitor", asked=asked))
    assert running.begin("visitor").is_set()
    CLIENT.reset(token)
    assert not running.begin("visitor").is_set()  # asked for after the stop


def test_an_answer_is_scored_as_it_is_written_and_full_precision_is_not(elastic):
    last = run(elastic, sampling=LONGER, scoring=math.inf)[-1]
    full, plan = last.answers
    assert full.scores == () and full.scored_s == 0
    assert len(plan.scores) == len(plan.spans) == len(plan.others) == plan.tokens
    assert all(score.kl >= 0 for score in plan.scores) and plan.scored_s > 0 and not plan.unscored
    joined = "".join(plan.text[start : start + length] for start, length in plan.spans)
    assert joined == plan.text
    alone = run(elastic, sides=(W2, W2), sampling=LONGER, scoring=math.inf)[-1].answers[0]
    both = [[s.kl for s in one.scores] for one in (alone, plan)]
    assert both[0] == pytest.approx(both[1], abs=1e-4)


def test_what_full_precision_wrote_itself_is_scored_for_nothing(elastic):
    eight = PrecisionPlan.uniform(8)
    last = run(
        elastic, sides=(FULL, eight), sampling=Sampling(temperature=0, max_tokens=12), scoring=math.inf
    )
    plan = last[-1].answers[1]
    assert last[-1].parting is None and len(plan.scores) == plan.tokens and plan.scored_s == 0


def test_scoring_takes_no_more_than_its_share_and_says_so(elastic):
    sides = (W2, W2)
    assert run(elastic, sides=sides, scoring=0.0)[-1].answers[0].scores == ()
    few = run(elastic, sides=sides, sampling=LONGER, scoring=1e-9)[-1].answers[0]
    assert few.state == "done" and few.scores == () and "not scored" in few.unscored
