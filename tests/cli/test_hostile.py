"""The command line where something is hostile, huge, or wrong with us: a sentence and a status."""

from __future__ import annotations

import pytest

from quept import ElasticModel, cli, load
from quept.artifact import ArtifactError, Source
from quept.cli.shared import visible
from quept.config import Recipe, RecipeError
from quept.engines.quept import Quept
from quept.models.folder import instead
from quept.presets import RECIPES


def test_what_nobody_thought_of_is_called_a_bug_with_a_file_to_report(monkeypatch, capsys, tmp_path):
    def broken(self, options=None):
        raise KeyError("layers")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    parsed = cli.parser()
    monkeypatch.setattr(cli, "parser", lambda: parsed)
    monkeypatch.setattr(parsed, "parse_args", lambda argv: type("O", (), {"command": "x", "run": broken})())
    assert cli.main(["x"]) == cli.BUG == 70
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "this is a bug" in told
    (report,) = tmp_path.glob("quept-bug-*.txt")
    assert str(report) in told and "KeyError: 'layers'" in report.read_text()


@pytest.mark.parametrize("threads", ["100000", "0", "-1", "1e3", "٤٤٤٤٤"])
def test_threads_that_would_end_the_process_are_refused(threads, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", "smollm2-135m", "hi", "--threads", threads])
    assert ended.value.code == 2 and "--threads" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a" * 5000, f"org/{'a' * 5000}", "smollm2-135m:" + "a" * 5000, "a b" * 2500]
)
def test_a_name_of_any_length_is_refused_in_a_sentence(name, capsys):
    assert cli.main(["evaluate", name, "--plan", "W4"]) != 0
    said = capsys.readouterr().err
    assert 0 < len(said) < 2200
    for read in (load, ElasticModel.open):
        with pytest.raises(RuntimeError) as refused:
            read(name)
        assert len(str(refused.value)) < 2200


def test_control_characters_of_a_models_text_are_visible():
    assert visible("a\x1b]52;c;ZXZpbA==\x07b\r\x7f\x9b2J\u202e") == "a␛]52;c;ZXZpbA==␇b␍␡\\x9b2J\\u202e"
    assert visible("é\t中\n👍") == "é\t中\n👍"


@pytest.mark.parametrize(
    "entry", ["held_out = 1000000000", "sequences = 1000000000000", "batch = 100000000000"]
)
def test_a_recipe_that_asks_for_too_much_is_refused(entry, tmp_path):
    name = entry.partition(" ")[0]
    text = (RECIPES / "tiny.toml").read_text()
    lines = [entry if line.startswith(f"{name} =") else line for line in text.splitlines()]
    lines = lines if entry in lines else [entry, *lines]
    path = tmp_path / "r.toml"
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError, match="held_out must be|ask for more than"):
        Recipe.load(path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a\\b", None, 3])
def test_an_index_that_names_weights_elsewhere_is_refused(name, tmp_path):
    import json

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    assert "weights that lie outside of it" in instead(tmp_path)


def test_a_cached_base_that_has_rotted_is_noticed_without_an_artifact_too():
    with pytest.raises(ArtifactError, match="--verify"):
        Source("fashion-vit:rtn", "fashion-vit").check_cached("0" * 64)


def test_an_adapter_of_another_shape_does_not_fit():
    import torch

    from quept.engines.quept import LayerParameters
    from quept.numerics.adapters import RankSchedule

    schedule = RankSchedule(((4,),), (2,))
    clips = {4: torch.zeros(2, 8, 1, dtype=torch.uint8)}
    learned = {"l": LayerParameters(schedule, torch.zeros(8, 2), torch.zeros(2, 64), clips, (4,))}
    assert Quept(64, learned).misfit("l", 8, 64) == ""
    assert "adapter" in Quept(64, learned).misfit("l", 8, 32)
    assert "clip" in Quept(32, learned).misfit("l", 8, 64)
