"""Prose, code, another language and a chat are tasks of their own, each on a text that comes with us."""

import pytest
import torch

from quept import ElasticModel, PrecisionPlan, zoo
from quept.data.own_words import own_words
from quept.evaluate.tasks import tasks_of
from quept.flow import text_reference
from tests.app.tiny import tiny_elastic
from tests.tiny import save_tiny


@pytest.mark.parametrize("name", ["code", "german", "chats"])
def test_each_text_is_a_task_and_its_numbers_are_of_that_text(name, tmp_path):
    elastic = tiny_elastic()
    task = tasks_of(elastic, tmp_path, {"tokens": 128, "context": 64})[name]
    *_, last = task.estimates(elastic.view(PrecisionPlan.uniform(4)))
    assert last.done == last.total == 2 * 63 and last["kl"].value > 0
    assert task.conditions["text"] == name and zoo.TEXTS[name].title in task.describe()
    assert "128 tokens" in task.describe()


def test_a_chat_is_read_in_the_models_own_template_and_lacks_without_one(tmp_path):
    with_template = tasks_of(tiny_elastic(), tmp_path)["chats"]
    assert with_template.sample.text.startswith("<|start|>user\nWhat should I pack")
    elastic = ElasticModel.open(save_tiny("llama", tmp_path / "tiny"), device="cpu", dtype=torch.float32)
    elastic.tokenizer.chat_template = None
    assert "no chat template" in tasks_of(elastic, tmp_path)["chats"].lacking


def test_its_own_words_are_questions_and_answers_and_the_same_again(tmp_path):
    elastic = tiny_elastic(ends=False)
    told = own_words(elastic, 300)
    assert told.startswith("<|start|>user\nWhat should I pack") and own_words(elastic, 300) == told
    assert len(elastic.tokenizer(told)["input_ids"]) >= 300
    reference = text_reference(elastic, "own-words", 128, 64)
    assert reference.windows.ids.shape == (2, 64)
