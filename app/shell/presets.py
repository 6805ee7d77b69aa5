"""The row of presets above an equaliser: a button for each uniform width, and a menu of named plans."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from app.service import Service
from quept.plan import FULL, QUANTIZED_BITS, PrecisionPlan


@dataclass
class Presets:
    """uniform: buttons by the name of their plan. named: a menu whose values are names, "" for none."""

    uniform: dict[str, gr.Button]
    named: gr.Dropdown


def build_presets(service: Service, model: str) -> Presets:
    """Draw the row."""
    with gr.Row(elem_id="presets", elem_classes="presets"):
        uniform = {}
        for bits in (FULL, *reversed(QUANTIZED_BITS)):
            short = "Full" if bits == FULL else f"W{bits}"
            uniform[PrecisionPlan.uniform(bits).name] = gr.Button(
                short, size="sm", min_width=48, elem_id=f"preset-{short}"
            )
        named = gr.Dropdown(
            named_choices(service, model),
            value="",
            show_label=False,
            container=False,
            elem_id="preset-named",
            elem_classes="preset-named",
            min_width=200,
            allow_custom_value=False,
            filterable=False,
        )
    return Presets(uniform, named)


def named_choices(service: Service, model: str) -> list[tuple[str, str]]:
    opened = service.opened[model]
    return [("Named plans…", "")] + [(plan.name, plan.name) for plan in [*opened.best, *opened.presets]]
