"""bitsandbytes' layers as views of the same model: the very values it computes, shared, counted, optional."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from quept import ElasticModel, PlanError, PrecisionPlan, load
from quept.allocate.sensitivity.measure import measure_sensitivity
from quept.artifact import Artifact
from quept.data.windows import Windows
from quept.engines.base import EngineError
from quept.engines.bitsandbytes import BitsAndBytes
from quept.export import export
from quept.transforms import rotation_record
from tests.tiny import FAMILIES, held, save_tiny, token_ids

NAMES = ("nf4", "int8")
installed = pytest.mark.skipif(bool(BitsAndBytes.missing()), reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: load(save_tiny(name, root / name)) for name in FAMILIES}


def elastic_of(loaded, dtype=torch.float32) -> ElasticModel:
    return ElasticModel(loaded, Artifact.rtn(loaded), dtype=dtype, device="cpu")


@pytest.fixture
def elastic(loaded) -> ElasticModel:
    return elastic_of(loaded["llama"])


@torch.no_grad()
def _rest(elastic: ElasticModel) -> int:
    """Bytes of what no baseline quantizes."""
    return elastic.sizes.fixed + elastic.sizes.embeddings[16]


def logits(model, ids=None):
    return model(token_ids() if ids is None else ids).logits


@installed
@pytest.mark.parametrize("family", FAMILIES)
def test_nf4_multiplies_by_what_bitsandbytes_dequantizes(loaded, family):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    elastic = elastic_of(loaded[family])
    values = {}
    for name in elastic.layers:
        weight = elastic.base.get_submodule(name).weight.data
        packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
        state.dtype = torch.float32  # to compute in; the codes are those of the 16-bit weight
        values[name] = dequantize_4bit(packed, state)
    expected = logits(elastic.with_weights(values))
    assert torch.equal(logits(elastic.view(PrecisionPlan.uniform("nf4"))), expected)
    assert not torch.equal(expected, logits(elastic.view(PrecisionPlan.full())))


@installed
@pytest.mark.parametrize("outliers", [False, True])
def test_int8_is_bitsandbytes_own_layer(elastic, outliers):
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    name = elastic.layers[0]
    weight = elastic.base.get_submodule(name).weight.data
    plain = Linear8bitLt(*weight.shape[::-1], bias=False, has_fp16_weights=False, threshold=6.0).eval()
    plain.weight = Int8Params(weight.clone(), requires_grad=False).to("cpu")
    x = torch.randn(2, 5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    x[0, 2, 7] = 30.0 if outliers else 0.0
    layer = elastic.view(PrecisionPlan.uniform("int8")).get_submodule(name)
    with torch.no_grad():
        assert torch.equal(layer(x), plain(x))
        exact = x @ weight.float().T
    assert 0 < (layer(x) - exact).abs().max() < 0.05 * exact.abs().max()


@installed
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_baseline_shares_everything_else_and_leaves_the_source_alone(loaded, family, name):
    elastic = elastic_of(loaded[family])
    before = {layer: elastic.base.get_submodule(layer).weight.clone() for layer in elastic.layers}
    full = elastic.view(PrecisionPlan.full())
    reference = logits(full)
    view = elastic.view(PrecisionPlan.uniform(name))
    assert torch.isfinite(logits(view)).all()
    assert held(view.get_input_embeddings()) is held(full.get_input_embeddings())
    assert torch.equal(logits(full), reference)
    for layer, weight in before.items():
        assert torch.equal(elastic.base.get_submodule(layer).weight, weight)


@installed
@pytest.mark.parametrize("name", NAMES)
def test_views_do_not_see_each_other(elastic, name):
    first, second = elastic.view(PrecisionPlan.uniform(name)), elastic.view(PrecisionPlan.uniform(name))
    expected = logits(first)
    layer = elastic.layers[0]
    first.get_submodule(layer).register_forward_hook(lambda *_: torch.full_like(_[2], 7.0))
    assert not torch.equal(logits(first), expected)
    assert torch.equal(logits(second), expected)
    ids = [token_ids(1, 8 + i, seed=i) for i in range(6)]
    alone = [logits(second, one) for one in ids]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda one: logits(elastic.view(PrecisionPlan.uniform(name)), one), ids))
    assert all(map(torch.equal, alone, together))


@installed
@pytest.mark.parametrize("name", NAMES)
def test_layers_are_made_once_whoever_asks_first(elastic, name, monkeypatch):
    made, quantize = [], BitsAndBytes.quantize

    def noted(engine, *what):
        made.append(threading.get_ident())
        return quantize(engine, *what)

    monkeypatch.setattr(BitsAndBytes, "quantize", noted)
    with ThreadPoolExecutor(4) as pool:
        answers = [logits(view) for view in pool.map(elastic.view, [PrecisionPlan.uniform(name)] * 4)]
    assert len(made) == len(elastic.layers)
    assert all(torch.equal(answers[0], other) for other in answers)
    assert list(elastic.prepare(PrecisionPlan.uniform(name))) == []


@installed
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_tensors(loaded, family, name):
    elastic = elastic_of(loaded[family])
    expected, resident = elastic.sizes.deploy(PrecisionPlan.uniform(name)), elastic.resident_bytes
    shares = list(elastic.prepare(PrecisionPlan.uniform(name)))
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == len(elastic.layers)
    assert expected < elastic.sizes.deploy(PrecisionPlan.full())
    assert elastic.resident_bytes - resident == expected - _rest(elastic)
    tensors = 0
    for module in elastic.view(PrecisionPlan.uniform(name)).modules():
        kind = type(module).__name__
        if kind == "Linear4bit":
            tensors += module.weight.nbytes + module.weight.quant_state.absmax.nbytes
        if kind == "Linear8bitLt":
            tensors += module.state.CB.nbytes + module.state.SCB.nbytes
    assert expected == _rest(elastic) + tensors


@installed
def test_only_int8_depends_on_what_is_read_together(elastic):
    ids = token_ids(1, 24)
    for name in NAMES:
        view = elastic.view(PrecisionPlan.uniform(name))
        first = view.model.layers[0].self_attn.q_proj
        x = torch.randn(1, 4, first.in_features, generator=torch.Generator().manual_seed(1))
        x[0, 3, 0] = 50.0  # one token's outlier keeps its column unrounded for all
        together, alone = first(x)[:, :3], first(x[:, :3])
        # other rows, other order of sums: float32 differs by 1e-7 of the values, another rounding by 1e-3
        assert ((together - alone).abs().max() < 1e-5 * alone.abs().max()) == elastic.steady(
            PrecisionPlan.uniform(name)
        )
        assert torch.isfinite(logits(view, ids)).all()


@installed
def test_int8_does_not_fill_the_log(elastic, caplog):
    with caplog.at_level(logging.WARNING):
        logits(elastic.view(PrecisionPlan.uniform("int8")))
    assert not caplog.records


def test_without_bitsandbytes_the_error_says_what_to_install(elastic, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in NAMES:
        with pytest.raises(EngineError, match="pip install bitsandbytes"):
            elastic.view(PrecisionPlan.uniform(name))
        assert elastic.sizes.deploy(PrecisionPlan.uniform(name)) > _rest(
            elastic
        )  # known from the shapes all the same


@installed
@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_starts_from_the_weights_as_they_were_loaded(elastic, loaded, name):
    record = rotation_record(seed=0)
    manifest = replace(elastic.artifact.manifest, transforms=record.steps)
    rotated = ElasticModel(
        loaded["llama"], Artifact(manifest, record=record), dtype=torch.float32, device="cpu"
    )
    layer = elastic.layers[0]
    assert not torch.equal(*(e.base.get_submodule(layer).weight for e in (rotated, elastic)))
    assert torch.equal(
        logits(rotated.view(PrecisionPlan.uniform(name))), logits(elastic.view(PrecisionPlan.uniform(name)))
    )
    assert rotated.sizes.deploy(PrecisionPlan.uniform(name)) == elastic.sizes.deploy(
        PrecisionPlan.uniform(name)
    )
    assert torch.equal(rotated.reference(token_ids()), elastic.reference(token_ids()))


def test_an_unknown_setting_is_named_with_those_there_are():
    for wrong in (lambda: PrecisionPlan.uniform("awq"), lambda: PrecisionPlan.parse("awq")):
        with pytest.raises(PlanError, match="'awq'.*nf4, int8"):
            wrong()


@pytest.mark.parametrize(
    "plan",
    [
        PrecisionPlan.of({"*.o_proj": 4}, default="nf4"),
        PrecisionPlan.of({"*.o_proj": "int8"}, default="nf4"),
        PrecisionPlan.uniform("nf4", 8),
        PrecisionPlan.uniform("int8", embeddings=8),
    ],
)
def test_a_setting_of_another_engine_is_one_of_the_whole_model(elastic, plan):
    for ask in (elastic.view, elastic.sizes.deploy, elastic.filed_under):
        with pytest.raises(PlanError, match="setting of the whole model"):
            ask(plan)


def test_a_plan_file_says_a_setting_and_results_keep_their_key(elastic):
    plan = PrecisionPlan.parse("NF4")
    assert PrecisionPlan.from_json(plan.to_json()) == plan and '"weights": "nf4"' in plan.to_json()
    assert elastic.filed_under(plan) == ("bitsandbytes nf4 block 64", elastic.base_identity)
    key, _ = elastic.filed_under(PrecisionPlan.uniform("int8"))
    assert key == "bitsandbytes int8 threshold 6"
    assert elastic.filed_under(PrecisionPlan.uniform("nf4", kv=4))[0] != key


def test_a_setting_of_the_whole_model_is_no_file_and_no_base_of_a_sensitivity(elastic, tmp_path):
    plan = PrecisionPlan.uniform("nf4")
    with pytest.raises(PlanError, match="at nf4: it has 2, 3, .* bits"):
        export(elastic, plan, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="the base plan is nf4 as a whole"):
        measure_sensitivity(elastic, Windows(token_ids(1, 8)), None, base=plan)


def test_weights_from_elsewhere_are_bound_and_odd_ones_refused(elastic):
    full = elastic.view(PrecisionPlan.full())
    weights = {name: full.get_submodule(name).weight for name in elastic.layers}
    assert torch.equal(logits(elastic.with_weights(weights)), logits(full))
    first = elastic.layers[0]
    for odd in (
        {k: v for k, v in weights.items() if k != first},
        weights | {"lm_head": weights[first]},
        weights | {first: weights[first][:1]},
    ):
        with pytest.raises(ValueError, match="lm_head" if "lm_head" in odd else first.replace(".", r"\.")):
            elastic.with_weights(odd)
