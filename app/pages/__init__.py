"""The pages of the app: a table, in the order of their tabs. A new one is a module with an entry here.

All pages lie in one workbench (`app.shell`), which holds the model, the plan, their numbers and the plot, and
stays in sight; a page shows what that plan does. What a page has of the workbench is its `PageContext`:

    context.model          the model that is open: as an input of a handler its name, which fits the plan
    context.plan           a gr.State: the visitor's plan of that model as JSON, for `service.plan_of`
    context.tried          a gr.State: the plans that were measured in this visit, as JSON, oldest first
    context.query          a gr.State: what the address said when the page was opened
    context.on_model(f, …)      a listener, as a component's event takes it: another model was chosen
    context.on_plan(f, …)       another plan, or another model: fires once, when model and plan hold both
    context.on_measured(f, …)   the plan was measured: `service.opened[model].stored(plan)` has it
    context.chart          an output of a handler that returns `Chart(own=[{"id", "label", "bytes", a
                           metric's name: value, ...}])`: points of the visitor's own (a conversation,
                           their pictures), which stay until the model is another one

The model may be one that the page is not for: then its pane shows why, and a listener does nothing (the model
is not in `context.held`). In the browser the equaliser tells every change by the DOM event quept:predict, see
components/equalizer.js; while the visitor drags nothing is sent, so what a page asks Python for waits until
`detail.dragging` is false.
"""

from __future__ import annotations

from app.pages.about import PAGE as ABOUT
from app.pages.ask import PAGE as ASK
from app.pages.chat import PAGE as CHAT
from app.pages.classify import PAGE as CLASSIFY
from app.pages.compare import PAGE as COMPARE
from app.pages.context import Page
from app.pages.export import PAGE as EXPORT
from app.pages.layers import PAGE as LAYERS

PAGES: tuple[Page, ...] = (CHAT, CLASSIFY, ASK, LAYERS, COMPARE, EXPORT, ABOUT)
