"""The built-in texts: every passage once, none empty."""

from __future__ import annotations

import pytest

from quept import zoo
from quept.zoo import SourceError


def test_the_boolq_passages_are_distinct_and_not_empty():
    passages = zoo.text("boolq-passages").split("\n\n")
    assert len(passages) == len(set(passages)) > 2000
    assert all(passage.strip() for passage in passages)
    assert not any("\nQuestion:" in passage or "\nAnswer:" in passage for passage in passages)
    assert passages[0].startswith("All biomass goes through at least some of these steps")


def test_lambada_is_passages_with_their_last_word():
    passages = zoo.text("lambada").split("\n\n")
    assert len(passages) == 5151 and passages[0].endswith(" signs")  # of 5,153, two are there twice


def test_an_unknown_text_names_those_there_are():
    with pytest.raises(SourceError, match=r"'wikitext'.*boolq-passages, lambada"):
        zoo.text("wikitext")
