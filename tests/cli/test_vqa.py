"""`quept evaluate` on vision-language models."""

import json

import pytest
import torch

from quept.cli import main
from quept.data.easy_vqa import Question, Questions, save_questions
from tests.cli.test_vision import cache, fails, run  # noqa: F401  a fixture among them
from tests.tiny import save_tiny
from tests.tiny_vlm import picture, save_tiny_vlm


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny LLaVA with questions of its own."""
    folder = save_tiny_vlm("llava", tmp_path_factory.mktemp("vlm") / "tiny-llava")
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    asked = tuple(Question("what shape is there?", "circle", i // 6) for i in range(24))
    save_questions(folder / "questions.safetensors", Questions("noise", pixels, asked))
    return str(folder)


def test_accuracy_is_measured_printed_and_stored(model, capsys):
    argv = ("evaluate", model, "--plan", "W4", "--plan", "W4KV4", "--plan", "w4a8")
    first = run(capsys, *argv)
    assert (first["data"], first["questions"]) == ("noise, the first 24 questions", 24)
    plain, cached, preset = first["results"]
    assert (plain["plan"], preset["plan"]) == ("W4, vision 8", "w4a8, vision 8")
    assert (
        plain["questions"] == plain["types"]["shape"]["questions"] == 24 and cached["kl"] != plain["kl"] > 0
    )
    assert run(capsys, *argv) == first, "the second time comes from the store, seconds and all"
    assert main(list(argv)) == 0
    conditions, head, row, *_ = capsys.readouterr().out.splitlines()
    assert (
        "on noise, the first 24 questions" in conditions and "accuracy (95 %)" in head and "shape 0.0" in row
    )


def test_a_folder_with_pairs_can_be_given(model, tmp_path, capsys):
    picture().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    entries = [{"image": f"{name}.png", "question": "what?", "answer": "yes"} for name in "aab"]
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    argv = ("evaluate", model, "--data", str(tmp_path))
    assert main(list(argv)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "1 questions could not be read and were left out"
    told = run(capsys, *argv)
    assert (told["questions"], told["results"][0]["questions"]) == (3, 2)
    assert set(told["results"][0]["types"]) == {"yes or no"}
    assert run(capsys, *argv, "--questions", "2")["questions"] == 2


@pytest.mark.slow
def test_a_front_is_searched_on_other_questions_than_it_is_measured_on(model, tmp_path, capsys):
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    asked = tuple(Question("what shape is there?", "circle", i // 6) for i in range(12))
    other, table, out = (str(tmp_path / name) for name in ("other.safetensors", "table.json", "front.json"))
    save_questions(other, Questions("other noise", pixels, asked))
    assert run(capsys, "evaluate", model, "--plan", "W4", "--data", other)["questions"] == 12
    run(capsys, "sensitivity", model, "--tokens", "2", "--curve-tokens", "24", "--out", table)
    argv = ("front", model, "--table", table, "--bits", "8", "--trials", "3", "--out", out)
    run(capsys, *argv, "--search-data", other, "--search-tokens", "7")
    conditions = json.loads((tmp_path / "front.json").read_text())["conditions"]
    assert conditions["searched"] == "the first 7 of other noise, the first 12 questions"
    assert conditions["text"] == "noise, the first 24 questions"
    language = str(save_tiny("llama", tmp_path / "llama"))
    assert "use --search-text" in fails(capsys, "front", language, "--search-data", other, "--out", out)


def test_options_of_another_kind_and_missing_questions_are_refused(model, tmp_path, capsys):
    bare, language = (
        str(save_tiny_vlm("llava", tmp_path / "bare")),
        str(save_tiny("llama", tmp_path / "llama")),
    )
    assert "--images is for classifiers" in fails(capsys, "evaluate", model, "--images", "3")
    assert "--text is for language models" in fails(capsys, "evaluate", model, "--text", "x")
    assert "--questions is for vision-language" in fails(capsys, "evaluate", language, "--questions", "3")
    assert "comes without questions" in fails(capsys, "evaluate", bare)
    assert "pairs.json cannot be read" in fails(capsys, "evaluate", model, "--data", str(tmp_path))
