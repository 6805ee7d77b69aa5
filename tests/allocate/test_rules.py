"""Rules of thumb: what they look at is what autograd says, and each gives a plan that fits."""

import json
from functools import partial

import pytest
import torch

from quept.allocate.rules import RULES, rule_table
from quept.allocate.rules.relevance import relevance
from quept.allocate.rules.seen import seen
from quept.allocate.rules.trial import load_trial, save_trial, trial
from quept.allocate.solve.budget import parse_budget
from quept.allocate.solve.constraints import AllocationError
from quept.allocate.solve.solver import allocate
from quept.evaluate import Windows
from quept.plan import FULL, QUANTIZED_BITS, PrecisionPlan
from quept.runtime import ElasticModel
from tests.app.tiny import tiny_table
from tests.tiny import save_tiny, token_ids


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> ElasticModel:
    folder = save_tiny("llama", tmp_path_factory.mktemp("rules"))
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def windows() -> Windows:
    return Windows(token_ids(2, seed=3))


def test_gradients_are_those_of_the_loss(elastic, windows):
    found, name = seen(elastic, windows), elastic.layers[-1]
    model = elastic.base.float()
    weight = model.get_submodule(name).weight.requires_grad_()
    for ids in windows.ids:
        (model(input_ids=ids[None], labels=ids[None]).loss / len(windows)).backward()
    assert torch.allclose(found.gradient[name], weight.grad, atol=1e-5)
    assert (found.inputs[name] > 0).any() and all(0 <= change <= 2 for change in found.change.values())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_gives_a_plan_within_the_budget_and_predicts_nothing(elastic, windows, rule):
    table = rule_table(rule, elastic, windows)
    assert all(set(row) == set(QUANTIZED_BITS) and min(row.values()) >= 0 for row in table.layers.values())
    budget = elastic.sizes.deploy(PrecisionPlan.uniform(4))
    found = allocate(table, elastic.sizes, budget)
    assert found.bytes <= budget and found.plan.embeddings == FULL and found.predicted == {}
    with pytest.raises(AllocationError, match="predicts nothing"):
        parse_budget("2 % worse", table, elastic.sizes)


def test_relevance_is_activation_times_gradient_of_the_likeliest_answer(elastic, windows):
    found, (first, *_, last) = relevance(elastic, windows), elastic.layers
    model, told = elastic.base.float(), {first: [], last: []}
    for name, outputs in told.items():
        model.get_submodule(name).weight.requires_grad_()
        keep = partial(_kept, outputs)
        model.get_submodule(name).register_forward_hook(keep)
    for ids in windows.ids:
        model(input_ids=ids[None]).logits.amax(-1).sum().backward()
    one, other = (sum((y * y.grad).abs().sum().item() for y in outputs) for outputs in told.values())
    assert found[first] / found[last] == pytest.approx(one / other, rel=1e-3)
    assert sum(found.values()) == pytest.approx(1) and min(found.values()) > 0


def _kept(outputs, layer, given, y):
    y.retain_grad()
    outputs.append(y)


def test_the_trial_says_how_far_each_is_from_what_was_measured(elastic, windows, tmp_path):
    table = tiny_table(elastic)
    costs = {name: table.layers[name] for name in elastic.layers}

    def kl(plan: PrecisionPlan) -> float:
        return sum(costs[n][b.weights] for n, b in plan.resolve(elastic.layers).items() if b.weights != FULL)

    found = dict(trial(elastic, table, windows, kl, (3.0, 4.0), ("edges", "random")))
    assert list(found) == ["measured", "uniform", "edges", "random"]
    assert found["measured"].wasted == 0 and all(verdict.wasted >= 0 for verdict in found.values())
    save_trial(tmp_path / "rules.json", elastic, found, text="noise")
    told = load_trial(tmp_path / "rules.json", elastic)
    assert told["rules"]["edges"]["front"] == json.loads(json.dumps(found["edges"].front))


def test_an_unknown_rule_is_told_which_there_are(elastic, windows):
    with pytest.raises(ValueError, match="no rule 'love': give gradient, fisher"):
        rule_table("love", elastic, windows)
