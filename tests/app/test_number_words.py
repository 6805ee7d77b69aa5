"""What the page's scripts write for sizes and for numbers near nothing."""

import json
import subprocess

import pytest

from app.small_numbers import small_words
from tests.allocate.test_browser_agrees import SCRIPT, node

NUMBERS = SCRIPT.with_name("numbers.js").read_text("utf-8")
DOM = SCRIPT.with_name("dom.js").read_text("utf-8")
POINTS = SCRIPT.with_name("points.js").read_text("utf-8")


def written(script: str, *calls: str) -> list[str]:
    program = f"{script}\nconsole.log(JSON.stringify([{', '.join(calls)}]))"
    done = subprocess.run([node(), "-e", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def between(source: str, start: str, end: str) -> str:
    return source[source.index(start) : source.index(end)]


def test_a_measured_number_that_is_nearly_nothing_is_not_a_row_of_zeros():
    script = "const known = (x) => typeof x === 'number' && Number.isFinite(x);"
    script += between(NUMBERS, "/* Decimals that suit", "const count =")
    script += between(NUMBERS, "const percent =", "function againstFull")
    figures = [
        f"figure({{value: {value}, low: {value - spread}, high: {value + spread}, unit: 'nats', origin: ''}})"
        for value, spread in ((0, 0), (3e-7, 1e-7), (0.0213, 0.00000001), (0.0213, 0.002))
    ]
    said = [f"{f['value']} {f['error']}".strip() for f in written(script, *figures)]
    assert said == ["0", "<0.0001 ± <0.0001", "0.021 ± <0.001", "0.021 ± 0.002"]


def test_a_prediction_has_the_range_that_such_predictions_are_off_by():
    script = "const known = (x) => typeof x === 'number' && Number.isFinite(x);"
    script += between(NUMBERS, "/* Decimals that suit", "const count =")
    script += between(NUMBERS, "/* The metrics with what is known", "function againstFull")
    script += between(DOM, "/* What the faders are predicted", "/* Whether the text got")
    script += "const metrics = [{name: 'kl', unit: 'nats'}, {name: 'ppl', unit: ''}];"
    told = "{predicted: {kl: 0.12, ppl: 22}, off_by: %s}"
    said = [
        written(f"{script} let prediction = {told % off};", "...quality(false).map(figure)")
        for off in ("1.2", "null")
    ]
    assert [[f"{f['value']} {f['error']}".strip() for f in found] for found in said] == [
        ["0.120 0.100–0.144", "22.0"],
        ["0.120", "22.0"],
    ]


@pytest.mark.parametrize(
    "a, b, words",
    [
        ({"predicted": {"kl": 0.10}}, {"predicted": {"kl": 0.11}}, "Predicted"),
        ({"predicted": {"kl": 0.10}}, {"predicted": {"kl": 0.13}}, ""),
        ({"metrics": [{"value": 0.10, "high": 0.11}]}, {"predicted": {"kl": 0.11}}, ""),
        (
            {"metrics": [{"value": 0.10, "high": 0.11}]},
            {"metrics": [{"value": 0.11, "high": 0.12}]},
            "Measured",
        ),
        ({"metrics": [{"value": 0.10, "high": 0.11}]}, {"metrics": [{"value": 0.2, "high": 0.21}]}, ""),
    ],
)
def test_two_plans_that_do_not_differ_by_what_is_known_are_said_to(a, b, words):
    compare = SCRIPT.with_name("compare.js").read_text("utf-8")
    script = "const known = (x) => typeof x === 'number' && Number.isFinite(x);"
    script += (
        "const plans = {headline: 'kl', metrics: [{name: 'kl', label: 'mean KL'}]}, faders = {off_by: 1.2};"
    )
    script += between(compare, "const lowered", "/* Shares")
    script += between(compare, "/* Whether the two plans differ", "function differences")
    (said,) = written(script, f"ofQuality({json.dumps({'a': a, 'b': b})})")
    assert said.partition(",")[0] == words and ("does not differ" in said) == bool(words)


def test_a_point_of_the_chart_is_not_a_row_of_zeros():
    script = "const known = (x) => typeof x === 'number' && Number.isFinite(x);"
    script += between(POINTS, "const inEnglish", "/* A share and its")
    calls = ("measurement(1e-8, 1e-9)", "measurement(0, 0)", "measurement(0.02, 0.001)")
    assert written(script, *calls) == ["≈ 0", "0", "0.0200 ± 0.0010"]


@pytest.mark.parametrize("name", ["size", "sizeWords"])
def test_sizes_of_one_model_are_in_one_unit(name):
    script = "const known = (x) => typeof x === 'number' && Number.isFinite(x);"
    source = NUMBERS if name == "size" else SCRIPT.read_text("utf-8")
    script += source[source.index(f"function {name}(") :].partition("\n}\n")[0] + "\n}\n"
    said = written(
        script, *(f"{name}({bytes})" for bytes in (546_000, 2_400_000, 999_999, 1_234_000_000, 7_100))
    )
    assert said == ["0.546 MB", "2.4 MB", "1.000 MB", "1.23 GB", "7.1 KB"]


@pytest.mark.parametrize("x, words", [(0, "0"), (3.2e-8, "<0.0001"), (0.00012, "0.00012"), (0.4649, "0.46")])
def test_python_and_the_browser_write_the_same_small_numbers(x: float, words: str):
    plan = SCRIPT.with_name("plan.js").read_text("utf-8")
    assert small_words(x) == words
    assert written(between(plan, "/* Two digits that count", "const bitsWords"), f"smallWords({x})") == [
        words
    ]


@pytest.mark.parametrize(
    "state, words",
    [
        ("{status: 'measuring', done: 64, total: 4088}", "too early to say"),
        ("{status: 'measuring', done: 3000, total: 4088}", "no difference to full so far"),
        ("{status: 'done', done: 4088, total: 4088}", "≈ like full"),
    ],
)
def test_that_no_difference_is_seen_is_a_result_only_once_there_are_data(state, words):
    script = "const known = (x) => typeof x === 'number' && Number.isFinite(x); const EARLY = 0.25;"
    script += between(NUMBERS, "/* Decimals that suit", "/* Whether the state's numbers")
    call = "compare({value: 20.5, unit: '', better: 'lower'}, 20.4, 1.0, 'full')"
    assert written(f"{script} const state = {state};", call)[0]["text"] == words


def test_a_prediction_is_shown_as_its_ratio_to_full_precision_on_the_data_shown():
    script = between(DOM, "/* What the faders are predicted", "/* Whether the text got")
    script += "const prediction = {predicted: {ppl: 27.5, kl: 0.1}, reference: {ppl: 25}};"
    (moved,) = written(script, "predictedOn([{name: 'ppl', full: 20}, {name: 'kl', full: 0}], prediction)")
    (kept,) = written(script, "predictedOn([{name: 'ppl', full: null}], prediction)")
    assert moved == {"ppl": pytest.approx(22), "kl": 0.1} and kept["ppl"] == 27.5


@pytest.mark.parametrize(
    "state, link, another",
    [
        ({"status": "opening", "model": "b"}, {"m": "a"}, True),  # the faders still show the one before
        ({"status": "opening", "model": "b"}, {"m": "b"}, False),
        ({"status": "done", "link": {"m": "a"}}, {"m": "a"}, False),
    ],
)
def test_numbers_of_the_model_before_are_known_while_another_is_opened(state, link, another):
    script = between(NUMBERS, "/* The model that is being opened", "const readState")
    script += f"const state = {json.dumps(state)}, prediction = {{link: {{m: 'a'}}}};"
    assert written(script, f"ofAnother({json.dumps({'link': link})})") == [another]
