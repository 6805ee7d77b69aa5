"""A chat template runs within bounds of time and memory, and what goes wrong is a sentence."""

from __future__ import annotations

import copy
import sys
import time

import pytest

from quept.runtime import template
from quept.runtime.prompt import PromptError, prompt_ids
from quept.runtime.template import TemplateFailure, rendered
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TURNS = [{"role": "user", "content": "Hello"}]
LOOP = "{%% for i in range(100000) %%}{%% for j in range(100000) %%}%s{%% endfor %%}{%% endfor %%}"


def with_template(text: str):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{{ 'a' * 10**10 }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 'a'|center(10000000000) }}",
        "{% generation %}{{ 'a' * 10000000000 }}{% endgeneration %}",
        "{{ 10**(10**10) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ messages + 1 }}",
        "{{ messages[5].x.y }}",
        "{% for m in messages %}",
        "{{ ''.__class__.__mro__ }}{{ x() }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_does_harm_is_refused_in_a_sentence(text: str, monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(PromptError, match=r"^This model's chat template .*"):
        prompt_ids(with_template(text), TURNS)
    assert time.monotonic() - began < 20  # what was ended is begun anew


@pytest.mark.parametrize("inside", ["", "x", "{% set y = i + j %}"])
def test_a_template_without_end_is_ended(inside: str, monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 0.2)
    with pytest.raises(TemplateFailure, match="takes more than"):
        rendered(with_template(LOOP % inside), TURNS, True)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no limit of memory to set")
def test_memory_is_bounded_where_a_template_doubles_its_text_and_no_other_process_is():
    import resource

    doubling = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    with pytest.raises(TemplateFailure, match="too much"):
        rendered(with_template(doubling), TURNS, True)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_what_ended_one_template_is_no_matter_to_the_next():
    (before,) = {rendered(TOKENIZER, TURNS, True)}
    template._PROCESS._process.kill()
    template._PROCESS._process.wait()
    assert rendered(TOKENIZER, TURNS, True) == before
    with pytest.raises(TemplateFailure, match="writes 17,000,000 characters"):
        rendered(with_template("{{ 'a' * 17000000 }}"), TURNS, True)
    assert rendered(TOKENIZER, TURNS, True) == before


def test_an_ordinary_template_gives_what_transformers_gives():
    expected = TOKENIZER.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert rendered(TOKENIZER, TURNS, True) == expected
