import pytest
import torch

from quept.models import fingerprint_of
from quept.numerics.hadamard import hadamard_transform
from quept.transforms import Record, TransformError, apply, rotation_record
from quept.transforms.scaling import edges_of
from tests.tiny import MIXTURES, tiny_model, token_ids
from tests.transforms.models import CASES, exact, logits, wrapped

NORMS = {"kind": "norms"}
SCALING = {"kind": "scaling", "bits": [3, 4], "group": "auto", "grid": 20, "tokens": 48}
ROTATIONS = [(heads, online) for heads in (False, True) for online in (False, True)]


def rotation(heads=True, online=True, seed=0):
    return {"kind": "rotation", "seed": seed, "heads": heads, "online": online}


def random_scales(loaded, online=()):
    """Scales between 0.3 and 3 for every edge."""
    generator = torch.Generator().manual_seed(5)
    return {
        edge.source: 3 ** (2 * torch.rand(edge.channels, generator=generator) - 1)
        for edges in edges_of(loaded.model, loaded.layout, online).values()
        for edge in edges
    }


def assert_same_function(base, transformed):
    before, after = logits(base), logits(transformed)
    assert before.dtype == torch.float64 and before.std() > 0.1
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(", ", "-").replace(" ", "-"))
def base(request):
    name, changes = CASES[request.param]
    return exact(name, **changes)


def test_folded_norms_keep_the_function(base):
    folded = apply(base, Record((NORMS,)))
    assert_same_function(base, folded)
    blocks = folded.layout.blocks
    for name in (*folded.layout.norms, folded.layout.final_norm):
        norm = folded.model.get_submodule(name)
        weight = getattr(norm, "weight", None)
        assert weight is None or (weight == 1 - getattr(norm, "offset", 0)).all()
        assert getattr(norm, "bias", None) is None or not norm.bias.any()
    assert len(blocks) == 2


def test_norms_behind_layers_refuse_a_rotation(base):
    if base.layout.norms_after:
        with pytest.raises(TransformError, match=r"layernorm stands behind a layer .* leave 'rotation' out"):
            apply(base, rotation_record())


@pytest.fixture
def rotatable(base):
    return pytest.skip("its norms behind layers refuse it") if base.layout.norms_after else base


@pytest.mark.parametrize(("heads", "online"), ROTATIONS)
def test_rotation_keeps_the_function(rotatable, heads, online):
    base = rotatable
    turned = apply(base, rotation_record(3, heads, online))
    assert_same_function(base, turned)
    block = base.layout.blocks[0].layers
    for role in block:  # and it does rotate
        old, new = (m.model.get_submodule(block[role]).weight for m in (base, turned))
        assert (old - new).abs().mean() > 0.01


def test_scaling_keeps_the_function(base):
    scales = random_scales(base)
    scaled = apply(base, Record((SCALING,), scales))
    assert_same_function(base, scaled)
    for source, s in scales.items():
        old, new = (m.model.get_submodule(source).weight for m in (base, scaled))
        if old is not None and old.ndim == 1:
            offset = getattr(base.model.get_submodule(source), "offset", 0)
            torch.testing.assert_close(new + offset, (old + offset) / s.double())


def test_all_of_it_keeps_the_function(rotatable):
    base = rotatable
    after = apply(base, rotation_record()).online
    record = Record((NORMS, rotation(), SCALING), random_scales(base, after))
    assert_same_function(base, apply(base, record))
    record = Record((SCALING, NORMS, rotation()), random_scales(base))
    assert_same_function(base, apply(base, record))


def test_the_model_given_is_not_changed(rotatable):
    base = rotatable
    model = base.model
    before, ids = fingerprint_of(model), {name: id(p) for name, p in model.named_parameters()}
    types = [type(module) for module in model.modules()]
    tied, expected = model.config.tie_word_embeddings, logits(base)
    apply(base, Record((SCALING, NORMS, rotation()), random_scales(base)))
    assert fingerprint_of(model) == before and torch.equal(logits(base), expected)
    assert {name: id(p) for name, p in model.named_parameters()} == ids
    assert [type(module) for module in model.modules()] == types
    assert model.config.tie_word_embeddings is tied and base.record is None and not base.online


@pytest.mark.parametrize("name", ["llama", "llama-untied", "opt"])
def test_the_head_is_untied_on_a_config_of_its_own(name):
    base = exact(name)
    turned = apply(base, rotation_record())
    model = turned.model
    assert model.config.tie_word_embeddings is False and model.config is not base.model.config
    assert all(m.config is not base.model.config for m in model.modules() if hasattr(m, "config"))
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    model.tie_weights()
    assert_same_function(base, turned)


def test_folding_alone_leaves_the_embedding_shared_with_the_base():
    base = wrapped(tiny_model("llama"))
    folded = apply(base, Record((NORMS,)))
    assert folded.model.model.embed_tokens.weight is base.model.model.embed_tokens.weight
    assert folded.model.lm_head.weight is not base.model.lm_head.weight


def test_the_empty_record_changes_nothing():
    base = wrapped(tiny_model("llama"))
    same = apply(base, Record())
    assert torch.equal(logits(same), logits(base)) and same.model is not base.model
    assert same.model.lm_head.weight is same.model.model.embed_tokens.weight
    assert same.model.config.tie_word_embeddings


def test_what_is_known_of_the_base_stays():
    base = wrapped(tiny_model("qwen3"))
    record = rotation_record(7)
    turned = apply(base, record)
    assert turned.record == record and turned.fingerprint == base.fingerprint and turned.source == base.source
    assert turned.layout == base.layout and turned.tokenizer is base.tokenizer
    assert not turned.model.training and not any(p.requires_grad for p in turned.model.parameters())


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_online_layers_are_named_and_hold_the_other_half(name):
    base = exact(name)
    down = {block.layers["down"] for block in base.layout.blocks}
    assert apply(base, rotation_record()).online == down
    assert apply(base, rotation_record(online=False)).online == frozenset()
    record = (NORMS, rotation(heads=False, online=True))
    half, whole = apply(base, Record(record)), apply(base, rotation_record(heads=False, online=False))
    for layer in down:
        weights = (m.model.get_submodule(layer).weight for m in (half, whole))
        torch.testing.assert_close(next(weights), hadamard_transform(next(weights)))


def test_a_width_that_cannot_be_transformed_has_no_online_layer():
    base = exact("llama", intermediate_size=75)
    assert apply(base, rotation_record()).online == frozenset()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "opt"])
def test_sixteen_bits_become_float16_rounded_once(name, dtype):
    base = wrapped(tiny_model(name, dtype=dtype))
    wide = wrapped(tiny_model(name, dtype=dtype).double())
    record = Record((SCALING, NORMS, rotation()), random_scales(base))
    narrow, expected = apply(base, record).model, apply(wide, record).model.state_dict()
    assert narrow.config.dtype == torch.float16
    for name, value in narrow.state_dict().items():
        assert value.dtype == torch.float16 and torch.equal(value, expected[name].half()), name


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_float16_comes_close_and_runs_as_it_is(name):
    base = wrapped(tiny_model(name))
    turned = apply(base, rotation_record())
    assert (logits(turned) - logits(base)).abs().max() < 0.05 * logits(base).std()


def test_rotation_spreads_an_outlier():
    base = exact("llama")
    with torch.no_grad():
        base.model.model.embed_tokens.weight[:, 5] *= 50
    turned = apply(base, rotation_record())
    peaks = [
        (e.abs().amax(-1) / e.norm(dim=-1)).mean()
        for e in (m.model.model.embed_tokens(token_ids()) for m in (base, turned))
    ]
    assert peaks[0] > 0.8 and peaks[1] < 0.4
    assert_same_function(base, turned)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_record_read_back_gives_the_same_bits(name, tmp_path):
    from safetensors.torch import load_file, save_file

    base = wrapped(tiny_model(name))
    record = Record((SCALING, NORMS, rotation()), random_scales(base))
    save_file(dict(record.tensors), tmp_path / "scales.safetensors")
    (tmp_path / "record.json").write_text(record.to_json())
    read = Record.from_json(
        (tmp_path / "record.json").read_text(), load_file(tmp_path / "scales.safetensors")
    )
    assert read == record
    first, again = apply(base, record).model, apply(wrapped(tiny_model(name)), read).model
    assert fingerprint_of(first) == fingerprint_of(again)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_transformed_weights_are_an_ordinary_checkpoint(name, tmp_path):
    turned = apply(wrapped(tiny_model(name)), rotation_record(online=False))
    turned.model.save_pretrained(tmp_path)
    again = type(turned.model).from_pretrained(tmp_path, dtype=torch.float16).eval()
    assert fingerprint_of(again) == fingerprint_of(turned.model)


def test_a_transformed_model_is_not_transformed_again():
    with pytest.raises(TransformError, match="transformed before.*load the base again"):
        apply(apply(wrapped(tiny_model("llama")), Record((NORMS,))), Record((NORMS,)))


def test_rotation_needs_plain_norms():
    with pytest.raises(TransformError, match="input_layernorm still has a weight: put the step 'norms'"):
        apply(wrapped(tiny_model("llama")), Record((rotation(),)))
    base = wrapped(tiny_model("llama"))
    with pytest.raises(TransformError, match="still has a weight"):
        apply(base, Record((NORMS, SCALING, rotation()), random_scales(base)))


def test_scales_of_another_model_are_refused():
    base = wrapped(tiny_model("llama"))
    for name, count in (("model.layers.9.input_layernorm", 64), ("model.layers.0.mlp.down_proj", 64)):
        with pytest.raises(TransformError, match=f"{name} has scales, but no place for them"):
            apply(base, Record((SCALING,), {name: torch.ones(count)}))
    with pytest.raises(TransformError, match="has 3 scales for 64 channels"):
        apply(base, Record((SCALING,), {"model.layers.0.input_layernorm": torch.ones(3)}))


def test_an_online_layer_takes_no_scales_afterwards():
    base = wrapped(tiny_model("llama"))
    with pytest.raises(TransformError, match="up_proj has scales, but no place"):
        apply(base, Record((NORMS, rotation(), SCALING), random_scales(base)))


@pytest.mark.parametrize(
    "changes",
    [{"do_layer_norm_before": False}, {"word_embed_proj_dim": 36}],
    ids=["post", "projected"],
)
def test_other_wiring_is_refused(changes):
    with pytest.raises(TransformError, match="this opt model cannot be transformed.*without transforms"):
        apply(wrapped(tiny_model("opt", **changes)), rotation_record())


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_experts_is_refused(name):
    base = wrapped(tiny_model(name))
    with pytest.raises(
        TransformError, match=r"layers\.\d\.mlp\.(gate|router) chooses experts by what the norm"
    ):
        apply(base, rotation_record())


def test_what_does_not_fit_float16_is_refused():
    base = wrapped(tiny_model("llama"))
    scales = {"model.layers.0.input_layernorm": torch.full((64,), 1e7)}
    with pytest.raises(TransformError, match="q_proj is not finite in torch.float16"):
        apply(base, Record((SCALING,), scales))
