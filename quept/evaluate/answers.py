"""How far an answer is from full precision, token by token, while it is written.

With p full precision's distribution over the vocabulary behind the same words, and q the plan's, at each
token of the answer:

    kl   = sum_v p_v (log p_v - log q_v)      in nats
    same = the two most likely tokens are equal

The plan's logits are kept as they come; full precision reads the prompt and the answer in a few passes of
many tokens, with a cache of its own, which costs a fraction of writing them one by one. Where full precision
wrote the same words itself its own logits serve, and nothing is read (`AnswerScorer.known`).

    scorer = AnswerScorer(elastic.view(PrecisionPlan.full()), prompt, conversation, make_cache)
    scorer.add(token)                     # a Token with its logits, for each one written
    while scorer.due(ended): scores += scorer.step()        # one pass of at most 256 tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from quept.runtime.generate import PREFILL_CHUNK, Conversation, Token

from .intervals import mean_and_error

PIECE = 32  # tokens of an answer that are scored together while it is written: 6 MB of logits


@dataclass(frozen=True)
class TokenScore:
    """kl: in nats, at least 0. same: whether full precision's likeliest token is the plan's. likeliest: the
    id of full precision's."""

    kl: float
    same: bool
    likeliest: int


@dataclass(frozen=True)
class AnswerSummary:
    """What scored tokens say together: mean KL with its standard error, share with the same top token."""

    tokens: int
    kl: float
    kl_se: float
    same_top: float


def summarize_scores(scores: Sequence[TokenScore]) -> AnswerSummary | None:
    """None for no scores."""
    if not scores:
        return None
    kl, error = mean_and_error(torch.tensor([score.kl for score in scores], dtype=torch.float64))
    same = sum(score.same for score in scores) / len(scores)
    return AnswerSummary(len(scores), kl, error if math.isfinite(error) else 0.0, same)


@torch.inference_mode()
def score(full: Tensor, plan: Tensor) -> list[TokenScore]:
    """Scores of logits (n, vocabulary) of full precision and of the plan at the same places."""
    log_p, log_q = full.float().log_softmax(-1), plan.float().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0.0)
    top, other = full.argmax(-1), plan.argmax(-1)
    return [TokenScore(*row) for row in zip(kl.tolist(), (top == other).tolist(), top.tolist(), strict=True)]


class AnswerScorer:
    """Scores the tokens of one answer in their order; see the module's docstring. Not for several threads.

    full: the view at full precision. prompt: the ids that the answer follows. conversation: full precision's
    cache of the words before, kept from one answer to the next; make_cache: makes one where it has none."""

    def __init__(
        self,
        full: nn.Module,
        prompt: Sequence[int],
        conversation: Conversation,
        make_cache: Callable[[], Cache],
    ):
        self._full, self._conversation = full, conversation
        self._lease = conversation.lease(list(prompt))
        self._cache = self._lease.cache if self._lease.length else make_cache()
        self._fed = list(prompt[: self._lease.length])
        self._ahead = list(prompt[self._lease.length :])
        self._logits: list[Tensor] = []
        self._whole = True

    @property
    def unread(self) -> int:
        """Tokens that full precision has yet to read for what was added."""
        return len(self._ahead)

    @property
    def before(self) -> int:
        """Those of them that come before the answer."""
        return max(0, len(self._ahead) - len(self._logits))

    def add(self, token: Token) -> None:
        """The next token of the answer, with the logits that it was chosen from."""
        self._logits.append(token.logits)
        self._ahead.append(token.id)  # read only if another token follows

    def known(self, full: Tensor) -> list[TokenScore]:
        """The score of the oldest token that has none, where full precision's logits (vocabulary,) behind the
        same words are at hand."""
        return score(full[None], self._logits.pop(0)[None])

    def due(self, ended: bool) -> bool:
        """Whether there is something to read now: a piece is whole, or the answer has ended."""
        return len(self._logits) >= (1 if ended else PIECE)

    @torch.inference_mode()
    def step(self, most: int = PREFILL_CHUNK) -> list[TokenScore]:
        """One pass over at most so many tokens; gives no scores while it reads what comes before the
        answer."""
        waiting = len(self._logits)
        last = len(self._ahead) - waiting  # the prompt's, where nothing of the answer was read yet
        chunk = self._ahead[: min(len(self._ahead) - 1, PREFILL_CHUNK, most)]
        begins = len(self._fed) + last - 1  # the place before the first token without a score
        start, end = len(self._fed), len(self._fed) + len(chunk)
        keep = max(0, end - max(begins, start))
        ids = torch.tensor([chunk], device=self._full.get_input_embeddings().weight.device)
        self._whole = False  # until the pass has ended: stopped inside one, the cache may be half written
        found = self._full(input_ids=ids, cache=self._cache, use_cache=True, logits_to_keep=max(1, keep))
        self._whole = True
        self._fed += chunk
        del self._ahead[: len(chunk)]
        if not keep:
            return []
        scored = score(found.logits[0, -keep:].cpu(), torch.stack(self._logits[:keep]))
        del self._logits[:keep]
        return scored

    def close(self) -> None:
        """Give the cache back to the conversation."""
        if self._whole:
            self._lease.give_back(self._fed, self._cache)
