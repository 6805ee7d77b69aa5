"""One window through a model: the forward pass that perplexity and divergence share, and the chunks they read
its logits in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain

import torch
from torch import LongTensor, Tensor, nn
from transformers import Cache

MakeCache = Callable[[], Cache]
# Held for one step at a time: a window's forward pass and the arithmetic on its logits together. Both use all
# cores; side by side with another visitor's step each would take several times as long. What `with gate() as
# turn` gives may have a `pause()`, which is called within a long step, see `pausing`: others may go first.
Gate = Callable[[], AbstractContextManager]


class NonFiniteLogits(ValueError):
    """A model answered NaN or infinity; the message names the window and the position."""


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer."""
    return next(chain(model.parameters(), model.buffers())).device


@torch.no_grad()
def window_logits(
    model: nn.Module, ids: LongTensor, make_cache: MakeCache | None, turn: object = None
) -> Tensor:
    """Logits (context, vocabulary) of one window of ids (context,), in the model's dtype, on its device.

    `make_cache` gives a fresh (for example quantized) KV cache for plans that quantize it; without it no
    cache is used. turn: at the gate; a model that others run too is given none.
    """
    ids = ids[None].to(device_of(model))
    cache = {"use_cache": False} if make_cache is None else {"cache": make_cache(), "use_cache": True}
    with pausing(model, turn):
        return model(input_ids=ids, **cache).logits[0]


def pause_of(turn: object) -> Callable[[], None]:
    """Returns what asks a turn to let others go first; what does nothing for a turn that cannot."""
    return getattr(turn, "pause", None) or (lambda: None)


@contextmanager
def pausing(model: nn.Module, turn: object) -> Iterator[None]:
    """Within it a pass through the model asks the turn to `pause` before each block and before the head. The
    model must be the caller's own, as a view is: what others run too would pause for them."""
    may = hasattr(turn, "pause")
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)] if may else []
    head = getattr(model, "get_output_embeddings", lambda: None)()
    parts = [*(block for blocks in lists for block in blocks), *([head] if lists and head else [])]
    hooks = [part.register_forward_pre_hook(lambda *_: turn.pause()) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def chunks(rows: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `rows`, small enough that a chunk of fp32 rows stays in a CPU's cache (8 MiB) while
    several passes go over it; on an accelerator, 256 MiB.
    """
    step = max(1, (2**21 if device.type == "cpu" else 2**26) // vocabulary)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
