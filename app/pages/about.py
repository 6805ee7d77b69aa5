"""The About page: what is shown, where the model comes from, what the numbers mean and where they stop."""

from __future__ import annotations

import gradio as gr

from app.pages.context import Page, PageContext
from app.service import Service
from app.space import ON_ZERO, on_zero
from app.toast import shown
from quept.artifact import resolve_source
from quept.report.ablation import EXPLAINED, read_ablation

METHOD = """
### What this is
One transformer is opened **once**. Every linear layer can run at 2 to 8 bits, or untouched at 16, each
on its own, and so can the token embeddings together with the output head; a precision is a value that
is passed along with each request, so visitors never see each other's. Moving a fader changes which
stored weights a layer reads, nothing is calibrated again.

Weights are rounded to an asymmetric grid with one 16-bit scale and one zero-point per group of columns (8
bits are symmetric). Activation bits round each token's input to a layer on a dynamic symmetric grid. KV
bits store the attention cache itself at that width, of all blocks or of each at its own. A budget with a
context ("90 MB with 2,048 tokens") weighs them against the weights' bits where both were measured.

A *calibrated* model was prepared once for all widths together, by [QuEPT](https://arxiv.org/abs/2602.12609):
each layer has one small adapter, of which lower widths use more, and learned ends of the range for each
width. Both are worked into a weight before it is rounded, so they cost nothing when the model runs. Without
calibration weights are rounded to nearest (*rtn*), the baseline that every calibrated width had to beat.

A model with *nested codes* and routers ([MoBiQuant](https://arxiv.org/abs/2602.20191)) keeps one 8-bit code
for each weight, whose leading 2, 4 or 6 bits are the coarser model, and a router chooses how many are read:
token by token, in each group of layers. An average of bits per token says what is *read*; all 8 bits, and the
routers, are always *kept*. Nesting fixes the codes of low widths by those of 8 bits, so what 2 and 4 bits
learn is how codes are read, and a small correction that is read with them.

### What the numbers mean
- **Deploy memory** counts the bytes of packed codes, scales and zero-points of this plan, and 2 bytes
  for every parameter that stays as it is (norms, and embeddings left at 16 bits). An exported plan has
  exactly these bytes. **Bits per parameter** is that, times eight, over all parameters.
- **Held by this app** is the memory of the whole process now, whatever for: every model that is open, at
  every precision that was asked for lately. Weights lie in it as packed codes, as a deployed model has them.
- **Tokens a second** are *measured* by answering one question at a plan, or *predicted* for another plan from
  its bytes, along the line through the plans measured so far.
- **Predicted** numbers add up how much each layer alone hurts at its width (the map *only this layer low*
  shows it), and read the sum off a curve measured on whole plans. They ignore how layers interact. There are
  none for KV, embedding and activation bits that were not measured; a note says so then.
- **A budget** is met by the plan with the least predicted harm, found exactly. Predictions err at few bits,
  so *Refine* measures whole plans of the same bytes for a minute, on text that the numbers here are not of,
  and keeps the best only if it is still the best on further text. *Best* plans were found the same way, with
  more time.
- **Accuracy** of a classifier of pictures is the share of labelled pictures whose likeliest class is their
  label, with Wilson's 95 % interval. What a plan did to it is far better known than the accuracy itself,
  because both see the same pictures: so many answers became wrong, so many right. *Same answer* is how often
  both say the same.
- **Measured** numbers come from running the plan: perplexity, and divergence (mean KL over the vocabulary)
  from the full-precision model in float32, with standard errors. *Same top token* is how often both put the
  same token first.

### Your pictures
A picture that you give is read once, made small and kept in memory until you leave the page; its file is
removed within a second or two, and no other visitor sees it. A drawing leaves your browser when you ask
about it, and is kept likewise.

### Limits
Perplexity and divergence are measured on a few thousand tokens of Wikipedia text, accuracy on the pictures
that come with the model: good for comparing plans, not a verdict on a task. Speed here is this machine's,
one answer at a time: packed codes are multiplied for each token, while prompts and measurements unpack one
layer after the other. Without a C compiler all is multiplied dense, and fewer bits make nothing faster.
"""

PROGRAMS = """### For programs
Five named endpoints answer without the page (`pip install gradio_client`); a *plan* is a name, "W4" or
"best 5 bits", or the text of a plan file.

```
from gradio_client import Client
app = Client("http://127.0.0.1:7860")
model = app.predict(api_name="/models")[0]["name"]
plan = app.predict(model, "75 MB", api_name="/plan_for_budget")["plan"]
app.predict(model, plan, api_name="/measure")           # metrics with intervals, and their conditions
app.predict(model, plan, "What is a prime?", api_name="/generate")   # + max_tokens, temperature, seed
app.predict("fashion-vit", "W4", picture, api_name="/classify")      # a PNG or JPEG as base64
```
"""


def ablations(service: Service) -> str:
    """Which part of a calibration pays, for each model that it was measured of."""
    tables = {}
    for card in service.cards.values():
        source = resolve_source(card.source)
        if read := read_ablation(source.beside("ablation.json")):
            tables[source.base] = f"**{shown(source.base)}**\n\n{read.markdown}\n\n{shown(read.note)}"
    if not tables:
        return ""
    return f"\n### What each part of a calibration wins\n{EXPLAINED}\n\n" + "\n\n".join(tables.values())


def build(context: PageContext) -> None:
    """Draw the page."""
    service = context.service
    models = "\n".join(
        f"- **{shown(card.title)}**: {shown(card.provenance)}" for card in service.cards.values()
    )
    conditions = "\n".join(
        f"- {shown(opened.elastic.title)}: {shown(opened.conditions())}"
        for opened in service.opened.made.values()
    )
    here = f"\n### Where this runs\n{ON_ZERO}.\n" if on_zero() else ""
    gr.Markdown(
        f"{METHOD}\n{PROGRAMS}\n### The models here\n{models}\n\n### Measured on\n{conditions}\n"
        f"{ablations(service)}{here}",
        elem_id="about",
    )


PAGE = Page("about", "About", build)
