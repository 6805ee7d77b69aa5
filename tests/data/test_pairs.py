"""A folder of pictures and pairs.json: what it may say, and what is refused with a sentence."""

import json

import pytest

from quept.data.pairs import DESCRIBE, Pair, PairsError, read_pairs
from tests.tiny_vlm import picture


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    picture(0).save(folder / "a.png")
    picture(1).save(folder / "sub" / "b.png")
    picture(2).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    return folder


def wrote(folder, entries) -> None:
    (folder / "pairs.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))


def said(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_questions_captions_and_conversations_are_read(folder):
    entries = [
        {"image": "a.png", "question": "What?", "answer": "A cat", "source": "mine"},
        {"image": "sub/b.png", "caption": "Noise."},
        {"image": ["a.png", "sub/b.png"], "conversation": said("1?", "one", "2?", "two")},
    ]
    wrote(folder, entries)
    a, b = folder / "a.png", folder / "sub" / "b.png"
    expected = [
        Pair((a,), (("What?", "A cat"),)),
        Pair((b,), ((DESCRIBE, "Noise."),)),
        Pair((a, b), (("1?", "one"), ("2?", "two"))),
    ]
    assert read_pairs(folder) == expected == read_pairs(str(folder))


@pytest.mark.parametrize(
    "name", ["c.png", "../outside.png", "link.png", "sub", "", "a\0.png", "x" * 5000, "/"]
)
def test_a_picture_that_is_not_in_the_folder_is_refused(folder, name):
    wrote(folder, [{"image": "a.png", "caption": "fine"}, {"image": name, "caption": "not"}])
    with pytest.raises(PairsError, match="entry 2: there is no file .* in the folder"):
        read_pairs(folder)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("a.png", "not an object"),
        ({"caption": "x"}, '"image" must be'),
        ({"image": [], "caption": "x"}, '"image" must be'),
        ({"image": ["a.png", 3], "caption": "x"}, '"image" must be'),
        ({"image": "a.png"}, "one of them"),
        ({"image": "a.png", "caption": "x", "question": "y", "answer": "z"}, "one of them"),
        ({"image": "a.png", "question": "x"}, '"answer" must be a text'),
        ({"image": "a.png", "question": " ", "answer": "x"}, '"question" must be a text'),
        ({"image": "a.png", "caption": ["x"]}, '"caption" must be a text'),
        ({"image": "a.png", "conversation": said("1?")}, "user and assistant in turn"),
        ({"image": "a.png", "conversation": []}, "user and assistant in turn"),
        ({"image": "a.png", "conversation": "hello"}, "user and assistant in turn"),
        ({"image": "a.png", "conversation": said("1?", "")}, '"content" must be a text'),
    ],
)
def test_an_entry_that_cannot_be_understood_is_named(folder, entry, words):
    wrote(folder, [entry])
    with pytest.raises(PairsError, match=f"entry 1: .*{words}"):
        read_pairs(folder)


@pytest.mark.parametrize(
    ("content", "words"), [("{", "JSON"), ("[" * 100_000, "JSON"), ("[]", "list"), ("3", "list")]
)
def test_a_file_that_is_no_list_is_refused(folder, content, words):
    wrote(folder, content)
    with pytest.raises(PairsError, match=words):
        read_pairs(folder)


def test_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(PairsError, match=r"pairs\.json cannot be read: No such file"):
        read_pairs(tmp_path)
