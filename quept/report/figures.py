"""The charts of the page, as plotly figures.

Colors are names, `var(--ours)` or `var(--c3)`: the page's script puts in those of the style sheet, light or
dark, and does so for nothing but the entries called color and colorscale. Text is escaped here, because
plotly reads names and tick labels as markup. Numbers that are not positive have no place on a log axis and
are left out by plotly.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .course import BlockLoss
from .learned import ENDS, ClipMeans
from .words import by_width

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "pentagon")
COLORS = len(SYMBOLS)
LEAST_RANGE = 0.01  # of the colors of clip factors: less than this is not worth a contrast
_KL = "mean KL, log scale"
_SILENT = {"hoverinfo": "skip", "showlegend": False}


def quality(
    plans: Sequence[str],
    ours: Mapping[str, float],
    plain: Mapping[str, float],
    name: str = "this artifact",
    errors: Mapping[str, float] | None = None,
) -> go.Figure:
    """Mean KL of each plan as calibrated and as rounded to nearest, the two joined."""
    shown = [plan for plan in plans if plan in ours or plan in plain]
    labels = {plan: _text(plan) for plan in shown}
    both = [plan for plan in shown if plan in ours and plan in plain]
    x = [x for plan in both for x in (labels[plan], labels[plan], None)]
    y = [y for plan in both for y in (plain[plan], ours[plan], None)]
    line = {"color": _color("join"), "width": 4}
    data = [go.Scatter(mode="lines", x=x, y=y, line=line, **_SILENT)] if both else []
    for title, values, color, symbol, size in (
        ("round-to-nearest", plain, _color("plain"), "circle-open", 14),
        (name, ours, _color("ours"), "circle", 9),
    ):
        mine = [plan for plan in shown if plan in values]
        if not mine:
            continue
        x, y = [labels[plan] for plan in mine], [values[plan] for plan in mine]
        marker = {"color": color, "symbol": symbol, "size": size, "line": {"width": 2, "color": color}}
        hover = "%{x}: KL %{y:.3~g}"
        data.append(
            go.Scatter(mode="markers", name=_text(title), x=x, y=y, marker=marker, hovertemplate=hover)
        )
        if errors and values is ours:
            bars = [errors.get(plan, 0) for plan in mine]
            data[-1].error_y = {"type": "data", "array": bars, "color": color, "thickness": 1.5, "width": 3}
    order = list(labels.values())
    x_axis = {"type": "category", "categoryorder": "array", "categoryarray": order}
    x_axis["range"] = [-0.5, len(order) - 0.5]
    return _figure(data, x_axis, _log(_KL, [*ours.values(), *plain.values()]), 320)


def losses(series: Mapping[str, tuple[list[int], list[float]]]) -> go.Figure:
    """Loss of every pass, faint, and the mean of its neighbors over a tenth of the passes, by plan."""
    data = []
    for i, name in enumerate(by_width(series)):
        steps, values = series[name]
        color, symbol, smooth = _color(f"c{i % COLORS}"), SYMBOLS[i % COLORS], _smooth(values)
        ends = [0, len(steps) - 1] if len(steps) > 1 else [0]
        common = {"legendgroup": _text(name), "name": _text(name)}
        faint = {"color": color, "size": 4, "opacity": 0.4, "symbol": symbol}
        said = {"hovertemplate": "step %{x}: %{y:.3~g}", "showlegend": False}
        of_ends = {"x": [steps[k] for k in ends], "y": [smooth[k] for k in ends], "hoverinfo": "skip"}
        line, marker = {"color": color, "width": 0}, {"color": color, "size": 8, "symbol": symbol}
        data += [
            go.Scatter(mode="markers", x=steps, y=values, marker=faint, **said, **common),
            go.Scatter(mode="lines", x=steps, y=smooth, line=line | {"width": 2}, **_SILENT, **common),
            go.Scatter(mode="lines+markers", line=line, marker=marker, **of_ends, **common),
        ]
    x = {"title": {"text": "step"}, "rangemode": "tozero"}
    return _figure(data, x, _log(_KL, [y for _, values in series.values() for y in values]), 380)


def blocks(found: Mapping[str, BlockLoss]) -> go.Figure:
    """Loss of each block before (open) and after (filled) its tuning, by bit group."""
    labels = [_text(_number_of(name)) for name in found]
    if len(set(labels)) < len(labels):
        labels = list(map(_text, found))
    data = []
    groups = dict.fromkeys(g for loss in found.values() for g in (*loss.before, *loss.after))
    for i, group in enumerate(groups):
        color, symbol = _color(f"c{i % COLORS}"), SYMBOLS[i % COLORS]
        for when, dash, filling in (("before", "dot", "-open"), ("after", "solid", "")):
            data.append(
                go.Scatter(
                    mode="lines+markers",
                    name=_text(f"{group} {when}"),
                    x=labels,
                    y=[getattr(loss, when).get(group) for loss in found.values()],
                    line={"color": color, "width": 1.5, "dash": dash},
                    marker={"color": color, "size": 7, "symbol": symbol + filling},
                    hovertemplate=f"block %{{x}}, {when}: %{{y:.3~g}}",
                )
            )
    seen = [y for loss in found.values() for y in (*loss.before.values(), *loss.after.values())]
    return _figure(data, _blocks_axis(), _log("loss, log scale", seen), 380)


def clips(means: ClipMeans, end: int) -> go.Figure:
    """Mean clip factor of one end of the range, roles by blocks; both ends share their colors."""
    values = [*means.values(0), *means.values(1)]
    middle, half = (min(values) + max(values)) / 2, max((max(values) - min(values)) / 2, LEAST_RANGE / 2)
    trace = go.Heatmap(
        z=means.ends[end],
        x=list(map(str, means.blocks)),
        y=list(map(_text, means.roles)),
        zmin=middle - half,
        zmax=middle + half,
        xgap=1,
        ygap=1,
        colorscale=[[at / 2, _color(f"heat{at}")] for at in range(3)],
        colorbar={"thickness": 8, "outlinewidth": 0, "len": 1, "nticks": 5, "tickformat": ".3~f"},
        hovertemplate=f"%{{y}} of block %{{x}}: {ENDS[end]} %{{z:.3f}}<extra></extra>",
    )
    y = {"type": "category", "autorange": "reversed", "showgrid": False}
    figure = _figure([trace], _blocks_axis(showgrid=False, nticks=12), y, 90 + 20 * len(means.roles))
    return figure.update_layout(margin={"l": 44, "r": 8, "t": 6, "b": 40})


def _blocks_axis(**more: Any) -> dict[str, Any]:
    return {"title": {"text": "block"}, "type": "category"} | more


def _log(title: str, values: Sequence[float]) -> dict[str, Any]:
    """A log axis with ticks that read as numbers: 1, 2 and 5 of each decade, over many decades fewer."""
    axis: dict[str, Any] = {"type": "log", "title": {"text": title}}
    positive = [value for value in values if value > 0]
    if not positive:
        return axis
    low, high = math.floor(math.log10(min(positive))) - 1, math.ceil(math.log10(max(positive))) + 1
    decades = math.log10(max(positive) / min(positive))
    leading, every = ((1, 2, 5), 1) if decades < 3 else ((1,), 1 if decades < 9 else math.ceil(decades / 8))
    ticks = [digit * 10.0**power for power in range(low, high + 1, every) for digit in leading]
    return axis | {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def _figure(data: list, x: Mapping[str, Any], y: Mapping[str, Any], height: int) -> go.Figure:
    axis = {"fixedrange": True, "zeroline": False, "automargin": True}
    layout = go.Layout(
        template=None,
        height=height,
        margin={"l": 56, "r": 12, "t": 8, "b": 30},
        xaxis=axis | x,
        yaxis=axis | y,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemclick": "toggle"},
        hovermode="closest",
        dragmode=False,
    )
    return go.Figure(data, layout)


def _color(name: str) -> str:
    return f"var(--{name})"


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _smooth(values: Sequence[float]) -> list[float]:
    """Means over a window of a tenth of the values, narrower at the ends."""
    reach = max(1, len(values) // 20)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _number_of(block: str) -> str:
    last = block.rpartition(".")[2]
    return last if last.isdecimal() else block
