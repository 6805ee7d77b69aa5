"""The Export tab in a real browser: bytes of every format, a file that is downloaded and has them, a plan
that a format lacks and the nearest one that it has."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

from app.serve import build_app, look
from app.service import Service
from quept.evaluate import Results, Sample
from tests.app.tiny import tiny_elastic


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("export")
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    service = Service({"tiny": tiny_elastic()}, sample, Results.open(folder / "results.sqlite"), folder)
    demo = build_app(service)
    options = {"prevent_thread_lock": True, "ssr_mode": False, "quiet": True, "server_name": "127.0.0.1"}
    _, url, _ = demo.launch(**look(), **options, show_error=False)
    yield url
    demo.close()
    gr.close_all()


@pytest.fixture(params=[1440, 390], ids=["desktop", "phone"])
def page(contexts, address: str, request) -> Iterator[Page]:
    page, wrong = contexts(viewport={"width": request.param, "height": 844}).new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{address}?p=export")
    expect(page.locator("#equalizer [role=slider]").first).to_be_visible(timeout=60_000)
    expect(page.locator("#exports [data-format=mlx] [data-bytes]")).to_be_visible(timeout=30_000)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    page.close()
    assert wrong == []


def test_a_file_is_made_and_downloaded_with_the_bytes_that_the_page_said(page: Page, tmp_path: Path):
    row = page.locator("#exports [data-format=mlx]")
    said = int(row.locator("[data-bytes]").get_attribute("data-bytes"))
    row.locator("[data-make]").click()
    expect(row.locator("[data-download]")).to_be_visible(timeout=60_000)
    with page.expect_download() as download:
        row.locator("[data-download]").click()
    download.value.save_as(tmp_path / "it.zip")
    with zipfile.ZipFile(tmp_path / "it.zip") as archive:
        assert sum(entry.file_size for entry in archive.infolist()) == said
    expect(row.locator("pre")).to_contain_text("mlx_lm.server --model tiny-")


def test_a_width_that_a_format_lacks_is_said_and_the_nearest_plan_is_one_click_away(page: Page):
    row = page.locator("#exports [data-format='compressed-tensors']")
    page.evaluate(
        "document.dispatchEvent(new CustomEvent('quept:propose', { detail: { plan: { e: 4 }, done: true } }))"
    )
    expect(row).to_contain_text("does not hold model.embed_tokens at 4 bits", timeout=30_000)
    row.locator("[data-nearest]").click()
    expect(row.locator("[data-make]")).to_be_visible(timeout=30_000)
