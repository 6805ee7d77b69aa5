"""The commands with a vision-language model."""

import json

import pytest

from quept.cli import main
from quept.export import open_packed
from quept.runtime import ElasticModel
from tests import tiny, tiny_vlm


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_vlm.save_tiny_vlm("llava", tmp_path_factory.mktemp("vlm") / "llava"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    tiny_vlm.picture().save(path)
    return str(path)


def spoken(capsys, *argv: str) -> dict:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_generate_answers_about_a_picture(model, picture, capsys):
    argv = ("generate", model, "--plan", "W4", "--max-tokens", "4", "--temperature", "0", "what?")
    seen, blind = spoken(capsys, *argv, "--image", picture), spoken(capsys, *argv)
    assert seen["plan"] == "W4, vision 8" and seen["tokens"] == 4
    assert seen["text"] != blind["text"]


def test_pictures_for_a_model_that_reads_none_are_refused_in_words(tmp_path, picture, capsys):
    language = str(tiny.save_tiny("llama", tmp_path / "llama"))
    assert main(["generate", language, "--image", picture, "what?"]) == 2
    assert "reads no pictures: leave --image out" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main(["generate", language, "--image", str(tmp_path / "broken.png"), "what?"]) == 2


def test_what_is_exported_weighs_what_was_said_and_keeps_what_sees_at_eight_bits(model, tmp_path, capsys):
    out = tmp_path / "w3.safetensors"
    said = spoken(capsys, "export", model, "--plan", "W3", "--out", str(out))
    elastic, packed = ElasticModel.open(model, device="cpu"), open_packed(out)
    assert said["tensor_bytes"] == packed.nbytes == elastic.sizes.deploy(packed.plan)
    sections = elastic.layout.sections
    assert {packed.grids[name][0] for name in sections["language"]} == {3}
    assert {packed.grids[name][0] for name in (*sections["vision"], *sections["projector"])} == {8}
