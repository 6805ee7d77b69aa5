"""The status under each answer of the chat, as SideStatus shows it: how far the side is, as text, its speed
and memory, and how the two answers compare.

`ready` is of a side before anything is asked, `reported` of both sides of a Frame. Nothing here knows of
Gradio or changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from app.conversation import Answer, Frame
from app.small_numbers import small_words
from quept.evaluate import summarize_scores
from quept.plan import PrecisionPlan

SIDES = ("left", "right")
SHARED = 0.7  # of the tokens behind the first difference, from which on differences are marked one by one


def ready(side: PrecisionPlan, size: int) -> dict:
    """What the next answer will be at; size: bytes to deploy."""
    return {
        "state": "idle",
        "words": f"Next answer: {side.name}",
        "facts": _facts(Answer(deploy_bytes=size)),
    }


def refused(error: object) -> dict:
    """A choice that cannot be answered at."""
    return {"state": "error", "words": str(error), "facts": _facts(Answer())}


def reported(sides: Sequence[PrecisionPlan], frame: Frame) -> dict[str, dict]:
    """Of both sides while they answer and after: a status by the name of its place, `status_left` and
    `status_right`."""
    change = {}
    for i, (name, side, answer) in enumerate(zip(SIDES, sides, frame.answers, strict=True)):
        status = {
            "state": answer.state,
            "words": _words(side, answer),
            "facts": _facts(answer),
            "progress": answer.progress,
            "text": answer.text,
            "scores": _scores(answer),
            "bits": [[*span, round(bits, 2)] for span, bits in zip(answer.spans, answer.bits, strict=False)],
            "note": answer.unscored[:1].upper() + answer.unscored[1:],
        }
        if frame.parting:
            here, there = frame.parting.pieces[i], frame.parting.pieces[1 - i]
            apart = go_apart(frame)
            first = "The sides differ from token {} on" if apart else "The sides first differ at token {}"
            words = f"{piece(here)} here, {piece(there)} there"
            status["line"] = f"{first.format(f'{frame.parting.index + 1:,}')}: {words}"
            mark = None if here is None else [frame.parting.starts[i], max(1, len(here))]
            differs = [] if apart else differences(frame, i)
            status |= {"parted": True, "mark": mark, "differs": differs}
        else:
            status["line"] = _same(frame)
        change[f"status_{name}"] = status
    return change


def _scores(answer: Answer) -> list[list]:
    """Of each scored token where it stands, how far it is from full precision, and what that would have said
    in its place, if something else."""
    rows = zip(answer.spans, answer.scores, answer.others, strict=False)
    return [[*span, float(f"{s.kl:.2g}"), None if s.same else other] for span, s, other in rows]


def go_apart(frame: Frame) -> bool:
    """Whether both have ended and, behind their first difference, have less than SHARED of their tokens in
    common: then marks of all that differs would say nothing."""
    if _under_way(frame):
        return False
    behind = [tokens[frame.parting.index :] for tokens in _tokens(frame)]
    return SequenceMatcher(None, *behind, autojunk=False).ratio() < SHARED


def differences(frame: Frame, i: int) -> list[list[int]]:
    """Where side i says something else than the other, (start, length), once both have ended."""
    if _under_way(frame):
        return []
    answers, found = frame.answers, []
    for kind, *ends in SequenceMatcher(None, *_tokens(frame), autojunk=False).get_opcodes():
        begin, end = ends[2 * i : 2 * i + 2]
        if kind != "equal" and begin < end:
            start, (last, length) = answers[i].spans[begin][0], answers[i].spans[end - 1]
            found.append([start, last + length - start])
    return found


def _under_way(frame: Frame) -> bool:
    return any(answer.state not in ("done", "stopped") for answer in frame.answers)


def _tokens(frame: Frame) -> list[list[str]]:
    """The tokens of both answers, as text."""
    return [[a.text[start : start + length] for start, length in a.spans] for a in frame.answers]


def _words(side: PrecisionPlan, answer: Answer) -> str:
    match answer.state:
        case "queued":
            return f"Waiting: place {answer.position} in line"
        case "preparing":
            return f"Preparing {side.name}"
        case "reading":
            return f"Reading the conversation, {side.name}"
        case "writing":
            return f"Writing, {side.name}"
        case "stopped":
            return f"Stopped, {side.name}"
        case "error":
            return answer.error[:1].upper() + answer.error[1:]
    if answer.cut:
        return f"Cut at {answer.tokens:,} tokens, {side.name}"
    return f"Done, {side.name}"


def _same(frame: Frame) -> str:
    if not frame.same:
        return ""
    tokens = f"{frame.same:,} token" + ("s" if frame.same > 1 else "")
    if all(answer.state == "done" for answer in frame.answers):
        return f"Identical: both sides wrote the same {tokens}"
    return f"Identical so far, {tokens}"


def piece(piece: str | None) -> str:
    """A token as a person reads it; those without a letter to show get a name."""
    if piece is None:
        return "the end"
    if not piece:
        return "part of a character"
    if not piece.strip():
        return "a line break" if "\n" in piece else "a space"
    return f"“{piece.strip()}”"


def _facts(answer: Answer) -> list[list[str]]:
    """Name, value and explanation of each number; a dash for what is not known yet."""
    size, speed, cache = answer.deploy_bytes, answer.tokens_per_second, answer.cache_bytes
    first, switch, far = answer.first_token_s, answer.switch_ms, summarize_scores(answer.scores)
    whole = None if size is None or cache is None else size + cache
    spent = answer.bits and [
        [
            "Bits a token",
            f"{sum(answer.bits) / len(answer.bits):.2f}",
            "Bits that tokens of this answer read of each weight, on average; all slices are kept",
        ]
    ]
    return [
        *spent,
        ["Deploy", _bytes(size), "Bytes of the model if it were shipped at this precision alone"],
        [
            "With KV cache",
            _bytes(whole),
            "Those bytes and the keys and values of this conversation, as it grows",
        ],
        [
            "KL",
            "–" if far is None else small_words(far.kl),
            "Mean divergence of this answer's tokens from full precision behind the same words, in nats",
        ],
        [
            "Same top",
            "–" if far is None else f"{100 * far.same_top:.0f} %",
            "Tokens of this answer for which full precision has the same first choice",
        ],
        [
            "Speed",
            "–" if speed is None else f"{speed:.1f} tok/s",
            "Tokens a second of this side's own steps; the two sides take turns",
        ],
        [
            "First token",
            "–" if first is None else f"{first:.2f} s",
            "From its turn until the first token, reading the prompt included",
        ],
        ["KV cache", _bytes(cache), "Bytes of the keys and values of this conversation"],
        [
            "Switch",
            "–" if switch is None else f"{switch:,.0f} ms",
            "Time to put this side's precision together",
        ],
    ]


def _bytes(count: int | None) -> str:
    if count is None:
        return "–"
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 99_950 else f"{count / 1e3:.0f} KB"
