"""HTML escaped in Markdown: text that nobody should trust, as a Chatbot can show it, with no HTML of its own
and nothing loaded from elsewhere.

Gradio draws Markdown in the browser, where its sanitiser stops scripts but lets `<div style="background:
url(http://…)">` and buttons over the whole page through; a sanitiser on the server would have to draw the
Markdown itself, and what is copied or edited would be HTML. So `as_markdown(text)` keeps Markdown and takes
the HTML out of it: outside fenced code an invisible word joiner (U+2060) goes behind every `<` that could
begin a tag, every `&` of an entity and every backslash of a formula (`\\(a^2\\)`), which then read the same.
Where they are drawn, and on the way to the clipboard, side_status.js takes the joiners out again. Inside
fenced code nothing is changed (Markdown shows it as it is, and a copy of it must run), so what is fenced must
be what the browser's parser, marked, takes for fenced: fence lines are written anew at the start of a line,
list and quote marks before them on a line of their own; tilde fences are undone; diagrams (```mermaid) become
plain code.

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
_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)|\\(?=[()\[\]{},;:%&$\\])")
_TILDES = re.compile(r"~{3,}")


def as_markdown(text: str) -> str:
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


def as_typed(text: str) -> str:
    """What was typed, from what `as_markdown` made of it."""
    return text.replace(JOINER, "")


def _without_tags(line: str) -> str:
    return _TILDES.sub(lambda tildes: JOINER.join(tildes[0]), _MARKUP.sub("\\g<0>" + JOINER, line))


def _language(info: str) -> str:
    """The language of a fenced block, if it is one word and not one that the browser draws."""
    word = info.split()[0] if info.split() else ""
    return word if re.fullmatch(r"[\w+#.-]{1,30}", word) and word.lower() != "mermaid" else ""
