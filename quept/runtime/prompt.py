"""A conversation -> the token ids a model is given.

`prompt_ids(tokenizer, messages)` renders the messages through the tokenizer's own chat template and tokenises
the result. What people typed stays text: where it spells a token of the template ("<|im_end|>"), that stretch
is tokenised as ordinary letters, so a message can neither end its own turn nor open a system one. To be found
again after rendering, the stretch goes through the template between two Unicode noncharacters (taken out of
the text first: nobody can forge a mark). All the rest is tokenised as it stands and gives exactly the ids of
`apply_chat_template`.

A model without a chat template (OPT and other base models) gets the tokenizer's own start token, if it adds
one, and

    {system}

    User: {text}
    Assistant: {text}
    User: {text}
    Assistant:

(no system lines without a system prompt). Nothing is changed in the tokenizer, so threads can share it.

With the processor of a vision-language model a message may hold pictures: its content is then a list of
{"type": "image"} and {"type": "text", "text": ...}, in any order, and where the template puts each picture
there is one image token. Only these are pictures: an image token that somebody typed is spelled out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .template import TemplateFailure, rendered

ROLES = ("system", "user", "assistant")
MAX_CHARACTERS = 1_000_000  # more is refused unread: no context is that long, and counting takes a second
START, END = "\ufdd0", "\ufdd1"
_MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")  # what no answer writes: words are no end of one


class PromptError(ValueError):
    """A conversation the model cannot be given; the message is a sentence for the person who typed it."""


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping],
    system: str | None = None,
    processor: ProcessorMixin | None = None,
    answered: bool = False,
    put: Callable[[str], str] = str,
) -> list[int]:
    """messages [{"role": "system" | "user" | "assistant", "content": text}, ...] -> token ids.

    The last message is the user's or, where the conversation is `answered`, the assistant's; then nothing
    follows it that would ask for another. system: put in front as a system message; None or blank leaves that
    to the template. processor: of a vision-language model, whose template it is and whose messages may hold
    pictures. put: what becomes of the template's text before it is tokenised, piece by piece in its order.
    Raises PromptError with a sentence."""
    control = _control_tokens(tokenizer)
    turns = _checked(messages, system, control, processor is not None, answered)
    marked = [turn | {"content": control.sub(f"{START}\\g<0>{END}", turn["content"])} for turn in turns]
    text, ids = _rendered(tokenizer, marked, processor, answered)
    if not text.strip():
        raise PromptError("This model's chat template writes nothing for this conversation.")
    # A template may tear a pair of marks apart; a mark left alone is dropped and still parts the text.
    pieces = re.split(f"{START}({control.pattern}){END}|[{START}{END}]", text)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    spelled: dict[str, list[int]] = {}
    for i, piece in enumerate(pieces):  # text, control token spelled out or None, text, ...
        if not piece:
            continue
        if i % 2:
            if piece not in spelled:
                spelled[piece] = _spelled_out(tokenizer, piece)
            ids += spelled[piece]
        else:
            piece = put(piece)
            ids += _inside(encode, piece) if i else encode(piece)
    return ids


def check_known(
    ids: Sequence[int] | Tensor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises PromptError for a token that the model has no embedding for, as tokenizers make that were
    extended without the model. Numbers below zero, which stand for pictures, are not looked at."""
    rows = model.get_input_embeddings().num_embeddings
    highest = int(ids.max() if isinstance(ids, Tensor) else max(ids))  # pictures go below what int64 holds
    if highest >= rows:
        raise PromptError(
            f"The tokenizer makes {tokenizer.convert_ids_to_tokens(highest)!r} token {highest:,}, and the "
            f"model has embeddings for {rows:,} tokens, 0 to {rows - 1:,}: give the tokenizer that the model "
            "was trained with, or resize the model's embeddings to this one."
        )


def turn_end(owner: PreTrainedTokenizerBase | ProcessorMixin) -> tuple[int | None, str]:
    """What the chat template writes behind an answer, such as ChatML's <|im_end|>: the token, or, where the
    tokenizer has none for it, the text; (None, "") where it writes nothing or there is no template."""
    tokenizer = getattr(owner, "tokenizer", owner)
    roles = (("user", "x"), ("assistant", START))
    turns = [{"role": role, "content": text, "pictures": 0} for role, text in roles]
    try:
        text, _ = _rendered(tokenizer, turns, None if owner is tokenizer else owner, answered=True)
    except PromptError:
        return None, ""
    _, answered, behind = text.rpartition(START)
    marker = next(iter(behind.split()), "") if answered else ""
    ids = tokenizer.encode(marker, add_special_tokens=False)
    if ids and ids[0] in tokenizer.get_added_vocab().values():
        return ids[0], ""
    spelled = _MARKER.match(marker)
    return None, spelled[0] if spelled else ""


def check_fits(ids: Sequence[int], context: int | None, max_tokens: int) -> None:
    """Raises PromptError, with the numbers, where prompt and answer exceed the context (None: no limit)."""
    if context is None or len(ids) + max_tokens <= context:
        return
    room = context - max_tokens
    if room <= 0:
        raise PromptError(
            f"An answer of up to {max_tokens:,} tokens leaves no room for a prompt in this model's context "
            f"of {context:,}: ask for a shorter answer."
        )
    raise PromptError(
        f"The conversation is {len(ids):,} tokens long and {room:,} fit (the model's context is {context:,}, "
        f"of which {max_tokens:,} are kept for the answer): shorten the message, start a new chat, or ask "
        "for a shorter answer."
    )


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches any added token, special or not, longest first; those made of whitespace are ordinary text."""
    tokens = sorted(filter(str.strip, tokenizer.get_added_vocab()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _checked(
    messages: Sequence[Mapping],
    system: str | None,
    control: re.Pattern[str],
    pictured: bool,
    answered: bool,
) -> list[dict]:
    """The turns as {"role", "content": text, "pictures": how many}."""
    turns = list(messages)
    if system is not None and system.strip():
        turns.insert(0, {"role": "system", "content": system})
    turns = [_turn(message, pictured) for message in turns]
    characters = sum(len(turn["content"]) for turn in turns)
    if characters > MAX_CHARACTERS:
        raise PromptError(
            f"The conversation is {characters:,} characters long; at most {MAX_CHARACTERS:,} are read."
        )
    turns = [turn | {"content": _clean(turn["content"])} for turn in turns]
    if answered and (not turns or turns[-1]["role"] != "assistant"):
        raise PromptError("There is no answer: the last message must be the assistant's.")
    if not answered and (not turns or turns[-1]["role"] != "user"):
        raise PromptError("There is nothing to answer: the last message must be the user's.")
    if not turns[-1]["content"].strip():
        raise PromptError("The message is empty: type something to send.")
    if not control.sub("", turns[-1]["content"]).strip():
        raise PromptError("The message is made only of the model's own control tokens: type some words.")
    return turns


def _turn(message: Mapping, pictured: bool) -> dict:
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = content if pictured and isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    texts = [p.get("text") for p in parts if isinstance(p, Mapping) and p.get("type") == "text"]
    pictures = sum(isinstance(p, Mapping) and p.get("type") == "image" for p in parts)
    if len(texts) + pictures < len(parts) or not all(isinstance(text, str) for text in texts):
        raise PromptError(f'A message must be {{"role": ..., "content": text}}; got {str(message)[:80]}')
    if message.get("role") not in ROLES:
        raise PromptError(f"A message's role must be one of {', '.join(ROLES)}; got {message.get('role')!r}")
    return {"role": message["role"], "content": "\n".join(texts), "pictures": pictures}


def _clean(text: str) -> str:
    """Without our marks; halves of surrogate pairs joined where they fit, replaced where they do not."""
    text = text.replace(START, "").replace(END, "")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _rendered(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict], processor: ProcessorMixin | None, answered: bool
) -> tuple[str, list[int]]:
    """The conversation as text, and the ids that go before it."""
    owner = processor or tokenizer
    if owner.chat_template:
        prepared = [
            {"role": turn["role"], "content": _parts(turn) if processor else turn["content"]}
            for turn in turns
        ]
        try:
            return rendered(owner, prepared, not answered), []
        except TemplateFailure as error:
            raise PromptError(str(error)) from error
    shown = [f"{processor.image_token}\n" * turn["pictures"] if processor else "" for turn in turns]
    lines = [
        f"{turn['content']}\n\n"
        if turn["role"] == "system"
        else f"{turn['role'].title()}: {pictures}{turn['content']}\n"
        for turn, pictures in zip(turns, shown, strict=True)
    ]
    return "".join(lines) + ("" if answered else "Assistant:"), text_start(tokenizer)


def text_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The id of the token that this tokenizer puts before every text, or none: a model that has never read a
    text without it answers badly there (Gemma 3 270M: perplexity 462 in place of 39.7)."""
    around_nothing = tokenizer.encode("")
    return around_nothing[:1] if around_nothing[:1] == [tokenizer.bos_token_id] else []


def _parts(turn: dict) -> list[dict[str, str]]:
    """The content as templates of vision-language models want it: pictures before words."""
    return [{"type": "image"}] * turn["pictures"] + [{"type": "text", "text": turn["content"]}]


def _spelled_out(tokenizer: PreTrainedTokenizerBase, spelled: str) -> list[int]:
    """The ids of a control token's letters, none of them the token itself."""
    encode = partial(_plain, tokenizer)
    ids = _inside(encode, spelled)
    if tokenizer.convert_tokens_to_ids(spelled) in ids:  # a vocabulary that also holds it as a word
        ids = [id for letter in spelled for id in _inside(encode, letter)]
    return ids


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which no added token is looked for."""
    if not tokenizer.is_fast:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    steps = tokenizer.backend_tokenizer  # its parts, because its own switch for this is state others share
    text = steps.normalizer.normalize_str(text) if steps.normalizer else text
    words = steps.pre_tokenizer.pre_tokenize_str(text) if steps.pre_tokenizer else [(text, None)]
    return [token.id for word, _ in words for token in steps.model.tokenize(word)]


def _inside(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Ids of a text that continues another: without the space some tokenizers put before the first word."""
    newline, ids = encode("\n"), encode("\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(text)
