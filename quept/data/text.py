"""Text to calibrate on, as token windows: built-in texts and files, each with its share.

Each source is tokenised whole and cut into windows of the context; windows are drawn without repetition until
a source is used up, then again. What plans are measured on is refused here: numbers taken on calibration text
would flatter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from torch import LongTensor
from transformers import PreTrainedTokenizerBase

from quept import zoo
from quept.files import read_text
from quept.runtime.template import rendered

Progress = Callable[[str, float | None], None]


def sequences(
    sources: Mapping[str, float],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    context: int,
    seed: int,
    progress: Progress | None = None,
) -> LongTensor:
    """(count, context) token ids: windows of the sources, `{built-in calibration text or path: share}`,
    shuffled. The same arguments give the same windows.

    Raises ValueError for a source that is none, is evaluation text or is shorter than one window."""
    generator = torch.Generator().manual_seed(seed)
    whole, past, begun, chosen = sum(sources.values()), 0.0, 0, []
    for source, share in sources.items():
        windows = _windows(source, tokenizer, context, progress)
        past += share
        end = round(count * past / whole)
        rounds = -(-(end - begun) // len(windows))
        order = [torch.randperm(len(windows), generator=generator) for _ in range(rounds)]
        chosen += [windows[torch.cat(order)[: end - begun]]] if order else []
        begun = end
    ids = torch.cat(chosen)
    return ids[torch.randperm(len(ids), generator=generator)]


def without(ids: LongTensor, others: LongTensor) -> LongTensor:
    """The windows of ids (n, context) that are none of others (m, context)."""
    return ids[~(ids[:, None] == others[None]).all(-1).any(-1)]


def _windows(
    source: str, tokenizer: PreTrainedTokenizerBase, context: int, progress: Progress | None
) -> LongTensor:
    ids = tokenizer(
        _text(source, tokenizer, progress),
        add_special_tokens=False,
        verbose=False,
        return_attention_mask=False,
    )["input_ids"]
    if len(ids) < context:
        raise ValueError(
            f"the text {source!r} has {len(ids)} tokens, less than one window of {context}: give a longer one"
        )
    return torch.tensor(ids[: len(ids) // context * context]).view(-1, context)


def _text(source: str, tokenizer: PreTrainedTokenizerBase, progress: Progress | None) -> str:
    entry = zoo.TEXTS.get(source)
    if entry is None and os.path.isfile(source):
        return read_text(source)
    if entry is None or entry.use != "calibrate":
        known = ", ".join(name for name, e in zoo.TEXTS.items() if e.use == "calibrate")
        why = "is what plans are measured on" if entry else "is neither built in nor a file"
        raise ValueError(f"the text {source!r} {why}: calibrate on {known}, or the path of a text file")
    if not entry.chats:
        return zoo.text(source, progress)
    chats = zoo.chats(source, progress)
    if tokenizer.chat_template:
        return "".join(rendered(tokenizer, chat, asking=False) for chat in chats)
    return "\n\n".join("\n".join(turn["content"] for turn in chat) for chat in chats)
