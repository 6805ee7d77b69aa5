"""Pictures with words about them, in a folder of a person's own: what vision-language models are measured and
calibrated on. The folder holds the pictures and `pairs.json`, a list of entries:

    {"image": "photos/cat.jpg", "question": "What is on the sofa?", "answer": "A cat."}
    {"image": "photos/cat.jpg", "caption": "A cat sleeps on a sofa."}
    {"image": ["before.png", "after.png"], "conversation": [
        {"role": "user", "content": "What has changed?"}, {"role": "assistant", "content": "The door."},
        {"role": "user", "content": "How?"}, {"role": "assistant", "content": "It is open."}]}

A caption answers "Describe the picture."; the pictures of a conversation come with its first message. Names
of pictures are relative to the folder and stay inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = "pairs.json"
DESCRIBE = "Describe the picture."
_FORMS = 'a "question" with an "answer", a "caption", or a "conversation"'


class PairsError(ValueError):
    """A folder without pairs that can be understood; the message says which entry and what to do."""


@dataclass(frozen=True)
class Pair:
    """images: the pictures, which exist but may be damaged. turns: (what the user says, what is answered)."""

    images: tuple[Path, ...]
    turns: tuple[tuple[str, str], ...]


def read_pairs(folder: str | Path) -> list[Pair]:
    """The entries of `folder`/pairs.json in their order; PairsError with a sentence."""
    file = Path(folder) / FILE
    try:
        entries = json.loads(file.read_bytes())
    except OSError as error:
        raise PairsError(
            f"{file} cannot be read: {error.strerror}; it lists pictures and questions"
        ) from None
    except (ValueError, RecursionError):
        raise PairsError(f"{file} is not valid JSON") from None
    if not isinstance(entries, list) or not entries:
        raise PairsError(f"{file} is not a list of entries, each an image with {_FORMS}")
    pairs = []
    for number, entry in enumerate(entries, 1):
        try:
            if not isinstance(entry, Mapping):
                raise PairsError(f'it is not an object with an "image" and {_FORMS}')
            pairs.append(Pair(_images(entry, Path(folder).resolve()), _turns(entry)))
        except PairsError as error:
            raise PairsError(f"{file}, entry {number}: {error}") from None
    return pairs


def _images(entry: Mapping, folder: Path) -> tuple[Path, ...]:
    names = entry.get("image")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise PairsError('"image" must be the name of a picture, or a list of names')
    found = []
    for name in names:
        try:
            path = (folder / name).resolve()
            if path.is_relative_to(folder) and path.is_file():
                found.append(path)
                continue
        except (OSError, ValueError):  # a name too long, or with a zero byte
            pass
        raise PairsError(f"there is no file {name!r:.100} in the folder")
    return tuple(found)


def _turns(entry: Mapping) -> tuple[tuple[str, str], ...]:
    given = sorted({"question", "caption", "conversation"} & set(entry))
    if given == ["question"]:
        return ((_text(entry, "question"), _text(entry, "answer")),)
    if given == ["caption"]:
        return ((DESCRIBE, _text(entry, "caption")),)
    if given != ["conversation"]:
        raise PairsError(f"it must have {_FORMS}, one of them")
    messages = entry["conversation"]
    sound = isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages)
    roles = [message.get("role") for message in messages] if sound else []
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise PairsError(
            'a "conversation" is a list of {"role": ..., "content": ...}, user and assistant in turn'
        )
    texts = [_text(message, "content") for message in messages]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _text(entry: Mapping, key: str) -> str:
    text = entry.get(key)
    if not isinstance(text, str) or not text.strip():
        raise PairsError(f'"{key}" must be a text that is not empty')
    return text
