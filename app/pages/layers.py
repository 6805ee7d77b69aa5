"""The Layers page: which layers are fragile, as measured one by one; and what published rules of thumb are
worth on this model."""

from __future__ import annotations

import gradio as gr

from app.components.heatmap import HeatMap
from app.open_model import OpenModel
from app.pages.context import LIGHT, Page, PageContext
from app.toast import shown

RULES = """### Rules of thumb on trial

Each rule places the bits of the layers at the sizes of uniform plans, embeddings untouched; then the plan is
measured whole. *Wasted*: how many bits a weight less measured sensitivities need for the same KL. *Ranks*:
how well the rule orders the layers by what they cost at 3 bits, as a rank correlation.

"""

SCROLLS = '<div class="scrolls" role="region" aria-label="Rules of thumb on trial" tabindex="0">'


def verdicts(opened: OpenModel) -> str:
    """What the trial of rules that comes with a model found, as Markdown; "" where there is none."""
    trial = opened.rules
    if trial is None:
        return ""
    measured = trial["rules"]["measured"]["front"]
    heads = ["Rule", "Ranks", "Wasted, bits", "Takes, s", *(f"KL at {bits:g} bits" for bits, *_ in measured)]
    rows = [heads, ["---"] * len(heads)]
    for name, found in sorted(trial["rules"].items(), key=lambda row: row[1]["wasted"]):
        at = {bits: kl for bits, _, kl in found["front"]}
        ranks = "" if found["correlation"] is None else f"{found['correlation']:.2f}"
        kls = [f"{at[bits]:.3g}" if bits in at else "" for bits, *_ in measured]
        rows.append([shown(name), ranks, f"{found['wasted']:.2f}", f"{found['seconds']:.0f}", *kls])
    on = trial["conditions"]
    unit = on.get("unit", "tokens")
    said = f"\n\nKL on {on['tokens']:,} {unit} of {shown(on['text'])}; rules read {shown(on['read'])}."
    sources = "; ".join(f"*{shown(name)}*: {shown(rule['source'])}" for name, rule in trial["rules"].items())
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{RULES}{SCROLLS}\n\n{table}\n\n</div>{said}\n\n{sources}."


def build(context: PageContext) -> None:
    """Draw the page and wire it."""
    opened = context.service.opened
    heatmap = HeatMap(elem_id="heatmap")  # a tenth of the page's configuration: it comes when it is looked at
    rules = gr.Markdown(elem_id="rules")

    def heat(model: str) -> tuple[dict, str]:
        return opened[model].heat, verdicts(opened[model])

    context.tab.select(heat, context.model, [heatmap, rules], **LIGHT)
    context.on_model(heat, context.model, [heatmap, rules], **LIGHT)


PAGE = Page("layers", "Layers", build)
