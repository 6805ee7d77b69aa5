"""Streaming text: the library's own tokens, one bounded step at a time, whatever else runs."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from quept.runtime import generate
from quept.runtime.generate import (
    Conversation,
    GenerationError,
    Progress,
    Sampling,
    Token,
    context_length,
    stream,
)
from quept.runtime.kvcache import make_cache
from quept.runtime.prompt import PromptError, turn_end
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TOKENIZER.eos_token = None  # random models end early; most tests here want answers of a known length
TOKENIZER.chat_template = TOKENIZER.chat_template.replace("</s>", "")
HELLO = [{"role": "user", "content": "Hello there, how are you?"}]
GREEDY = Sampling(temperature=0, max_tokens=20)
FREE = Sampling(temperature=1.0, top_p=0.9, max_tokens=20, seed=7)


@pytest.fixture(scope="module")
def view():
    return endless(tiny_model("llama", dtype=torch.float32, max_position_embeddings=2048))


def endless(model):
    """The model without end tokens of its own, so that answers have the length asked for."""
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


def tokens(events) -> list[Token]:
    return [event for event in events if isinstance(event, Token)]


def ids(events) -> list[int]:
    return [token.id for token in tokens(events)]


def text(events) -> str:
    return "".join(event.text for event in events)


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_the_librarys_generate(family):
    model = endless(tiny_model(family, dtype=torch.float64))
    answer = stream(model, TOKENIZER, HELLO, GREEDY)
    prompt = torch.tensor([answer.prompt])
    reference = model.generate(prompt, max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
    events = tokens(answer)
    assert [token.id for token in events] == reference.sequences[0, prompt.shape[1] :].tolist()
    with torch.inference_mode():
        logprobs = model(reference.sequences).logits[0].float().log_softmax(-1)
    for token in events:
        assert token.logprob == pytest.approx(
            float(logprobs[prompt.shape[1] + token.index - 1, token.id]), abs=1e-4
        )
    assert [token.index for token in events] == list(range(20))
    assert [token.finished for token in events] == [None] * 19 + ["length"]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_four_bit_keys_and_values_still_generate(family):
    model = endless(tiny_model(family, dtype=torch.float32))
    answer = stream(model, TOKENIZER, HELLO, FREE, lambda: make_cache(model.config, 4))
    assert len(tokens(answer)) == 20


def test_every_step_reads_at_most_256_tokens_and_a_long_prompt_reports_progress(view):
    read = []
    hook = view.register_forward_pre_hook(
        lambda m, a, k: read.append(k["input_ids"].shape[1]), with_kwargs=True
    )
    answer = stream(view, TOKENIZER, user("x" * 700), GREEDY)
    seen = []
    for event in answer:
        seen.append(event)
        assert len(read) == len(seen)  # one forward step for each event
    hook.remove()
    n = len(answer.prompt)
    assert read == [256, 256, n - 512, *[1] * 19]
    assert seen[:2] == [Progress(256, n), Progress(512, n)] and text(seen[:2]) == ""


def test_a_prompt_read_in_pieces_gives_the_same_answer_as_at_once(view, monkeypatch):
    pieces = ids(stream(view, TOKENIZER, user("x" * 700), GREEDY))
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 4096)
    assert ids(stream(view, TOKENIZER, user("x" * 700), GREEDY)) == pieces


def test_the_same_seed_gives_the_same_text_alone_or_side_by_side(view):
    alone = [text(stream(view, TOKENIZER, HELLO, Sampling(1.0, 0.9, 20, seed))) for seed in (7, 8)]
    torch.manual_seed(123)
    together = ["", ""]
    pair = [stream(view, TOKENIZER, HELLO, Sampling(1.0, 0.9, 20, seed)) for seed in (7, 8)]
    for events in zip(*pair, strict=True):
        torch.rand(3)
        together = [text + event.text for text, event in zip(together, events, strict=True)]
    assert together == alone and alone[0] != alone[1]


def test_an_end_token_of_the_config_list_stops_the_answer_and_is_not_shown():
    model = endless(tiny_model("llama", dtype=torch.float32))
    free = tokens(stream(model, TOKENIZER, HELLO, GREEDY))
    end = next(token for token in free[2:] if token.id not in [t.id for t in free[: token.index]])
    model.generation_config.eos_token_id = [1, end.id]
    stopped = tokens(stream(model, TOKENIZER, HELLO, GREEDY))
    assert [t.id for t in stopped] == [t.id for t in free[: end.index + 1]]
    assert [t.finished for t in stopped] == [None] * end.index + ["stop"]
    assert text(stopped) == TOKENIZER.decode([t.id for t in stopped[:-1]])


def test_end_tokens_come_from_generation_config_config_and_tokenizer():
    model = tiny_model("llama")
    model.generation_config.eos_token_id, model.config.eos_token_id = [5, 6], 7
    assert generate.end_tokens(model, tiny_tokenizer()) == {5, 6, 7, 2}
    assert generate.end_tokens(endless(model), tiny_tokenizer()) == {2}
    assert generate.end_tokens(endless(model), TOKENIZER) == set()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("special", [True, False])
def test_what_the_template_writes_behind_an_answer_ends_it(special):
    """ChatML over a vocabulary whose end token is </s>, and no generation config that would know better."""
    tokenizer, end = tiny_tokenizer(), "<|im_end|>"
    tokenizer.add_tokens([AddedToken(t, special=special) for t in ("<|im_start|>", end)])
    tokenizer.chat_template = CHATML
    model = endless(tiny_model("llama", dtype=torch.float32, vocab_size=len(tokenizer)))
    assert generate.end_tokens(model, tokenizer) == {2, tokenizer.convert_tokens_to_ids(end)}
    with torch.no_grad():  # it always answers with the end of the turn
        model.lm_head.weight[:] = 0
        model.model.norm.weight[:] = 0
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(end)] = 1
    answer = tokens(stream(model, tokenizer, HELLO, GREEDY))
    assert len(answer) == 1 and answer[0].finished == "stop" and answer[0].text == ""


@pytest.mark.parametrize(
    ("end", "said", "shown"),
    [
        ("<|im_end|>", "So be it.<|im_end|>\n<|im_end|>", "So be it."),
        ("<|im_end|>", "a <|im_en or b", "a <|im_en or b"),
        ("<|im_end|>", "ends in <|im", "ends in <|im"),
        ("[/A]", "so <[[/A]", "so <["),
    ],
)
def test_an_end_of_turn_that_no_token_is_ends_the_answer_and_is_not_shown(
    view, monkeypatch, end, said, shown
):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.chat_template = CHATML.replace("<|im_end|>", end).replace("<|im_start|>", "")
    assert turn_end(tokenizer) == (None, end)
    assert generate.spelled_end(tokenizer) == {tokenizer.encode(end)[0]}
    spelled = tokenizer.encode(said)
    saying = iter(spelled)
    monkeypatch.setattr(generate, "_choose", lambda *_: (next(saying), 0.0))
    answer = tokens(stream(view, tokenizer, HELLO, Sampling(0, max_tokens=len(spelled))))
    assert text(answer) == shown
    assert answer[-1].finished == ("stop" if end in said else "length")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",  # no end at all
        "{% for m in messages %}{{ m['content'] }} that is all.{% endfor %}",  # words
        "{{ messages[0]['content'] }}<s>",  # no answer in it
        "{% for m in messages %}{{ m['content'] }}{{ raise_exception('no') }}{% endfor %}",
    ],
)
def test_a_template_that_writes_no_end_of_turn_adds_none(template):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = None, template
    assert generate.end_tokens(endless(tiny_model("llama")), tokenizer) == set()


def test_a_token_without_an_embedding_is_named_before_anything_runs(view):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}"
    words = r"'<\|turn\|>' token 260, and the model has embeddings for 260 tokens, 0 to 259"
    with pytest.raises(PromptError, match=words):
        stream(view, tokenizer, HELLO, GREEDY)


@pytest.mark.parametrize("template", ["{% if false %}{{ messages }}{% endif %}", " \n "])
def test_a_template_that_writes_nothing_is_a_sentence(view, template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match="chat template writes nothing"):
        stream(view, tokenizer, HELLO, GREEDY)


def pieces_of(token_ids: list[int]) -> list[str]:
    out = generate._Detokeniser(TOKENIZER)
    return [out.add(id) for id in token_ids] + [out.flush()]


@given(st.text(alphabet=st.sampled_from("aé漢🦊👩‍🚀\u0301 \n\ufffd"), max_size=30))
def test_pieces_of_any_script_join_to_the_decoded_text_and_are_never_half_a_character(original):
    token_ids = TOKENIZER.encode(original)
    pieces = pieces_of(token_ids)
    assert "".join(pieces) == TOKENIZER.decode(token_ids) == original
    if "\ufffd" not in original:
        assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_pieces_of_any_tokens_join_to_the_decoded_text(token_ids):
    assert "".join(pieces_of(token_ids)) == TOKENIZER.decode(token_ids, skip_special_tokens=True)


def test_a_random_models_answer_joins_to_the_decoded_text(view):
    events = tokens(stream(view, TOKENIZER, HELLO, Sampling(1.5, 1.0, 200, seed=3)))
    assert text(events) == TOKENIZER.decode([t.id for t in events], skip_special_tokens=True)


def test_closing_frees_the_cache_and_can_be_repeated(view):
    caches = []

    def watched():
        cache = make_cache(view.config)
        caches.append(weakref.ref(cache))
        return cache

    for started in (True, False):
        answer = stream(view, TOKENIZER, HELLO, GREEDY, watched)
        if started:
            next(answer)
        answer.close()
        answer.close()
        assert next(answer, None) is None
    dropped = stream(view, TOKENIZER, HELLO, GREEDY, watched)
    next(dropped)
    del dropped
    list(stream(view, TOKENIZER, HELLO, GREEDY, watched))
    gc.collect()
    assert len(caches) == 3 and not any(ref() for ref in caches)


def test_closing_from_another_thread_ends_with_the_step_under_way(view):
    inside, go_on = threading.Event(), threading.Event()

    def slow(*_):
        inside.set()
        go_on.wait(20)

    answer, seen = stream(view, TOKENIZER, HELLO, GREEDY), []
    next(answer)
    hook = view.register_forward_pre_hook(slow)
    reader = threading.Thread(target=lambda: seen.extend(answer))
    reader.start()
    assert inside.wait(20)
    answer.close()
    go_on.set()
    reader.join(20)
    hook.remove()
    assert not reader.is_alive() and len(seen) == 1


def test_a_model_whose_output_is_not_finite_says_so():
    model = tiny_model("llama", dtype=torch.float32)
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(GenerationError, match="not finite"):
        next(stream(model, TOKENIZER, HELLO, GREEDY))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -0.1},
        {"temperature": "0.7"},
        {"temperature": True},
        {"top_p": float("nan")},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": None},
        {"max_tokens": 0},
        {"max_tokens": 4097},
        {"max_tokens": 16.0},
        {"max_tokens": True},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 1.5},
        {"seed": None},
    ],
)
def test_sampling_refuses_by_name(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} must be"):
        Sampling(**fields)


def nucleus(p: torch.Tensor, top_p: float) -> set[int]:
    """The slow, obvious one."""
    kept, mass = set(), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        kept.add(i)
        mass += float(p[i])
        if mass >= top_p:
            break
    return kept


DRAWS = 4000


@pytest.mark.parametrize("head", [4, 256])  # 4: the likeliest few are not enough, and all are sorted
def test_draws_come_from_the_nucleus_in_proportion(head, monkeypatch):
    monkeypatch.setattr(generate, "HEAD", head)
    p = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).mul(2).softmax(0)
    for top_p in (0.01, 0.5, 1.0):
        generator = torch.Generator().manual_seed(0)
        drawn = torch.tensor([generate._draw(p, top_p, generator) for _ in range(DRAWS)]).bincount(
            minlength=50
        )
        kept = sorted(nucleus(p, top_p))
        assert set(drawn.nonzero()[:, 0].tolist()) <= set(kept)
        share = p[kept] / p[kept].sum()
        assert (drawn[kept] / DRAWS - share).abs().max() < 0.035


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-3, 1e30])
def test_extreme_temperatures_do_not_overflow(temperature):
    logits = torch.tensor([1000.0, -1000.0, 999.0, float("-inf")])
    drawn = {
        generate._choose(logits, Sampling(temperature, 1.0, 1), torch.Generator().manual_seed(seed))[0]
        for seed in range(40)
    }
    assert drawn == ({0} if temperature < 1 else {0, 1, 2})


def test_the_likeliest_tokens_are_told_where_asked_for(view):
    plain = tokens(stream(view, TOKENIZER, HELLO, GREEDY))
    told = tokens(stream(view, TOKENIZER, HELLO, GREEDY, top=3))
    assert [token.id for token in told] == [token.id for token in plain] == [t.top[0][0] for t in told]
    assert all(token.top == () for token in plain)
    for token in told:
        shares = [p for _, p in token.top]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 1
        assert shares[0] == pytest.approx(math.exp(token.logprob))


@pytest.mark.parametrize("content", ["", "   ", "<s></s>", "y" * 100_000])
def test_a_prompt_that_cannot_be_answered_is_refused_before_the_first_step(view, content):
    with pytest.raises(PromptError):
        stream(view, TOKENIZER, user(content), GREEDY)


def test_prompt_and_answer_may_fill_the_context_exactly():
    model = endless(tiny_model("opt", dtype=torch.float32))
    room = context_length(model) - len(stream(model, TOKENIZER, user("x"), GREEDY).prompt) + 1
    answer = Sampling(temperature=0, max_tokens=room - 30)
    assert len(tokens(stream(model, TOKENIZER, user("x" * 30), answer))) == room - 30
    with pytest.raises(PromptError, match="129 tokens|fit"):
        stream(model, TOKENIZER, user("x" * 31), answer)


def test_context_length_falls_back_to_the_tokenizer(view):
    class Bare:
        class config:
            @staticmethod
            def get_text_config():
                return object()

    tokenizer = tiny_tokenizer()
    assert context_length(view) == 2048
    assert context_length(Bare, tokenizer) is None
    tokenizer.model_max_length = 77
    assert context_length(Bare, tokenizer) == 77


def chat(view, conversation, turns=3, make=None, before=None, sampling=FREE):
    """A chat of some turns, each answer put into the history -> answers, and the reused tokens of each."""
    history, answers, reused = [], [], []
    for turn in range(turns):
        history.append({"role": "user", "content": f"Question {turn}, please?"})
        if before and conversation:
            before(turn, conversation)
        answer = stream(view, TOKENIZER, history, sampling, make, conversation=conversation)
        answers.append(text(answer))
        reused.append(answer.stats.reused_tokens)
        history.append({"role": "assistant", "content": answers[-1]})
    return answers, reused


@pytest.mark.parametrize("bits", [3, 16])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_reusing_the_cache_gives_the_same_answers(family, bits):
    model = endless(tiny_model(family, dtype=torch.float64, max_position_embeddings=512))

    def make():
        return make_cache(model.config, bits)

    fresh, none = chat(model, None, make=make)
    kept, reused = chat(model, Conversation("a"), make=make)
    assert kept == fresh
    assert none == [0, 0, 0] and reused[0] == 0 and all(a < b for a, b in pairwise(reused))


def test_a_switch_of_plan_drops_the_cache_or_labels_it(view):
    def drop(turn, conversation):
        conversation.switch(f"plan {turn}")

    def label(turn, conversation):
        conversation.switch(f"plan {turn}", keep=True)

    assert chat(view, Conversation(), before=drop)[1] == [0, 0, 0]
    labelled = Conversation("plan 0")
    assert chat(view, labelled, before=label)[1][1] > 0 and labelled.mixed
    labelled.switch("plan 9")
    assert labelled.cache is None and not labelled.mixed
    same = Conversation("a")
    assert chat(view, same, before=lambda turn, c: c.switch("a"))[1][1] > 0 and not same.mixed


def test_regenerating_and_editing_reuse_only_what_is_shared(view):
    conversation = Conversation("a")
    first = text(stream(view, TOKENIZER, HELLO, FREE, conversation=conversation))
    again = stream(view, TOKENIZER, HELLO, FREE, conversation=conversation)
    assert text(again) == first and again.stats.reused_tokens == len(again.prompt) - 1
    edited = user("Hello there, who are you?")
    other = stream(view, TOKENIZER, edited, FREE, conversation=conversation)
    assert text(other) == text(stream(view, TOKENIZER, edited, FREE))
    assert 0 < other.stats.reused_tokens < len(other.prompt) - 1


def test_a_sliding_window_cache_that_would_have_to_go_back_is_dropped():
    model = endless(tiny_model("mistral", dtype=torch.float64, sliding_window=8, max_position_embeddings=256))
    fresh, _ = chat(model, None, turns=2)
    conversation = Conversation("a")
    kept, _ = chat(model, conversation, turns=2)
    assert kept == fresh
    again = stream(model, TOKENIZER, HELLO, FREE, conversation=conversation)
    assert text(again) == text(stream(model, TOKENIZER, HELLO, FREE)) and again.stats.reused_tokens == 0


def test_a_stopped_answer_keeps_what_was_read_and_a_failed_one_nothing(view, monkeypatch):
    conversation = Conversation("a")
    answer = stream(view, TOKENIZER, HELLO, FREE, conversation=conversation)
    for _ in range(3):
        next(answer)
    assert conversation.cache is None  # on lease
    answer.close()
    assert len(conversation.ids) == conversation.cache.get_seq_length() == len(answer.prompt) + 2

    def fail(*_):
        raise RuntimeError("boom")

    failing = stream(view, TOKENIZER, HELLO, FREE, conversation=conversation)
    next(failing)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="boom"):
        broken.setattr("quept.runtime.generate._Reader.__call__", fail)
        next(failing)
    assert conversation.cache is None and conversation.ids == []
    assert len(tokens(stream(view, TOKENIZER, HELLO, FREE, conversation=conversation))) == 20


def test_an_answer_that_outlives_its_plan_gives_nothing_back(view):
    conversation = Conversation("a")
    answer = stream(view, TOKENIZER, HELLO, FREE, conversation=conversation)
    next(answer)
    conversation.switch("b")
    answer.close()
    assert conversation.cache is None


def test_stats_tell_compute_from_waiting(view):
    answer = stream(view, TOKENIZER, user("x" * 300), GREEDY)
    for _ in zip(answer, stream(view, TOKENIZER, user("y" * 300), GREEDY), strict=True):
        pass
    stats = answer.stats
    assert (stats.prompt_tokens, stats.tokens, stats.reused_tokens) == (len(answer.prompt), 20, 0)
    assert stats.time_to_first_token > stats.prefill_seconds > 0
    assert stats.tokens_per_second > 0


def test_smollm2_knows_the_capital_of_france(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    question = user("What is the capital of France?")
    for bits in (16, 8):
        answer = stream(
            model,
            tokenizer,
            question,
            Sampling(temperature=0, max_tokens=24),
            lambda b=bits: make_cache(model.config, b),
        )
        events = tokens(answer)
        assert "Paris" in text(events) and events[-1].finished == "stop"
        assert text(events) == tokenizer.decode([t.id for t in events[:-1]])
