"""Exports: a plan in each format side by side, the file of one when it is made, and the lines that run it.

In:  `offers`, {"model": name, "rows": what `app.exports.offers` gives, "llama": what llama.cpp lacks here, ""
     where it runs}; `made`, a file in the making as `Exports.make` tells it, "path" being an address;
     `ran`, {"words": what llama.cpp showed, or why it did not run, "next": what it does now, if it is at it}.
     A handler returns one of them alone: `ExportTable(made=...)`.
Out: nothing as an input. Events, whose listeners take a gr.EventData and read it with `request_of`:
     `make`     {"format"}: the file of the plan on the faders is wanted;
     `run`      {}: the GGUF file that was made is to be run by llama.cpp here.
   A nearest plan goes to the equaliser inside the browser, as a budget's does.
"""

from __future__ import annotations

from typing import ClassVar

from gradio.events import EventListener

from app.components.widget import Widget


class ExportTable(Widget):
    """See the module's docstring."""

    NAME = "exports"
    SCRIPTS = ("dom.js", "plan.js")
    PROPS = ("offers", "made", "ran")

    EVENTS: ClassVar[list] = [
        EventListener("make", doc="Triggered when the visitor wants a file."),
        EventListener("run", doc="Triggered when the visitor wants llama.cpp to run the file."),
    ]
