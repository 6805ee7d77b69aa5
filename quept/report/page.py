"""The page: sections put into the template beside this file, written whole or not at all.

The template escapes all text; figures travel as JSON in which no "<" is left. On top of that the page forbids
itself, by a content security policy, to fetch anything, and to run any script but the two inlined here, which
it names by their hash. A page without charts does without the chart library.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2

from quept.artifact import Artifact
from quept.files import write_atomic
from quept.runtime.sizes import Sizes

from . import sections
from .ablation import Ablation
from .course import Course, read_course
from .measured import Measured, compared, read_results
from .parts import Chart, Gallery, Section

FOLDER = Path(__file__).parent


def write_report(
    artifact: str | Path,
    out: str | Path,
    results: Sequence[str | Path] = (),
    *,
    with_sizes: bool = False,
    progress: Callable[[str, float | None], None] | None = None,
) -> int:
    """Write the page about the artifact in a folder to the file `out`; returns its bytes.

    results: files as `measured` reads them. with_sizes: also open the base model, for the size of all of it.
    Raises ArtifactError, ResultsError, LoadError or OSError; `out` is then as it was."""
    opened = Artifact.open(artifact)
    read = [read_results(path, opened) for path in results]
    files = compared([found for found in read if isinstance(found, Measured)])
    ablations = [found for found in read if isinstance(found, Ablation)]
    sizes = _sizes(opened, progress) if with_sizes else None
    text = page(opened, read_course(artifact), files, sizes, ablations)
    return write_atomic(out, text)


def page(
    artifact: Artifact,
    course: Course | None = None,
    measured: Sequence[Measured] = (),
    sizes: Sizes | None = None,
    ablations: Sequence[Ablation] = (),
) -> str:
    """The HTML. The same values give the same text."""
    quality = sections.held_out_quality(artifact)
    found = [
        sections.what_it_is(artifact),
        sections.quality_section(artifact, course, quality),
        sections.measured_section(list(measured)),
        *map(sections.ablation_section, ablations),
        sections.sizes_section(artifact, sizes),
    ]
    if artifact.engine.learned:
        found.insert(3, sections.course_section(artifact, course))
        found += [sections.clips_section(artifact), sections.recipe_section(artifact)]
    return _render(sections.title(artifact), sections.summary(artifact, course, quality), found)


def _render(title: str, summary: str, found: list[Section]) -> str:
    charts = [chart for section in found for part in section.parts for chart in _charts(part)]
    scripts = [_plotly(), _beside("page.js")] if charts else []
    figures = json.dumps([chart.figure.to_plotly_json() for chart in charts], allow_nan=False)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_beside("page.html")).render(
        title=title,
        summary=summary,
        sections=found,
        style=_beside("page.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        figures=figures.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        number={id(chart): i for i, chart in enumerate(charts)},
        id=id,
    )


def _charts(part: object) -> list[Chart]:
    if isinstance(part, Gallery):
        return part.charts
    return [part] if isinstance(part, Chart) else []


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().replace("\r\n", "\n")
    if "</script" in script.lower() or "<!--" in script:
        raise RuntimeError("this version of plotly.js cannot be inlined in a page: install another")
    return script


def _beside(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _sizes(artifact: Artifact, progress: Callable[[str, float | None], None] | None) -> Sizes:
    from quept.models import load

    return Sizes.of(artifact.prepared(load(artifact.base, progress)), artifact)
