"""A pass started at the changed block is the whole pass; costs are those of float64; a run killed and
resumed, or shared out over processes, gives the same table."""

import json
import os
import signal
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from quept.allocate import SensitivityError, SensitivityTable
from quept.allocate.sensitivity import measure, moved
from quept.allocate.sensitivity.measure import Measurement, measure_sensitivity
from quept.allocate.sensitivity.passes import cached_kl, changed_hidden, changed_kl, full_pass, plan_kl
from quept.engines import GRADED_WIDTHS
from quept.evaluate import Reference, Windows
from quept.plan import ACTIVATION_BITS, FULL, Bits, PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import FAMILIES, save_tiny, token_ids

pytestmark = pytest.mark.slow

WIDTHS = (2, 4, 8)
EMBEDDED = PrecisionPlan.uniform(FULL, embeddings=4)


def opened(name, folder, dtype=torch.float32) -> ElasticModel:
    return ElasticModel.open(save_tiny(name, folder), device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def elastic(folder):
    return opened("llama", folder)


@pytest.fixture
def reference(elastic, tmp_path):
    return Reference.open(elastic.base_identity, Windows(token_ids(3)), elastic.reference, tmp_path)


def measured(elastic, reference, **options) -> SensitivityTable:
    names = {"model": "tiny", "text": "tokens"}
    return measure_sensitivity(elastic, Windows(token_ids(2)), reference, WIDTHS, **names | options)


def oracle(elastic, plan, base=None) -> float:
    """KL(full precision || plan), less that of the base, by whole passes and in float64."""

    def logits(plan):
        with torch.inference_mode():
            return elastic.view(plan)(input_ids=token_ids(2), use_cache=False).logits[:, :-1].double()

    def kl(plan):
        p, q = logits(PrecisionPlan.full()).log_softmax(-1), logits(plan).log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean().item()

    return kl(plan) - (kl(base) if base else 0)


@pytest.mark.parametrize("base", [PrecisionPlan.full(), PrecisionPlan.uniform(4, 8, embeddings=6)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_started_at_the_changed_block_is_the_whole_pass(name, base, tmp_path):
    elastic, ids = opened(name, tmp_path), token_ids(1)[0]
    start = full_pass(elastic, ids, base)
    for number, block in enumerate(elastic.layout.blocks):
        for layer in block.layers.values():
            for bits in (Bits(3, base.default.activations), Bits(base.default.weights, 4), Bits(FULL, FULL)):
                rules = base.resolve(elastic.layers) | {layer: bits}
                view = elastic.view(PrecisionPlan.of(rules, embeddings=base.embeddings))
                head = view.get_submodule(elastic.layout.head)
                with torch.inference_mode():
                    whole = view(input_ids=ids[None], use_cache=False).logits[0, :-1]
                    assert torch.equal(head(changed_hidden(elastic, start, {layer: bits}, number)), whole)


@pytest.mark.parametrize("base", [PrecisionPlan.full(), PrecisionPlan.uniform(4, embeddings=6)])
def test_layers_that_multiply_only_what_changed_give_the_same_cost(elastic, monkeypatch, base):
    monkeypatch.setattr(moved, "LEAST", 0)
    monkeypatch.setattr(moved, "compute_dtype", lambda device: torch.bfloat16)
    ids = token_ids(1)[0]
    exact, quick = full_pass(elastic, ids, base), full_pass(elastic, ids, base, quick=True)
    assert quick.base_kl == exact.base_kl and quick.moved and not exact.moved
    for number, block in enumerate(elastic.layout.blocks):
        for layer in block.layers.values():
            for changed in ({layer: Bits(2)}, {layer: Bits(8)}, {layer: Bits(FULL, 4)}):
                wanted = changed_kl(elastic, exact, changed, number)
                assert changed_kl(elastic, quick, changed, number) == pytest.approx(wanted, rel=0.02)


def test_layers_that_round_their_input_or_are_few_are_multiplied_whole(elastic, monkeypatch):
    monkeypatch.setattr(moved, "compute_dtype", lambda device: torch.bfloat16)
    ids = token_ids(1)[0]
    assert not full_pass(elastic, ids, quick=True).moved
    monkeypatch.setattr(moved, "LEAST", 0)
    assert not full_pass(elastic, ids, PrecisionPlan.uniform(4, 8), quick=True).moved
    monkeypatch.setattr(moved, "compute_dtype", lambda device: torch.float32)
    assert not full_pass(elastic, ids, quick=True).moved


def test_what_a_blocks_cache_costs_is_what_the_plan_that_rounds_only_it_diverges(elastic, reference):
    ids = token_ids(1)[0]
    start, full = full_pass(elastic, ids), elastic.view(PrecisionPlan.full())
    with torch.inference_mode():
        p = full(input_ids=ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
        for number, block in enumerate(elastic.layout.blocks):
            for bits in (2, 4, 8):
                cache = elastic.make_cache(PrecisionPlan.of({}, kv_blocks={block.name: bits}))
                rounded = full(input_ids=ids[None], cache=cache, use_cache=True).logits[0, :-1].double()
                q = rounded.log_softmax(-1)
                wanted = (p.exp() * (p - q)).sum(-1).mean().item()
                assert cached_kl(elastic, start, bits, number) == pytest.approx(wanted, rel=0.01, abs=1e-9)


def test_a_table_gets_what_it_lacks_and_keeps_the_rest(elastic, reference, tmp_path):
    table = measured(elastic, reference, whole=("W4E8",))
    more = {"cache": True, "whole": ("W4E8", "W16KV4"), "resume": tmp_path / "lines.jsonl"}
    asked = []
    grown = measured(elastic, reference, extend=table, progress=lambda key, _: asked.append(key), **more)
    assert set(grown.cache) == set(elastic.cached_blocks) and set(grown.cache[elastic.cached_blocks[0]]) == {
        *range(2, 9)
    }
    assert replace(grown, cache={}, whole=table.whole) == table and "all layers, W4E8" not in asked
    assert grown.whole["W4E8"] == table.whole["W4E8"] and grown.kv[4] > 0
    whole = measured(elastic, reference, cache=True, whole=("W4E8", "W16KV4"))
    assert whole.cache == grown.cache and whole.layers == grown.layers
    few = measure_sensitivity(
        elastic, Windows(token_ids(1)), reference, WIDTHS, cache=True, extend=table, text="tokens"
    )
    assert few.cache_tokens == token_ids(1).numel() and "keys and values on" in few.conditions
    few.save(tmp_path / "few.json")
    assert SensitivityTable.load(tmp_path / "few.json") == few
    plain = replace(table, embeddings={b: x for b, x in table.embeddings.items() if b not in GRADED_WIDTHS})
    assert measured(elastic, reference, extend=plain, whole=()) == table
    with pytest.raises(SensitivityError, match="was measured otherwise"):
        measured(elastic, reference, extend=replace(table, data=table.data | {"text": "other"}))


def test_passes_leave_the_views_and_the_bank_alone(elastic):
    ids, full = token_ids(1), elastic.view(PrecisionPlan.full())
    before = full(input_ids=ids, use_cache=False).logits
    start, kept = full_pass(elastic, ids[0]), elastic.bank.kept_bytes
    changed_hidden(elastic, start, {elastic.layers[0]: Bits(5, 5)}, 0)
    assert elastic.bank.kept_bytes == kept
    assert torch.equal(full(input_ids=ids, use_cache=False).logits, before)


def test_a_layer_costs_what_the_plan_that_changes_only_it_diverges(elastic, reference):
    table = measured(elastic, reference)
    for layer in elastic.layers:
        for bits in WIDTHS:
            plan = PrecisionPlan.of({layer: bits})
            assert table.layers[layer][bits] == pytest.approx(oracle(elastic, plan), rel=2e-3)
    assert set(table.layers) == set(elastic.layers) and table.widths == WIDTHS


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_logits_that_are_capped_or_scaled_are_compared_as_they_are(name, tmp_path):
    cap = {"final_logit_softcapping": 1.0} if name == "gemma2" else {}
    elastic = ElasticModel.open(save_tiny(name, tmp_path, **cap), device="cpu", dtype=torch.float32)
    layer, number = elastic.layers[3], 0
    found = []
    for ids in token_ids(2):
        start = full_pass(elastic, ids)
        found.append(
            (changed_kl(elastic, start, {layer: Bits(2)}, number), plan_kl(elastic, start, EMBEDDED))
        )
    changed, embedded = torch.tensor(found).mean(0).tolist()
    assert changed == pytest.approx(oracle(elastic, PrecisionPlan.of({layer: 2})), rel=2e-3)
    assert embedded == pytest.approx(oracle(elastic, EMBEDDED), rel=2e-3)


@pytest.mark.parametrize("name", ["llama", "llama-untied"])
def test_embeddings_cost_what_the_plan_that_rounds_only_them_diverges(name, tmp_path):
    elastic = opened(name, tmp_path / name)
    reference = Reference.open(elastic.base_identity, Windows(token_ids(3)), elastic.reference, tmp_path)
    table = measured(elastic, reference)
    for bits in (*WIDTHS, *GRADED_WIDTHS):
        plan = PrecisionPlan.uniform(FULL, embeddings=bits)
        assert table.embeddings[bits] == pytest.approx(oracle(elastic, plan), rel=2e-3)
        assert table.total(plan) == table.embeddings[bits]
    assert measured(elastic, reference, embeddings=False).embeddings == {}


def test_inputs_cost_what_the_plan_that_rounds_only_them_diverges(elastic, reference):
    table = measured(elastic, reference, activations=True)
    assert set(table.activations) == set(elastic.layers)
    for layer in elastic.layers:
        assert (*table.activations[layer], FULL) == ACTIVATION_BITS
        for bits, cost in table.activations[layer].items():
            plan = PrecisionPlan.of({layer: Bits(FULL, bits)})
            assert cost == pytest.approx(oracle(elastic, plan), rel=2e-3)
    assert measured(elastic, reference).activations == {}


@pytest.mark.parametrize("embeddings", [FULL, 4])
def test_around_another_base_a_change_costs_what_it_adds(elastic, reference, embeddings):
    base = PrecisionPlan.uniform(4, embeddings=embeddings)
    table = measured(elastic, reference, base=base)
    for layer in elastic.layers[:8]:
        for bits in (*WIDTHS, FULL):
            rules = base.resolve(elastic.layers) | {layer: Bits(bits)}
            change = oracle(elastic, PrecisionPlan.of(rules, embeddings=embeddings), base)
            assert table.layers[layer][bits] == pytest.approx(change, rel=2e-3, abs=2e-6)
        assert table.layers[layer][4] == 0 > table.layers[layer][8]
    assert table.base == base.name and table.uniform == {} and base.name in table.conditions
    assert table.total(base) == 0
    exact = {name: table.whole["base"][name] for name in ("kl", "ppl", "same_top")}
    assert table.predicted(base) == pytest.approx(exact)


def test_the_cache_of_keys_and_values_takes_no_part_and_a_base_cannot_round_it(elastic, reference):
    with pytest.raises(ValueError, match="KV cache"):
        measured(elastic, reference, base=PrecisionPlan.uniform(4, kv=4))


def test_fewer_bits_cost_more(elastic, reference):
    table = measured(elastic, reference)
    sums = [table.total(PrecisionPlan.uniform(bits)) for bits in WIDTHS]
    assert sums == sorted(sums, reverse=True) and sums[-1] > 0
    assert table.uniform[2]["kl"] > table.uniform[8]["kl"]


def test_named_plans_are_measured_whole_beside_the_uniform_ones(elastic, reference):
    table = measured(elastic, reference, whole=("W4E4", "W8A8"), activations=True)
    assert list(table.uniform) == list(WIDTHS) and list(table.whole) == ["W4E4", "W8A8"]
    assert table.whole["W4E4"]["kl"] > table.uniform[4]["kl"]
    assert table.total(PrecisionPlan.uniform(4, embeddings=4)) in table.curve()["sum"]


def test_a_block_is_changed_whole_and_its_cost_shared_out_by_weights(elastic, reference):
    table = measured(elastic, reference, per="block")
    block = elastic.layout.blocks[1]
    kl = oracle(elastic, PrecisionPlan.of({f"{block.name}.*": 2}))
    assert sum(table.layers[name][2] for name in block.layers.values()) == pytest.approx(kl, rel=2e-3)
    ratio = table.layers[block.layers["gate"]][2] / table.layers[block.layers["q"]][2]
    weights = elastic.sizes.weights
    assert ratio == pytest.approx(weights[block.layers["gate"]] / weights[block.layers["q"]], rel=1e-3)


@pytest.mark.parametrize("after", [1, 4, 20, 33])
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
    assert after == 0
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


def test_what_a_run_measured_serves_a_run_that_wants_more(elastic, reference, tmp_path):
    lines = tmp_path / "lines.jsonl"
    measured(elastic, reference, resume=lines, embeddings=False)
    before = lines.read_text()
    more = measured(elastic, reference, resume=lines, whole=("W4E4",))
    assert lines.read_text().startswith(before)
    assert more.to_json() == measured(elastic, reference, whole=("W4E4",)).to_json()


class DyingOnce(Measurement):
    """A worker of this job kills itself in the middle of a certain task, once."""

    def do(self, state, task):
        mark = self.cache / "died"
        if task.name == state.elastic.layers[5] and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(state, task)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_two_workers_of_which_one_dies_give_the_table_that_one_process_gives(
    executor, folder, elastic, reference, tmp_path, monkeypatch
):
    if executor == "ray":
        pytest.importorskip("ray")
    monkeypatch.setattr(measure, "Measurement", DyingOnce)
    lines, options = tmp_path / "lines.jsonl", {"activations": True, "whole": ("W4E4",), "threads": 1}
    shared = {"workers": 2, "executor": executor, "source": folder, "resume": lines}
    table = measured(elastic, reference, **shared, **options)
    assert (tmp_path / "died").exists()
    monkeypatch.undo()
    assert table.to_json() == measured(elastic, reference, **options).to_json()
    keys = [json.loads(line).get("key") for line in lines.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 1 + 4 + 2 * (1 + 2 * len(elastic.layers))


def test_a_worker_that_would_open_other_weights_says_so(elastic, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "run", lambda job, *tasks, **how: iter([job.open()]))  # as a worker begins
    other = save_tiny("llama", tmp_path / "other", seed=1)
    with pytest.raises(SensitivityError, match="give what the model was opened from as source"):
        measured(elastic, reference, workers=2, source=other)


def test_progress_rises_to_one(elastic, reference, tmp_path):
    seen, lines = [], tmp_path / "lines.jsonl"
    measured(elastic, reference, progress=lambda stage, fraction: seen.append(fraction), resume=lines)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)
    measured(elastic, reference, progress=lambda stage, fraction: seen.append(fraction), resume=lines)
    assert seen[-1] == 1


@pytest.mark.parametrize("change", [{"per": "block"}, {"base": PrecisionPlan.uniform(4)}, {"text": "other"}])
def test_figures_of_another_measurement_are_not_mixed_in(elastic, reference, tmp_path, change):
    lines = tmp_path / "lines.jsonl"
    measured(elastic, reference, resume=lines)
    with pytest.raises(SensitivityError, match="another measurement; delete it"):
        measured(elastic, reference, resume=lines, **change)


def test_damaged_weights_are_named(tmp_path, reference):
    elastic = opened("llama", tmp_path / "damaged")
    elastic.base.get_submodule("model.norm").weight.data.fill_(torch.nan)
    elastic = ElasticModel(elastic._prepared, elastic.artifact, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="not finite|no finite answer"):
        measured(elastic, reference)


def test_a_word_for_what_to_change_that_is_none_is_refused(elastic, reference):
    with pytest.raises(ValueError, match='"layer" or "block"'):
        measured(elastic, reference, per="head")
