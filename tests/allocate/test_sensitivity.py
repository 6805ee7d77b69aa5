"""A pass started at the changed block is the whole pass; a run killed and resumed gives the same table."""

import json
from contextlib import suppress

import pytest
import torch

from quept.allocate import SensitivityError, SensitivityTable, sensitivity
from quept.allocate.sensitivity import changed_logits, full_pass, mean_kl
from quept.evaluate import Reference, Windows
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import FAMILIES, save_tiny, token_ids

WIDTHS = (2, 4, 8)


def opened(name, folder, dtype=torch.float32) -> ElasticModel:
    return ElasticModel.open(save_tiny(name, folder), device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def elastic(tmp_path_factory):
    return opened("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def reference(elastic, tmp_path):
    return Reference.open(elastic.fingerprint, Windows(token_ids(3)), elastic.reference, tmp_path)


def measured(elastic, reference, **options) -> SensitivityTable:
    return sensitivity(
        elastic, Windows(token_ids(2)), reference, WIDTHS, model="tiny", text="tokens", **options
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_started_at_the_changed_block_is_the_whole_pass(name, tmp_path):
    elastic, ids = opened(name, tmp_path), token_ids(1)[0]
    start = full_pass(elastic, ids)
    for number, block in enumerate(elastic.anatomy.blocks):
        for layer in block.layers.values():
            plan = PrecisionPlan.of({layer: 3})
            with torch.inference_mode():
                whole = elastic.view(plan)(input_ids=ids[None], use_cache=False).logits[0, :-1]
            assert torch.equal(changed_logits(elastic, start, plan, number), whole)


def test_keeping_states_leaves_the_views_alone(elastic):
    ids, full = token_ids(1), elastic.view(PrecisionPlan.full())
    before = full(input_ids=ids, use_cache=False).logits
    full_pass(elastic, ids[0])
    assert torch.equal(full(input_ids=ids, use_cache=False).logits, before)


def test_mean_kl_is_the_textbook_sum(rows=5, vocabulary=40):
    p, q = torch.randn(2, rows, vocabulary, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for row in range(rows):
        a, b = p[row].double().softmax(-1), q[row].double().softmax(-1)
        total += sum((a[v] * (a[v] / b[v]).log()).item() for v in range(vocabulary))
    assert mean_kl(p.log_softmax(-1), q) == pytest.approx(total / rows, rel=1e-5)
    assert mean_kl(p.log_softmax(-1), p) == pytest.approx(0, abs=1e-7)


def test_mean_kl_is_exact_for_near_equal_distributions_over_a_large_vocabulary():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 50_000, generator=generator)
    changed = logits + 1e-3 * torch.randn(logits.shape, generator=generator)
    p, q = logits.double().log_softmax(-1), changed.double().log_softmax(-1)
    exact = (p.exp() * (p - q)).sum(-1).mean().item()
    assert exact < 1e-6
    assert mean_kl(logits - logits.logsumexp(-1, keepdim=True), changed) == pytest.approx(exact, abs=1e-7)


def test_a_layer_costs_what_the_plan_that_changes_only_it_diverges(elastic, reference):
    table = measured(elastic, reference)
    ids, layer = token_ids(2), elastic.layers[3]
    with torch.inference_mode():
        full = elastic.view(PrecisionPlan.full())(input_ids=ids, use_cache=False).logits[:, :-1]
        changed = elastic.view(PrecisionPlan.of({layer: 2}))(input_ids=ids, use_cache=False).logits[:, :-1]
    kl = mean_kl(full.log_softmax(-1).flatten(0, 1), changed.flatten(0, 1))
    assert table.layers[layer][2] == pytest.approx(kl, rel=1e-4)
    assert set(table.layers) == set(elastic.layers) and table.widths == WIDTHS


def test_fewer_bits_cost_more(elastic, reference):
    table = measured(elastic, reference)
    sums = [table.total(PrecisionPlan.uniform(bits)) for bits in WIDTHS]
    assert sums == sorted(sums, reverse=True) and sums[-1] > 0
    assert table.uniform[2]["kl"] > table.uniform[8]["kl"]


def test_a_block_is_changed_whole_and_its_cost_shared_out_by_weights(elastic, reference):
    table = measured(elastic, reference, per="block")
    block, ids = elastic.anatomy.blocks[1], token_ids(2)
    with torch.inference_mode():
        full = elastic.view(PrecisionPlan.full())(input_ids=ids, use_cache=False).logits[:, :-1]
        plan = PrecisionPlan.of({f"{block.name}.*": 2})
        changed = elastic.view(plan)(input_ids=ids, use_cache=False).logits[:, :-1]
    kl = mean_kl(full.log_softmax(-1).flatten(0, 1), changed.flatten(0, 1))
    assert sum(table.layers[name][2] for name in block.layers.values()) == pytest.approx(kl, rel=1e-4)
    ratio = table.layers[block.layers["gate"]][2] / table.layers[block.layers["q"]][2]
    weights = elastic.sizes.weights
    assert ratio == pytest.approx(weights[block.layers["gate"]] / weights[block.layers["q"]], rel=1e-4)


@pytest.mark.parametrize("after", [1, 20, 45, 90])
def test_a_run_killed_and_resumed_gives_the_same_table(elastic, reference, tmp_path, after):
    class Killed(Exception):
        pass

    def kill(stage, fraction):
        nonlocal after
        after -= 1
        if after == 0:
            raise Killed

    lines = tmp_path / "lines.jsonl"
    with suppress(Killed):
        measured(elastic, reference, resume=lines, progress=kill)
    with lines.open("a") as file:
        file.write('{"key": "half a li')
    resumed = measured(elastic, reference, resume=lines)
    assert resumed.to_json() == measured(elastic, reference).to_json()


def test_a_resumed_run_measures_nothing_twice(elastic, reference, tmp_path):
    lines = tmp_path / "lines.jsonl"
    measured(elastic, reference, resume=lines)
    before = lines.read_bytes()
    measured(elastic, reference, resume=lines)
    assert lines.read_bytes() == before


def test_progress_ends_at_one(elastic, reference):
    seen = []
    measured(elastic, reference, progress=lambda stage, fraction: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)


def test_figures_of_another_measurement_are_not_mixed_in(elastic, reference, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"measurement": "sensitivity", "fingerprint": "another"}) + "\n")
    with pytest.raises(SensitivityError, match="another measurement; delete it"):
        measured(elastic, reference, resume=lines)


def test_a_word_for_what_to_change_that_is_none_is_refused(elastic, reference):
    with pytest.raises(ValueError, match='"layer" or "block"'):
        measured(elastic, reference, per="head")
