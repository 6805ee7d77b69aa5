"""SideStatus: what one side of a comparison is doing: under an answer of the chat, with the mark where both
answers part; or with a classifier's likeliest classes.

In:  {"state": "idle|queued|preparing|reading|writing|done|stopped|error", "words": a sentence,
     "progress": 0..1 or None, "facts": [[name, value, explanation], ...],
     "bars": [[name, share 0..1, words behind it], ...], shown above the facts where there are any,
     "line": how this answer compares with the other side's, "parted": true or false,
     "text": the answer as the model wrote it,
     "mark": [start, length] in `text` of the first token that differs, or None,
     "differs": [[start, length], ...] of all that differs, once both have ended, where that is little,
     "scores": [[start, length, KL, what full precision would have said or None for the same], ...] of the
     tokens as far as they are scored, "bits": [[start, length, bits spent], ...] where precision is chosen by
     token, "note": why there are no more; "own": a figure of the whole chat,
     "turn": which answer of the chat this is, from 0, "labels": the plans of all its answers}.
Out: nothing; as an input of a handler it gives None. It has no events.

`chat` is the elem_id of the Chatbot whose answers are marked: words that full precision would hardly have
said are underlined by how far off they are, dotted, dashed or double, with a tint, and tell their values when
pointed at or tapped. Where tokens got bits of their own, the tint behind a word says how many: the deeper,
the fewer. The marks are CSS highlights laid over the rendered text by the script: the text itself, which
nobody should trust, is not touched, and a copy of it has no marks in it.
"""

from __future__ import annotations

from typing import Any

from app.components.widget import Widget

STATES = ("idle", "queued", "preparing", "reading", "writing", "done", "stopped", "error")


class SideStatus(Widget):
    """State, speed and memory of one side of the chat; see the module's docstring."""

    NAME = "side_status"
    EMPTY = {"state": "idle"}

    def __init__(self, value: dict[str, Any] | None = None, *, chat: str | None = None, **options: Any):
        """
        Parameters:
            value: state of the side; None means idle.
            chat: elem_id of the Chatbot that shows the answer.
        """
        # Not a prop: Gradio forgets the props of what it has not drawn yet when a handler skips it.
        super().__init__(value, attributes=f' data-chat="{chat or ""}"', **options)

    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """The state as JSON; ValueError for an unknown state."""
        status = super().postprocess(value)
        if status.get("state") not in STATES:
            raise ValueError(f"state {status.get('state')!r} is not one of {', '.join(STATES)}")
        return status
