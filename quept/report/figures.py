"""The charts, as plotly figures: `{"data": [...], "layout": {...}}`, plain values only.

Colours are names, "@ours" or "@c3": the page's script puts in those of the style sheet, light or dark, and
does so for nothing but the entries called color and colorscale. Text is escaped here, because plotly reads
names and tick labels as markup. Numbers that are not positive have no place on a log axis and are left out by
plotly.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .course import BlockLoss
from .learned import ENDS, ClipMeans
from .words import by_width

Figure = dict[str, Any]
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "pentagon")
COLOURS = len(SYMBOLS)
LEAST_RANGE = 0.01  # of the colours of clip factors: less than this is not worth a contrast
_KL = "mean KL, log scale"


def quality(
    plans: Sequence[str],
    ours: Mapping[str, float],
    plain: Mapping[str, float],
    name: str = "this artifact",
    errors: Mapping[str, float] | None = None,
) -> Figure:
    """Mean KL of each plan as calibrated and as plainly rounded, the two joined."""
    shown = [plan for plan in plans if plan in ours or plan in plain]
    labels = {plan: html.escape(plan, quote=False) for plan in shown}
    both = [plan for plan in shown if plan in ours and plan in plain]
    data: list[Figure] = []
    if both:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [x for plan in both for x in (labels[plan], labels[plan], None)],
                "y": [y for plan in both for y in (plain[plan], ours[plan], None)],
                "line": {"color": "@join", "width": 4},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    for title, values, colour, symbol, diameter in (
        ("plain rounding", plain, "@plain", "circle-open", 14),
        (name, ours, "@ours", "circle", 9),
    ):
        mine = [plan for plan in shown if plan in values]
        if not mine:
            continue
        trace: Figure = {
            "type": "scatter",
            "mode": "markers",
            "name": html.escape(title, quote=False),
            "x": [labels[plan] for plan in mine],
            "y": [values[plan] for plan in mine],
            "marker": {
                "color": colour,
                "symbol": symbol,
                "size": diameter,
                "line": {"width": 2, "color": colour},
            },
            "hovertemplate": "%{x}: KL %{y:.3~g}",
        }
        if errors and values is ours:
            bars = [errors.get(plan, 0) for plan in mine]
            trace["error_y"] = {"type": "data", "array": bars, "color": colour, "thickness": 1.5, "width": 3}
        data.append(trace)
    order = [labels[plan] for plan in shown]
    x = {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": order,
        "range": [-0.5, len(order) - 0.5],
    }
    return {"data": data, "layout": _layout(x, _log(_KL, [*ours.values(), *plain.values()]), 320)}


def losses(series: Mapping[str, tuple[list[int], list[float]]]) -> Figure:
    """Loss of every pass, faint, and the mean of its neighbours over a tenth of the passes, by plan."""
    data = []
    for i, name in enumerate(by_width(series)):
        steps, values = series[name]
        colour, label = f"@c{i % COLOURS}", html.escape(name, quote=False)
        common = {"type": "scatter", "x": steps, "legendgroup": label, "name": label}
        data.append(
            common
            | {
                "mode": "markers",
                "y": values,
                "marker": {"color": colour, "size": 4, "opacity": 0.4, "symbol": SYMBOLS[i % COLOURS]},
                "showlegend": False,
                "hovertemplate": "step %{x}: %{y:.3~g}",
            }
        )
        smooth = _smooth(values)
        ends = [0, len(steps) - 1] if len(steps) > 1 else [0]
        data.append(
            common
            | {"mode": "lines", "y": smooth, "line": {"color": colour, "width": 2}, "showlegend": False}
            | {"hoverinfo": "skip"}
        )
        data.append(
            common
            | {
                "mode": "lines+markers",
                "x": [steps[k] for k in ends],
                "y": [smooth[k] for k in ends],
                "line": {"color": colour, "width": 0},
                "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[i % COLOURS]},
                "hoverinfo": "skip",
            }
        )
    x = {"title": {"text": "step"}, "rangemode": "tozero"}
    return {
        "data": data,
        "layout": _layout(x, _log(_KL, [y for _, values in series.values() for y in values]), 380),
    }


def blocks(found: Mapping[str, BlockLoss]) -> Figure:
    """Loss of each block before (open) and after (filled) its tuning, by bit group."""
    names = list(found)
    labels = [html.escape(_number_of(name), quote=False) for name in names]
    if len(set(labels)) < len(labels):
        labels = [html.escape(name, quote=False) for name in names]
    groups = list(dict.fromkeys(g for loss in found.values() for g in (*loss.before, *loss.after)))
    data = []
    for i, group in enumerate(groups):
        colour, symbol = f"@c{i % COLOURS}", SYMBOLS[i % COLOURS]
        for when in ("before", "after"):
            values = [getattr(found[name], when).get(group) for name in names]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": html.escape(f"{group} {when}", quote=False),
                    "x": labels,
                    "y": values,
                    "line": {"color": colour, "width": 1.5, "dash": "dot" if when == "before" else "solid"},
                    "marker": {
                        "color": colour,
                        "size": 7,
                        "symbol": symbol + ("-open" if when == "before" else ""),
                    },
                    "hovertemplate": f"block %{{x}}, {when}: %{{y:.3~g}}",
                }
            )
    seen = [y for loss in found.values() for y in (*loss.before.values(), *loss.after.values())]
    x = {"title": {"text": "block"}, "type": "category"}
    return {"data": data, "layout": _layout(x, _log("loss, log scale", seen), 380)}


def clips(means: ClipMeans, end: int) -> Figure:
    """Mean clip factor of one end of the range, roles by blocks; both ends share their colours."""
    values = [*means.values(0), *means.values(1)]
    middle, half = (min(values) + max(values)) / 2, max((max(values) - min(values)) / 2, LEAST_RANGE / 2)
    trace = {
        "type": "heatmap",
        "z": means.ends[end],
        "x": [str(block) for block in means.blocks],
        "y": [html.escape(role, quote=False) for role in means.roles],
        "zmin": middle - half,
        "zmax": middle + half,
        "xgap": 1,
        "ygap": 1,
        "colorscale": [[0, "@heat0"], [0.5, "@heat1"], [1, "@heat2"]],
        "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "nticks": 5, "tickformat": ".3~f"},
        "hovertemplate": f"%{{y}} of block %{{x}}: {ENDS[end]} %{{z:.3f}}<extra></extra>",
    }
    x = {"type": "category", "title": {"text": "block"}, "showgrid": False, "nticks": 12}
    y = {"type": "category", "autorange": "reversed", "showgrid": False}
    layout = _layout(x, y, 90 + 20 * len(means.roles))
    return {"data": [trace], "layout": layout | {"margin": {"l": 44, "r": 8, "t": 6, "b": 40}}}


def _log(title: str, values: Sequence[float]) -> Figure:
    """A log axis with ticks that read as numbers: 1, 2 and 5 of each decade, over many decades fewer."""
    axis: Figure = {"type": "log", "title": {"text": title}}
    positive = [value for value in values if value > 0]
    if not positive:
        return axis
    low, high = math.floor(math.log10(min(positive))) - 1, math.ceil(math.log10(max(positive))) + 1
    decades = math.log10(max(positive) / min(positive))
    leading, every = ((1, 2, 5), 1) if decades < 3 else ((1,), 1 if decades < 9 else math.ceil(decades / 8))
    ticks = [digit * 10.0**power for power in range(low, high + 1, every) for digit in leading]
    return axis | {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def _layout(x: Figure, y: Figure, height: int) -> Figure:
    axis = {"fixedrange": True, "zeroline": False, "automargin": True}
    return {
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 8, "b": 30},
        "xaxis": axis | x,
        "yaxis": axis | y,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemclick": "toggle"},
        "hovermode": "closest",
        "dragmode": False,
    }


def _smooth(values: Sequence[float]) -> list[float]:
    """Means over a window of a tenth of the values, narrower at the ends."""
    reach = max(1, len(values) // 20)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _number_of(block: str) -> str:
    last = block.rpartition(".")[2]
    return last if last.isdecimal() else block
