"""Text to calibrate on, as token windows: built-in texts and files, each with its share.

Each source is tokenised whole and cut into windows of the context (see `windows`); these are drawn without
repetition until a source is used up, then again. What plans are measured on is refused here: numbers taken on
calibration text would flatter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import LongTensor
from transformers import PreTrainedTokenizerBase

from quept import zoo
from quept.files import read_text
from quept.models import LoadedModel
from quept.models.context import check_context
from quept.runtime.prompt import check_known, text_start
from quept.runtime.template import rendered

from .base import TRANSFORMS, Data, DataError, DataSource, Progress, Wanted, need
from .windows import in_rows


@dataclass(frozen=True)
class Text(DataSource):
    """sources: `{built-in text or path of a text file: its share}`; shares are relative. Each stage reads
    windows of its own."""

    noun, models, option = "text", ("language", "vision-language"), "--text"
    sized, transforms = True, TRANSFORMS

    sources: Mapping[str, float]

    def __post_init__(self) -> None:
        need(bool(self.sources), "sources", "needs at least one text")
        need(all(share > 0 for share in self.sources.values()), "sources", "needs shares above 0")

    def at(self, place: Mapping[str, float]) -> Text:
        return dataclasses.replace(self, sources=place)

    def shared(self) -> Text:
        return self.at({Path(s).name if Path(s).is_file() else s: share for s, share in self.sources.items()})

    def identity(self) -> list[str]:
        """The hashes of the files."""
        return list(self._files().values())

    def describe(self) -> str:
        """Texts with their shares, files with the start of their hash."""
        whole, files = sum(self.sources.values()), self._files()
        names = {s: f"{Path(s).name} (sha256 {digest[:12]}…)" for s, digest in files.items()}
        return ", ".join(f"{names.get(s, s)} {share / whole:.0%}" for s, share in self.sources.items())

    def read(self, loaded: LoadedModel, wanted: Wanted, report: Progress) -> Data:
        report("reading the calibration text", None)
        check_context(wanted.context, loaded.model)
        first, count = wanted.block_wise, wanted.block_wise + wanted.end_to_end
        whole = count + wanted.held_out
        ids = sequences(self.sources, loaded.tokenizer, whole, wanted.context, wanted.seed, report)
        check_known(ids.flatten(), loaded.model, loaded.tokenizer)
        held_out, ids = ids[: wanted.held_out], ids[wanted.held_out :]
        ids = without(ids, held_out)  # a short text gives windows more than once
        if len(ids) == 0:
            raise DataError(
                f"the calibration text is too short to hold {wanted.held_out} windows of {wanted.context} "
                "tokens out of it: give a longer text or a shorter context"
            )
        ids: LongTensor = ids.repeat(-(-count // len(ids)), 1)[:count]
        return Data({"input_ids": ids[:first]}, {"input_ids": ids[first:]}, {"input_ids": held_out})

    def _files(self) -> dict[str, str]:
        paths = {s: Path(s) for s in self.sources if os.path.isfile(s)}
        return {s: hashlib.sha256(path.read_bytes()).hexdigest() for s, path in paths.items()}


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

    Raises DataError for a source that is none, is evaluation text or is shorter than one window."""
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
    start = text_start(tokenizer)
    if len(ids) < context - len(start):
        raise DataError(
            f"the text {source!r} has {len(ids)} tokens, less than one window of {context}: give a longer one"
        )
    return in_rows(ids, start, context)


def _text(source: str, tokenizer: PreTrainedTokenizerBase, progress: Progress | None) -> str:
    entry = zoo.TEXTS.get(source)
    if entry is None and os.path.isfile(source):
        return read_text(source)
    if entry is None or entry.use != "calibrate":
        known = ", ".join(name for name, e in zoo.TEXTS.items() if e.use == "calibrate")
        why = "is what plans are measured on" if entry else "is neither built in nor a file"
        raise DataError(f"the text {source!r} {why}: calibrate on {known}, or the path of a text file")
    if not entry.chats:
        return zoo.text(source, progress)
    chats = zoo.chats(source, progress)
    if tokenizer.chat_template:
        return "".join(rendered(tokenizer, chat, asking=False) for chat in chats)
    return "\n\n".join("\n".join(turn["content"] for turn in chat) for chat in chats)
