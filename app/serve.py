"""Build the pages over a service and serve them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr

from app.border import KEPT_S, guarded
from app.fair_queue import share_out
from app.link import ASK, CLASSIFY
from app.measured_on import Sample
from app.service import Service
from app.splash import Splash
from app.tabs import ask, classify
from app.tabs.about import build_about
from app.tabs.ask import build_ask
from app.tabs.chat import CSS as CHAT_CSS
from app.tabs.chat import HEAD, build_chat
from app.tabs.classify import build_classify
from app.tabs.explore import LIGHT, build_explore
from app.toast import shown
from quept import load, zoo
from quept.artifact import resolve_source
from quept.evaluate import Results
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
    if any(elastic.kind == "language" for elastic in models.values()):
        progress("Reading the evaluation text", None)
        sample = Sample(zoo.text(TEXT, progress), zoo.TEXTS[TEXT].title)
    service = Service(models, sample, Results.open(cache / "results.sqlite"), cache)
    progress("Drawing the pages", None)
    gc.collect()
    gc.freeze()  # what is loaded stays: without this a collection stops every visitor for some 150 ms
    return service


def build_app(service: Service) -> gr.Blocks:
    """The whole app as Blocks; pass `launch_options()` to its launch."""
    names = list(service.models)
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=UPLOADS_KEPT) as demo:
        kinds = {elastic.kind for elastic in service.models.values()}
        with gr.Row(elem_id="masthead"):
            opened_once = "one model open" if len(kinds) == 1 else "models opened once"
            title = service.models[names[0]].title if len(names) == 1 else ""
            what = title or f"{opened_once}, any precision a drag away"
            gr.Markdown(f"# QuEPT precision explorer\n{shown(what)}", elem_id="title")
            model = gr.Dropdown(
                [(service.models[name].title, name) for name in names],
                value=names[0],
                visible=len(names) > 1,
                show_label=False,
                container=False,
                elem_id="model",
                filterable=False,
                min_width=220,
            )
        query = gr.State(None)  # of the page's address when it was opened
        with gr.Tabs(elem_id="tabs") as tabs:
            with _page("Explore", "") as tab:
                pages = ["explore"]
                explore = build_explore(service, model, tab)
            if "language" in kinds:
                with _page("Chat", "chat", interactive=_can_chat(service, names[0])) as chat:
                    pages.append("chat")
                    build_chat(service, model, explore.plan)
            if classify.classifiers(service):
                with _page("Classify", CLASSIFY) as tab:
                    pages.append(CLASSIFY)
                    build_classify(service, tab, explore, query)
            if ask.answerers(service):
                with _page("Ask", ASK) as tab:
                    pages.append(ASK)
                    build_ask(service, tab, explore, query)
            with _page("About", "about"):
                pages.append("about")
                build_about(service)
        if "language" in kinds and len(kinds) > 1:

            def chosen(name: str):
                can = _can_chat(service, name)
                return gr.Tab(interactive=can), gr.skip() if can else gr.Tabs(selected="explore")

            model.change(chosen, model, [chat, tabs], **LIGHT)

        def opened(request: gr.Request):
            asked = {key: str(value)[:2000] for key, value in request.query_params.items()}
            return gr.Tabs(selected=asked["p"]) if asked.get("p") in pages else gr.skip(), asked

        demo.load(opened, None, [tabs, query], **LIGHT)
    demo.queue(default_concurrency_limit=16)
    share_out(demo)
    return demo


def _page(label: str, name: str, **options) -> gr.Tab:
    """A tab, and who else knows that it is in sight: before anything that Python does then."""
    tab = gr.Tab(label, id=name or "explore", **options)
    tab.select(None, None, None, js=SEEN_JS % name, trigger_mode="multiple")
    return tab


def _can_chat(service: Service, model: str) -> bool:
    return service.models[model].kind == "language"


def launch(service: Service, splash: Splash, host: str, public: bool = False) -> None:
    """Hand the port over from the loading screen and serve until interrupted. public: under any host name."""
    guard = guarded(host, public)  # first: components keep the folder of uploads
    demo = build_app(service)
    splash.step("Ready")
    splash.stop()
    demo.launch(
        server_name=host,
        server_port=splash.port,
        theme=THEME,
        css=STYLE.read_text() + CHAT_CSS + classify.CSS + ask.CSS,
        head=HEAD,
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
