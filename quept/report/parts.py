"""What a section of the page is made of. Text in here is plain text: the template escapes all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import plotly.graph_objects as go


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    entries: list[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Table:
    """The first column names the rows; `words` are the columns, by position, that hold words, not numbers."""

    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: tuple[int, ...] = ()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Bars:
    """(name, amount, the amount as text) as bars on a common scale from 0."""

    caption: str
    rows: list[tuple[str, float, str]]
    kind: ClassVar[str] = "bars"

    @property
    def longest(self) -> float:
        return max((amount for _, amount, _ in self.rows), default=0) or 1


@dataclass(frozen=True)
class Chart:
    """figure: see figures. described: what it shows, for those who cannot see it."""

    caption: str
    figure: go.Figure
    described: str
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Gallery:
    """Small charts, as many in a row as there is room for."""

    charts: list[Chart]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Folded:
    """Longer text, shown when asked for."""

    summary: str
    text: str
    kind: ClassVar[str] = "folded"


Part = Paragraph | Facts | Table | Bars | Chart | Gallery | Folded


@dataclass(frozen=True)
class Section:
    title: str
    parts: list[Part] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")
