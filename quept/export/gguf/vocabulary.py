"""A tokenizer of transformers in llama.cpp's words: its pieces, what each is, in which order they merge, how
text is split before that, which tokens begin and end a text, and the chat template.

llama.cpp knows two kinds that matter here. Of a byte-level BPE ("gpt2") it takes the merges as they are, and
a name for how text is split first: SPLITTERS says which patterns have which name. Of a BPE on sentencepiece's
spelling ("llama": spaces as U+2581, unknown letters as bytes) it takes a score for each piece, by which it
chooses what to merge next: here minus the rank of the merge that makes it, which is the same order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType
_WORDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
SPLITTERS = {  # the pre-tokenizers of tokenizer.json, one behind the other -> llama.cpp's name
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (f"{_WORDS}|\\p{{N}}{{1,3}}{_REST}",): "llama-bpe",
    (f"{_WORDS}|\\p{{N}}{_REST}",): "qwen2",
}
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
PREFIX = "tokenizer.ggml."


def problem(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns why llama.cpp could not cut text as this tokenizer does, as a sentence; None if it can."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return "it has a tokenizer without a tokenizer.json"
    if (kind := type(core.model).__name__) != "BPE":
        return f"its tokenizer is no BPE ({kind})"
    if not _is_spaced(core) and _split(core) not in SPLITTERS:
        return "its tokenizer splits text in a way that llama.cpp has no name for here"
    return None


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, ends: tuple[int, ...] = ()) -> dict[str, Any]:
    """Returns the metadata of a tokenizer that has no `problem`. rows: of the embedding, which may be more
    than it has pieces; ends: tokens that end an answer."""
    core = tokenizer.backend_tokenizer
    inside = json.loads(core.to_str())
    model, spaced = inside["model"], _is_spaced(core)
    added = {token["id"]: token for token in inside["added_tokens"]}
    pieces = {id: piece for piece, id in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    tokens = [pieces.get(id, f"[PAD{id}]") for id in range(rows)]
    kinds = [_kind(id, pieces, added, tokenizer.unk_token_id if spaced else None) for id in range(rows)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    found: dict[str, Any] = {
        "model": "llama" if spaced else "gpt2",
        "pre": "default" if spaced else SPLITTERS[_split(core)],
        "tokens": tokens,
        "token_type": kinds,
    }
    if spaced:
        ranks = {merge.replace(" ", "", 1): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
        found["scores"] = [
            ranks.get(token, 0.0 if kinds[i] != NORMAL else -1e9) for i, token in enumerate(tokens)
        ]
        found["add_space_prefix"] = _prefixes(core)
    else:
        found["merges"] = merges
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    ids = {name: getattr(tokenizer, f"{ours}_token_id") for name, ours in names.items()}
    more = [id for id in ends if id != ids["eos"]]
    if ids["eos"] is None and more:
        ids["eos"] = more.pop(0)
    if more:
        ids["eot"] = more[0]
    found |= {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    around = tokenizer("a")["input_ids"]
    found["add_bos_token"] = around[:1] == [ids["bos"]]
    found["add_eos_token"] = around[-1:] == [ids["eos"]]
    return {PREFIX + key: value for key, value in found.items()} | _templates(tokenizer)


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    template = tokenizer.chat_template
    named = template if isinstance(template, Mapping) else {"default": template} if template else {}
    others = {name: text for name, text in named.items() if name != "default"}
    found: dict[str, Any] = {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    if others:
        found["tokenizer.chat_templates"] = list(others)
    if "default" in named:
        found["tokenizer.chat_template"] = named["default"]
    return found


def _kind(id: int, pieces: Mapping[int, str], added: Mapping[int, Mapping], unknown: int | None) -> int:
    if id not in pieces:
        return UNUSED
    if id == unknown:
        return UNKNOWN
    if id in added:
        return CONTROL if added[id]["special"] else USER_DEFINED
    if unknown is not None and len(pieces[id]) == 6 and pieces[id].startswith("<0x"):
        return BYTE
    return NORMAL


def _before(part: Any) -> Any:
    """A normalizer or pre-tokenizer as tokenizer.json writes it: the whole file has every piece in it."""
    return None if part is None else json.loads(part.__getstate__())


def _is_spaced(core: Tokenizer) -> bool:
    """Whether it writes spaces as sentencepiece does and has bytes for letters that it does not know."""
    how = json.dumps([_before(core.normalizer), _before(core.pre_tokenizer)], ensure_ascii=False)
    return bool(core.model.byte_fallback) and SPACE in how


def _prefixes(core: Tokenizer) -> bool:
    """Whether it puts a space before a text."""
    how = json.dumps([_before(core.normalizer), _before(core.pre_tokenizer)])
    return any(
        word in how for word in ('"Prepend"', '"prepend_scheme": "first"', '"prepend_scheme": "always"')
    )


def _split(core: Tokenizer) -> tuple[str, ...]:
    """How text is split before merging, as SPLITTERS spells it; what it does not know keeps its own name."""
    before = _before(core.pre_tokenizer) or {"type": "nothing"}
    found = []
    for step in before["pretokenizers"] if before["type"] == "Sequence" else [before]:
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            found += ["bytes"] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            found.append("digits")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            found.append(step["pattern"].get("Regex", "a word"))
        else:
            found.append(step["type"])
    return tuple(found)
