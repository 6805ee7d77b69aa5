"""Questions about pictures: what is counted is what greedy generation, asked one by one, would say."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quept import ElasticModel, PrecisionPlan
from quept.data.easy_vqa import Question, save_questions
from quept.data.easy_vqa import Questions as EasyQuestions
from quept.data.images import ImageError
from quept.data.questions import Asked, Questions, _encoder, question_folder, stored_questions
from quept.evaluate.tasks.vqa import VqaTask, vqa, vqa_reference
from quept.runtime.generate import Sampling, stream
from tests import tiny_vlm
from tests.tiny import all_but_few_slow
from tests.training import script

LONGEST = 3  # tokens of a made-up answer
SIZES = [(40, 32), (32, 56), (32, 32)]
WORDS = ["what is it?", "what is there, and what is not there?", "is it a cat?"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Models that end an answer at a fifth of all tokens, or more, so that random ones do."""
    root, found = tmp_path_factory.mktemp("vlm"), {}

    def model(name: str) -> ElasticModel:
        if name not in found:
            folder = tiny_vlm.save_tiny_vlm(name, root / name)
            path = folder / "generation_config.json"
            config = json.loads(path.read_text()) if path.exists() else {}
            vocabulary = len(tiny_vlm.tiny_processor(name).tokenizer)
            path.write_text(
                json.dumps(
                    config
                    | {"eos_token_id": list(range(2, vocabulary, 3 if name.startswith("qwen3") else 5))}
                )
            )
            found[name] = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
        return found[name]

    return model


@pytest.fixture
def folder(tmp_path):
    """Three questions about each of two pictures, in no order; and a conversation about two pictures."""
    for i, size in enumerate(SIZES):
        tiny_vlm.picture(i, size).save(tmp_path / f"{i}.png")
    entries = [{"image": f"{i}.png", "question": w, "answer": "yes"} for w in WORDS for i in range(2)]
    talk = [("user", "which?"), ("assistant", "12"), ("user", "why?"), ("assistant", "no idea")]
    messages = [{"role": role, "content": content} for role, content in talk]
    entries += [
        {"image": ["2.png", "0.png"], "conversation": messages},
        {"image": "2.png", "caption": "noise"},
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    return tmp_path


def generated(elastic: ElasticModel, plan: PrecisionPlan, messages, pictures) -> list[int]:
    """Greedy tokens, with the one that ends the answer."""
    options = {"processor": elastic.processor, "pictures": pictures}
    options["make_cache"] = lambda: elastic.make_cache(plan)
    sampling = Sampling(temperature=0, max_tokens=LONGEST + 1)
    run = stream(elastic.view(plan), elastic.tokenizer, messages, sampling, **options)
    return [event.id for event in run if hasattr(event, "id")]


def every(elastic: ElasticModel, plan: PrecisionPlan, questions: Questions) -> dict[int, list[int]]:
    """What is generated to each question by itself."""
    return {
        asked.row: generated(
            elastic, plan, questions.messages[asked.row], [questions.picture(i) for i in group.pictures]
        )
        for batch in questions.groups
        for group in batch
        for asked in group.asked
    }


def answered(questions: Questions, answers: dict[int, list[int]]) -> Questions:
    """The same questions with other answers."""

    def changed(asked: Asked) -> Asked:
        return dataclasses.replace(asked, answer=tuple(answers[asked.row]))

    groups = tuple(
        tuple(dataclasses.replace(group, asked=tuple(map(changed, group.asked))) for group in batch)
        for batch in questions.groups
    )
    return dataclasses.replace(questions, groups=groups)


def outcome(said: list[int], answer: list[int], ends: set[int]) -> tuple | None:
    for place, right in enumerate(answer):
        if said[place] != right:
            return place, said[place]
    return None if said[len(answer)] in ends else (len(answer), said[len(answer)])


@pytest.mark.parametrize("name", all_but_few_slow(tiny_vlm.FAMILIES, ("llava", "qwen2-vl")))
def test_what_is_counted_is_what_greedy_generation_says(opened, folder, tmp_path, name):
    elastic, full = opened(name), PrecisionPlan.full()
    questions = question_folder(folder, elastic.processor)
    ends = set(elastic.view(full).generation_config.eos_token_id)
    said = every(elastic, full, questions)
    answers = {row: [id for id in ids if id not in ends][:LONGEST] for row, ids in said.items()}
    for row in (0, 5):  # where full precision is wrong
        answers[row] = [*answers[row][:1], 0]
    questions = answered(questions, answers)
    reference = vqa_reference(elastic, questions, tmp_path / "reference")
    theirs = {row: outcome(ids, answers[row], ends) for row, ids in said.items()}
    for plan in (full, PrecisionPlan.uniform(2), PrecisionPlan.uniform(4, 8, kv=4)):
        ours = said if plan is full else every(elastic, plan, questions)
        ours = {row: outcome(ids, answers[row], ends) for row, ids in ours.items()}
        make_cache = None if plan is full else lambda plan=plan: elastic.make_cache(plan)
        *_, found = vqa(elastic.view(plan), questions, reference, make_cache)
        count = len(ours)
        right = sum(said is None for said in ours.values())
        right_ref = sum(said is None for said in theirs.values())
        same = sum(ours[row] == theirs[row] for row in theirs)
        assert found.questions == len(WORDS) * 2 + 3 == count
        assert (found.top1, found.top1_ref, found.same_top) == (
            right / count,
            right_ref / count,
            same / count,
        )
        assert found.lost - found.gained == right_ref - right and 0 < right_ref < count
        assert found.kl < 1e-5 if plan is full else found.kl > 0.01


class Counting:
    """A model whose full precision is counted."""

    def __init__(self, elastic: ElasticModel):
        self.elastic, self.base_identity, self.calls = elastic, elastic.base_identity, 0

    def full_precision(self):
        self.calls += 1
        return self.elastic.full_precision()


@pytest.fixture
def stored(tmp_path) -> str:
    """Sixty questions of easy-VQA's kinds about ten pictures."""
    pixels = torch.randint(0, 256, (10, 32, 32, 3), dtype=torch.uint8)
    asked = [
        ("what shape is there?", "circle"),
        ("is there a red shape?", "no"),
        ("what color is it?", "red"),
    ]
    every = tuple(Question(*asked[i % 3], i // 6) for i in range(60))
    path = tmp_path / "questions.safetensors"
    save_questions(path, EasyQuestions("noise", pixels, every))
    return str(path)


def test_estimates_grow_and_the_reference_is_computed_once(opened, stored, tmp_path):
    elastic = opened("llava")
    questions, full = stored_questions(stored, elastic.processor), Counting(elastic)
    assert len(questions) == 60 and questions.name == "noise, the first 60 questions"
    reference = vqa_reference(full, questions, tmp_path / "reference")
    view = elastic.view(PrecisionPlan.uniform(3))
    estimates = list(vqa(view, questions, reference))
    assert [e.questions for e in estimates] == [18, 36, 54, 60] and full.calls == 4
    last = estimates[-1]
    assert set(last.types) == {"shape", "colour", "colour present"}
    assert sum(t.questions for t in last.types.values()) == 60
    assert last.top1_low <= last.top1 <= last.top1_high
    task = VqaTask(elastic)
    task.questions = questions
    read = task.read(json.loads(json.dumps(last.to_dict())))
    assert read["top1"].value == last.top1 and "shape " in read["top1"].detail
    again = list(vqa(view, stored_questions(stored, elastic.processor), reference))[-1]
    assert full.calls == 4 and dataclasses.replace(again, seconds=last.seconds) == last
    some = stored_questions(stored, elastic.processor, 20)
    assert len(some) == 20 and some.id != questions.id
    with pytest.raises(ValueError, match="not the reference's"):
        next(vqa(view, some, reference))


def test_pictures_that_cannot_be_read_are_left_out_and_counted(opened, folder, tmp_path):
    elastic = opened("llava")
    (folder / "1.png").write_bytes(b"broken")
    questions = question_folder(folder, elastic.processor)
    reference = vqa_reference(elastic, questions, tmp_path / "reference")
    *_, found = vqa(elastic.view(PrecisionPlan.full()), questions, reference)
    assert (found.questions, found.skipped) == (6, 3)
    for name in ("0.png", "2.png"):
        (folder / name).write_bytes(b"broken")
    questions = question_folder(folder, elastic.processor)
    reference = vqa_reference(elastic, questions, tmp_path / "reference")
    with pytest.raises(ImageError, match="none of the 9 questions of"):
        next(vqa(elastic.view(PrecisionPlan.full()), questions, reference))


def test_the_answers_of_the_built_in_model_are_words_of_its_own():
    words = script("easy-vqa").processor()
    encode = _encoder(words)
    head, tokens, answer, _ = encode(1, (("is there a circle?", "yes"), ("what color is it?", "red")))
    assert words.tokenizer.convert_ids_to_tokens([*head, *tokens, *answer]) == [
        *("<bos>", "<image>", "<user>", "Ġis", "Ġthere", "Ġa", "Ġcircle", "?", "<assistant>", "Ġyes"),
        *("<eos>", "<user>", "Ġwhat", "Ġcolor", "Ġis", "Ġi", "t", "?", "<assistant>", "Ġred"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"questions": "["}, "no lists"),
        ({"questions": "[" * 100_000}, "no lists"),
        ({"answers": None}, "no lists"),
        ({"answers": '["a"]'}, "do not fit"),
        ({"answers": json.dumps([3] * 60)}, "do not fit"),
        ({"pixels": torch.zeros(10, 32, 32, dtype=torch.uint8)}, "do not fit"),
        ({"pixels": torch.zeros(10, 32, 32, 3)}, "do not fit"),
        ({"picture": torch.full((60,), -1)}, "do not fit"),
        ({"picture": torch.full((60,), 10)}, "do not fit"),
        ({"picture": torch.zeros(60)}, "do not fit"),
        ({"picture": None}, "cannot be read"),
        ({"version": "2"}, "no file of questions"),
    ],
)
def test_a_damaged_file_of_questions_is_refused(stored, change, words):
    with safe_open(stored, "pt") as file:
        metadata = file.metadata()
    for key, value in change.items():
        tensors = load_file(stored)
        parts = tensors if key in tensors else metadata
        parts.pop(key)
        if value is not None:
            parts[key] = value
    save_file(tensors, stored, metadata)
    with pytest.raises(ValueError, match=words):
        stored_questions(stored, script("easy-vqa").processor())


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "questions.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read"):
        stored_questions(tmp_path / "questions.safetensors", script("easy-vqa").processor())
