"""Build the pages over a service and serve them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.border import KEPT_S, guarded
from app.fair_queue import share_out
from app.pages import PAGES
from app.pages.context import LIGHT, Page, model_menu
from app.service import Service
from app.splash import Splash
from app.toast import shown
from quept import load, zoo
from quept.artifact import resolve_source
from quept.evaluate import Results, Sample
from quept.evaluate.tasks import fitting
from quept.runtime import ElasticModel

STYLE = Path(__file__).parent / "style.css"
TITLE = "QuEPT · precision explorer"
TEXT = "boolq-passages"
THREADS = 200  # jobs wait at the gate in a thread each; one that waits must not keep a light one out
UPLOADS_KEPT = (60, KEPT_S)  # every so many seconds files go that came so long ago and that nobody took
# The address and the masthead know which page is in sight, and the equaliser of that page hears of it.
SEEN_JS = """() => {
  const name = "%s", url = new URL(location.href), first = !window.queptSeen;
  window.queptSeen = true;
  if (first && !name) return; // the page that everybody begins with
  if (name) url.searchParams.set("p", name);
  else url.searchParams.delete("p");
  history.replaceState(history.state, "", url.href);
  document.getElementById("masthead").dataset.page = name;
  document.dispatchEvent(new CustomEvent("quept:page", { detail: name }));
}"""
THEME = gr.themes.Soft(
    primary_hue="indigo",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)


def open_service(
    sources: Sequence[str], budget: int, progress: Callable[[str, float | None], None]
) -> Service:
    """Open every model and prepare its measurements; raises in words."""
    cache, bases = zoo.cache_dir(), {}
    models: dict[str, ElasticModel] = {}
    found = list(map(resolve_source, sources))
    shares = [source.entry.share if source.entry else 1.0 for source in found]
    for source, share in zip(found, shares, strict=True):
        progress(f"Opening {source.name}", None)
        if source.base not in bases:  # artifacts of one model share its weights
            bases[source.base] = load(source.base, progress)
        models[source.name] = ElasticModel.open(
            source.asked, budget=int(budget * share / sum(shares)), base=bases[source.base]
        )
    sample = Sample("", "")
    if any("text" in fitting(elastic) for elastic in models.values()):
        progress("Reading the evaluation text", None)
        sample = Sample(zoo.text(TEXT, progress), zoo.TEXTS[TEXT].title)
    service = Service(models, sample, Results.open(cache / "results.sqlite"), cache)
    progress("Drawing the pages", None)
    gc.collect()
    gc.freeze()  # what is loaded stays: without this a collection stops every visitor for some 150 ms
    return service


def build_app(service: Service, pages: Sequence[Page] = PAGES) -> gr.Blocks:
    """The whole app as Blocks: those of the pages that show a model that is open; serve it with `launch`'s
    options."""
    names = list(service.models)
    pages = [page for page in pages if page.models(service)]
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=UPLOADS_KEPT) as demo:
        with gr.Row(elem_id="masthead"):
            bases = {elastic.source for elastic in service.models.values()}
            opened_once = "one model open" if len(bases) == 1 else "models opened once"
            title = service.models[names[0]].title if len(names) == 1 else ""
            what = title or f"{opened_once}, any precision a drag away"
            gr.Markdown(f"# QuEPT precision explorer\n{shown(what)}", elem_id="title")
            model = model_menu(service, names, "model")
        query = gr.State(None)  # of the page's address when it was opened
        plan = gr.State(service.plan_json_of(names[0], service.start(names[0])))
        drawn: dict[str, Any] = {}
        followers: dict[gr.Tab, Page] = {}
        with gr.Tabs(elem_id="tabs") as tabs:
            for page in pages:
                within_reach = not page.follows or page.shows(service.models[names[0]])
                with gr.Tab(page.label, id=page.id, interactive=within_reach) as tab:
                    seen = SEEN_JS % ("" if page is pages[0] else page.id)  # before anything that Python does
                    tab.select(None, None, None, js=seen, trigger_mode="multiple")
                    shell = {"model": model, "plan": plan, "query": query, "tab": tab, "drawn": drawn}
                    drawn[page.id] = page.build(page.context(service, **shell))
                if page.follows and len(page.models(service)) < len(names):
                    followers[tab] = page

        def chosen(name: str):
            reach = [page.shows(service.models[name]) for page in followers.values()]
            return *map(_reach, reach), gr.skip() if all(reach) else gr.Tabs(selected=pages[0].id)

        if followers:
            model.change(chosen, model, [*followers, tabs], **LIGHT)

        def opened(request: gr.Request):
            asked = {key: str(value)[:2000] for key, value in request.query_params.items()}
            known = asked.get("p") in {page.id for page in pages}
            return gr.Tabs(selected=asked["p"]) if known else gr.skip(), asked

        demo.load(opened, None, [tabs, query], **LIGHT)
    demo.queue(default_concurrency_limit=16)
    share_out(demo)
    return demo


def _reach(within: bool) -> gr.Tab:
    return gr.Tab(interactive=within)


def look(pages: Sequence[Page] = PAGES) -> dict[str, Any]:
    """Theme, style and head, as Blocks.launch takes them."""
    css = "".join([STYLE.read_text(encoding="utf-8"), *(page.css for page in pages)])
    return {"theme": THEME, "css": css, "head": "".join(page.head for page in pages)}


def launch(service: Service, splash: Splash, host: str, public: bool = False) -> None:
    """Hand the port over from the loading screen and serve until interrupted. public: under any host name."""
    guard = guarded(host, public)  # first: components keep the folder of uploads
    demo = build_app(service)
    splash.step("Ready")
    splash.stop()
    demo.launch(
        server_name=host,
        server_port=splash.port,
        **look(),
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="10mb",
        max_threads=THREADS,
        app_kwargs=guard,
        allowed_paths=[],
        share=False,
        quiet=False,
        footer_links=[],
    )
