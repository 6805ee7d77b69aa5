"""The page about an artifact: what it says, what it leaves out, and that text from files stays text."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from quept.artifact import Artifact, ArtifactError, Manifest
from quept.cli import main
from quept.cli.report import report_parser
from quept.config import Recipe
from quept.engines.quept import LayerParameters, Quept
from quept.evaluate.results import ResultsError
from quept.models import load
from quept.numerics.adapters import RankSchedule
from quept.plan import PrecisionPlan
from quept.report import write_report
from quept.report.course import Course, read_course
from quept.report.figures import blocks, losses
from quept.report.learned import bytes_by_kind, clip_means, place, shapes
from quept.report.measured import BASE, OTHER, THIS, UNSAID, compared, read_results
from quept.report.page import page
from quept.report.recipe import as_toml
from quept.report.words import by_width, duration, short, size
from quept.runtime.sizes import Sizes
from tests.tiny import save_tiny

SCHEDULE = RankSchedule(((7, 8), (5, 6), (3, 4), (2,)), (0, 2, 2, 4))
EVIL = '</script><script>window.owned = 1</script><img src=x onerror="window.owned = 1">&{{ 7 * 7 }}'
QUALITY = {"W2": {"kl": 1.1, "kl_rtn": 2.2}, "W4": {"kl": 0.3, "kl_rtn": 0.3}}
BLOCK = {
    "what": "block",
    "block": "model.layers.0",
    "before": {"W2": 0.5},
    "after": {"W2": 0.2},
    "kept": True,
}
LOG = [
    {"what": "run", "run": "x"},
    BLOCK,
    BLOCK | {"block": "model.layers.1", "kept": False},
    *(
        {"what": "end to end", "step": s, "of": 9, "losses": {"W2": 3 / s, "mixed": 1 / s}}
        for s in range(1, 10)
    ),
    {"what": "compared", "plan": "W2", "kl": 1.1, "kl_rtn": 2.2, "kept": True},
    {"what": "compared", "plan": "W4", "kl": 0.4, "kl_rtn": 0.3, "kept": False},
    {"what": "done", "seconds_per_stage": {"preparing": 2.0, "end to end": 123.0}},
]


def shape(layer: str) -> tuple[int, int]:
    """Of the layers of the tiny llama."""
    if ".mlp." in layer:
        return (64, 96) if "down" in layer else (96, 64)
    return (32, 64) if "k_proj" in layer or "v_proj" in layer else (64, 64)


def parameters(layer: str) -> LayerParameters:
    (rows, columns), generator = shape(layer), torch.Generator().manual_seed(len(layer))
    b, a = torch.randn(rows, SCHEDULE.total, generator=generator), torch.randn(SCHEDULE.total, columns)
    factors = {bits: torch.rand(2, rows, columns // 32, generator=generator) for bits in (2, 3)}
    return LayerParameters.rounded(SCHEDULE, b, a, factors, (2, 3))


def calibrated(folder: Path, base: str = "models/tiny", **changes) -> Artifact:
    """An artifact of the form that calibration writes, without calibrating."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = tuple(
        f"model.layers.{i}.{part}"
        for i in range(2)
        for part in (*(f"self_attn.{n}" for n in names), *(f"mlp.{n}_proj" for n in ("gate", "up", "down")))
    )
    recipe = {
        "name": "quick",
        "note": "A quick one.",
        "adapters": {"groups": SCHEDULE.groups, "steps": SCHEDULE.steps},
        "clip": {"start": {"2": 1.0}},
        "held_out": 4,
        "end_to_end": {"context": 64},
    }
    settings = {
        "provenance": {"base": "made for a test", "text": "squad-passages 100%"},
        "recipe": recipe,
        "widths": dict.fromkeys(layers, (2, 3)),
        "quality": QUALITY,
    }
    manifest = Manifest("quept", base, "ab" * 32, 32, layers, **(settings | changes))
    learned = {name: parameters(name) for name in layers}
    return Artifact(manifest, Quept(32, learned)).store(folder)


def log(folder: Path, lines: list[dict]) -> None:
    (folder / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def shipped(path: Path, model: str, kl: float = 0.2, **changes) -> Path:
    payload = {"kl": kl, "kl_se": 0.01, "ppl": 21.0, "ppl_se": 1.0, "ppl_ref": 20.4, "same_top": 0.9}
    results = [{"name": "W4", "plan": "p", "dtype": "float32", "payload": payload}]
    head = {
        "format": "quept-results",
        "version": 1,
        "model": model,
        "data": "d",
        "measure": 1,
        "tokens": 4096,
    }
    path.write_text(json.dumps(head | {"results": results} | changes))
    return path


class Text(HTMLParser):
    """The words of a page, its tags and what they fetch."""

    def __init__(self, html: str):
        super().__init__()
        self.words, self.tags, self.fetched, self._silent = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._silent = tag in ("script", "style")
        self.fetched += [v for k, v in attrs if k in ("src", "href") and not v.startswith(("#", "data:"))]

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        if not self._silent:
            self.words.append(data)

    def __str__(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def said(html: str) -> str:
    return str(Text(html))


def test_a_calibrated_artifact_with_its_log_fills_every_section(tmp_path):
    calibrated(tmp_path / "a")
    log(tmp_path / "a", LOG)
    count = write_report(tmp_path / "a", tmp_path / "new" / "report.html")
    html = (tmp_path / "new" / "report.html").read_text("utf-8")
    text = said(html)
    assert count == len(html.encode()) < 6_000_000
    assert html.count("plotly.js v") == 1
    assert not Text(html).fetched
    assert "tiny, calibrated" in text and "models/tiny" in text
    assert "mean KL is 1.1 instead of 2.2, 2 times lower" in text
    assert "W4 was not better than round-to-nearest and went back to it" in text
    assert "calibrated 0.4: back to plain" in text
    assert "2 min 5 s in all" in text
    assert "The tuning was kept in 1 of 2 blocks" in text
    assert "4 × 64 tokens" in text
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]


def test_the_same_artifact_gives_the_same_page(tmp_path):
    artifact = calibrated(tmp_path)
    assert page(artifact) == page(Artifact.open(tmp_path))


def test_sections_without_data_say_why(tmp_path):
    calibrated(tmp_path, quality={})
    text = said(page(Artifact.open(tmp_path), read_course(tmp_path)))
    assert "no progress.jsonl lies beside the artifact" in text
    assert "The manifest holds no comparison" in text
    assert "No results files were given" in text
    log(tmp_path, LOG[:1])
    assert "its progress.jsonl records no step" in said(page(Artifact.open(tmp_path), read_course(tmp_path)))


def test_plain_rounding_gives_a_short_page_without_scripts(tmp_path):
    loaded = load(save_tiny("llama", tmp_path / "model"))
    Artifact.rtn(loaded, 32).save(tmp_path / "a")
    assert write_report(tmp_path / "a", tmp_path / "report.html", with_sizes=True) < 30_000
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "script" not in Text(html).tags
    assert "model, round-to-nearest" in said(html)
    assert str(tmp_path) not in html  # names travel, paths do not
    expected = Sizes.of(loaded, Artifact.rtn(loaded, 32)).deploy(PrecisionPlan.uniform(4))
    assert size(expected) in said(html)


def test_text_from_files_stays_text(tmp_path):
    names = {"provenance": {"base": EVIL, EVIL: EVIL}, "quality": {EVIL: QUALITY["W2"]}}
    artifact = calibrated(tmp_path / "a", base=EVIL, **names)
    artifact = replace(
        artifact, manifest=replace(artifact.manifest, recipe={"name": EVIL, "note": EVIL, EVIL: EVIL})
    )
    evil = [
        {"what": "end to end", "step": 1, "losses": {EVIL: 1.0}},
        {"what": "block", "block": EVIL, "before": {EVIL: 1.0}, "after": {EVIL: 0.5}},
        {"what": "compared", "plan": EVIL, "kl": 1.0, "kl_rtn": 0.5, "kept": False},
        {"what": "done", "seconds_per_stage": {EVIL: 1.0}},
    ]
    log(tmp_path / "a", evil)
    file = shipped(tmp_path / "r.json", "x", title=EVIL)
    html = page(artifact, read_course(tmp_path / "a"), [read_results(file, artifact)])
    tags = Text(html).tags
    assert "img" not in tags and tags.count("script") == 3  # the figures, plotly, our own
    assert "window.owned" in said(html) and "{{ 7 * 7 }}" in said(html)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_its_charts_and_runs_nothing_else(tmp_path, browser, scheme):
    artifact = calibrated(tmp_path / "a", provenance={"base": EVIL, "text": "t"})
    log(tmp_path / "a", [*LOG, {"what": "end to end", "step": 2, "losses": {EVIL: 1.0}}])
    # even where a template forgot to escape, the page's own policy lets no stranger's script run
    html = page(artifact, read_course(tmp_path / "a")).replace("</main>", f"</main>{EVIL}")
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    seen, errors = [], []
    with browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme) as context:
        tab = context.new_page()
        tab.on("request", lambda request: seen.append(request.url))
        tab.on("pageerror", lambda error: errors.append(error))
        tab.goto((tmp_path / "report.html").as_uri())
        tab.wait_for_selector("body[data-drawn]")
        assert tab.locator(".chart svg.main-svg").count() >= 7
        assert tab.evaluate("window.owned") is None
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert not errors
    assert [url for url in seen if not url.endswith(("report.html", "/x"))] == []  # x: that of EVIL, refused


def test_a_full_disk_is_one_sentence_and_leaves_the_older_page(tmp_path, monkeypatch, capsys):
    calibrated(tmp_path / "run")
    page = tmp_path / "r.html"
    assert main(["report", str(tmp_path / "run"), "--out", str(page)]) == 0
    before = page.read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["report", str(tmp_path / "run"), "--out", str(page)]) == 1
    assert "cannot write" in (said := capsys.readouterr().err) and "the disk is full" in said
    assert page.read_bytes() == before and sorted(f.name for f in tmp_path.iterdir()) == ["r.html", "run"]


def test_a_bad_folder_is_refused_in_words_and_nothing_is_written(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read an artifact from"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    calibrated(tmp_path / "a")
    (tmp_path / "a" / "learned.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="truncated"):
        write_report(tmp_path / "a", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_results_files_are_told_apart_and_plain_rounding_goes_beside_ours(tmp_path):
    artifact = calibrated(tmp_path / "a")
    m = artifact.manifest
    plain = Artifact(Manifest("rtn", m.base, m.fingerprint, m.group, m.layers)).identity
    models = {"ours": artifact.identity, "plain": plain, "tool": m.fingerprint, "other": "0" * 64}
    kls = {"ours": 0.2, "plain": 0.4, "tool": 0.3, "other": 9.0}
    files = [read_results(shipped(tmp_path / name, models[name], kls[name]), artifact) for name in models]
    found = compared(files)
    assert [f.subject for f in found] == [THIS, BASE, OTHER]
    assert (found[0].rows["W4"].kl, found[0].rows["W4"].kl_rtn) == (0.2, 0.4)
    assert found[1].rows["W4"].kl_rtn is None
    text = said(page(artifact, None, found))
    assert "0.2 ± 0.01" in text and "perplexity at full precision 20.4" in text
    assert "measured with another base, grid or artifact" in text


def test_accuracy_and_agreement_of_a_classifier_are_columns_with_their_intervals(tmp_path):
    artifact = calibrated(tmp_path / "a")
    file = Path(__file__).parents[2] / "assets" / "fashion-vit" / "results.json"
    text = said(page(artifact, None, [read_results(file, artifact)]))
    payload = json.loads(file.read_text())["results"][0]["payload"]
    assert "accuracy" in text and "same answer" in text
    assert f"{100 * payload['top1']:.1f} ({100 * payload['top1_low']:.1f} to" in text


def test_the_last_line_of_the_quality_benchmark_is_read(tmp_path):
    entry = {"kl": 1.3, "kl_rtn": 9.9, "ppl": 61.0, "ppl_rtn": 3e5}
    line = json.dumps(
        {"text": "boolq", "w2": entry, "w4a4": entry, "artifact_mb": {"wo": 12.5}, "conditions": {"cpus": 2}}
    )
    (tmp_path / "out.txt").write_text(f"a table\n{line}\n")
    found = read_results(tmp_path / "out.txt", calibrated(tmp_path / "a"))
    assert found.subject == UNSAID and list(found.rows) == ["W2", "W4A4"]
    assert found.rows["W2"].ppl_rtn == 3e5
    assert found.conditions == (("text", "boolq"), ("artifact mb wo", "12.5"), ("cpus", "2"))


def test_a_recipe_taken_apart_is_a_table_of_what_was_measured_of_it(tmp_path):
    file = tmp_path / "ablation.json"
    rows = {
        "everything": {"w8": 0.001, "w2": 1.277, "minutes": 127.6, "mb": 49.5},
        "rtn": {"w8": 0.0017, "w2": 10.02},
        "published": {"w2": 2.92, "minutes": None, "mb": 49.1},
    }
    file.write_text(
        json.dumps(rows | {"conditions": {"model": "tiny", "recipe": {"group": 64}, "tokens": 8192}})
    )
    calibrated(tmp_path / "a")
    write_report(tmp_path / "a", tmp_path / "report.html", [file])
    text = said((tmp_path / "report.html").read_text("utf-8"))
    assert "calibrated W8 W2 minutes MB" in text
    assert "rounded to nearest 0.0017 10 – – as published – 2.92 – 49.1" in text
    assert "channel scales, block by block, then end to end 0.001 1.28 128 49.5" in text
    assert "model tiny; tokens 8192" in text


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("no json", "holds no JSON object"),
        ("", "holds no JSON object"),
        ("[1]", "holds no JSON object"),
        ("{}", "not a results file"),
        ('{"w2": {"kl": NaN}}', "not a results file"),
        ('{"format": "quept-results", "version": 99}', "update it"),
        ('{"format": "quept-results", "version": 1, "results": [3]}', "not a results file"),
    ],
)
def test_a_file_without_results_is_refused_in_words(tmp_path, content, complaint):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ResultsError, match=complaint):
        read_results(tmp_path / "r.json", calibrated(tmp_path / "a"))


def test_a_log_is_read_for_what_it_has(tmp_path):
    good = json.dumps(LOG[3])
    (tmp_path / "progress.jsonl").write_text(
        f'{good}\n[1]\n{{"what": "end to end", "step": "x"}}\n'
        '{"what": "block", "block": 3, "before": {"7,8": 1}}\n'
        '{"what": "compared", "plan": "W2", "kl": NaN, "kl_rtn": 1}\n'
        '{"what": "end to end", "step": 1, "losses": {"W2": 7.0, "W3": "much"}}\n{"what": "end to e'
    )
    course = read_course(tmp_path)
    assert course.losses() == {"W2": ([1], [7.0])}  # a resumed run says a step twice: the last word counts
    assert course.blocks["3"].before == {"7,8 bits": 1.0} and not course.blocks["3"].after
    assert not course.compared
    assert read_course(tmp_path / "nowhere") is None


def test_bytes_by_kind_add_up_to_the_artifact(tmp_path):
    artifact = calibrated(tmp_path)
    kinds = bytes_by_kind(artifact)
    assert sum(kinds.values()) == artifact.nbytes == (tmp_path / "learned.safetensors").stat().st_size
    assert kinds["adapters"] == sum(
        2 * SCHEDULE.total * sum(shape(name)) for name in artifact.manifest.layers
    )
    assert shapes(artifact) == {name: shape(name) for name in artifact.manifest.layers}


def test_clip_means_are_those_of_the_layers(tmp_path):
    artifact = calibrated(tmp_path)
    two = clip_means(artifact)[0]
    assert (two.bits, two.blocks, two.roles) == (2, [0, 1], ["q", "k", "v", "o", "gate", "up", "down"])
    codes = artifact.engine.learned["model.layers.1.mlp.up_proj"].clips[2].double()
    assert two.ends[1][5][1] == pytest.approx((float(codes[1].mean()) + 1) / 256)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("model.layers.12.mlp.down_proj", (12, "down")),
        ("model.decoder.layers.0.fc1", (0, "up")),
        ("blocks.3.mystery", (3, "mystery")),
        ("head", (0, "head")),
    ],
)
def test_a_layer_is_placed_by_its_name(layer, expected):
    assert place(layer) == expected


def test_a_recipe_reads_back_from_what_is_shown():
    for recipe in (Recipe.load("smollm2-weight-only"), Recipe.load("smollm2-weight-act")):
        assert Recipe.from_dict(tomllib.loads(as_toml(recipe.to_dict()))) == recipe
    odd = {
        "a b": 'say "hi"\n',
        "empty": {},
        "steps": [{"kind": "x", "on": True}],
        "t": {"u": {"v": [[1], [2]]}},
    }
    assert tomllib.loads(as_toml(odd | {"nothing": None})) == odd
    assert "/home" not in as_toml({"text": {"sources": {"/home/me/mine.txt": 1.0}}})


def test_figures_are_plain_json_in_order_of_width():
    course = Course({s: {"W2": 1.0, "W4": 0.1, "mixed": 0.5} for s in range(40)})
    figure = losses(course.losses())
    json.dumps(figure.to_plotly_json(), allow_nan=False)
    assert [t.name for t in figure.data if t.showlegend is None] == ["W4", "W2", "mixed"]
    assert blocks({}).to_json() and losses({}).to_json()


def test_numbers_read_well():
    assert by_width(["mixed", "W4A4", "W2", "w4a8", "W8"]) == ["W8", "W2", "W4A4", "w4a8", "mixed"]
    assert [short(x) for x in (None, 0.12345, 326381.0, 2200.0)] == ["–", "0.123", "3.3e+05", "2,200"]
    assert [size(n) for n in (12, 68200, 305_864, 12_345_678)] == [
        "12 bytes",
        "68.2 kB",
        "305.9 kB",
        "12.3 MB",
    ]
    assert [duration(s) for s in (3.4, 59, 125, 6000)] == ["3.4 s", "59 s", "2 min 5 s", "1 h 40 min"]


def test_the_command_writes_the_page_and_prints_its_size(tmp_path, capsys):
    calibrated(tmp_path / "a")
    parser = argparse.ArgumentParser(prog="quept")
    report_parser(parser.add_subparsers(dest="command"))
    file = shipped(tmp_path / "r.json", "x")
    out = tmp_path / "report.html"
    options = parser.parse_args(
        ["report", str(tmp_path / "a"), "--results", str(file), "--out", str(out), "--json"]
    )
    options.run(options)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"out": str(out), "bytes": out.stat().st_size}
