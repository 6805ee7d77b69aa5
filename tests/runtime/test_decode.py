"""A token read in one call of C against the view's own forward pass."""

import copy

import pytest
import torch

from quept import ElasticModel, PrecisionPlan, kernels
from quept.engines import GRADED_WIDTHS
from quept.kernels.decoder import Decoder, Layer, Linear
from quept.kernels.packed import PackedWeight
from quept.numerics.grid import quantize
from quept.plan import FULL
from quept.runtime import Sampling
from quept.runtime.decode import OneToken, decoder_of
from quept.runtime.kvcache import make_cache
from tests.tiny import save_tiny, tiny_model, token_ids

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PROMPT = 5

if why := kernels.missing():
    pytest.skip(why, allow_module_level=True)


def rounded(model, bits, group=32):
    """The model with every weight of its decoder replaced by its values on a grid, and {name: packed}."""
    packed = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            width = bits[len(packed) % len(bits)]
            stored, values = quantize(module.weight.detach(), width, group)
            module.weight = torch.nn.Parameter(values, requires_grad=False)
            packed[name] = PackedWeight.pack(stored)
    return packed


def with_codes(decoder_parts: Decoder, packed, model) -> Decoder:
    """The same decoder over packed weights."""
    body = model.model

    def linear(name):
        module = model.get_submodule(name)
        return Linear(packed[name], module.bias)

    def layer(i):
        at, block = f"model.layers.{i}", body.layers[i]
        attention = (f"{at}.self_attn.{x}_proj" for x in "qkvo")
        mlp = (f"{at}.mlp.{x}_proj" for x in ("gate", "up", "down"))
        norms = [getattr(block.self_attn, f"{x}_norm", None) for x in "qk"]
        return Layer(
            *map(linear, (*attention, *mlp)),
            block.input_layernorm.weight,
            block.post_attention_layernorm.weight,
            *(norm and norm.weight for norm in norms),
        )

    return decoder_parts.__class__(
        [layer(i) for i in range(len(body.layers))],
        packed["model.embed_tokens"],
        linear("lm_head"),
        body.norm.weight,
        decoder_parts.rotary,
        model.config.num_attention_heads,
        model.config.rms_norm_eps,
    )


def differences(model, decoder, kv=16):
    """The largest relative difference of the logits of each token after the prompt. Where keys and values are
    rounded each token begins with the same cache: of two sums that differ in their last bit one may round up,
    and that code would stay."""
    ids, one = token_ids(1, 16), OneToken(decoder)
    theirs, ours = make_cache(model.config, kv), make_cache(model.config, kv)
    with torch.inference_mode():
        for cache in (theirs, ours):
            model(input_ids=ids[:, :PROMPT], cache=cache, use_cache=True)
        for t in range(PROMPT, 16):
            ours = ours if kv == FULL else copy.deepcopy(theirs)
            expected = model(input_ids=ids[:, t : t + 1], cache=theirs, use_cache=True).logits[0, -1]
            found = one(ours, int(ids[0, t]), t)
            assert ours.get_seq_length() == theirs.get_seq_length() == t + 1
            yield float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_dense_weights_are_the_views(family):
    model = tiny_model(family, dtype=torch.float32)
    assert max(differences(model, decoder_of(model))) < 1e-5


@pytest.mark.parametrize("kv", [2, 3, 4, 5, 6, 7, 8, (2, 8), (16, 3), (5, 16)])
def test_keys_and_values_are_rounded_as_the_cache_rounds_them(kv):
    model = tiny_model("llama", dtype=torch.float32)
    assert max(differences(model, decoder_of(model), kv)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [(2,), (3,), (4,), (5,), (6,), (7,), (8,), (2, 8, 3, 7, 4, 6, 5)])
def test_the_logits_of_packed_weights_are_the_dense_views(family, bits):
    model = tiny_model(family, dtype=torch.float32)
    packed = rounded(model, bits)
    assert max(differences(model, with_codes(decoder_of(model), packed, model))) < 1e-4


@pytest.mark.parametrize("family", ["llama", "llama-untied"])
def test_embeddings_in_stretches_of_rows_are_read_and_multiplied_alike(family, tmp_path):
    elastic = ElasticModel.open(save_tiny(family, tmp_path), dtype=torch.float32)
    for width in GRADED_WIDTHS:
        view = elastic.view(PrecisionPlan.uniform(4, embeddings=width))
        assert len(view.lm_head.codes.parts) > 1
        assert max(differences(view, decoder_of(view))) < 1e-4


def test_a_stream_reads_the_same_text_through_c(tmp_path, monkeypatch):
    elastic = ElasticModel.open(save_tiny("llama", tmp_path), dtype=torch.float32)
    sampling, plan = Sampling(max_tokens=24, temperature=0), PrecisionPlan.uniform(4)
    ours = elastic.generate(plan, "Once upon a time", sampling)
    monkeypatch.setattr("quept.runtime.generate.decoder_of", lambda view, fast: None)
    assert elastic.generate(plan, "Once upon a time", sampling) == ours


def test_a_family_that_c_does_not_know_has_no_decoder():
    assert decoder_of(tiny_model("opt", dtype=torch.float32)) is None


def test_a_token_beyond_the_vocabulary_is_refused():
    model = tiny_model("llama", dtype=torch.float32)
    cache, one = make_cache(model.config), OneToken(decoder_of(model))
    with torch.inference_mode():
        model(input_ids=token_ids(1, 4), cache=cache, use_cache=True)
    with pytest.raises(IndexError, match="are known"):
        one(cache, model.config.vocab_size, 4)
