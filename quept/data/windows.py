"""Text in, token windows out: the data that perplexity and divergence are measured on.

A text is tokenised without special tokens, and cut from its start into consecutive windows of `context`
tokens; where a tokenizer puts a token before every text (Llama's and Gemma's beginning of text), each window
begins with it. Windows do not overlap (the stride is the context, or one less for that token) and a last,
partial window is left out. Inside a window the model reads tokens 0 .. context-1 and is scored on predicting
tokens 1 .. context-1 from what stands before them *in the window*: the first token of a window is never
predicted, every other one exactly once. `n` windows therefore score `n * (context - 1)` positions: 8 windows
of 512 hold 4,096 tokens and score 4,088.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import LongTensor, Tensor

from quept.runtime.prompt import text_start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Windows:
    """`ids` (n, context) int64 on the CPU; `id` is the data id, a sha256 over token ids and context."""

    ids: LongTensor
    id: str = field(init=False)

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape[0] < 1 or self.ids.shape[1] < 2:
            raise ValueError(
                f"windows are a (n, context) tensor with n >= 1 and context >= 2, not {tuple(self.ids.shape)}"
            )
        ids = self.ids.to("cpu", torch.int64).contiguous()
        digest = hashlib.sha256(f"context {ids.shape[1]}\n".encode())
        digest.update(ids.numpy().astype("<i8").tobytes())
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "id", digest.hexdigest())

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def context(self) -> int:
        return self.ids.shape[1]

    @property
    def scored(self) -> int:
        """How many positions all windows together score."""
        return len(self) * (self.context - 1)

    @cached_property
    def targets(self) -> Tensor:
        """The tokens to predict, (n, context - 1): `targets[i, t]` is predicted by the logits at position t
        of window i.
        """
        return self.ids[:, 1:]


def cut(text: str, tokenizer: PreTrainedTokenizerBase, context: int = 512, tokens: int = 4096) -> Windows:
    """The first `tokens` tokens of `text` (fewer where the text ends sooner) as windows of `context`.

    Raises ValueError for a text shorter than one window and for a `context` or `tokens` that cannot make one.
    """
    if context < 2:
        raise ValueError(
            f"context must be at least 2 (one token to read, one to predict), not {context}; 512 is usual"
        )
    if tokens < context:
        raise ValueError(
            f"{tokens} tokens do not fill one window of {context}: "
            f"ask for at least {context} tokens or a smaller context"
        )
    # A token is hardly ever longer than 16 characters, and where a text is cut changes only the few tokens
    # before the cut: megabytes need not be tokenised (a second each) for the first few thousand tokens.
    start = text_start(tokenizer)
    step = context - len(start)
    ids = _ids(text[: 16 * tokens], tokenizer)
    if len(ids) < tokens + 64:
        ids = _ids(text, tokenizer)
    if len(ids) < step:
        raise ValueError(
            f"the text has {len(ids)} tokens, less than one window of {context}: "
            "give a longer text or a smaller context"
        )
    return Windows(in_rows(ids[: tokens // context * step], start, context))


def in_rows(ids: list[int], start: list[int], context: int) -> LongTensor:
    """Token ids in consecutive windows (n, context) that each begin with `start`; what is left over is not
    used."""
    step = context - len(start)
    rows = torch.tensor(ids[: len(ids) // step * step], dtype=torch.int64).view(-1, step)
    return torch.cat([torch.tensor(start, dtype=torch.int64).expand(len(rows), -1), rows], 1)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose=False: that a text is longer than the model's context is no news here.
    return tokenizer(text, add_special_tokens=False, verbose=False, return_attention_mask=False)["input_ids"]
