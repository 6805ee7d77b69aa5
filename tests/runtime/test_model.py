import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache

from quept import ElasticModel, PlanError, PrecisionPlan, load
from quept.artifact import Artifact
from quept.models import LoadError
from quept.models.clone import Mold, clone
from quept.numerics import dequantize, fake_quantize_tokens
from quept.numerics.grid import group_size, quantize
from quept.plan import QUANTIZED_BITS, Bits
from tests.tiny import FAMILIES, close, held, save_tiny, tiny_model, token_ids


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every tiny family, loaded."""
    root = tmp_path_factory.mktemp("models")
    return {name: load(save_tiny(name, root / name)) for name in FAMILIES}


@pytest.fixture
def elastic(models):
    return elastic_of(models["llama"])


def elastic_of(loaded, dtype=torch.float32, **options):
    return ElasticModel(loaded, Artifact.rtn(loaded), dtype=dtype, device="cpu", **options)


@torch.no_grad()
def logits(model, ids=None):
    return model(token_ids() if ids is None else ids).logits


def plain(loaded, dtype=torch.float32):
    """The model as transformers would run it, in this dtype; the rotary frequencies stay as they are."""
    model = copy.deepcopy(loaded.model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_view_is_the_plain_model(models, family, dtype):
    view = elastic_of(models[family], dtype).view(PrecisionPlan.full())
    assert torch.equal(logits(view), logits(plain(models[family], dtype)))


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_and_head_are_rounded_together(models, family):
    elastic, rounded = elastic_of(models[family]), plain(models[family])
    ends = {elastic.layout.embed, elastic.layout.head}
    assert set(elastic.embeddings) <= ends
    for name in ends:  # a tied head is the embedding: one rounding serves both
        module, weight = rounded.get_submodule(name), models[family].model.get_submodule(name).weight.data
        packed = quantize(weight, 3, group_size(weight.shape[1], elastic.artifact.group))[0]
        module.weight = torch.nn.Parameter(dequantize(packed))
    view = elastic.view(PrecisionPlan.uniform(16, embeddings=3))
    assert torch.equal(logits(view), logits(rounded))
    assert not torch.equal(logits(view), logits(elastic.view(PrecisionPlan.full())))
    shared = held(view.get_input_embeddings()) is held(view.get_output_embeddings())
    assert shared == (len(elastic.embeddings) == 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_is_the_plain_model_with_rounded_weights(models, family):
    elastic = elastic_of(models[family])
    plan = PrecisionPlan.of({elastic.layers[1]: 2, elastic.layers[-1]: 16}, default=4)
    rounded = plain(models[family])
    for name, bits in plan.resolve(elastic.layers).items():
        if bits.weights != 16:
            rounded.get_submodule(name).weight.data = dequantize(elastic.packed(name, bits.weights))
    assert torch.equal(logits(elastic.view(plan)), logits(rounded))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_a_view_are_its_packed_weights_unpacked(models, family):
    elastic = elastic_of(models[family])
    for bits in QUANTIZED_BITS:
        view = elastic.view(PrecisionPlan.uniform(bits))
        for name in elastic.layers:
            assert torch.equal(view.get_submodule(name).weight, dequantize(elastic.packed(name, bits)))


def test_a_b_a_is_bit_identical(elastic):
    a, b = PrecisionPlan.uniform(3), PrecisionPlan.of({"*.q_proj": Bits(8, 8)}, default=Bits(2, 4))
    first, between, again = (logits(elastic.view(plan)) for plan in (a, b, a))
    assert torch.equal(first, again) and not torch.equal(first, between)
    small = elastic_of(load(elastic.source), budget=1)  # nothing is kept, everything is made again
    assert torch.equal(logits(small.view(a)), first) and torch.equal(logits(small.view(b)), between)


def test_two_plans_in_two_threads_do_not_see_each_other(elastic):
    plans = [
        PrecisionPlan.uniform(2),
        PrecisionPlan.uniform(8),
        PrecisionPlan.full(),
        PrecisionPlan.uniform(4, 4),
    ]
    alone = [logits(elastic.view(plan)) for plan in plans]
    start = threading.Barrier(len(plans))

    def visit(i):
        start.wait()
        kept = elastic.view(plans[i])
        return all(
            torch.equal(logits(view), alone[i]) for _ in range(60) for view in (kept, elastic.view(plans[i]))
        )

    with ThreadPoolExecutor(len(plans)) as pool:
        assert all(pool.map(visit, range(len(plans))))


def test_threads_agree_while_the_bank_is_evicting(models):
    elastic = elastic_of(models["llama"], budget=200_000)
    plans = [PrecisionPlan.uniform(bits) for bits in (2, 3, 5, 8)]
    alone = [logits(elastic.view(plan)) for plan in plans]

    def visit(i):
        return all(
            torch.equal(logits(elastic.view(plans[(i + k) % 4])), alone[(i + k) % 4]) for k in range(25)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(visit, range(4)))
    assert elastic.bank.kept_bytes <= 200_000


def test_views_share_every_tensor(models):
    for loaded in models.values():
        elastic = elastic_of(loaded)
        one, two = (
            elastic.view(PrecisionPlan.uniform(4)),
            elastic.view(PrecisionPlan.of({elastic.layers[0]: 8}, default=4)),
        )
        for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
            assert p is q, name
        buffers = dict(two.named_buffers())
        for name, buffer in one.named_buffers():
            assert (buffer is buffers[name]) != (name == f"{elastic.layers[0]}.weight"), name


def test_the_bank_hands_out_its_own_tensors_even_after_evicting_them(models):
    elastic = elastic_of(models["llama"], budget=1)
    one, two = elastic.view(PrecisionPlan.uniform(4)), elastic.view(PrecisionPlan.uniform(4))
    assert all(a is b for a, b in zip(one.made_of, two.made_of, strict=True))
    in_use = sum(weight.nbytes for weight in one.made_of)
    assert elastic.bank.kept_bytes == 0 and elastic.bank.resident_bytes == in_use
    del one, two
    gc.collect()
    assert elastic.bank.resident_bytes == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_heads_stay_tied_and_others_do_not(models, family):
    elastic = elastic_of(models[family])
    view = elastic.view(PrecisionPlan.uniform(4))
    tied = models[family].model.config.tie_word_embeddings
    head, embed = view.get_submodule(elastic.layout.head), view.get_submodule(elastic.layout.embed)
    assert (held(head) is held(embed)) == tied
    assert tied == (family not in ("llama-untied", "mistral"))


@pytest.mark.parametrize("family", ["opt", "qwen2"])
def test_biases_are_kept(models, family):
    elastic = elastic_of(models[family])
    view = elastic.view(PrecisionPlan.uniform(4))
    biased = [name for name in elastic.layers if models[family].model.get_submodule(name).bias is not None]
    assert len(biased) == (len(elastic.layers) if family == "opt" else 6)
    for name in elastic.layers:
        bias = view.get_submodule(name).bias
        assert (bias is not None) == (name in biased)
        assert bias is None or torch.equal(bias, models[family].model.get_submodule(name).bias.float())


def test_changing_a_view_does_not_show_on_another(elastic):
    plan = PrecisionPlan.uniform(4)
    before = logits(elastic.view(plan))
    vandal, bystander = elastic.view(plan), elastic.view(plan)
    vandal.train()
    vandal.model.norm.weight = torch.nn.Parameter(torch.zeros(64))
    vandal.lm_head.register_forward_hook(lambda *_: torch.zeros(()))
    vandal.get_submodule(elastic.layers[0]).register_forward_pre_hook(lambda *_: 1 / 0)
    vandal.model.layers[1].mlp = torch.nn.Identity()
    vandal.get_submodule(elastic.layers[2]).codes = None
    vandal.get_submodule(elastic.layers[3]).bits = Bits(4, 4)
    del vandal.model.layers[0].self_attn.k_proj
    vandal.generation_config.max_new_tokens = 1
    assert torch.equal(logits(bystander), before) and torch.equal(logits(elastic.view(plan)), before)
    assert not bystander.training and bystander.generation_config.max_new_tokens is None


def test_hooks_of_a_layer_of_a_view_are_its_own_and_removed_again(elastic):
    one, other = (elastic.view(PrecisionPlan.uniform(4)).get_submodule(elastic.layers[0]) for _ in range(2))
    calls = []
    hook = one.register_forward_hook(lambda *_: calls.append(1))
    copied = copy.deepcopy(one)
    x = torch.zeros(1, one.in_features, dtype=elastic.dtype)
    one(x), other(x), copied(x)
    assert len(calls) == 2 and not other._forward_hooks
    hook.remove()
    assert one(x) is not None and len(calls) == 2 and not one._forward_hooks


def test_making_and_running_views_leaves_the_loaded_model_alone(models):
    loaded = models["llama"]
    before = logits(loaded.model)
    elastic = elastic_of(loaded)
    for bits in (2, 8, 16):
        logits(elastic.view(PrecisionPlan.uniform(bits, 4)))
    assert torch.equal(logits(loaded.model), before)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float16}


def test_activation_bits_change_the_result_and_are_per_token(elastic):
    exact, coarse = (logits(elastic.view(PrecisionPlan.uniform(16, a))) for a in (16, 4))
    fine = logits(elastic.view(PrecisionPlan.uniform(16, 8)))
    assert not torch.equal(exact, fine)
    assert (fine - exact).norm() < (coarse - exact).norm()
    view = elastic.view(PrecisionPlan.uniform(4, 8))
    layer = view.get_submodule(elastic.layers[0])
    x = torch.randn(2, 5, 64)
    assert close(layer(x), torch.nn.functional.linear(fake_quantize_tokens(x, 8), layer.weight))
    alone = logits(view, token_ids()[:1])
    torch.testing.assert_close(logits(view)[:1], alone)  # a neighbour in the batch changes no token's scale


def test_views_at_every_plan_stay_finite(models):
    for loaded in models.values():
        elastic = elastic_of(loaded)
        for bits in (*QUANTIZED_BITS, 16):
            assert logits(elastic.view(PrecisionPlan.uniform(bits, 4))).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_of_transformers_works_on_a_view(models, family):
    elastic = elastic_of(models[family])
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    ids = token_ids(1, 6)
    answer = elastic.view(PrecisionPlan.full()).generate(ids, **settings)
    assert torch.equal(answer, plain(models[family]).generate(ids, **settings)) and answer.shape == (1, 14)
    view = elastic.view(PrecisionPlan.uniform(4, 8))
    assert torch.equal(view.generate(ids, **settings), view.generate(ids, use_cache=False, **settings))


def test_a_view_continues_from_a_cache(elastic):
    view, cache = elastic.view(PrecisionPlan.uniform(4)), DynamicCache(config=elastic.config)
    ids = token_ids(1, 12)
    with torch.no_grad():
        view(ids[:, :8], cache=cache, use_cache=True)
        rest = view(ids[:, 8:], cache=cache, use_cache=True).logits
    torch.testing.assert_close(rest, logits(view, ids)[:, 8:])


def test_a_view_says_what_it_is(elastic):
    view = elastic.view(PrecisionPlan.uniform(4, 8))
    assert isinstance(view, type(elastic.base))
    assert view.dtype == torch.float32 and view.device == elastic.device
    assert "64 -> 64, W4 A8" in repr(view)
    assert set(elastic.layers) <= {name for name, _ in view.named_modules()}


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_made(elastic):
    with pytest.raises(PlanError, match="did you mean 'model.layers.0.mlp.gate_proj'"):
        elastic.view(PrecisionPlan.of({"model.layers.0.mlp.gate": 4}, default=2))
    assert elastic.bank.made == 0


def test_a_warm_view_makes_nothing(elastic):
    elastic.view(PrecisionPlan.uniform(4))
    made = elastic.bank.made
    assert made == len(elastic.layers)
    elastic.view(PrecisionPlan.of({name: 4 for name in elastic.layers}))
    assert elastic.bank.made == made
    elastic.view(PrecisionPlan.of({elastic.layers[5]: 7}, default=4))
    assert elastic.bank.made == made + 1


def test_open_takes_a_folder_and_refuses_nonsense(elastic, tmp_path):
    opened = ElasticModel.open(elastic.source, dtype=torch.float32)
    plan = PrecisionPlan.uniform(4)
    assert torch.equal(logits(opened.view(plan)), logits(elastic.view(plan)))
    with pytest.raises(LoadError):
        ElasticModel.open("no-such-model")


def test_clone_shares_tensors_and_replaces_by_name():
    model = tiny_model("llama")
    other = torch.nn.Identity()
    copied = clone(model, {"model.layers.1.mlp": other})
    assert copied.model.layers[1].mlp is other and model.model.layers[1].mlp is not other
    assert copied.lm_head.weight is model.lm_head.weight and copied.model is not model.model


def test_a_text_with_a_token_that_has_no_embedding_is_refused_in_words(tmp_path):
    """As measuring and searching read it: the reference comes first."""
    elastic = ElasticModel.open(save_tiny("llama", tmp_path / "m"), device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="token 260, and the model has embeddings for 260 tokens"):
        elastic.reference(torch.tensor([[5, 260, 7]]))


def test_a_mold_casts_what_clone_copies():
    model = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda *_: None)
    other = torch.nn.Identity()
    mold = Mold(model)
    for replaced in ({}, {"model.layers.1.mlp": other}, {"": other}):
        cast, copied = mold.cast(replaced), clone(model, replaced)
        pairs = list(zip(cast.named_modules(), copied.named_modules(), strict=True))
        assert all(a == b and isinstance(one, type(two)) for (a, one), (b, two) in pairs)
        assert all(str(type(one)) == str(type(two)) for (_, one), (_, two) in pairs)
        left_out = [vars(two)[k] for (_, one), (_, two) in pairs for k in vars(two).keys() - vars(one).keys()]
        assert not any(left_out) and all(vars(one).keys() <= vars(two).keys() for (_, one), (_, two) in pairs)
        assert all(p is q for p, q in zip(cast.parameters(), copied.parameters(), strict=True))
    cast = mold.cast({})
    cast.model.norm._forward_hooks.clear()
    cast.model.layers[0].register_forward_hook(lambda *_: None)
    assert model.model.norm._forward_hooks and not model.model.layers[0]._forward_hooks


def test_a_hook_on_one_view_is_on_no_other_and_a_view_can_be_copied(elastic):
    one, other = (elastic.view(PrecisionPlan.uniform(4)) for _ in range(2))
    for name in ("", "model.layers.0", "model.layers.0.self_attn.q_proj", "model.norm"):
        one.get_submodule(name).register_forward_hook(lambda *_: None)
        assert not other.get_submodule(name)._forward_hooks
    assert torch.equal(logits(copy.deepcopy(one)), logits(other))
