"""Pictures in a conversation: what is read is what the model's own processor and forward make of it."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from quept import ElasticModel, PrecisionPlan
from quept.models import load
from quept.runtime.generate import Conversation, Sampling, stream
from quept.runtime.prompt import PromptError
from quept.runtime.visual import visual_prompt
from tests import tiny_vlm
from tests.tiny import all_but_few_slow, in_turn

SEEING = all_but_few_slow(tiny_vlm.FAMILIES, ("llava", "qwen2-vl", "paligemma"))
GREEDY = Sampling(temperature=0, max_tokens=6)
PREFIX = (
    "paligemma",
    "paligemma2",
)  # whose processors write a prompt themselves, around one picture at least


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vlm")
    return {name: tiny_vlm.save_tiny_vlm(name, root / name) for name in tiny_vlm.FAMILIES}


@pytest.fixture(scope="module")
def opened(folders):
    return {
        name: ElasticModel.open(folder, device="cpu", dtype=torch.float32) for name, folder in folders.items()
    }


def asked(*texts: str, pictures: int = 1) -> list[dict]:
    """A question about pictures, then answers and more questions in turn."""
    first = [{"type": "image"}] * pictures + [{"type": "text", "text": texts[0]}]
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [turns[0] | {"content": first}, *turns[1:]]


def said(elastic: ElasticModel, view, messages, pictures, **options) -> tuple[str, list[int]]:
    events = list(
        stream(
            view,
            elastic.tokenizer,
            messages,
            GREEDY,
            processor=elastic.processor,
            pictures=pictures,
            **options,
        )
    )
    tokens = [event for event in events if hasattr(event, "id")]
    return "".join(token.text for token in tokens), [token.id for token in tokens]


def theirs(folder):
    """transformers' own model in float32."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_prompt_is_the_processors_own(folders, name, count):
    if name in PREFIX and not count:
        pytest.skip("takes no prompt without a picture")
    processor = load(folders[name]).processor
    pictures = [tiny_vlm.picture(seed, (40, 32 + 16 * seed)) for seed in range(count)]
    messages = asked("what is it?", pictures=count)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if name in PREFIX:
        text = "<image>" * count + "what is it?"
    more = {"images": [pictures]} if count else {}
    expected = processor(text=[text], **more, return_tensors="pt")
    expected.pop("labels", None)
    prompt = visual_prompt(processor, messages, pictures)
    assert prompt.ids == expected["input_ids"][0].tolist()
    assert not count or set(prompt.inputs) == set(expected)
    assert all(torch.equal(expected[key], value) for key, value in prompt.inputs.items())


@pytest.mark.parametrize("name", SEEING)
def test_the_view_at_full_precision_is_transformers_model(folders, opened, name):
    pictures = [tiny_vlm.picture(seed) for seed in range(2)]
    inputs = visual_prompt(opened[name].processor, asked("what is it?", pictures=2), pictures).inputs
    with torch.no_grad():
        wanted = theirs(folders[name])(**inputs).logits
        found = opened[name].view(PrecisionPlan.full())(**inputs, use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(("name", "chunk"), in_turn(SEEING, [7, 128]))
def test_greedy_text_is_what_generate_gives(folders, opened, name, chunk, monkeypatch):
    """However the prompt is parted."""
    monkeypatch.setattr("quept.runtime.generate.PREFILL_CHUNK", chunk)
    elastic, picture = opened[name], tiny_vlm.picture()
    messages, count = asked("what is it?"), 64 if chunk > 7 else 6
    prompt = visual_prompt(elastic.processor, messages, [picture])
    expected = theirs(folders[name]).generate(**prompt.inputs, max_new_tokens=count, do_sample=False)
    steps = stream(
        elastic.view(PrecisionPlan.full()),
        elastic.tokenizer,
        messages,
        Sampling(temperature=0, max_tokens=count),
        processor=elastic.processor,
        pictures=[picture],
    )
    assert [event.id for event in steps if hasattr(event, "id")] == expected[0, len(prompt.ids) :].tolist()


@pytest.mark.parametrize("name", ["llava", "qwen2-vl", "qwen3-vl"])
def test_a_follow_up_reads_only_what_is_new(opened, name):
    elastic, picture = opened[name], tiny_vlm.picture()
    view, chat = elastic.view(PrecisionPlan.uniform(4)), Conversation()
    answer = said(elastic, view, asked("what?"), [picture], conversation=chat)[0]
    again = asked("what?", answer, "and now?")
    run = stream(
        view,
        elastic.tokenizer,
        again,
        GREEDY,
        conversation=chat,
        processor=elastic.processor,
        pictures=[picture],
    )
    ids = [event.id for event in run if hasattr(event, "id")]
    assert run.stats.reused_tokens > len(run.prompt) / 3
    assert ids == said(elastic, view, again, [picture])[1]
    other = tiny_vlm.picture(1)  # another picture in the same words: nothing behind its place is reused
    run = stream(
        view,
        elastic.tokenizer,
        again,
        GREEDY,
        conversation=chat,
        processor=elastic.processor,
        pictures=[other],
    )
    ids = [event.id for event in run if hasattr(event, "id")]
    assert run.stats.reused_tokens < run.prompt.index(min(run.prompt)) + 1
    assert ids == said(elastic, view, again, [other])[1]


@pytest.mark.parametrize("name", SEEING)
def test_a_typed_image_token_is_only_letters(folders, name):
    processor = load(folders[name]).processor
    token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    typed = f"{processor.image_token} what is {processor.image_token}?"
    honest = visual_prompt(processor, asked("what is ?"), [tiny_vlm.picture()]).ids
    assert visual_prompt(processor, asked(typed), [tiny_vlm.picture()]).ids.count(token) == honest.count(
        token
    )
    assert visual_prompt(processor, asked(typed, pictures=0), []).ids.count(token) == 0
    with pytest.raises(PromptError, match="control tokens"):
        visual_prompt(processor, asked(processor.image_token, pictures=0), [])


def test_a_follow_up_where_all_of_a_prompt_sees_all_reads_it_afresh(opened):
    elastic, picture, chat = opened["paligemma"], tiny_vlm.picture(), Conversation()
    view = elastic.view(PrecisionPlan.uniform(4))
    answer = said(elastic, view, asked("what?"), [picture], conversation=chat)[0]
    again = asked("what?", answer, "and now?")
    found = said(elastic, view, again, [picture], conversation=chat)[1]
    assert found == said(elastic, view, again, [picture])[1]


def test_pictures_and_messages_must_agree(folders):
    processor = load(folders["llava"]).processor
    with pytest.raises(ValueError, match="2 pictures were given for messages with 1"):
        visual_prompt(processor, asked("what?"), [tiny_vlm.picture(), tiny_vlm.picture()])
    processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(PromptError, match="places for 0 pictures; there are 1"):
        visual_prompt(processor, asked("what?"), [tiny_vlm.picture()])
    processor.chat_template = None
    ids = visual_prompt(processor, asked("what?"), [tiny_vlm.picture()]).ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=False).count("<image>") == 16


@pytest.mark.parametrize(("name", "size"), in_turn(SEEING, [(8000, 1), (1, 65000)]))
def test_a_strip_is_refused_before_the_processor_scales_it(folders, name, size):
    with pytest.raises(ValueError, match="a strip of .* pixels; at most 100 times as long as wide"):
        visual_prompt(load(folders[name]).processor, asked("what?"), [Image.new("RGB", size)])


def test_what_a_processor_scales_the_shorter_side_to_bounds_how_long_it_may_be(folders):
    processor = load(folders["llava"]).processor
    processor.image_processor.size = {"shortest_edge": 1000}
    with pytest.raises(ValueError, match="at most 50 times"):
        visual_prompt(processor, asked("what?"), [Image.new("RGB", (600, 10))])


def test_the_same_words_with_another_picture_have_other_keys(folders):
    processor = load(folders["llava"]).processor
    one, other = (visual_prompt(processor, asked("what?"), [tiny_vlm.picture(seed)]) for seed in (0, 1))
    grey = visual_prompt(processor, asked("what?"), [Image.new("RGB", (8, 8))])
    assert one.ids == other.ids == grey.ids and len({tuple(p.keys) for p in (one, other, grey)}) == 3
