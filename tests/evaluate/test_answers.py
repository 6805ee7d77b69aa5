"""An answer scored while it is written: the same figures as one pass over all of it."""

from __future__ import annotations

import pytest
import torch

from quept.evaluate import AnswerScorer, summarize_scores
from quept.evaluate.answers import PIECE
from quept.plan import PrecisionPlan
from quept.runtime.generate import Conversation, Sampling, stream
from tests.app.tiny import tiny_elastic

FULL, W2 = PrecisionPlan.full(), PrecisionPlan.uniform(2)


@pytest.fixture(scope="module")
def elastic():
    return tiny_elastic()


def written(elastic, plan, prompt, tokens):
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=tokens, seed=3)
    steps = stream(elastic.view(plan), elastic.tokenizer, (), sampling, prompt=prompt, logits=True)
    return [event for event in steps if event.finished is None and hasattr(event, "logits")]


def scored(elastic, prompt, answer, conversation=None, **limit):
    make = lambda: elastic.make_cache(FULL)  # noqa: E731
    scorer = AnswerScorer(elastic.view(FULL), prompt, conversation or Conversation("full"), make)
    scores, passes = [], 0
    for i, token in enumerate(answer):
        scorer.add(token)
        while scorer.due(ended=i == len(answer) - 1):
            scores += scorer.step(**limit)
            passes += 1
    scorer.close()
    return scores, passes


@torch.inference_mode()
def oracle(elastic, prompt, answer):
    ids = torch.tensor([[*prompt, *(token.id for token in answer)]])
    full = elastic.view(FULL)(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    plan = torch.stack([token.logits for token in answer]).log_softmax(-1)
    kl = (full.exp() * (full - plan)).sum(-1)
    return kl, full.argmax(-1) == plan.argmax(-1), full.argmax(-1)


@pytest.mark.parametrize("length", [5, 300])
def test_scores_in_pieces_are_those_of_one_pass_over_everything(elastic, length):
    prompt = torch.randint(0, 200, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    answer = written(elastic, W2, prompt, 2 * PIECE + 5)
    scores, passes = scored(elastic, prompt, answer)
    kl, same, top = oracle(elastic, prompt, answer)
    assert len(scores) == len(answer) and passes <= 2 + len(answer) // PIECE + length // 256
    torch.testing.assert_close(torch.tensor([s.kl for s in scores]), kl.float(), atol=1e-4, rtol=1e-3)
    assert [s.same for s in scores] == same.tolist() and [s.likeliest for s in scores] == top.tolist()
    summary = summarize_scores(scores)
    assert summary.tokens == len(answer) and summary.kl == pytest.approx(kl.mean().item(), rel=1e-3)
    assert 0 <= summary.same_top <= 1 and summary.kl_se > 0


def test_steps_that_are_cut_short_give_the_same_scores(elastic):
    prompt = list(range(10, 40))
    answer = written(elastic, W2, prompt, PIECE + 5)
    whole, passes = scored(elastic, prompt, answer)
    parts, more = scored(elastic, prompt, answer, most=7)
    assert more > passes and [s.likeliest for s in parts] == [s.likeliest for s in whole]
    torch.testing.assert_close([s.kl for s in parts], [s.kl for s in whole], atol=1e-4, rtol=1e-3)


def test_what_is_read_before_the_answer_is_told_apart(elastic):
    prompt = list(range(10, 40))
    scorer = AnswerScorer(elastic.view(FULL), prompt, Conversation("full"), lambda: elastic.make_cache(FULL))
    answer = written(elastic, W2, prompt, 9)
    for token in answer:
        scorer.add(token)
    assert (scorer.unread, scorer.before) == (30 + len(answer), 30)
    assert scorer.step(20) == [] and (scorer.unread, scorer.before) == (10 + len(answer), 10)
    assert len(scorer.step(12)) == 3 and scorer.before == 1  # what the next score follows from is read again
    scorer.close()


def test_the_next_answer_reads_only_what_is_new(elastic):
    prompt, conversation = list(range(10, 60)), Conversation("full")
    answer = written(elastic, W2, prompt, 20)
    scored(elastic, prompt, answer, conversation)
    held = len(conversation.ids)
    assert held == len(prompt) + len(answer) - 1
    longer = [*prompt, *(token.id for token in answer), 7, 8, 9]
    assert conversation.lease(longer).length == held


def test_full_precision_is_at_no_distance_from_itself_and_nothing_has_no_summary(elastic):
    prompt = list(range(20))
    scores, _ = scored(elastic, prompt, written(elastic, FULL, prompt, 12))
    assert all(score.same and score.kl < 1e-5 for score in scores)
    assert summarize_scores([]) is None
