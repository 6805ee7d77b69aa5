"""The proxy is what the formulas say, and the Fisher-weighted one meets the true cost where it should."""

import math

import pytest
import torch

from quept.allocate.sensitivity.proxies import agreement, proxy, rank_correlation
from quept.evaluate import Windows
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny, token_ids

WIDTHS = (3, 8)


@pytest.fixture(scope="module")
def elastic(tmp_path_factory):
    return ElasticModel.open(
        save_tiny("llama", tmp_path_factory.mktemp("llama")), device="cpu", dtype=torch.float32
    )


def test_it_is_the_mean_square_of_what_rounding_adds_to_the_output(elastic):
    ids, inputs = token_ids(2), {}
    view = elastic.view(PrecisionPlan.full())
    for name in elastic.layers:
        layer = view.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda module, args, name=name: inputs.update({name: args[0].double()})
        )
    with torch.inference_mode():
        view(input_ids=ids, use_cache=False)
    told = proxy(elastic, Windows(ids), WIDTHS)
    assert list(told) == list(elastic.layers)
    for name in elastic.layers:
        weights = {
            b: elastic.view(PrecisionPlan.of({name: b})).get_submodule(name).weight for b in (*WIDTHS, 16)
        }
        for bits in WIDTHS:
            change = (weights[bits] - weights[16]).double()
            total = sum((change @ x).square().sum().item() for x in inputs[name].flatten(0, 1))
            assert told[name][bits] == pytest.approx(total / ids.numel(), rel=1e-5)


def test_weighted_by_gradients_it_is_the_cost_where_positions_do_not_meet_again(elastic):
    """After the last block's MLP no position sees another: the mean over draws is KL to second order."""
    windows, layer = Windows(token_ids(1)), elastic.layout.blocks[-1].layers["down"]
    draws = [proxy(elastic, windows, (8,), fisher=True, seed=seed)[layer][8] for seed in range(60)]
    with torch.inference_mode():
        p, q = (
            elastic.view(plan)(input_ids=windows.ids, use_cache=False).logits[0].double().log_softmax(-1)
            for plan in (PrecisionPlan.full(), PrecisionPlan.of({layer: 8}))
        )
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    assert sum(draws) / len(draws) == pytest.approx(kl, rel=0.15)


def test_the_same_seed_draws_the_same_words(elastic):
    windows = Windows(token_ids(1))
    first, again, other = (proxy(elastic, windows, (4,), fisher=True, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_it_leaves_the_model_as_it_was(elastic):
    ids = token_ids(1)
    before = elastic.view(PrecisionPlan.full())(input_ids=ids, use_cache=False).logits
    proxy(elastic, Windows(ids), WIDTHS, fisher=True)
    assert torch.equal(elastic.view(PrecisionPlan.full())(input_ids=ids, use_cache=False).logits, before)


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_one_minus_the_squared_differences_of_ranks(seed, n=9):
    a, b = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist(), list(range(n))
    textbook = 1 - 6 * sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / (n * (n * n - 1))
    assert rank_correlation([math.exp(x) for x in a], b) == pytest.approx(textbook)


def test_equal_values_share_their_rank():
    assert rank_correlation([1, 2, 2, 3], [5, 7, 7, 9]) == pytest.approx(1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)  # ranks 1 2.5 2.5 4
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize("lists", [([1], [1]), ([1, 2], [1, 2, 3])])
def test_lists_that_cannot_be_compared_are_refused(lists):
    with pytest.raises(ValueError, match="equally long"):
        rank_correlation(*lists)


def test_agreement_is_over_all_and_at_each_width():
    ours = {"a": {2: 9.0, 8: 1.0}, "b": {2: 8.0, 8: 2.0}, "c": {2: 7.0, 8: 3.0}, "only here": {2: 1.0}}
    table = {"a": {2: 0.9, 8: 0.3}, "b": {2: 0.8, 8: 0.2}, "c": {2: 0.7, 8: 0.1, 4: 0.5}}
    assert agreement(ours, table) == pytest.approx({"all": 1 - 6 * 8 / (6 * 35), "2": 1.0, "8": -1.0})
