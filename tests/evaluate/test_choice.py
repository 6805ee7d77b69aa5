"""Multiple choice: what is counted is what every answer, read alone behind its context, would say."""

import json
import math

import pytest
import torch

from quept import ElasticModel, PrecisionPlan, zoo
from quept.data.choices import PACK, Choices, Item, built_in, choice_file
from quept.evaluate.tasks.choice import ChoiceTask, answer_log_probs, choice, choice_reference, mcnemar
from tests.tiny import FAMILIES, save_tiny, tiny_tokenizer

ITEMS = (
    Item("cats", (("A cat says", " meow"), ("A cat says", " woof, I think"), ("A cat says", " a")), 0),
    Item("dogs", (("The dog ", "ran."), ("The dog ", "is.")), 1),  # the space goes to the answer
    Item("blanks", (("Ann, not Bob, so Ann", " won it"), ("Ann, not Bob, so Bob", " won it")), 0),
    Item("last", (("one two three", " four"),), 0),
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("choice"), {}

    def model(name: str) -> ElasticModel:
        if name not in found:
            found[name] = ElasticModel.open(save_tiny(name, root / name), device="cpu", dtype=torch.float32)
        return found[name]

    return model


def alone(model, tokenizer, context: str, said: str) -> tuple[float, bool]:
    """One answer as lm-evaluation-harness scores it."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, said = context[:-spaces], context[-spaces:] + said
    head = tokenizer(context, add_special_tokens=False)["input_ids"]
    tail = tokenizer(context + said, add_special_tokens=False)["input_ids"][len(head) :]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([(head + tail)[:-1]]), use_cache=False).logits[0].float()
    found = logits[-len(tail) :].log_softmax(-1)
    greedy = found.argmax(-1).tolist() == tail
    return found[range(len(tail)), tail].sum().item(), greedy


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_packed_together_score_as_each_read_alone(opened, name):
    elastic = opened(name)
    view = elastic.view(PrecisionPlan.uniform(4))
    choices = Choices.of(ITEMS * 3, "made up", elastic.tokenizer)
    assert choices.batches == 1
    found = answer_log_probs(view, choices.batch(0))
    expected = [alone(view, elastic.tokenizer, *pair) for item in choices.items for pair in item.pairs]
    assert torch.allclose(found["log_probs"], torch.tensor([score for score, _ in expected]), atol=2e-4)
    assert found["greedy"].tolist() == [greedy for _, greedy in expected]


def test_a_window_holds_what_fits_and_a_longer_item_has_its_own():
    long = Item("long", (("word " * PACK, "no"), ("word " * PACK, "yes")), 0)
    choices = Choices.of([*ITEMS * 20, long, *ITEMS], "made up", tiny_tokenizer())
    sizes = [len(pack.ids) for pack in choices.packs]
    assert sum(size > PACK for size in sizes) == 1
    assert torch.equal(torch.cat([pack.rows for pack in choices.packs]), torch.arange(len(choices)))


def test_a_context_too_long_for_the_model_loses_its_beginning():
    item = Item("long", (("abcdefgh" * 10, "xyz"), ("abcdefgh" * 10, "x")), 0)
    (pack,) = Choices.of([item], "made up", tiny_tokenizer(), context=32).packs
    assert pack.positions.max() == 31  # what is read fills the context, the last token is predicted from it


def test_full_precision_agrees_with_itself(opened, tmp_path):
    elastic = opened("llama")
    choices = Choices.of(ITEMS, "made up", elastic.tokenizer)
    reference = choice_reference(elastic, choices, tmp_path)
    *_, last = choice(elastic.view(PrecisionPlan.full()), choices, reference)
    assert last.same_top == 1 and last.lost == last.gained == 0
    assert last.p_change == pytest.approx(0, abs=1e-6) and last.norm == last.norm_ref
    assert {name: of.items for name, of in last.sets.items()} == dict.fromkeys(last.sets, 1)


def test_accuracy_changes_and_flips_are_those_of_a_plain_loop(opened, tmp_path):
    elastic, plan = opened("llama"), PrecisionPlan.uniform(2)
    items = [
        Item(f"set {i % 2}", tuple((f"{i} is", f" {word}") for word in ("odd", "even", f"{i}")), i % 3)
        for i in range(40)
    ]
    choices = Choices.of(items, "made up", elastic.tokenizer)
    view, full = elastic.view(plan), elastic.full_precision()
    *_, last = choice(view, choices, choice_reference(elastic, choices, tmp_path))
    chosen, probability = [], []
    for model in (full, view):
        rows = [
            torch.tensor([alone(model, elastic.tokenizer, *pair)[0] for pair in item.pairs]) for item in items
        ]
        chosen.append([row.argmax().item() == item.right for row, item in zip(rows, items, strict=True)])
        probability.append([row.softmax(0)[i.right].item() for row, i in zip(rows, items, strict=True)])
    assert last.top1 == sum(chosen[1]) / 40 and last.top1_ref == sum(chosen[0]) / 40
    assert last.lost == sum(a and not b for a, b in zip(*chosen, strict=True))
    change = sum(b - a for a, b in zip(*probability, strict=True)) / 40
    assert last.p_change == pytest.approx(change, abs=1e-4)


def test_a_quantized_cache_is_used(opened):
    elastic = opened("llama")
    plan = PrecisionPlan.parse("W16KV4")
    batch = Choices.of(ITEMS, "made up", elastic.tokenizer).batch(0)
    view = elastic.view(plan)
    plain = answer_log_probs(view, batch)["log_probs"]
    assert not torch.allclose(
        answer_log_probs(view, batch, lambda: elastic.make_cache(plan))["log_probs"], plain
    )


def test_the_task_reads_a_file_and_its_estimate_again(opened, tmp_path):
    lines = [{"context": "A cat says", "choices": [" meow", " woof"], "right": 0}]
    lines += [{"pairs": [["Ann", " won"], ["Bob", " won"]], "right": 1}] * 2
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    task = ChoiceTask(opened("qwen2"), tmp_path / "cache", {"choices": str(path), "items": 2})
    *_, last = task.estimates(task.elastic.view(PrecisionPlan.uniform(3)))
    assert last.done == last.total == 2 and task.read(json.loads(json.dumps(last.to_dict()))) == last
    assert last["acc"].full is not None and "mine" in last["acc"].detail


@pytest.mark.parametrize(
    "line",
    [
        '{"context": "x"}',
        "[]",
        '{"context": "x", "choices": ["a"], "right": 1}',
        '{"pairs": [["a"]], "right": 0}',
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"context": "x", "choices": ["a"], "right": 0}\n' + line)
    with pytest.raises(ValueError, match=r"line 2 of bad\.jsonl is no question"):
        choice_file(path)


def test_unknown_sets_are_named(opened):
    with pytest.raises(ValueError, match="no questions 'mmlu': give one or more of sciq"):
        ChoiceTask(opened("llama"), given={"choices": "piqa, mmlu"}).choices  # noqa: B018


def test_mcnemars_interval_counts_only_what_changed():
    assert mcnemar(0, 0, 100) == 0
    assert mcnemar(9, 9, 100) == pytest.approx(1.96 * math.sqrt(18) / 100)


@pytest.mark.parametrize(("name", "answers"), [("sciq", 4), ("piqa", 2), ("winogrande", 2), ("lambada", 1)])
def test_built_in_questions_are_distinct_and_whole(name, answers):
    found = zoo.choices(name)
    assert len(found) == len(set(found)) > 500
    assert all(len(pairs) == answers and 0 <= right < answers for pairs, right in found)


def test_sets_are_taken_in_turn():
    kinds = [item.kind for item in built_in(("sciq", "piqa"), 5)]
    assert kinds == ["sciq", "piqa", "sciq", "piqa", "sciq"]
