"""Views of classifiers: the plain timm model with other weights, bit for bit."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.layers import set_fused_attn, use_fused_attn

from quept import ElasticModel, PlanError, PrecisionPlan, load
from quept.artifact import Artifact
from quept.numerics import dequantize, fake_quantize_tokens
from quept.numerics.grid import group_size, quantize
from quept.plan import QUANTIZED_BITS, Bits
from tests.tiny import VISION, all_but_few_slow, close, pictures, save_tiny_vision, tiny_vision

NAMES = all_but_few_slow(VISION, ("vit", "dinov2", "swin"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every tiny classifier, loaded."""
    root = tmp_path_factory.mktemp("vision")
    return {name: load(save_tiny_vision(name, root / name)) for name in VISION}


@pytest.fixture
def elastic(models):
    return elastic_of(models["swin"])


def elastic_of(loaded, dtype=torch.float32, **options):
    return ElasticModel(loaded, Artifact.rtn(loaded), dtype=dtype, device="cpu", **options)


@torch.no_grad()
def answer(model, name="swin", dtype=torch.float32):
    return model(pictures(name).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_full_view_is_timms_model(models, name, dtype):
    view = elastic_of(models[name], dtype).view(PrecisionPlan.full())
    assert close(answer(view, name, dtype), answer(tiny_vision(name).to(dtype), name, dtype))
    assert isinstance(view, type(tiny_vision(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_view_is_timms_model_with_rounded_weights(models, name):
    elastic, rounded = elastic_of(models[name]), tiny_vision(name)
    plan = PrecisionPlan.of({elastic.layers[1]: 2, elastic.layers[-1]: 16}, default=4)
    for layer, bits in plan.resolve(elastic.layers).items():
        if bits.weights != 16:
            weight = models[name].model.get_submodule(layer).weight.data
            packed = quantize(weight, bits.weights, group_size(weight.shape[1]))[0]
            rounded.get_submodule(layer).weight.data = dequantize(packed)
    assert close(answer(elastic.view(plan), name), answer(rounded, name))


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_patches_and_heads_are_rounded_as_rows_of_columns(models, name, bits):
    elastic, rounded = elastic_of(models[name]), tiny_vision(name)
    for end in elastic.embeddings:
        weight = models[name].model.get_submodule(end).weight.data
        flat = weight.reshape(len(weight), -1)
        packed = quantize(flat, bits, group_size(flat.shape[1]))[0]
        rounded.get_submodule(end).weight.data = dequantize(packed).reshape(weight.shape)
    view = elastic.view(PrecisionPlan.uniform(16, embeddings=bits))
    assert close(answer(view, name), answer(rounded, name))
    assert not torch.equal(answer(view, name), answer(elastic.view(PrecisionPlan.full()), name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_timms_model_in_float32(models, name, dtype):
    logits = elastic_of(models[name], dtype).reference(pictures(name))
    assert close(logits, answer(tiny_vision(name), name))


def test_a_b_a_is_bit_identical(models, elastic):
    a, b = PrecisionPlan.uniform(3), PrecisionPlan.of({"*.qkv": Bits(8, 8)}, default=Bits(2, 4), embeddings=4)
    first, between, again = (answer(elastic.view(plan)) for plan in (a, b, a))
    assert torch.equal(first, again) and not torch.equal(first, between)
    small = elastic_of(models["swin"], budget=1)  # nothing is kept, everything is made again
    assert torch.equal(answer(small.view(a)), first) and torch.equal(answer(small.view(b)), between)


def test_two_plans_in_two_threads_do_not_see_each_other(elastic):
    plans = [
        PrecisionPlan.uniform(2),
        PrecisionPlan.uniform(8, embeddings=4),
        PrecisionPlan.full(),
        PrecisionPlan.uniform(4, 4),
    ]
    alone = [answer(elastic.view(plan)) for plan in plans]
    start = threading.Barrier(len(plans))

    def visit(i):
        start.wait()
        kept = elastic.view(plans[i])
        return all(
            torch.equal(answer(view), alone[i]) for _ in range(20) for view in (kept, elastic.view(plans[i]))
        )

    with ThreadPoolExecutor(len(plans)) as pool:
        assert all(pool.map(visit, range(len(plans))))


def test_running_views_leaves_the_loaded_model_alone(models):
    loaded = models["swin"]
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    elastic = elastic_of(loaded)
    for bits in (2, 8, 16):
        answer(elastic.view(PrecisionPlan.uniform(bits, 4, embeddings=bits)))
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


def test_the_bank_hands_out_its_own_tensors_even_after_evicting_them(models):
    elastic = elastic_of(models["vit"], budget=1)
    plan = PrecisionPlan.uniform(4, embeddings=4)
    one, two = elastic.view(plan), elastic.view(plan)
    assert all(a is b for a, b in zip(one.made_of, two.made_of, strict=True))
    in_use = sum(weight.nbytes for weight in one.made_of)
    assert elastic.bank.kept_bytes == 0 and elastic.bank.resident_bytes == in_use
    del one, two
    gc.collect()
    assert elastic.bank.resident_bytes == 0


def test_masks_follow_the_compute_dtype_where_attention_is_fused(tmp_path):
    was = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(True, experimental=True)  # Swin's attention is fused only then
    try:
        elastic = elastic_of(load(save_tiny_vision("swin", tmp_path)), torch.bfloat16)
        view = elastic.view(PrecisionPlan.uniform(8))
        assert view.layers[0].blocks[1].attn.fused_attn and view.layers[0].blocks[1].attn_mask is not None
        assert answer(view, dtype=torch.bfloat16).isfinite().all()
        assert elastic.reference(pictures("swin")).isfinite().all()
    finally:
        set_fused_attn(was[0], was[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_view_takes_pictures_of_any_dtype(models, dtype):
    view = elastic_of(models["vit"], dtype).view(PrecisionPlan.uniform(4, embeddings=8))
    computed = pictures("vit").to(dtype)
    with torch.inference_mode():
        for given in (computed.float(), computed.double(), computed):
            assert torch.equal(view(given), view(computed))


def test_classifiers_compute_in_float32_on_every_processor(models):
    assert ElasticModel(models["vit"], Artifact.rtn(models["vit"]), device="cpu").dtype == torch.float32


def test_attention_of_a_view_is_fused_as_timms_is(models):
    for block in elastic_of(models["vit"]).view(PrecisionPlan.uniform(4)).blocks:
        assert block.attn.fused_attn == use_fused_attn()


def test_activation_bits_round_each_token(models):
    elastic = elastic_of(models["vit"])
    exact, fine, coarse = (answer(elastic.view(PrecisionPlan.uniform(16, a)), "vit") for a in (16, 8, 4))
    assert 0 < (fine - exact).norm() < (coarse - exact).norm()
    layer, x = (
        elastic.view(PrecisionPlan.uniform(4, 8)).get_submodule(elastic.layers[0]),
        torch.randn(2, 5, 64),
    )
    expected = torch.nn.functional.linear(fake_quantize_tokens(x, 8), layer.weight, layer.bias)
    assert close(layer(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_views_at_every_plan_stay_finite(models, name):
    elastic = elastic_of(models[name])
    for bits in (*QUANTIZED_BITS, 16):
        assert answer(elastic.view(PrecisionPlan.uniform(bits, embeddings=bits)), name).isfinite().all()


def test_what_only_language_models_have_is_refused_in_words(elastic):
    with pytest.raises(PlanError, match="no KV cache: leave KV out"):
        elastic.view(PrecisionPlan.uniform(4, kv=4))
    with pytest.raises(ValueError, match="keeps no keys and values: this is for language models"):
        elastic.make_cache(PrecisionPlan.uniform(4))
    with pytest.raises(ValueError, match="swin classifies pictures and has no tokenizer"):
        elastic.tokenizer  # noqa: B018


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_baselines_classify_too(models, name):
    pytest.importorskip("bitsandbytes")
    elastic = elastic_of(models["vit"])
    assert answer(elastic.view(PrecisionPlan.uniform(name)), "vit").isfinite().all()
    assert elastic.sizes.deploy(PrecisionPlan.uniform(name)) < elastic.sizes.deploy(PrecisionPlan.full())


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_are_those_of_the_packed_tensors(models, name):
    elastic = elastic_of(models[name])
    whole = sum(p.nbytes for p in models[name].model.parameters())
    assert elastic.sizes.deploy(PrecisionPlan.full()) == whole
    for bits in QUANTIZED_BITS:
        packed = {layer: elastic.packed(layer, bits).nbytes for layer in elastic.layers}
        assert {layer: table[bits] for layer, table in elastic.sizes.layers.items()} == packed
        ends = sum(elastic.packed(end, bits).nbytes for end in elastic.embeddings)
        assert elastic.sizes.embeddings[bits] == ends
