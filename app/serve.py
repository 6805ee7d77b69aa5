"""Build the pages over a service and serve them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr

from app.service import Sample, Service
from app.splash import Splash
from app.tabs.about import build_about
from app.tabs.chat import CSS as CHAT_CSS
from app.tabs.chat import HEAD, build_chat
from app.tabs.explore import build_explore
from quept import load, zoo
from quept.artifact import split
from quept.evaluate import Results
from quept.runtime import ElasticModel

STYLE = Path(__file__).parent / "style.css"
TITLE = "QuEPT · precision explorer"
TEXT = "boolq-passages"
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
    for source in sources:
        base = split(source)[0]
        name = source if base in zoo.MODELS else Path(source).name
        progress(f"Opening {name}", None)
        if base in zoo.MODELS and base not in bases:  # artifacts of one model share its weights
            bases[base] = load(base, progress)
        models[name] = ElasticModel.open(
            source, budget=budget // len(sources), progress=progress, base=bases.get(base)
        )
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
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False) as demo:
        with gr.Row(elem_id="masthead"):
            what = (
                service.models[names[0]].title
                if len(names) == 1
                else "one model open, any precision a drag away"
            )
            gr.Markdown(f"# QuEPT precision explorer\n{what}", elem_id="title")
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
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Explore", id="explore"):
                explore = build_explore(service, model)
            with gr.Tab("Chat", id="chat"):
                build_chat(service, model, explore.plan)
            with gr.Tab("About", id="about"):
                build_about(service)
    demo.queue(max_size=64, default_concurrency_limit=16)
    return demo


def launch(service: Service, splash: Splash, host: str) -> None:
    """Hand the port over from the loading screen and serve until interrupted."""
    demo = build_app(service)
    splash.step("Ready")
    splash.stop()
    demo.launch(
        server_name=host,
        server_port=splash.port,
        theme=THEME,
        css=STYLE.read_text() + CHAT_CSS,
        head=HEAD,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="10mb",
        allowed_paths=[],
        share=False,
        quiet=False,
        footer_links=[],
    )
