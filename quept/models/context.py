"""How many tokens a model reads at once, and refusing more: beyond it, a table of positions ends in an index
error and rotary positions answer with numbers that mean nothing."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedTokenizerBase


def context_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> int | None:
    """Returns the tokens that a model (or whatever has its `config`) sees at once, as its config, or else its
    tokenizer, says; None where neither does."""
    text = model.config.get_text_config()
    length = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if length is None and tokenizer is not None and tokenizer.model_max_length < 1_000_000_000:
        length = tokenizer.model_max_length
    return length


def check_context(tokens: int, model: nn.Module) -> None:
    """Raises ValueError where so many tokens are more than the model's context."""
    context = context_length(model)
    if context is not None and tokens > context:
        raise ValueError(
            f"{tokens:,} tokens at once are more than this model's context of {context:,}: give a context of "
            f"{context:,} or less"
        )
