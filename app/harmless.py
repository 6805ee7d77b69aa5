"""Text that nobody should trust, as Markdown that a Chatbot can show: no HTML of its own, nothing loaded from
elsewhere.

Gradio's sanitiser stops scripts but lets `<div style="background: url(http://…)">` and buttons over the whole
page through. So `harmless(text)` keeps Markdown and takes the HTML out of it: outside fenced code an
invisible word joiner (U+2060) goes behind every `<` that could begin a tag, which then reads the same and is
none. Inside fenced code nothing is changed (Markdown shows it as it is, and a copy of it must run), so what
is fenced must be what the browser's parser, marked, takes for fenced: fence lines are written anew at the
start of a line, list and quote marks before them on a line of their own; tilde fences are undone; diagrams
(```mermaid) become plain code.

Images need `allow_tags=TAGS_SHOWN_AS_TEXT` on the Chatbot as well: Gradio then writes the tags that Markdown
made of them as text.
"""

from __future__ import annotations

import re

TAGS_SHOWN_AS_TEXT = [
    "img",
    "picture",
    "audio",
    "video",
    "iframe",
    "object",
    "embed",
    "form",
    "script",
    "style",
    "link",
    "meta",
    "base",
]

JOINER = "\u2060"
_OPENING = re.compile(r"\s*(`{3,})([^`]*)")
_INSIDE_A_LIST = re.compile(r"(\s*(?:[-*+>]|\d{1,9}[.)])[\s\-*+>\d.)]*)(`{3,}[^`]*)")
_CLOSING = re.compile(r"\s*(`{3,})[`~]*\s*")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_TILDES = re.compile(r"~{3,}")


def harmless(text: str) -> str:
    """The text as Markdown without HTML; reads the same."""
    lines: list[str] = []
    fence = 0  # backticks of the fence we are in
    for line in re.split(r"\r\n?|\n", text):
        if fence:
            closing = _CLOSING.fullmatch(line)
            if closing and len(closing[1]) >= fence:
                lines.append("`" * fence)
                fence = 0
            else:
                lines.append(line)
            continue
        nested = _INSIDE_A_LIST.fullmatch(line)
        if nested:
            lines.append(_without_tags(nested[1].rstrip()))
            line = nested[2]
        opening = _OPENING.fullmatch(line)
        if opening:
            fence = len(opening[1])
            lines.append(opening[1] + _language(opening[2]))
        else:
            lines.append(_without_tags(line))
    return "\n".join(lines)


def plain(text: str) -> str:
    """What was typed, from what `harmless` made of it."""
    return text.replace(JOINER, "")


def _without_tags(line: str) -> str:
    return _TILDES.sub(lambda tildes: JOINER.join(tildes[0]), _TAG.sub("<" + JOINER, line))


def _language(info: str) -> str:
    """The language of a fenced block, if it is one word and not one that the browser draws."""
    word = info.split()[0] if info.split() else ""
    return word if re.fullmatch(r"[\w+#.-]{1,30}", word) and word.lower() != "mermaid" else ""
