"""What a start opens, and what waits until somebody asks for it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from app.lazy import Lazy
from app.open_model import Card
from app.opening import open_service
from app.service import Sample, Service
from quept.artifact import resolve_source
from quept.evaluate import Results
from quept.runtime import ElasticModel


def test_a_value_is_made_once_whoever_asks():
    made = []

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return 7

    lazy = Lazy({"a": make, "b": make})
    assert list(lazy) == ["a", "b"] and "b" in lazy and lazy.made == {} and made == []
    threads = [threading.Thread(target=lambda: lazy["a"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lazy["a"] == 7 and len(made) == 1 and lazy.made == {"a": 7}


def test_a_model_that_waits_is_known_by_its_card_and_opened_when_asked_for(elastic: ElasticModel, tmp_path):
    models = Lazy({"now": lambda: elastic, "later": lambda: elastic})
    results = Results.open(tmp_path / "results.sqlite")
    service = Service(
        models, Sample("", ""), results, tmp_path, {"later": replace(Card.of(elastic), title="Later")}
    )
    assert service.waiting == ["later"] and service.cards["later"].title == "Later"
    service.open_waiting(0.0)
    assert service.waiting == [] and service.opened["later"].elastic is elastic


@pytest.mark.parametrize("name", ["fashion-vit", "fashion-vit:weight-act", "easy-vqa"])
def test_a_built_in_models_card_says_unread_what_the_opened_model_does(name):
    assert Card.built_in(resolve_source(name)) == Card.of(ElasticModel.open(name))


def test_what_waits_is_not_read_until_it_is_asked_for():
    steps: list[str] = []
    sources = ["easy-vqa", "fashion-vit", "fashion-vit:weight-act"]
    service = open_service(sources, 10**8, lambda text, fraction: steps.append(text), sources[1:])
    assert service.waiting == sources[1:] and not any("fashion-vit" in step for step in steps)
    assert service.opened["fashion-vit"].elastic.title == service.cards["fashion-vit"].title
    assert service.waiting == sources[2:]
