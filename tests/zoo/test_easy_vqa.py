"""easy-VQA is read from its own files only, packed or not; a slice of it is kept in one file; every question
of the data has its type."""

import io
import json
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from quept.data import easy_vqa
from quept.data.easy_vqa import Question, question_type, read_questions, save_questions
from quept.zoo import SourceError
from quept.zoo.cache import sha256_of

pytestmark = pytest.mark.slow


def test_a_folder_and_the_wheel_are_read_alike(easy_vqa_folder, tmp_path):
    wheel = tmp_path / "wheels" / easy_vqa.WHEEL.file_name
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in easy_vqa_folder.rglob("*.*"):
            archive.write(file, easy_vqa.IN_WHEEL + file.relative_to(easy_vqa_folder).as_posix())
    for split, count in (("train", 8), ("test", 4)):
        unpacked, packed = (easy_vqa.easy_vqa(split, place) for place in (easy_vqa_folder, wheel.parent))
        assert unpacked.digest == packed.digest
        assert unpacked.pixels.shape == (count, 64, 64, 3) and unpacked.pixels.dtype == torch.uint8
        assert [q for asked in unpacked.by_picture() for q in asked] == list(unpacked.questions)
        with Image.open(easy_vqa_folder / split / "images" / "1.png") as picture:
            assert picture.tobytes() == unpacked.pixels[1].numpy().tobytes()


def test_without_a_folder_the_wheel_is_fetched_once_and_stays_packed(
    easy_vqa_folder, index, cache, monkeypatch
):
    files = {
        easy_vqa.IN_WHEEL + file.relative_to(easy_vqa_folder).as_posix(): file.read_bytes()
        for file in easy_vqa_folder.rglob("*.*")
    }
    index.add("easy-vqa", "1.0", files)
    made = index.path("easy-vqa", "1.0")
    wheel = easy_vqa.Wheel("easy-vqa", "1.0", sha256_of(made), made.stat().st_size)
    monkeypatch.setattr(easy_vqa, "WHEEL", wheel)
    first = easy_vqa.easy_vqa("test")
    index.vanish()
    assert easy_vqa.easy_vqa("test").digest == first.digest
    assert [p for p in (cache / "files").rglob("*") if p.is_file()] == [wheel.path]


def test_another_wheel_of_that_name_is_refused(index, cache):
    index.add("easy-vqa", "1.0", {"easy_vqa/data/train/questions.json": b"[]"})
    with pytest.raises(SourceError, match=r"not the wheel quept expects.*pip cache purge"):
        easy_vqa.easy_vqa("train")
    assert [p for p in (cache / "files").rglob("*") if p.is_file()] == []


def test_data_that_are_not_the_published_ones_are_refused(easy_vqa_folder):
    path = easy_vqa_folder / "test" / "questions.json"
    path.write_text(path.read_text().replace('"yes"', '"no"'))
    with pytest.raises(SourceError, match="not the test part of easy-VQA as it was published"):
        easy_vqa.easy_vqa("test", easy_vqa_folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "images" / "2.png").unlink(),
        lambda folder: (folder / "images" / "2.png").write_bytes(b"no picture"),
        lambda folder: (folder / "images" / "2.png").write_bytes(png(32)),
        lambda folder: (folder / "questions.json").write_text("[[1]]"),
        lambda folder: (folder / "questions.json").write_text("{"),
    ],
    ids=["missing", "not a picture", "other size", "other rows", "no JSON"],
)
def test_damaged_data_are_an_error_in_words(easy_vqa_folder, damage):
    damage(easy_vqa_folder / "train")
    with pytest.raises(SourceError, match="easy-VQA cannot be read from"):
        easy_vqa.easy_vqa("train", easy_vqa_folder)


def png(size: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size)).save(out, "PNG")
    return out.getvalue()


def test_a_folder_without_the_data_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"holds neither easy_vqa-1.0-py3-none-any.whl .*pip download"):
        easy_vqa.easy_vqa("train", tmp_path)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what shape is in the image?", "shape"),
        ("what is the blue shape?", "shape"),
        ("what color is the shape?", "colour"),
        ("What is the colour of the triangle?", "colour"),
        ("is there a circle?", "shape present"),
        ("does the image contain a teal shape?", "colour present"),
        ("is there not a rectangle in the image?", "shape absent"),
        ("is no green shape present?", "colour absent"),
        ("does the image not contain a gray shape?", "colour absent"),
    ],
)
def test_a_question_has_a_type(question, kind):
    assert question_type(question) == kind and kind in easy_vqa.TYPES


@pytest.mark.parametrize("question", ["", "who drew this?", "is there a square?", "circle"])
def test_other_questions_have_none(question):
    with pytest.raises(ValueError, match="no questions like"):
        question_type(question)


def test_a_slice_is_kept_in_one_file(easy_vqa_folder, tmp_path):
    source = easy_vqa.easy_vqa("test", easy_vqa_folder)
    path = tmp_path / "questions.safetensors"
    save_questions(path, source, 9)
    read = read_questions(path)
    assert read.questions == source.questions[:9] and read.name.endswith("the first 9 questions")
    assert torch.equal(read.pixels, source.pixels[: 1 + max(q.picture for q in read.questions)])
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


def test_pictures_without_a_kept_question_are_left_out(easy_vqa_folder, tmp_path):
    source = easy_vqa.easy_vqa("test", easy_vqa_folder)
    asked = (Question("is there a circle?", "yes", 3), Question("what shape is present?", "circle", 1))
    save_questions(tmp_path / "q", easy_vqa.Questions("two", source.pixels, asked))
    read = read_questions(tmp_path / "q")
    assert torch.equal(read.pixels, source.pixels[[1, 3]])
    assert [(q.text, q.picture) for q in read.questions] == [(asked[0].text, 1), (asked[1].text, 0)]


def test_another_file_is_not_taken_for_questions(tmp_path):
    save_file({"pixels": torch.zeros(1)}, tmp_path / "a")
    (tmp_path / "b").write_text(json.dumps([]))
    for name, words in (("a", "no file of questions"), ("b", "cannot be read"), ("c", "cannot be read")):
        with pytest.raises(ValueError, match=words):
            read_questions(tmp_path / name)
