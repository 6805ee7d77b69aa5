"""The small LLaVA: packed conversations give the logits of each alone, the written folder opens with stock
transformers, what it generates is what `accuracy` counts, a run that is cut ends with the same bytes."""

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from quept.data.easy_vqa import Question, Questions, easy_vqa, question_type
from tests.training import script

pytestmark = pytest.mark.slow

easy_vqa_llava = script("easy-vqa")
IGNORED = easy_vqa_llava.IGNORED
IMAGE_TOKENS = easy_vqa_llava.IMAGE_TOKENS
Run = easy_vqa_llava.Run
Settings = easy_vqa_llava.Settings
UNKNOWN = easy_vqa_llava.UNKNOWN
accuracy = easy_vqa_llava.accuracy
augmented = easy_vqa_llava.augmented
conversations = easy_vqa_llava.conversations
create = easy_vqa_llava.create
encoder = easy_vqa_llava.encoder
forward = easy_vqa_llava.forward
given_away = easy_vqa_llava.given_away
normalised = easy_vqa_llava.normalised
pack = easy_vqa_llava.pack
processor = easy_vqa_llava.processor
redrawn = easy_vqa_llava.redrawn
shape_boxes = easy_vqa_llava.shape_boxes
train = easy_vqa_llava.train

QUICK = Settings(tower_epochs=1, tower_batch=4, settle_epochs=1, settle_batch=4, epochs=2, batch=4, warmup=2)


@pytest.fixture(scope="module")
def words():
    return processor()


@pytest.fixture(scope="module")
def model():
    """Untrained, and sharp enough that what it sees makes a difference to its logits."""
    torch.manual_seed(1)
    model = create().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "position" not in name:
                p.mul_(3)
    return model


@pytest.fixture
def data(easy_vqa_folder) -> Questions:
    return easy_vqa("train", easy_vqa_folder)


def chat(conversation: list[Question], picture: Image.Image | None = None) -> list[dict]:
    image = {"type": "image"} | ({"image": picture} if picture else {})
    messages = []
    for question in conversation:
        messages.append({"role": "user", "content": [{"type": "text", "text": question.text}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    messages[0]["content"].insert(0, image)
    return messages


QUESTION = st.builds(
    Question,
    st.sampled_from(["is there a circle?", "what color is the shape?", "Äh?", "is no grey shape present?"]),
    st.sampled_from(["yes", "no", "circle", "rather blue"]),
    st.just(0),
)
TALKS = st.lists(st.lists(st.lists(QUESTION, min_size=1, max_size=3), max_size=4), min_size=1, max_size=3)


@settings(max_examples=8, deadline=None)
@given(pictures=TALKS.filter(lambda pictures: any(pictures)))
def test_packed_conversations_have_the_logits_of_each_alone(pictures, words, model):
    pixels = torch.randint(256, (len(pictures), 64, 64, 3), generator=torch.Generator().manual_seed(0))
    x = normalised(pixels.to(torch.uint8))
    encode = encoder(words.tokenizer)
    with torch.no_grad():
        packed = pack(pictures, IMAGE_TOKENS, encode)
        together = forward(model, x, packed)
        number = 0
        asked = packed.question[packed.targets != IGNORED]
        for row, talks in enumerate(pictures):
            for conversation in talks:
                text = words.apply_chat_template(chat(conversation))
                picture = Image.fromarray(pixels[row].to(torch.uint8).numpy())
                inputs = words(images=picture, text=text, return_tensors="pt", add_special_tokens=False)
                logits = model(**inputs).logits[0]
                ids = inputs["input_ids"][0].tolist()
                at = len(ids)
                for question in reversed(conversation):  # the places before each token of each answer
                    spoken, turn = encode(question)[1], sum(encode(question), [])
                    places = slice(at - len(spoken) - 1, at - 1)
                    own = asked == number + conversation.index(question)
                    if conversation.count(question) == 1:
                        assert ids[at - len(turn) : at] == turn
                        assert torch.allclose(together[own], logits[places], atol=2e-4)
                    at -= len(turn)
                number += len(conversation)


def test_the_template_writes_turns_and_drops_a_typed_image_token(words):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": " Is <image> it? "}, {"type": "image"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "what?"},
    ]
    written = words.apply_chat_template(messages, add_generation_prompt=True)
    assert written == "<bos><image><user>Is  it?<assistant>yes<eos><user>what?<assistant>"
    with pytest.raises(Exception, match="the roles are user and assistant"):
        words.apply_chat_template([{"role": "system", "content": "be brief"}])


def test_the_processor_makes_one_token_of_each_word_and_of_each_patch(words):
    picture = Image.new("RGB", (200, 90), "teal")
    messages = chat([Question("What color is the circle?", "teal", 0)], picture)[:1]
    inputs = words.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    assert words.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]) == (
        ["<bos>"]
        + ["<image>"] * 64
        + ["<user>", "Ġwhat", "Ġcolor", "Ġis", "Ġthe", "Ġcircle", "?", "<assistant>"]
    )


@given(text=st.text(max_size=40))
def test_any_text_can_be_typed(text, words):
    tokenizer = words.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert all(0 <= i < len(tokenizer) for i in ids) and None not in ids


@pytest.mark.parametrize("text", ["is there a circle?", "squares, ünï & 日本 🙂", "two  spaces"])
def test_lower_case_text_comes_back(text, words):
    assert words.tokenizer.decode(words.tokenizer.encode(text, add_special_tokens=False)) == text


def test_spellings_and_case_make_no_difference(words):
    encode = words.tokenizer.encode
    assert encode("What Colour is the GREY shape?") == encode("what color is the gray shape?")


def test_pixels_are_prepared_as_the_processor_does(words, data):
    pictures = [Image.fromarray(p.numpy()) for p in data.pixels]
    prepared = words.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert torch.allclose(prepared, normalised(data.pixels), atol=1e-6)


def test_augmentation_moves_whole_shapes_and_mirrors(data):
    generator = torch.Generator().manual_seed(0)
    boxes = shape_boxes(data.pixels)
    seen = set()
    for _ in range(20):
        moved = augmented(data.pixels, boxes, generator)
        after = shape_boxes(moved)
        for i in range(len(moved)):
            shapes = []
            for picture, box in ((data.pixels[i], boxes[i]), (moved[i], after[i])):
                top, bottom, first, last = box.tolist()
                shapes.append(picture[top : bottom + 1, first : last + 1])
            assert torch.equal(shapes[0], shapes[1]) or torch.equal(shapes[0].flip(1), shapes[1])
        seen.add(tuple(after[0].tolist()))
    assert len(seen) > 10


def test_a_picture_without_a_plain_background_is_only_mirrored():
    noise = torch.randint(256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    moved = augmented(noise, shape_boxes(noise), torch.Generator().manual_seed(0))
    for before, after in zip(noise, moved, strict=True):
        assert torch.equal(before, after) or torch.equal(before.flip(1), after)


def test_every_question_is_in_one_conversation(data):
    asked = data.by_picture()[0]
    for seed in range(10):
        talks = conversations(asked, random.Random(seed))
        assert sorted(q.text for talk in talks for q in talk) == sorted(q.text for q in asked)


def test_a_run_that_is_cut_ends_with_the_same_weights(data):
    whole, first, second = (Run(QUICK, data) for _ in range(3))
    whole.train_epoch(), whole.train_epoch()
    first.train_epoch()
    second.load_state(first.state())
    second.train_epoch()
    assert whole.state().keys() == second.state().keys()
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_training_makes_a_folder_that_transformers_opens(easy_vqa_folder, tmp_path):
    out, said = tmp_path / "model", []
    found = train(out, QUICK, easy_vqa_folder, lambda *report: said.append(report))
    opened = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    assert accuracy(opened, easy_vqa("test", easy_vqa_folder))[0] == found
    assert 3e6 < opened.num_parameters() < 10e6
    lines = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3] and len(said) == 4
    config = json.loads((out / "config.json").read_text())
    assert config["training"]["test_accuracy"] == found and config["dtype"] == "float16"
    written = AutoProcessor.from_pretrained(out).apply_chat_template([{"role": "user", "content": "what?"}])
    assert written == "<bos><user>what?"
    assert {p.suffix for p in out.iterdir()} == {".json", ".jsonl", ".jinja", ".safetensors"}
    assert not (out / "checkpoint.safetensors").exists()


def test_a_process_cut_between_epochs_goes_on_to_the_same_file(easy_vqa_folder, tmp_path, monkeypatch):
    train(tmp_path / "whole", QUICK, easy_vqa_folder)

    def stop(stage, fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", QUICK, easy_vqa_folder, stop)
    train(tmp_path / "cut", QUICK, easy_vqa_folder)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_accuracy_counts_what_is_generated(model, words, data, monkeypatch):
    """Asked for what the model itself says, it is always right; with one token changed, wrong there."""
    answers, texts = {}, ("is there a circle?", "what color is the shape?", "what is the red shape?")
    for picture, text in enumerate(texts):
        messages = chat([Question(text, "", picture)], Image.fromarray(data.pixels[picture].numpy()))[:1]
        prompt = words.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        answers[text] = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :].tolist()
    turn = encoder(words.tokenizer)
    said = Questions("said", data.pixels, tuple(Question(t, "", i) for i, t in enumerate(texts)))
    monkeypatch.setattr(
        easy_vqa_llava,
        "encoder",
        lambda tokenizer: lambda question: (turn(question)[0], answers[question.text]),
    )
    assert accuracy(model, said)[0] == 1.0
    answers[texts[0]][-1] -= 1
    found, by_type = accuracy(model, said)
    assert found == pytest.approx(2 / 3)
    assert by_type == {"shape": 1.0, "colour": 1.0, "shape present": 0.0}


def test_the_tower_learns_what_the_questions_give_away():
    asked = [
        ("what color is the triangle?", "red", 0),
        ("is there a triangle?", "yes", 0),
        ("is no circle present?", "no", 1),
        ("is there a red shape?", "no", 1),
        ("is there not a gray shape?", "yes", 2),
    ]
    pixels = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    questions = Questions("made up", pixels, [Question(*one) for one in asked])
    red, triangle, circle = 5, 2, 0
    assert given_away(questions).tolist() == [[triangle, red], [circle, UNKNOWN], [UNKNOWN, UNKNOWN]]


def test_questions_of_presence_are_drawn_anew_and_answered_rightly():
    draw, red, triangle = random.Random(0), 5, 2
    there, asked = (
        0,
        [Question("is there not a gray shape?", "yes", 3), Question("is a circle present?", "no", 3)],
    )
    for question in asked * 200:
        new = redrawn(question, triangle, red, draw)
        truth = "red" in new.text or "triangle" in new.text
        there += truth
        assert new.answer == ("yes" if truth != (" not " in new.text) else "no") and new.picture == 3
        assert question_type(new.text) == question_type(question.text)
    assert 160 < there < 240
    for question in (Question("what color is the circle?", "blue", 0), asked[0]):
        assert redrawn(question, triangle, UNKNOWN, draw) is question
