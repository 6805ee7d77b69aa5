"""The table of pages: a new page is one module with one entry, and the app knows none by its name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from app import serve
from app.pages import PAGES
from app.pages.about import ablations
from app.pages.layers import verdicts
from app.serve import build_app, entry, look
from app.service import Sample, Service
from quept.evaluate import Results
from quept.runtime import ElasticModel

TOY = """
import gradio as gr
from app.pages.context import LIGHT, Page

def build(context):
    word = gr.Textbox(elem_id="toy-word")
    said = gr.Textbox(elem_id="toy-said")
    word.submit(lambda name, word: f"{name}: {word}", [context.model, word], said, **LIGHT)
    return said

PAGE = Page("toy", "Toy", build, kinds=(KIND,), head="<meta name=toy>")
"""


def toy(folder: Path, kind: str = "language"):
    file = folder / "toy.py"
    file.write_text(TOY.replace("KIND", repr(kind)))
    spec = importlib.util.spec_from_file_location("toy", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGE


@pytest.fixture
def service(elastic: ElasticModel, tmp_path: Path) -> Service:
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    return Service({"tiny": elastic}, sample, Results.open(tmp_path / "results.sqlite"), tmp_path)


def tabs(demo: gr.Blocks) -> list[str]:
    return [block.id for block in demo.blocks.values() if isinstance(block, gr.Tab)]


def test_a_page_is_one_module_and_one_entry(service: Service, tmp_path: Path):
    pages = (*PAGES, toy(tmp_path))
    demo = build_app(service, pages)
    assert tabs(demo) == ["chat", "layers", "compare", "export", "about", "toy"]
    (said,) = [n for n, block in demo.blocks.items() if getattr(block, "elem_id", None) == "toy-said"]
    (handler,) = [fn for fn in demo.fns.values() if said in [block._id for block in fn.outputs]]
    assert handler.fn("tiny", "hello") == "tiny: hello"
    assert look(pages)["head"] == look()["head"] + "<meta name=toy>"


def test_about_has_a_table_for_each_model_that_was_taken_apart():
    def of(*sources: str) -> str:
        return ablations(SimpleNamespace(cards={name: SimpleNamespace(source=name) for name in sources}))

    assert of("efficientnet-lite0") == ""
    said = of("smollm2-135m", "smollm2-135m:mobiquant")
    assert said.count("| as published |") == 1
    assert "| calibrated | W8 | W6 | W4 | W3 | W2 | minutes | MB |" in said


def test_a_page_for_models_that_are_not_open_is_left_out(service: Service, tmp_path: Path):
    left = tabs(build_app(service, (*PAGES, toy(tmp_path, "vision"))))
    assert left == ["chat", "layers", "compare", "export", "about"]


def test_no_handler_has_what_components_hold_copied_for_its_progress(service: Service):
    events = build_app(service).get_config_file()["dependencies"]
    called = [event for event in events if event["targets"]]  # the others are the API's
    shown = [event["show_progress_on"] for event in called if event["outputs"]]
    assert len(shown) > 40 and all(one == [] for one in shown)


def test_every_page_brings_its_own_style():
    css = look()["css"]
    assert all(page.css in css for page in PAGES) and sum(bool(page.css) for page in PAGES) == 5


def test_the_app_knows_no_page_by_its_name():
    source = Path(serve.__file__).read_text().replace("explorer", "")
    assert not [page.id for page in PAGES if re.search(rf"\b{page.id}\b", source)]


def test_the_layers_page_shows_what_rules_of_thumb_are_worth():
    opened = SimpleNamespace(rules=None)
    assert verdicts(opened) == ""
    fronts = {"measured": (0.0, 0.2), "edges": (0.4, 0.3)}
    rules = {
        name: {"source": "us", "correlation": 0.5, "front": [[3.0, 9, kl]], "wasted": wasted, "seconds": 1.0}
        for name, (wasted, kl) in fronts.items()
    }
    conditions = {"tokens": 2048, "text": "words", "read": "512 tokens of others"}
    opened.rules = {"rules": rules, "conditions": conditions}
    table = verdicts(opened)
    assert "| edges | 0.50 | 0.40 | 1 | 0.3 |" in table and "KL at 3 bits" in table
    assert table.index("| measured") < table.index("| edges")


def test_the_menu_says_what_a_calibration_is():
    assert entry("Tiny · cnn-weight-only") == "Tiny · cnn-weight-only: bits of the weights"
    assert entry("Tiny") == "Tiny"
