"""The command line on a tiny model: what each command prints, stores and writes, and how it fails."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from quept import ElasticModel
from quept.cli import main, parser
from quept.evaluate import Results, ResultsError
from quept.evaluate.shipped import load_shipped
from quept.export import open_packed
from quept.plan import PrecisionPlan
from quept.progress import Progress
from tests.tiny import save_tiny

COMMANDS = (
    "models",
    "pull",
    "plan-run",
    "calibrate",
    "report",
    "evaluate",
    "routing",
    "sensitivity",
    "export",
    "generate",
    "run",
    "app",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny("llama", tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 10)
    return str(path)


def run(capsys, *argv) -> dict:
    """Run a command that must succeed with --json; the object in its last line."""
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def fails(capsys, code: int, *argv) -> str:
    """Run a command that must fail; its message: the last line after the progress, and no traceback."""
    assert main(list(argv)) == code
    captured = capsys.readouterr()
    *progress, message = captured.err.splitlines()
    assert message.startswith(f"quept {argv[0]}: ") and all(
        line.endswith("…") or "%" in line for line in progress
    )
    return message


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"quept {command}" in capsys.readouterr().out


def test_help_names_every_command_and_loads_no_model_library():
    code = "import sys; from quept.cli import parser as p; print(p().format_help(), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"    {command} " in out or f"    {command}\n" in out for command in COMMANDS)
    assert out.splitlines()[-1] == " False"


def test_python_m_quept_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "quept", "models", "--json"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "smollm2-135m" in done.stdout and json.loads(done.stdout.splitlines()[-1])["plans"]


@pytest.mark.parametrize("argv", [[], ["measure"], ["evaluate"], ["evaluate", "m", "--tokens", "-3"]])
def test_what_cannot_be_read_ends_with_usage_and_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(argv)
    assert ended.value.code == 2 and "usage: quept" in capsys.readouterr().err


def test_evaluate_measures_prints_and_stores(model, text, cache, capsys):
    argv = (
        "evaluate",
        model,
        "--plan",
        "W8",
        "--plan",
        "W2",
        "--text",
        text,
        "--tokens",
        "64",
        "--context",
        "32",
    )
    first = run(capsys, *argv)
    assert (first["tokens"], first["context"], first["text"]) == (64, 32, "words.txt")
    high, low = first["results"]
    assert (high["plan"], low["plan"], high["tokens"]) == ("W8", "W2", 62)
    assert low["kl"] > high["kl"] > 0 and low["deploy_bytes"] < high["deploy_bytes"]
    assert {"ppl", "ppl_se", "kl_se", "same_top_se", "bits_per_parameter"} <= set(high)
    assert run(capsys, *argv) == first, "the second time comes from the store, seconds and all"
    assert run(capsys, *argv, "--again")["results"][0]["kl"] == pytest.approx(high["kl"], rel=1e-3)
    assert (cache / "results.sqlite").exists()


def test_evaluate_prints_a_table_for_people(model, text, capsys):
    assert main(["evaluate", model, "--text", text, "--tokens", "32", "--context", "32"]) == 0
    out, err = capsys.readouterr()
    conditions, head, row = out.splitlines()
    assert "words.txt, 32 tokens, context 32" in conditions
    assert head.split()[:3] == ["plan", "bits/param", "MB"] and row.startswith("W4") and "±" in row
    assert os.path.dirname(model) not in out + err


def test_results_lists_what_was_measured_and_writes_it_as_csv(model, text, cache, tmp_path, capsys):
    data = ("--text", text, "--tokens", "64", "--context", "32")
    assert main(["results", model, *data]) == 0
    assert "nothing was measured" in capsys.readouterr().out
    plan = PrecisionPlan.of({"*.q_proj": 5}, default=4)
    plan.save(tmp_path / "own.json")
    named, own = ("--plan", "W4"), ("--plan", str(tmp_path / "own.json"))
    measured = run(capsys, "evaluate", model, *named, *own, *data)["results"]
    assert main(["results", model, *data, "--csv", str(tmp_path / "all.csv")]) == 0
    _, head, first, second, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["plan", "dtype", "tokens", "perplexity"]
    assert (
        first.split()[0] == "W4" and first.split()[2] == "62" and second.startswith(measured[1]["key"][:12])
    )
    written = pd.read_csv(tmp_path / "all.csv", dtype={"plan": str})
    assert written["kl"].tolist() == pytest.approx([r["kl"] for r in measured])
    assert written["bytes"].tolist()[0] == measured[0]["deploy_bytes"] and pd.isna(written["bytes"][1])


def test_exported_results_are_read_back_into_a_store(model, text, cache, tmp_path, capsys):
    file = tmp_path / "results.json"
    data = ("--text", text, "--tokens", "64", "--context", "32")
    told = run(capsys, "evaluate", model, "--presets", *data, "--export-results", str(file))
    names = [result["plan"] for result in told["results"]]
    assert (
        names[:8] == ["full precision", "W8", "W7", "W6", "W5", "W4", "W3", "W2"] and "down-proj-8" in names
    )
    assert "protect-edges" not in names, "that one is for another model"
    store = Results.open(tmp_path / "another.sqlite")
    elastic = ElasticModel.open(model)
    assert load_shipped(store, file, elastic) == len(names)
    assert load_shipped(store, file, elastic) == 0, "what is there stays"
    content = json.loads(file.read_text())
    kept = store.table(elastic.identity, content["data"]).set_index("plan")["kl"]
    assert {r["key"]: r["kl"] for r in told["results"]} == kept.to_dict()
    assert str(tmp_path) not in file.read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a results file"),
        ('{"format": "quept-results", "version": 9}', "version 9; this program reads up to 1"),
        ('{"format": "quept-results", "version": 1, "measure": 1, "results": [3]}', "damaged"),
    ],
)
def test_a_results_file_that_is_none_is_refused_in_words(content, words, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ResultsError, match=words):
        load_shipped(Results.open(tmp_path / "store.sqlite"), tmp_path / "results.json", elastic=None)


def test_results_of_an_older_measure_are_passed_over(tmp_path):
    (tmp_path / "results.json").write_text('{"format": "quept-results", "version": 1, "measure": 0}')
    assert load_shipped(Results.open(tmp_path / "store.sqlite"), tmp_path / "results.json", elastic=None) == 0


def test_a_plan_file_and_a_preset_are_plans_too(model, text, tmp_path, capsys):
    PrecisionPlan.of({"*.down_proj": 6}, default=4, name="mine").save(tmp_path / "mine.json")
    argv = ("--plan", str(tmp_path / "mine.json"), "--plan", "down-proj-8", "--text", text)
    told = run(capsys, "evaluate", model, *argv, "--tokens", "32", "--context", "32")
    assert [result["plan"] for result in told["results"]] == ["mine", "down-proj-8"]


def test_evaluate_times_the_plans_where_it_is_asked_to(model, text, capsys):
    data = ("--text", text, "--tokens", "32", "--context", "32")
    speed = run(capsys, "evaluate", model, "--plan", "W4", "--speed", *data)["speed"]["W4"]
    assert speed["prefill_ms"] > 0 and speed["decode_tokens_per_s"] > 0 and speed["decode_tokens"] == 32


def test_calibrate_writes_a_folder_that_evaluate_opens(model, text, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert run(capsys, "calibrate", model, "--group", "32", "--out", out)["group"] == 32
    told = run(capsys, "evaluate", out, "--text", text, "--tokens", "32", "--context", "32")
    assert told["group"] == 32 and told["method"] == "rtn"


def test_sensitivity_writes_a_table_and_clears_its_lines(model, text, tmp_path, capsys):
    out = tmp_path / "table.json"
    data = ("--text", text, "--tokens", "32", "--context", "32", "--curve-tokens", "64")
    told = run(capsys, "sensitivity", model, *data, "--out", str(out))
    assert told["layers"] == 14 and json.loads(out.read_text())["data"]["text"] == "words.txt"
    assert not (tmp_path / "table.json.progress.jsonl").exists()


def test_export_writes_the_bytes_it_tells(model, tmp_path, capsys):
    out = tmp_path / "w3.safetensors"
    told = run(capsys, "export", model, "--plan", "W3", "--out", str(out))
    assert open_packed(out).nbytes == told["tensor_bytes"]


def test_a_plan_becomes_a_gguf_file_that_llama_cpp_runs(model, text, tmp_path, capsys):
    pytest.importorskip("xllamacpp")
    out, types = tmp_path / "w4.gguf", tmp_path / "types.txt"
    asked = ("export", model, "--plan", "W4", "--to", "gguf", str(out), "--tensor-types", str(types))
    told = run(capsys, *asked)
    assert told["bytes"] == out.stat().st_size and 0 < told["relative"] < 1e-3
    assert "blk\\.0\\.attn_q\\.weight$=q4_1\n" in types.read_text()
    told = run(
        capsys,
        "run",
        str(out),
        "hello",
        "--max-tokens",
        "4",
        "--threads",
        "1",
        "--against",
        model,
        "--text",
        text,
    )
    assert told["tokens_per_s"] > 0 and told["kl"] < 0.02 and told["positions"] == 24


def test_what_a_format_does_not_hold_is_told_with_the_way_out(model, tmp_path, capsys):
    out = str(tmp_path / "x.gguf")
    said = fails(capsys, 2, "export", model, "--plan", "W4A8", "--to", "gguf", out)
    assert "do not round activations to 8 bits" in said and "--nearest writes the closest plan" in said
    told = run(capsys, "export", model, "--plan", "W4A8", "--to", "gguf", out, "--nearest")
    assert told["plan"] == "W4A8 for GGUF"
    assert "there is no file" in fails(capsys, 1, "run", str(tmp_path / "none.gguf"))


def test_generate_streams_and_is_the_same_for_a_seed(model, capsys):
    argv = ("generate", model, "--plan", "W4KV4", "--max-tokens", "8", "--seed", "3", "hello")
    first = run(capsys, *argv)
    assert 1 <= first["tokens"] <= 8
    assert run(capsys, *argv)["text"] == first["text"]


def test_mistakes_are_one_sentence_that_says_what_to_type(model, text, tmp_path, capsys):
    assert "smollm2-135m" in fails(capsys, 1, "evaluate", "smollm3")
    assert "2, 3, 4, 5, 6, 7, 8, 16; got 9" in fails(capsys, 2, "evaluate", model, "--plan", "W9")
    assert "did you mean 'protect-edges'?" in fails(capsys, 2, "evaluate", model, "--plan", "protect")
    assert "made for the model 'smollm2-135m'" in fails(
        capsys, 2, "evaluate", model, "--plan", "protect-edges"
    )
    assert "no text 'wikitext'" in fails(capsys, 2, "evaluate", model, "--text", "wikitext")
    assert "do not fill one window" in fails(capsys, 2, "evaluate", model, "--text", text, "--tokens", "9")
    assert "temperature must be" in fails(capsys, 2, "generate", model, "--temperature", "nan", "hello")
    assert "nothing built in is called 'gpt2'" in fails(capsys, 2, "pull", "gpt2")
    (tmp_path / "bad.json").write_text("[" * 100_000)
    assert "not valid JSON" in fails(
        capsys, 2, "export", model, "--plan", str(tmp_path / "bad.json"), "--out", "x"
    )
    (tmp_path / "file").write_text("")
    assert fails(capsys, 1, "export", model, "--out", str(tmp_path / "file" / "x"))
    assert fails(capsys, 2, "generate", model, "")


def test_the_app_gets_its_own_options(monkeypatch):
    seen = []
    monkeypatch.setattr("app.main.main", lambda argv: seen.append(argv) or 0)
    assert main(["app", "--model", "smollm2-135m", "--port", "7870"]) == 0
    assert seen == [["--model", "smollm2-135m", "--port", "7870"]]


def test_stopping_a_command_is_no_error_report(monkeypatch, model, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("quept.calibrate.calibrate_rtn", stop)
    assert fails(capsys, 130, "calibrate", model, "--out", "x") == "quept calibrate: stopped"


class Screen:
    """A stream that remembers."""

    def __init__(self, terminal: bool):
        self.text, self.terminal = "", terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_the_bar_is_drawn_in_place_and_cleared(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("quept.progress.time.monotonic", lambda: next(now))
    screen = Screen(terminal=True)
    with Progress(stream=screen) as progress:
        progress("reading", None)
        progress("measuring", 0.0)
        progress("measuring", 0.5)
    assert (
        "reading …" in screen.text and "############            ]  50%, 0:01 left  measuring" in screen.text
    )
    assert screen.text.endswith("\r\033[K") and "\n" not in screen.text


def test_a_log_file_gets_few_plain_lines(monkeypatch):
    now = iter(range(100, 200))
    monkeypatch.setattr("quept.progress.time.monotonic", lambda: next(now))
    log = Screen(terminal=False)
    with Progress(stream=log) as progress:
        for i in range(61):
            progress("measuring", i / 60)
    assert len(log.text.splitlines()) == 3 and "\033" not in log.text
