"""A conversation -> the token ids a model is given.

`prompt_ids(tokenizer, messages)` renders the messages through the tokenizer's own chat template and tokenises the result. What people
typed stays text: where it spells a token of the template ("<|im_end|>"), that stretch is tokenised letter by letter as ordinary text, so a
message can neither end its own turn nor open a system one. To keep the two apart the stretch is marked with two Unicode noncharacters
before rendering (taken out of the text first, so nobody can forge a mark), and found again by them after it. Everything else is tokenised in
one go and gives exactly the ids of `apply_chat_template`.

A model without a chat template (OPT and other base models) gets the tokenizer's own start token, if it adds one, and

    {system}

    User: {text}
    Assistant: {text}
    User: {text}
    Assistant:

(the system lines only where there is a system prompt). Nothing is changed in the tokenizer, so threads can share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")
MAX_CHARACTERS = 1_000_000  # more is refused unread: no context is that long, and counting its tokens takes a second
START, END = "\ufdd0", "\ufdd1"


class PromptError(ValueError):
    """A conversation that cannot be given to the model; the message is a sentence for the person who typed it."""


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], system: str | None = None
) -> list[int]:
    """messages [{"role": "system" | "user" | "assistant", "content": text}, ...], the last one the user's -> token ids.

    system: put in front as a system message; None or blank leaves it to the template. Raises PromptError in words."""
    control = _control_tokens(tokenizer)
    turns = _checked(messages, system, control)
    marked = [{"role": t["role"], "content": control.sub(f"{START}\\g<0>{END}", t["content"])} for t in turns]
    text, ids = _rendered(tokenizer, marked)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    pieces = re.split(f"{START}({control.pattern}){END}|[{START}{END}]", text)  # text, spelled token or None, text, ...
    spelled: dict[str, list[int]] = {}
    for i, piece in enumerate(pieces):
        if not piece:
            continue
        if i % 2:
            if piece not in spelled:
                spelled[piece] = _as_text(tokenizer, piece)
            ids += spelled[piece]
        else:
            ids += _inside(encode, piece) if i else encode(piece)
    return ids


def check_fits(ids: Sequence[int], context: int | None, max_tokens: int) -> None:
    """Raises PromptError, with the numbers, where the prompt and an answer of max_tokens exceed the model's context."""
    if context is None or len(ids) + max_tokens <= context:
        return
    room = context - max_tokens
    if room <= 0:
        raise PromptError(
            f"An answer of up to {max_tokens:,} tokens leaves no room for a prompt in this model's context of {context:,}: "
            "ask for a shorter answer."
        )
    raise PromptError(
        f"The conversation is {len(ids):,} tokens long and {room:,} fit (the model's context is {context:,}, and {max_tokens:,} "
        "are kept for the answer): shorten the message, start a new chat, or ask for a shorter answer."
    )


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches any added token, special or not, longest first; those made of whitespace are ordinary text."""
    tokens = [token for token in tokenizer.get_added_vocab() if token.strip()]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _checked(messages: Sequence[Mapping[str, str]], system: str | None, control: re.Pattern[str]) -> list[dict[str, str]]:
    turns = list(messages)
    if system is not None and system.strip():
        turns.insert(0, {"role": "system", "content": system})
    for i, turn in enumerate(turns):
        fine = isinstance(turn, Mapping) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)
        if not fine:
            raise PromptError(f'message {i + 1} must be {{"role": one of {", ".join(ROLES)}, "content": text}}; got {str(turn)[:80]}')
    characters = sum(len(turn["content"]) for turn in turns)
    if characters > MAX_CHARACTERS:
        raise PromptError(f"The conversation is {characters:,} characters long; at most {MAX_CHARACTERS:,} are read.")
    turns = [{"role": turn["role"], "content": _clean(turn["content"])} for turn in turns]
    if not turns or turns[-1]["role"] != "user":
        raise PromptError("There is nothing to answer: the last message must be the user's.")
    if not turns[-1]["content"].strip():
        raise PromptError("The message is empty: type something to send.")
    if not control.sub("", turns[-1]["content"]).strip():
        raise PromptError("The message is made only of the model's own control tokens: type some words.")
    return turns


def _clean(text: str) -> str:
    """Without our marks; halves of surrogate pairs joined where they fit and replaced where they do not."""
    return text.replace(START, "").replace(END, "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> tuple[str, list[int]]:
    """The conversation as text, and the ids that go before it."""
    if tokenizer.chat_template:
        try:
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), []
        except TemplateError as error:
            raise PromptError(f"This model's chat template refuses the conversation: {error}") from error
    opening = "".join(f"{turn['content']}\n\n" for turn in turns if turn["role"] == "system")
    spoken = [f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in turns if turn["role"] != "system"]
    starts = tokenizer.encode("")[:1]  # what the tokenizer puts around nothing: the start token first, where it has one
    return opening + "".join(spoken) + "Assistant:", starts if starts == [tokenizer.bos_token_id] else []


def _as_text(tokenizer: PreTrainedTokenizerBase, spelled: str) -> list[int]:
    """The ids of a control token's spelling, none of them the token itself."""
    encode = partial(_plain, tokenizer)
    ids = _inside(encode, spelled)
    if tokenizer.convert_tokens_to_ids(spelled) in ids:  # a vocabulary that holds it as a word too
        ids = [id for letter in spelled for id in _inside(encode, letter)]
    return ids


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which no added token is looked for."""
    if not tokenizer.is_fast:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    steps = tokenizer.backend_tokenizer
    text = steps.normalizer.normalize_str(text) if steps.normalizer else text
    words = [word for word, _ in steps.pre_tokenizer.pre_tokenize_str(text)] if steps.pre_tokenizer else [text]
    return [token.id for word in words for token in steps.model.tokenize(word)]


def _inside(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Ids of a text that continues another: without the space some tokenizers put before the start of a text."""
    newline, ids = encode("\n"), encode("\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(text)
