"""A question's two answers as the Ask page shows them: what differs marked, how sure short ones are, and a
sentence that compares them."""

from __future__ import annotations

from collections.abc import Sequence

from app.conversation import Answer, Frame
from app.pages.chat_status import piece
from quept.plan import PrecisionPlan

SHORT = 4  # tokens of an answer whose probabilities are shown
CANDIDATES = 4  # of a token


def turn_shown(sides: Sequence[PrecisionPlan], frame: Frame, question: str, known: str | None) -> dict:
    """One question as Talk shows it."""
    shown = []
    for i, (side, answer) in enumerate(zip(sides, frame.answers, strict=True)):
        one = {"label": side.name, "state": answer.state, "text": _marked(frame, i), "right": None}
        if answer.state == "done" and known:
            one["right"] = answer.text.strip().lower() == known
        if _is_short(answer):
            one["bars"] = [[text.strip() or "(the end)", share] for text, share in answer.candidates]
            one["caption"] = "How sure it is" if _is_word(answer) else "How sure it is of the first token"
        shown.append(one)
    line = _compared(sides, frame)
    return {"question": question, "sides": shown, "line": line, "parted": frame.parting is not None}


def _marked(frame: Frame, i: int) -> tuple[str, str, str]:
    """The answer: what comes before the first token that differs, that, and what comes behind it."""
    answer, parting = frame.answers[i], frame.parting
    if answer.state == "error" or not parting or parting.pieces[i] is None:
        return answer.error or answer.text, "", ""
    start = parting.starts[i]
    end = start + max(1, len(parting.pieces[i]))  # of half a character the whole one
    return answer.text[:start], answer.text[start:end], answer.text[end:]


def _is_short(answer: Answer) -> bool:
    """Whether all of it was written, in so few tokens, the end token left out."""
    return answer.state == "done" and not answer.cut and answer.tokens <= SHORT + 1


def _is_word(answer: Answer) -> bool:
    return _is_short(answer) and answer.tokens == 2


def _compared(sides: Sequence[PrecisionPlan], frame: Frame) -> str:
    """How the answers compare, once both are whole; before that only where they part."""
    left, right = frame.answers
    one, other = (side.name for side in sides)
    parting = frame.parting
    if _is_short(left) and _is_short(right):
        if parting:
            return f"The answers differ: {_said(left)} at {one}, {_said(right)} at {other}."
        sure = f": {_percent(left)} sure at {one}, {_percent(right)} at {other}" if _is_word(left) else ""
        return f"Both say {_quoted(left)}{sure}."
    if parting:
        here, there = map(piece, parting.pieces)
        return f"The answers part at token {parting.index + 1}: {here} at {one}, {there} at {other}."
    if left.state == right.state == "done":
        return f"Both wrote the same {frame.same:,} tokens."
    return ""


def _said(answer: Answer) -> str:
    return _quoted(answer) + (f" ({_percent(answer)} sure)" if _is_word(answer) else "")


def _quoted(answer: Answer) -> str:
    return f"“{answer.text.strip()}”" if answer.text.strip() else "nothing"


def _percent(answer: Answer) -> str:
    share = 100 * answer.candidates[0][1]
    return f"{share:.0f} %" if share < 99 else f"{min(share, 99.99):.2f} %"
