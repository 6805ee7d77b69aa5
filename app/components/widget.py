"""Widget: a gr.HTML whose script and style are files beside the class, and whose value is data, not HTML.

A subclass names its files in `NAME` (its style is NAME.css, laid after widget.css and `STYLES`, its script
NAME.js, run after `SCRIPTS`), its events in `EVENTS`, its properties beside the value in `PROPS`, and in
`EMPTY` what it shows before anything else. The browser fetches the files when the first widget that needs
them is drawn, and keeps them: written into the page's configuration they were half of it. Two rules keep a
page safe and whole: templates are constant text (Gradio runs any `${...}` it finds in one; the scripts write
what comes from outside with textContent only), and a constructor argument that is a prop has the prop's name,
so that a component returned from an event handler reaches the browser unchanged.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import gradio as gr

FOLDER = Path(__file__).parent
# Runs once per widget drawn; widget.js does the work.
LOADER = """const { root = ".", api_prefix = "/gradio_api" } = window.gradio_config ?? {};
const base = new URL(`${root.replace(/\\/$/, "")}${api_prefix}/file=%(folder)s/`, document.baseURI).href;
const at = (file) => `${base}${file}?%(stamp)s`;
const given = { element, trigger, props, server, upload, watch };
import(at("widget.js")).then(({ draw }) => draw(at, given, %(files)s)).catch((error) => {
  element.querySelector(".widget").textContent = "This part of the page could not be shown: reload the page.";
  throw error;
});
"""


@cache
def served() -> dict[str, str]:
    """Where a browser finds the scripts and styles of this folder, and a stamp that changes with them."""
    files = sorted(file for kind in ("js", "css") for file in FOLDER.glob(f"*.{kind}"))
    gr.set_static_paths(files)
    text = b"".join(file.read_bytes() for file in files)
    return {"folder": quote(FOLDER.as_posix()), "stamp": hashlib.sha256(text).hexdigest()[:16]}


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity, which JSON cannot say, replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Widget(gr.HTML):
    """gr.HTML without its guessing: only the names in `EVENTS` are events.

    gr.HTML makes an event listener of every quoted word in its script: one that says "description" has an
    event of that name, and the listener would end up in the page's configuration, which must be JSON.
    """

    NAME: ClassVar[str] = ""
    SCRIPTS: ClassVar[tuple[str, ...]] = ()
    STYLES: ClassVar[tuple[str, ...]] = ()
    PROPS: ClassVar[tuple[str, ...]] = ()
    EMPTY: ClassVar[dict[str, Any]] = {}
    EVENTS: ClassVar[list] = []

    def __init__(
        self,
        value: Any = None,
        *,
        attributes: str = "",
        visible: bool = True,
        elem_id: str | None = None,
        elem_classes: list[str] | str | None = None,
        scale: int | None = None,
        min_width: int | None = None,
        render: bool = True,
        key: int | str | None = None,
        **props: Any,
    ):
        """
        Parameters:
            value: what it shows; None shows that there is nothing yet.
            attributes: further ones of the outermost element, as HTML.
            props: those that PROPS names.
        """
        unknown = set(props) - set(self.PROPS)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {sorted(unknown)[0]!r}")
        named = [elem_classes] if isinstance(elem_classes, str) else elem_classes or []
        files = {
            "name": self.NAME,
            "styles": ["widget.css", *self.STYLES, f"{self.NAME}.css"],
            "scripts": [*self.SCRIPTS, f"{self.NAME}.js"],
        }
        super().__init__(
            value,
            html_template=f'<div class="widget {self.NAME.replace("_", "-")}"{attributes}></div>',
            js_on_load=LOADER % (served() | {"files": json.dumps(files)}),
            apply_default_css=False,
            visible=visible,
            elem_id=elem_id or self.NAME,
            elem_classes=[*named, f"widget-{self.NAME}"],
            scale=scale,
            min_width=min_width,
            render=render,
            key=key,
            **{name: finite(props.get(name)) for name in self.PROPS},
        )

    def __getattr__(self, name: str):
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def preprocess(self, payload: Any) -> Any:
        """None: it only shows, and whatever the browser sends back is not used."""
        return None

    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """The value as JSON."""
        return dict(self.EMPTY if value is None else value)

    def api_info(self) -> dict[str, Any]:
        title = self.NAME.replace("_", " ")
        return {"type": "object", "title": title, "description": "shown only; what is sent is ignored"}

    def example_payload(self) -> Any:
        return dict(self.EMPTY)

    def example_value(self) -> Any:
        return dict(self.EMPTY)
