"""The endpoints for programs, through gradio_client as a program calls them."""

from __future__ import annotations

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from app.serve import build_app
from app.service import Sample, Service
from quept.evaluate import Results
from tests.app.tiny import tiny_elastic, tiny_table

NAMES = {"/models", "/plan_for_budget", "/measure", "/generate", "/classify"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder, elastic = tmp_path_factory.mktemp("api"), tiny_elastic()
    sample = Sample("The quick brown fox jumps over the lazy dog. " * 40, "foxes", tokens=256, context=64)
    service = Service({"tiny": elastic}, sample, Results.open(folder / "results.sqlite"), folder)
    service.opened["tiny"].sensitivity = tiny_table(elastic)
    demo = build_app(service)
    _, address, _ = demo.launch(prevent_thread_lock=True, ssr_mode=False, quiet=True, server_name="127.0.0.1")
    yield Client(address, verbose=False)
    demo.close()
    gr.close_all()


def test_only_the_five_are_named(client: Client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == NAMES


def test_a_program_finds_a_plan_measures_it_and_talks_to_it(client: Client):
    (model,) = client.predict(api_name="/models")
    assert model == {"name": "tiny", "title": "Tiny", "kind": "language"}
    found = client.predict("tiny", "50 %", api_name="/plan_for_budget")
    assert found["bytes"] <= found["budget"]
    measured = client.predict("tiny", found["plan"], api_name="/measure")
    assert measured["bytes"] == found["bytes"] and "foxes" in measured["conditions"]
    assert {metric["name"] for metric in measured["metrics"]} >= {"ppl", "kl", "same_top"}
    asked = ("tiny", found["plan"], "Hello", 12, 0.7, 3)
    answers = [client.predict(*asked, api_name="/generate") for _ in range(2)]
    assert answers[0]["text"] == answers[1]["text"] and 0 < answers[0]["tokens"] <= 12


@pytest.mark.parametrize(
    ("endpoint", "values", "words"),
    [
        ("/measure", ("nobody", "W4"), "No model is called"),
        ("/measure", ("tiny", "W77"), "No plan is called"),
        ("/plan_for_budget", ("tiny", "1 KB"), "smallest|least|KB"),
        ("/generate", ("tiny", "W4", "x" * 60_000), "at most 50,000 characters"),
        ("/generate", ("tiny", "W4", "hello", 10**6), "longest answer"),
        ("/classify", ("tiny", "W4", "AAAA"), "no vision model"),
    ],
)
def test_what_cannot_be_done_is_said(client: Client, endpoint: str, values: tuple, words: str):
    with pytest.raises(AppError, match=words):
        client.predict(*values, api_name=endpoint)
