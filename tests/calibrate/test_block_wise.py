"""Block-wise calibration: what it learns, what flows between the blocks, and how it stops and goes on."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from quept.calibrate import CalibrationError, calibrate
from quept.calibrate.activations import SUFFIX, ActivationStore
from quept.calibrate.block_wise import BlockWiseTuning, tune_blocks
from quept.calibrate.checkpoint import Checkpoint
from quept.calibrate.trainable import Trainable
from quept.config import BlockWise, Recipe, RecipeError
from quept.models import layout_of
from quept.models.layout import Block, ModelLayout
from quept.numerics.adapters import RankSchedule
from quept.numerics.merge import merge
from quept.plan import PrecisionPlan
from tests.tiny import FAMILIES, save_tiny, tiny_model, token_ids

pytestmark = pytest.mark.slow

SCHEDULE = RankSchedule(((5, 6), (4,), (2, 3)), (2, 4, 8))
ONE_EACH = RankSchedule(((4,), (3,), (2,)), (4, 4, 8))
CLIPS = {2: 3.0, 3: 4.0, 4: 4.0, 5: 4.0, 6: 4.0}
SETTINGS = BlockWise(
    sequences=4,
    context=20,
    batch=2,
    epochs=1,
    adapter_rates=(2e-3,) * 3,
    clip_rate=2e-2,
    merge=(0.3, 0.3, 0.4),
    memory=10**9,
)
LEARNS = dataclasses.replace(SETTINGS, epochs=4, adapter_rates=(4e-3,) * 3)  # losses fall by 6 % and more
IDS = token_ids(4, 20)


def trainable(name="llama", schedule=SCHEDULE, **changes):
    model = name if isinstance(name, nn.Module) else tiny_model(name, dtype=torch.float32, **changes)
    model.requires_grad_(False)
    return Trainable(model, layout_of(model), schedule, CLIPS, "auto", seed=0)


def run(to_tune, folder, settings=SETTINGS, log=None, report=None, **inputs):
    """Lines of the log of one whole run."""
    lines = []

    def logged(what, **entries):
        if log:
            log(entries)
        lines.append(json.loads(json.dumps({"what": what, **entries})))

    inputs = {"input_ids": IDS} | inputs
    checkpoint = Checkpoint(folder / "checkpoint", "this run")
    tune_blocks(
        to_tune, settings, inputs, 0, folder, checkpoint, logged, report or (lambda stage, part: None)
    )
    return lines


def stage(to_tune, folder, settings=SETTINGS, **inputs):
    """The stage before its first block."""
    streams = ActivationStore(folder, settings.memory)
    inputs = {"input_ids": IDS} | inputs
    return BlockWiseTuning(to_tune, settings, inputs, 0, streams, lambda stage, part: None)


def copied(to_tune):
    return {name: tensor.clone() for name, tensor in to_tune.state().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_every_low_width_loses_less_after_than_before(name, tmp_path):
    settings = dataclasses.replace(LEARNS, epochs=8)
    lines = run(trainable(name, ONE_EACH), tmp_path, settings)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["what"] == "block" and line["kept"]
        assert {*line["before"]} == {*line["after"]} == {"4", "3", "2"}
        assert all(line["after"][group] < line["before"][group] for group in ("4", "3", "2")), line


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_tunes_a_block_and_only_that(name, tmp_path):
    to_tune = trainable(name, ONE_EACH)
    before, layers = copied(to_tune), to_tune.layout.blocks[0].layers.values()
    tuned = stage(to_tune, tmp_path, LEARNS).step()
    assert tuned.block == to_tune.layout.blocks[0].name and tuned.kept
    changed = {
        key.rpartition(".b.")[0] for key, t in to_tune.state().items() if not torch.equal(t, before[key])
    }
    assert {*layers} == changed - {""}
    assert sum(tuned.after.values()) < sum(tuned.before.values())


SLIDING = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 4}


@pytest.mark.parametrize("name, changes", [*((name, {}) for name in FAMILIES), ("qwen2", SLIDING)])
def test_the_full_stream_is_the_models_own_with_the_masks_of_each_batch(name, changes, tmp_path):
    to_tune = trainable(name, **changes)
    mask = torch.ones(4, 20, dtype=torch.long)
    mask[0, :7] = mask[3, :12] = 0  # each batch of two another one
    tuning = stage(to_tune, tmp_path, attention_mask=mask)
    view = to_tune.view(PrecisionPlan.full())
    with torch.no_grad():
        states = [
            view(input_ids=ids, attention_mask=m, use_cache=False, output_hidden_states=True).hidden_states
            for ids, m in zip(IDS.split(2), mask.split(2), strict=True)
        ]
        assert torch.equal(tuning.full, torch.cat([s[0] for s in states]))
        tuning.skip(1)
        assert torch.equal(tuning.full, torch.cat([s[1] for s in states]))
        tuning.skip(2)
        last = view.get_submodule(to_tune.layout.final_norm)(tuning.full)
    assert torch.allclose(last, torch.cat([s[2] for s in states]), atol=1e-5)


def test_the_next_block_reads_the_merged_groups_of_the_tuned_one(tmp_path):
    to_tune = trainable(schedule=RankSchedule(((6,), (4,), (2,)), (2, 4, 8)))
    tuning = stage(to_tune, tmp_path)
    tuning.step()
    tuning.step()
    expected = []
    with torch.no_grad():
        for ids in IDS.split(2):
            outputs = [
                to_tune.view(PrecisionPlan.uniform(bits))(
                    input_ids=ids, use_cache=False, output_hidden_states=True
                ).hidden_states[1]
                for bits in (6, 4, 2)
            ]
            expected.append(merge(torch.stack(outputs), torch.tensor(SETTINGS.merge), SETTINGS.keep))
    assert torch.allclose(tuning.quantized, torch.cat(expected), atol=1e-5)


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["block 1", "block 2", "block 3", "inside block 2"])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(where, tmp_path, once):
    def log(entries):
        if where == f"block {entries['step']}":
            raise Stop

    def report(what, part):
        if where == "inside block 2" and what.startswith("block 2 of 3, epoch 1"):
            raise Stop

    settings = dataclasses.replace(SETTINGS, memory=1)
    with pytest.raises(Stop):
        run(trainable(num_hidden_layers=3), tmp_path, settings, log, report)
    assert not list(tmp_path.glob(f"*{SUFFIX}"))
    resumed = trainable(num_hidden_layers=3)
    lines = run(resumed, tmp_path, settings)
    assert [line["step"] for line in lines] == list(range(int(where[-1]), 4))
    assert same(resumed.state(), once)
    assert not run(resumed, tmp_path, settings) and same(resumed.state(), once)  # nothing is left to do


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """What an uninterrupted run learns, its streams in memory."""
    to_tune = trainable(num_hidden_layers=3)
    run(to_tune, tmp_path_factory.mktemp("once"))
    return copied(to_tune)


def test_streams_on_disk_give_the_same_bytes_as_in_memory(tmp_path, once):
    to_tune, seen = trainable(num_hidden_layers=3), set()
    settings = dataclasses.replace(SETTINGS, memory=IDS.numel() * 64 * 4)  # room for one of the two
    run(
        to_tune,
        tmp_path,
        settings,
        report=lambda *_: seen.update(p.stem for p in tmp_path.glob(f"*{SUFFIX}")),
    )
    assert seen == {"quantized"} and not list(tmp_path.glob(f"*{SUFFIX}"))
    assert same(to_tune.state(), once)


def test_a_loss_that_is_not_a_number_names_block_and_batch_and_keeps_what_was_good(tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.model.layers[1].input_layernorm.weight.data[3] = torch.nan
    with pytest.raises(CalibrationError, match="model.layers.1 at W[56] is nan before tuning, batch 1"):
        run(trainable(model), tmp_path, dataclasses.replace(SETTINGS, memory=1))
    assert Checkpoint(tmp_path / "checkpoint", "this run").read("block-0")
    assert not list(tmp_path.glob(f"*{SUFFIX}"))


def test_the_batch_that_is_named_is_the_bad_one(tmp_path):
    model = tiny_model(dtype=torch.float32)
    only = next(token for token in IDS[2].tolist() if not (IDS[:2] == token).any())
    model.model.embed_tokens.weight.data[only] = torch.nan
    with pytest.raises(CalibrationError, match="model.layers.0 at W[56] is nan before tuning, batch 2"):
        run(trainable(model), tmp_path)


def test_a_weight_that_flies_off_is_said_with_its_epoch(tmp_path):
    settings = dataclasses.replace(SETTINGS, adapter_rates=(1e6,) * 3)
    with pytest.raises(
        CalibrationError, match=r"model.layers.0 at W\d is .* in epoch 1, batch 2; the blocks"
    ):
        run(trainable(), tmp_path, settings)


def test_a_block_that_got_worse_is_reported_and_falls_back_to_its_start(tmp_path):
    to_tune = trainable()
    start = copied(to_tune)
    lines = run(to_tune, tmp_path, dataclasses.replace(SETTINGS, adapter_rates=(3.0,) * 3))
    assert [line["kept"] for line in lines] == [False, False]
    assert all(sum(line["after"].values()) > sum(line["before"].values()) for line in lines)
    assert same(to_tune.state(), start)


def test_activations_are_rounded_where_the_recipe_says_so(tmp_path):
    schedule, still = RankSchedule(((6,), (4,)), (2, 2)), {"adapter_rates": (0.0, 0.0), "clip_rate": 0.0}
    settings = dataclasses.replace(SETTINGS, merge=(0.5, 0.5), **still)
    plain = stage(trainable(schedule=schedule), tmp_path, settings).step()
    rounded = stage(
        trainable(schedule=schedule), tmp_path, dataclasses.replace(settings, activations=True)
    ).step()
    assert all(rounded.before[group] > plain.before[group] for group in ("6", "4"))
    assert plain.before == plain.after and plain.kept


class Tuples(nn.Module):
    """A model whose blocks return a tuple and take their hidden states by keyword."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, hidden_states, shift):
            return (hidden_states + self.inner(hidden_states) + shift,)

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(300, 8)
        self.layers = nn.ModuleList(self.Layer() for _ in range(2))

    def forward(self, input_ids, use_cache):
        x = self.embed(input_ids)
        for i, layer in enumerate(self.layers):
            x = layer(hidden_states=x, shift=input_ids[:, :1, None] * 0.01 + i)[0]
        return SimpleNamespace(last_hidden_state=x)


def test_blocks_that_return_tuples_are_served(tmp_path):
    torch.manual_seed(0)
    model = Tuples().requires_grad_(False)
    blocks = tuple(Block(f"layers.{i}", {"inner": f"layers.{i}.inner"}, "language") for i in range(2))
    to_tune = Trainable(model, ModelLayout("llama", blocks, "embed", "", ""), SCHEDULE, CLIPS, "row", seed=0)
    tuning = stage(to_tune, tmp_path)
    assert len(list(tuning.run())) == 2
    assert torch.allclose(tuning.full, model(IDS, use_cache=False).last_hidden_state, atol=1e-6)


def test_inputs_of_another_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match="attention_mask has 3 sequences, and others 4"):
        stage(trainable(), tmp_path, attention_mask=torch.ones(3, 20))


def test_recipes_that_cannot_work_are_refused():
    data = Recipe.load("tiny").to_dict()
    with pytest.raises(RecipeError, match="are for static grids"):
        Recipe.from_dict(data | {"block_wise": data["block_wise"] | {"drop": 0.5}})
    with pytest.raises(RecipeError, match="unknown entry images"):
        Recipe.from_dict(data | {"images": {"source": "fashion-mnist", "count": 8}})
    with pytest.raises(RecipeError, match="context must be the same"):
        Recipe.from_dict(data | {"block_wise": data["block_wise"] | {"context": 16}})


def test_the_end_to_end_stage_starts_from_what_the_blocks_learned(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} says that {i} times {i} is {i * i}.\n" for i in range(200)))
    recipe = Recipe.load("tiny").at({str(text): 1}, "--text")
    still = dataclasses.replace(recipe.end_to_end, steps=1, adapter_rates=(0.0,) * 4, clip_rate=0.0)
    blocks = dataclasses.replace(recipe.block_wise, epochs=1)
    folder = save_tiny("llama", tmp_path / "model")
    recipe = dataclasses.replace(recipe, block_wise=blocks, end_to_end=still)
    artifact = calibrate(folder, recipe, tmp_path / "out", device="cpu")
    assert all(layer.b.any() for layer in artifact.engine.learned.values())
    lines = [json.loads(line) for line in (tmp_path / "out" / "progress.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines[:5]] == ["run", "transforms", "block", "block", "end to end"]
    assert {"before", "after", "kept"} <= {*lines[2]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "manifest.json",
        "learned.safetensors",
        "progress.jsonl",
    }
