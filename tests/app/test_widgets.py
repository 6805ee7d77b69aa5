"""The widgets: each is one script made of several files, and takes the arguments that all of them take."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import gradio as gr
import pytest

from app import components
from app.components.widget import FOLDER, Widget

for file in Path(components.__file__).parent.glob("*.py"):
    importlib.import_module(f"app.components.{file.stem}")
WIDGETS = sorted(Widget.__subclasses__(), key=lambda kind: kind.__name__)


def made(kind: type[Widget], **options) -> Widget:
    described = {"description": {"layers": [], "bits": [4, 16]}} if "description" in kind.PROPS else {}
    return kind(render=False, **described, **options)


@pytest.mark.parametrize("kind", WIDGETS, ids=lambda kind: kind.NAME)
def test_no_two_of_its_scripts_declare_one_name(kind: type[Widget]):
    script = "\n".join((FOLDER / name).read_text() for name in (*kind.SCRIPTS, f"{kind.NAME}.js"))
    names = re.findall(r"^(?:const|let|(?:async )?function) (\w+)", script, re.MULTILINE)
    assert names and max(Counter(names).values()) == 1


@pytest.mark.parametrize("kind", WIDGETS, ids=lambda kind: kind.NAME)
def test_it_takes_what_all_take_and_refuses_what_none_takes(kind: type[Widget]):
    widget = made(kind, elem_id="here", scale=2, visible=False)
    assert (widget.elem_id, widget.scale, widget.visible) == ("here", 2, False)
    with pytest.raises(TypeError, match="no argument 'scael'"):
        made(kind, scael=2)
    assert isinstance(widget, gr.HTML) and set(kind.PROPS) == set(widget.props)


@pytest.mark.parametrize("kind", WIDGETS, ids=lambda kind: kind.NAME)
def test_what_draws_it_stands_in_a_file_and_not_in_the_pages_configuration(kind: type[Widget]):
    assert len(made(kind).js_on_load) < 800  # times 32, of the 300 KB that the configuration may have
