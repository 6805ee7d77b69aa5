import logging

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from quept.evaluate import Windows, cut


@pytest.fixture
def tokenizer():
    inner = Tokenizer(models.WordLevel({"<s>": 0, "?": 1, "a": 2, "b": 3, "c": 4}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="?", model_max_length=4)


def test_windows_are_consecutive_do_not_overlap_and_leave_the_partial_one_out(tokenizer):
    windows = cut("a b c " * 5, tokenizer, context=4, tokens=100)
    assert windows.ids.tolist() == [[2, 3, 4, 2], [3, 4, 2, 3], [4, 2, 3, 4]]
    assert windows.targets.tolist() == [[3, 4, 2], [4, 2, 3], [2, 3, 4]]
    assert (len(windows), windows.context, windows.scored) == (3, 4, 9)


def test_every_window_begins_as_the_tokenizer_begins_every_text(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    assert tokenizer("a")["input_ids"] == [0, 2]
    assert cut("a b c " * 5, tokenizer, context=4, tokens=9).ids.tolist() == [[0, 2, 3, 4], [0, 2, 3, 4]]
    assert cut("a b c", tokenizer, context=4, tokens=4).ids.tolist() == [[0, 2, 3, 4]]
    with pytest.raises(ValueError, match="the text has 2 tokens"):
        cut("a b", tokenizer, context=4, tokens=4)


def test_no_more_tokens_than_asked_for(tokenizer):
    assert len(cut("a b c " * 50, tokenizer, context=4, tokens=11)) == 2


@pytest.mark.parametrize("gap", [1, 5, 40])
def test_a_long_text_gives_the_windows_of_the_whole_text(tokenizer, gap):
    text = (" " * gap).join("abc"[i * i % 3] for i in range(5000))
    whole = tokenizer(text, verbose=False)["input_ids"]
    assert cut(text, tokenizer, context=10, tokens=400).ids.flatten().tolist() == whole[:400]


def test_a_text_longer_than_the_models_context_warns_nobody(tokenizer, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    cut("a b c " * 50, tokenizer, context=4)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "context", "tokens", "says"),
    [
        ("a b c", 4, 8, "the text has 3 tokens"),
        ("", 4, 8, "the text has 0 tokens"),
        ("a b c", 4, 3, "ask for at least 4"),
        ("a b c", 1, 8, "context must be at least 2"),
    ],
)
def test_what_cannot_make_a_window_is_said_in_words(tokenizer, text, context, tokens, says):
    with pytest.raises(ValueError, match=says):
        cut(text, tokenizer, context, tokens)


def test_the_data_id_depends_on_the_tokens_and_the_context_only():
    ids = torch.arange(12)
    assert Windows(ids.view(2, 6)).id == Windows(ids.view(2, 6).to(torch.int32)).id
    assert len({Windows(ids.view(*shape)).id for shape in ((2, 6), (3, 4), (1, 12))}) == 3
    assert Windows(ids.view(2, 6)).id != Windows((ids + 1).view(2, 6)).id


@pytest.mark.parametrize("shape", [(0, 4), (4, 1), (4,)])
def test_a_tensor_that_is_no_windows_is_refused(shape):
    with pytest.raises(ValueError, match="context"):
        Windows(torch.zeros(shape, dtype=torch.int64))
