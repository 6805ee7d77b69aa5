"""A chat kept in the browser's session store, so that a reload keeps it and closing the tab ends it.

`to_store(model, history)` gives the text that the browser keeps, `from_store(text, model)` the history again:
what comes back is anybody's text, so only turns of the right form are taken.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.pages.chat_status import SIDES

MOST = 2_000_000  # characters
# The event is for blind.js, which may be drawn later than the first one.
STORE_JS = """(text) => {
  window.queptChat = text;
  document.dispatchEvent(new CustomEvent("quept:chat", { detail: text }));
  try { sessionStorage.setItem("quept-chat", text); } catch { /* full: not kept */ }
}"""
READ_JS = "() => sessionStorage.getItem('quept-chat') ?? ''"

Words = Annotated[str, Field(max_length=100_000)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Scored(BaseModel):
    """What `app.own.scored` keeps."""

    model_config = ConfigDict(strict=True, extra="forbid")

    plan: Annotated[str, Field(max_length=200)]
    key: Annotated[str, Field(max_length=20_000)]
    bytes: Annotated[int, Field(ge=0)]
    bits_per_param: Finite
    kl: Annotated[list[Finite], Field(max_length=5_000)]
    same: Annotated[int, Field(ge=0)]


class Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    user: Words
    left: Words
    right: Words
    made_with: Annotated[str, Field(max_length=64)] = ""
    plans: Annotated[list[Annotated[str, Field(max_length=200)]], Field(min_length=2, max_length=2)] = [
        "",
        "",
    ]
    scored: dict[str, Scored] = {}


class Chat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    turns: Annotated[list[Turn], Field(max_length=500)]


def to_store(model: str, history: list[dict]) -> str:
    """Text for the browser; "" for a chat that is too long to be kept."""
    text = json.dumps({"model": model, "turns": history})
    return text if len(text) <= MOST else ""


def from_store(text: Any, model: str) -> list[dict]:
    """The turns of a chat with this model; none where the text is of another one or not of ours."""
    if not isinstance(text, str) or not 0 < len(text) <= MOST:
        return []
    try:
        chat = Chat.model_validate_json(text)
    except ValidationError:
        return []
    turns = [turn.model_dump() for turn in chat.turns]
    sound = all(set(turn["scored"]) <= set(SIDES) for turn in turns)
    return turns if chat.model == model and sound else []
