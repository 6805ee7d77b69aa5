"""MoBiQuant: one store for every depth and average, tokens routed alike however they come, nothing damaged
taken in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from quept import ElasticModel, PlanError, PrecisionPlan, load, zoo
from quept.artifact import Artifact, ArtifactError
from quept.artifact.store import TENSORS
from quept.calibrate import CalibrationError, calibrate
from quept.calibrate.nested import NestedTrainable
from quept.calibrate.nested_artifact import SETTLED, _typical, settled
from quept.calibrate.routers import leaders_of
from quept.config import Recipe, RecipeError
from quept.engines.base import EngineError
from quept.engines.mobiquant.engine import Branch, LayerParameters, MoBiQuant, Routes
from quept.engines.mobiquant.router import KINDS, Router, depths
from quept.engines.reports import BITS, Reports
from quept.export.packed import export
from quept.kernels import missing
from quept.numerics.adapters import RankSchedule
from quept.numerics.grid import dequantize
from quept.numerics.nested import nested
from quept.plan import Bits
from quept.report.page import page
from quept.runtime.decode import decoder_of
from quept.runtime.generate import Sampling, Token
from tests.tiny import save_tiny, token_ids

AVERAGES = (2.5, 3, 4, 5, 6)
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def recipe(text, router="mlp", **changes) -> Recipe:
    stage = {
        "steps": 6,
        "batch": 2,
        "context": 48,
        "adapter_rates": [0.0, 1e-3, 2e-3],
        "clip_rate": 4e-3,
        "draws": [[2, 4]],
        "mixed_every": 2,
    }
    return Recipe.from_dict(
        {
            "name": "tiny-routed",
            "note": "for tests",
            "group": 32,
            "held_out": 4,
            "data": {"kind": "text", "sources": {str(text): 1}},
            "adapters": {"groups": [[6, 8], [4], [2]], "steps": [0, 2, 4]},
            "end_to_end": stage,
            "routing": {
                "router": router,
                "hidden": 4,
                "sequences": 6,
                "epochs": 4,
                "rate": 5e-3,
                "steps": 4,
                "averages": [2.5, 4],
            },
        }
        | changes
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    draw = torch.randint(len(WORDS), (3000,), generator=torch.Generator().manual_seed(0))
    path.write_text(" ".join(WORDS[i] for i in draw))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(folder, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    calibrate(folder, recipe(text), out, device="cpu")
    return out


@pytest.fixture(scope="module")
def elastic(run):
    return ElasticModel.open(run, device="cpu", dtype=torch.float32)


def routed(average: float, cap: int | None = None) -> PrecisionPlan:
    return PrecisionPlan.parse(f"routed:{average:g}" + (f"/{cap}" if cap else ""))


def bits_of(elastic, plan, ids) -> torch.Tensor:
    """What each token got in each layer (layers, sequences, tokens)."""
    got, view = [], elastic.view(plan)
    for name in elastic.layers:
        module = view.get_submodule(name)

        def listen(module, args):
            got.append(depths(module.stored.router.scores(args[0]), module.thresholds, module.bits))

        module.register_forward_pre_hook(listen)
    with torch.no_grad():
        view(ids)
    return torch.stack(got)


def spent(elastic, plan, ids) -> float:
    with torch.no_grad(), Reports().listen() as found:
        elastic.view(plan)(ids)
    return found.means()[BITS]


def by_hand(loaded) -> MoBiQuant:
    """An engine over a loaded model with corrections and routers that nobody learned."""
    layers, draw = loaded.layout.layers, torch.Generator().manual_seed(3)
    leaders, learned, routers = leaders_of(loaded), {}, {}
    for name in layers:
        rows, columns = loaded.model.get_submodule(name).weight.shape
        parts = (torch.randn(4, columns, generator=draw) / 99, torch.randn(rows, 4, generator=draw) / 99)
        learned[name] = LayerParameters({}, {2: Branch.of(*parts)})
        if leaders[name] == name:
            shapes = {"w1": (8, columns + 1), "b1": (8,), "w2": (3, 8), "b2": (3,)}
            routers[name] = Router(
                "mlp", {k: torch.randn(s, generator=draw).half() for k, s in shapes.items()}
            )
    bits = torch.zeros(1, len(routers))
    thresholds = torch.zeros(1, len(routers), 3)
    return MoBiQuant(32, learned, Routes(leaders, routers, torch.tensor([4.0]), thresholds, bits, bits[:, 0]))


@pytest.mark.parametrize("plan", ["routed:4", "routed:4/4", "W2", "W8"])
def test_a_token_read_in_one_call_gets_the_bits_and_the_logits_of_the_view(folder, plan, monkeypatch):
    if missing():
        pytest.skip(missing())
    loaded = load(folder)
    artifact = replace(Artifact.unlearned("mobiquant", loaded, 32), engine=by_hand(loaded))
    elastic = ElasticModel(loaded, artifact, device="cpu", dtype=torch.float32)

    def answer():
        stream = elastic.stream(
            PrecisionPlan.parse(plan), "Hello", Sampling(temperature=0, max_tokens=9), logits=True
        )
        return [event for event in stream if isinstance(event, Token)]

    ours = answer()
    assert decoder_of(elastic.view(PrecisionPlan.parse(plan))).nested.sum() == sum(
        elastic.sizes.weights.values()
    )
    monkeypatch.setattr("quept.runtime.generate.decoder_of", lambda view, fast: None)
    for one, other in zip(ours, answer(), strict=True):
        assert one.id == other.id and one.reports[BITS] == pytest.approx(other.reports[BITS])
        assert torch.allclose(one.logits, other.logits, atol=1e-4)
    assert plan.startswith("W") or len({event.reports[BITS] for event in ours}) > 1


def test_in_the_routed_model_each_width_learns_from_the_tokens_that_get_it(folder):
    loaded = load(folder)
    schedule = RankSchedule(((6, 8), (4,), (2,)), (0, 2, 4))
    trainable = NestedTrainable(loaded.model.float(), loaded.layout, schedule, 32, 0)
    name, setting = loaded.layout.layers[0], Bits("routed:4")
    layer, draw = trainable.layers[name], torch.Generator().manual_seed(2)
    x = torch.randn(3, 9, layer.weight.shape[1], generator=draw)
    with pytest.raises(ValueError, match="no routers"):
        layer(x, setting)
    routes = by_hand(loaded).routes
    trainable.routed(routes)
    got = depths(routes.of(name).scores(x), routes.at(name, 4.0), 8)
    assert {2, 4} < set(got.unique().tolist())
    y = layer(x, setting)
    for depth in got.unique().tolist():
        assert torch.allclose(y[got == depth], layer(x[got == depth], Bits(depth)), atol=1e-5)
    assert (layer(x, Bits("routed:4/4")) - y)[got <= 4].abs().max() < 1e-5
    y[got != 2].square().sum().backward()
    assert layer.clips["4"].grad.abs().max() > 0 == layer.clips["2"].grad.abs().max()


@pytest.mark.slow
def test_learned_depths_beat_codes_as_they_were_made_on_held_out_text(run):
    quality = Artifact.open(run).manifest.quality
    assert quality["W2"]["kl"] < 0.9 * quality["W2"]["kl_plain"]
    assert all(row["kl"] <= row["kl_plain"] for row in quality.values())


@pytest.mark.slow
def test_everything_shares_one_store_and_sizes_tell_kept_from_read(elastic):
    layer, engine = elastic.layers[0], elastic.artifact.engine
    views = [elastic.view(plan) for plan in (PrecisionPlan.uniform(2), routed(3))]
    stored = views[0].get_submodule(layer).stored
    assert views[1].get_submodule(layer).stored is stored
    rows, columns = stored.shape
    unpacked = replace(stored, codes=nested(elastic.base.get_submodule(layer).weight, 32))
    assert unpacked.nbytes == engine.kept(rows, columns) == elastic.sizes.layers[layer]["routed:3"]
    read = [engine.bytes_read(rows, columns, bits) for bits in (2, 4, 6, 8)]
    assert read == sorted(read) and read[-1] < engine.kept(rows, columns)
    made = elastic.bank.made
    for plan in (routed(5), PrecisionPlan.uniform(6)):
        elastic.view(plan)
    assert elastic.bank.made == made


@pytest.mark.slow
def test_values_at_a_depth_are_what_a_view_multiplies_by(elastic):
    ids, layer = token_ids(), elastic.layers[3]
    for bits in (2, 4, 6, 8):
        weights = {name: elastic.values(name, bits) for name in elastic.layers}
        view, dense = elastic.view(PrecisionPlan.uniform(bits)), elastic.with_weights(weights)
        assert torch.allclose(view(ids).logits, dense(ids).logits, atol=1e-3)
        assert torch.equal(view.get_submodule(layer).weight, weights[layer])


@pytest.mark.slow
def test_averages_are_as_asked_on_other_text_and_rise(elastic, text):
    ids = token_ids(4, 48)
    found = [spent(elastic, routed(average), ids) for average in AVERAGES]
    assert found == sorted(found) and found[0] >= 2 and found[-1] <= 8
    seen = Artifact.open(elastic.origin.artifact).engine.routes
    assert seen.averages.tolist() == sorted(seen.averages.tolist())


@pytest.mark.slow
def test_routing_is_the_same_in_a_batch_alone_and_in_parts(elastic):
    ids, plan = token_ids(3, 40), routed(4)
    whole = bits_of(elastic, plan, ids)
    assert len(whole.unique()) > 1
    for i, row in enumerate(ids):
        assert torch.equal(bits_of(elastic, plan, row[None])[:, 0], whole[:, i])
    assert torch.equal(bits_of(elastic, plan, ids[:, :17]), whole[:, :, :17])
    assert torch.equal(bits_of(elastic, plan, ids), whole)


@pytest.mark.slow
def test_every_token_is_multiplied_by_the_bits_it_got(elastic):
    x = torch.randn(2, 9, 96, generator=torch.Generator().manual_seed(1))
    module = elastic.view(routed(4)).get_submodule("model.layers.0.mlp.down_proj")
    got = depths(module.stored.router.scores(x), module.thresholds, 8)
    expected = torch.empty(2, 9, module.out_features)
    for i, j in [(i, j) for i in range(2) for j in range(9)]:
        expected[i, j] = x[i, j] @ module.stored.values(int(got[i, j])).T
    assert torch.allclose(module(x), expected, atol=1e-4)


@pytest.mark.slow
def test_an_answer_tells_the_bits_of_each_token_and_is_the_same_again(elastic):
    def answer():
        stream = elastic.stream(routed(4), "Hello", Sampling(temperature=0, max_tokens=6))
        return [(t.id, t.reports[BITS]) for t in stream if isinstance(t, Token)]

    assert answer() == answer()
    assert all(2 <= bits <= 8 for _, bits in answer())


@pytest.mark.slow
def test_a_plan_caps_the_depth_of_a_layer(elastic):
    ids = token_ids(2, 40)
    capped = PrecisionPlan.of({"*.down_proj": "routed:6/4"}, default="routed:6")
    assert PrecisionPlan.from_json(capped.to_json()) == capped
    down = [name.endswith("down_proj") for name in elastic.layers]
    free, held = (bits_of(elastic, plan, ids)[down] for plan in (routed(6), capped))
    assert free.max() > 4 == held.max()
    assert spent(elastic, capped, ids) < spent(elastic, routed(6), ids)
    fixed = PrecisionPlan.of({"*.down_proj": 2}, default="routed:6")
    assert spent(elastic, fixed, ids) < spent(elastic, routed(6), ids)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["norm", "projection"])
def test_estimators_without_learning_route_too(folder, text, tmp_path, kind):
    calibrate(folder, recipe(text, kind), tmp_path / "run", device="cpu")
    elastic = ElasticModel.open(tmp_path / "run", device="cpu", dtype=torch.float32)
    found = [spent(elastic, routed(average), token_ids(2, 40)) for average in AVERAGES]
    assert found == sorted(found) and found[0] < found[-1]


@pytest.mark.slow
def test_its_report_tells_codes_from_routers(run):
    html = page(Artifact.open(run))
    assert "routers and thresholds" in html and "scales and zero-points" in html


@pytest.mark.slow
def test_a_width_is_exported_on_the_plain_grid_and_two_bits_are_refused_in_words(elastic, tmp_path):
    for bits in (4, 6, 8):
        read = export(elastic, PrecisionPlan.uniform(bits), tmp_path / f"{bits}.safetensors")
        for layer in elastic.layers:
            values = elastic.values(layer, bits)
            step = (values.max() - values.min()) / (2**bits - 1)
            assert (dequantize(read.packed(layer)) - values).abs().max() <= 1.1 * step
    with pytest.raises(PlanError, match="a correction that no file of codes holds: take 4 bits or more"):
        export(elastic, PrecisionPlan.uniform(2), tmp_path / "2.safetensors")
    with pytest.raises(PlanError, match="does not hold .* at routed:3"):
        export(elastic, routed(3), tmp_path / "routed.safetensors")


class Cut(Exception):
    """Stands for a machine that went away."""


@pytest.mark.slow
def test_a_run_cut_and_resumed_ends_with_the_same_bytes(run, folder, text, tmp_path, monkeypatch):
    monkeypatch.setattr("quept.calibrate.job.SAVE_EVERY", 0.0)
    cuts = ["step 3 ", "learning the routers", "step 8 "]  # of ten, the last four in the routed model

    def cut(stage, fraction):
        if cuts and cuts[0] in stage:
            cuts.pop(0)
            raise Cut

    for _ in range(len(cuts)):
        with pytest.raises(Cut):
            calibrate(folder, recipe(text), tmp_path / "run", cut, device="cpu")
    calibrate(folder, recipe(text), tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / TENSORS).read_bytes() == (run / TENSORS).read_bytes()
    with pytest.raises(CalibrationError, match="already holds an artifact"):
        calibrate(folder, recipe(text), run, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, change",
    [
        ("model.layers.0.mlp.down_proj.router.w1", lambda t: t[:, 1:]),
        ("model.layers.0.mlp.down_proj.router.b2", lambda t: t * torch.nan),
        ("thresholds", lambda t: t[:, 1:]),
        ("thresholds", lambda t: t * torch.nan),
        ("routes", lambda t: t + 1),
        ("model.layers.0.mlp.up_proj.scales.2", lambda t: t[:, :1]),
        ("model.layers.0.mlp.up_proj.a.2", lambda t: t[:, :8]),
        ("model.layers.0.mlp.up_proj.b_scales.2", lambda t: t[:1]),
    ],
)
def test_what_is_damaged_is_refused(run, folder, tmp_path, name, change):
    artifact = Artifact.open(run)
    tensors = load_file(run / TENSORS)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises((ValueError, ArtifactError)):
        engine = type(artifact.engine).read(artifact.manifest, tensors)
        Artifact(artifact.manifest, engine).check_base(load(folder))


def test_without_calibration_every_width_is_there_and_averages_say_what_to_do(folder):
    loaded = load(folder)
    plain = ElasticModel(
        loaded, Artifact.unlearned("mobiquant", loaded, 32), device="cpu", dtype=torch.float32
    )
    ids = token_ids()
    errors = [
        (plain.view(PrecisionPlan.uniform(bits))(ids).logits - plain.reference(ids)).abs().mean()
        for bits in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    with pytest.raises(EngineError, match="calibrate with a recipe that has routers"):
        plain.view(routed(3))


def test_embeddings_are_rounded_beside_nested_layers(folder):
    loaded = load(folder)
    artifact = Artifact.unlearned("mobiquant", loaded, 32)
    elastic = ElasticModel(loaded, artifact, device="cpu", dtype=torch.float32)
    nested, plain = (elastic.view(PrecisionPlan.uniform(6, embeddings=bits)) for bits in (8, 16))
    ids = token_ids()
    assert 0 < (nested(ids).logits - plain(ids).logits).abs().mean() < 0.1


def test_gates_are_monotone_and_capped():
    scores = torch.tensor([[1.0, -1, 1], [1, 1, 1], [-1, 1, 1], [1, 1, -1]])
    assert depths(scores, torch.zeros(3), 8).tolist() == [4, 8, 2, 6]
    assert depths(scores, torch.zeros(3), 4).tolist() == [4, 4, 2, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_says_why_it_does_not_fit(kind):
    shapes = {"w1": (4, 9), "b1": (4,), "w2": (3, 4), "b2": (3,), "p": (4, 8), "offset": (3,)}
    router = Router(kind, {name: torch.zeros(shapes[name]) for name in KINDS[kind]})
    assert router.misfit(8) == "" and (kind == "norm" or "8" not in router.misfit(8))
    assert router.scores(torch.randn(2, 5, 8)).shape == (2, 5, 3)
    broken = Router(kind, dict.fromkeys(KINDS[kind], torch.zeros(1)))
    assert "is not one of the kind" in broken.misfit(8)


def test_recipes_with_routers_say_what_does_not_go(text):
    with pytest.raises(RecipeError, match="routing goes with end_to_end"):
        recipe(text, clip={"start": {"2": 1.0}})
    with pytest.raises(RecipeError, match="adapters of nested codes belong to one width"):
        recipe(
            text,
            adapters={"groups": [[6, 8], [4, 2]], "steps": [0, 2]},
            end_to_end={
                "steps": 1,
                "batch": 1,
                "context": 8,
                "adapter_rates": [0.0, 0.0],
                "clip_rate": 0.0,
                "draws": [[2]],
            },
        )


def test_averages_are_settled_on_the_texts_that_the_recipe_names(folder, text):
    loaded, report = load(folder), lambda stage, fraction: None
    routing = recipe(text).to_dict()["routing"]
    own = recipe(text, routing=routing | {"settled": {"mbpp-programs": 1}})
    data = own.data.read(loaded, own.wanted, report)
    assert torch.equal(_typical(loaded, recipe(text), data, report), data.held_out["input_ids"])
    ids = _typical(loaded, own, data, report)
    assert ids.shape == (SETTLED, 48)
    programs = zoo.text("mbpp-programs")
    assert all(loaded.tokenizer.decode(row, skip_special_tokens=True) in programs for row in ids)
    with pytest.raises(RecipeError, match="settled may name squad-passages"):
        recipe(text, routing=routing | {"settled": {"lambada": 1}})
    with pytest.raises(RecipeError, match="settled needs shares above 0"):
        recipe(text, routing=routing | {"settled": {"mbpp-programs": 0}})


def test_settling_thresholds_moves_what_layers_get_and_nothing_at_the_ends(folder):
    routes = by_hand(load(folder)).routes
    averages = torch.tensor([2.0, 3, 4, 5, 8])
    rows = torch.tensor([0.0, -1, -2, -3, -6])
    shape = (len(averages), len(routes.routers))
    routes = replace(
        routes,
        averages=averages,
        thresholds=rows[:, None, None].expand(*shape, 3).contiguous(),
        bits=averages[:, None].expand(shape).contiguous(),
        kl=torch.tensor([1.0, 0.3, 0.1, 0.03, 0.001]),
    )
    same = settled(routes, {4.0: 0.0})
    assert torch.equal(same.thresholds, routes.thresholds) and torch.allclose(same.kl, routes.kl)
    fewer = settled(routes, {4.0: 0.5})
    assert fewer.thresholds[:, 0, 0].tolist() == [0.0, -0.75, -1.5, -2.625, -6.0]
    assert torch.allclose(fewer.bits[:, 0], torch.tensor([2.0, 2.75, 3.5, 4.625, 8]))
    assert fewer.kl[2] > routes.kl[2] and torch.equal(fewer.kl[[0, 4]], same.kl[[0, 4]])
