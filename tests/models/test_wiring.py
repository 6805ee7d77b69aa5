"""Every family of the table, and models that are in no entry: opened, seen at any precision, exported,
calibrated, generated with and measured, against transformers' own model of the same weights."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from tokenizers import processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from quept.artifact import Artifact
from quept.calibrate import calibrate
from quept.config import Recipe
from quept.evaluate import Windows, cut
from quept.evaluate.routing import asked, routing_counts
from quept.export import exporter
from quept.models import FAMILIES, LoadError, load
from quept.models.recognize import expected_wiring, wiring
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.generate import Sampling
from quept.zoo.gguf_architectures import written_as
from tests.tiny import (
    ALL_FAMILIES,
    CONFIGS,
    MIXTURES,
    SPECIAL,
    all_but_few_slow,
    save_tiny,
    tiny_tokenizer,
    token_ids,
)

FULL, W4 = PrecisionPlan.full(), PrecisionPlan.uniform(4)
FEW = ("llama", "opt", "gemma2", "phi3", "gpt-oss")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: save_tiny(name, root / name) for name in ALL_FAMILIES}


@pytest.fixture(scope="module", params=all_but_few_slow(ALL_FAMILIES, FEW))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def elastic(name, folders):
    return ElasticModel.open(folders[name], device="cpu", dtype=torch.float32)


def theirs(folder) -> nn.Module:
    """transformers' own model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_view_at_full_precision_is_transformers_model(name, elastic, folders):
    with torch.no_grad():
        wanted = theirs(folders[name])(input_ids=token_ids(length=40)).logits
        found = elastic.view(FULL)(input_ids=token_ids(length=40), use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_every_matrix_of_a_block_is_a_layer(name, elastic):
    linears = {path for path, module in elastic.base.named_modules() if isinstance(module, nn.Linear)}
    kept = FAMILIES[elastic.layout.family].kept
    linears = {path for path in linears if not path.endswith(kept)} if kept else linears
    assert set(elastic.layers) == linears - {elastic.layout.head}
    assert all(p.ndim < 3 for p in elastic.base.parameters())
    assert set(elastic.layout.roles) == {r for block in elastic.layout.blocks for r in block.layers}


def test_what_is_exported_reads_back_at_the_size_computed(name, elastic, tmp_path):
    exporter("packed").write(elastic, W4, tmp_path / "w4.safetensors")
    exporter("hf").write(elastic, W4, tmp_path / "plain")
    with torch.no_grad():
        wanted = elastic.view(W4)(input_ids=token_ids(), use_cache=False).logits
        found = theirs(tmp_path / "plain")(input_ids=token_ids()).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.std()))


def test_the_plain_folder_at_16_bits_is_the_one_that_was_opened(name, elastic, folders, tmp_path):
    exporter("hf").write(elastic, FULL, tmp_path / "plain")
    state = theirs(folders[name]).state_dict()
    again = theirs(tmp_path / "plain").state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("target", ["gguf", "mlx", "compressed-tensors"])
def test_an_engine_that_does_not_know_a_family_gets_no_file(name, elastic, target):
    refused, model_type = exporter(target).refuses(elastic, W4), elastic.config.model_type
    known = name.split("-")[0] in ("llama", "mistral", "qwen2", "qwen3", "opt") and name not in MIXTURES
    known = known or (target == "gguf" and written_as(model_type))
    assert known or f"models of type {elastic.config.model_type}" in refused, refused


def test_greedy_text_is_that_of_generate(name, elastic, folders):
    tokenizer, model = elastic.tokenizer, theirs(folders[name])
    prompt = "Hello there, how are you?"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    out = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
    wanted = tokenizer.decode(out, skip_special_tokens=True)
    assert elastic.generate(FULL, prompt, Sampling(temperature=0, max_tokens=64)) == wanted


UNSEEN = dict.fromkeys(MIXTURES, "runs with values only") | {
    "opt": "flattens what its norms give",
    "gpt2": "its layers are none of torch's before it is opened",
    **dict.fromkeys(("bloom", "falcon-rw"), "its positions take a mask that is looked at"),
}


def test_the_table_says_where_norms_stand(name, elastic):
    if name in UNSEEN:
        pytest.skip(UNSEEN[name])
    settings = CONFIGS[name] | {"vocab_size": 64}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, pad_token_id=3)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    family = FAMILIES[elastic.layout.family]
    assert wiring(model, family) == expected_wiring(family)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_switching_one_expert_costs_what_a_layer_of_its_size_does(mixture, folders):
    elastic = ElasticModel.open(folders[mixture], device="cpu", dtype=torch.float32)
    kept = elastic.view(W4)
    made, held = elastic.bank.made, elastic.bank.kept_bytes
    expert = next(name for name in elastic.layers if ".experts.2.up_proj" in name)
    switched = elastic.view(PrecisionPlan.of({expert: 3}, default=4))
    assert kept is not switched and elastic.bank.made == made + 1
    assert elastic.bank.kept_bytes - held <= 2 * elastic.sizes.layers[expert][4]
    changed = elastic.sizes.layers[expert][4] - elastic.sizes.layers[expert][3]
    plans = W4, PrecisionPlan.of({expert: 3}, default=4)
    assert elastic.sizes.deploy(plans[0]) - elastic.sizes.deploy(plans[1]) == changed > 0


@pytest.mark.parametrize("mixture", MIXTURES)
def test_experts_are_counted_as_they_are_chosen(mixture, folders):
    elastic = ElasticModel.open(folders[mixture], device="cpu", dtype=torch.float32)
    windows = Windows(token_ids(3, 20))
    counts, chosen = routing_counts(elastic, windows), elastic.config.num_experts_per_tok
    assert len(counts) == len(elastic.layout.routers) > 0
    assert all(int(of.sum()) == chosen * windows.ids.numel() and len(of) > 1 for of in counts.values())
    shares = asked(elastic, windows)
    assert shares.keys() == {name for name in elastic.layers if ".experts." in name}
    assert sum(shares.values()) == pytest.approx(3 * chosen * len(counts))


@pytest.mark.slow
def test_a_tiny_calibration_beats_rounding_at_2_to_4_bits(name, folders, tmp_path):
    words = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs! "
    (tmp_path / "text.txt").write_text(" ".join(f"{i * i % 89} {words[i % 40 :]}" for i in range(90)))
    stage = {"steps": 8, "batch": 2, "context": 48, "adapter_rates": [0.0, 1e-2, 1e-2, 1e-2],
             "clip_rate": 4e-2, "draws": [[2], [3], [4]]}  # fmt: skip
    recipe = {"name": "tiny", "note": "", "group": 32, "text": {"sources": {str(tmp_path / "text.txt"): 1}},
              "adapters": {"groups": [[5, 6, 7, 8], [4], [3], [2]], "steps": [0, 4, 4, 4]},
              "clip": {"start": {2: 1.0, 3: 3.0, 4: 4.0}}, "end_to_end": stage}  # fmt: skip
    calibrate(folders[name], Recipe.from_dict(recipe), tmp_path / "run", device="cpu")
    quality = Artifact.open(tmp_path / "run").manifest.quality
    found = {plan: round(quality[plan]["kl"] / quality[plan]["kl_rtn"], 3) for plan in ("W2", "W3", "W4")}
    print(name, found)
    assert all(share < 1 for share in found.values()), found
    opened = ElasticModel.open(tmp_path / "run", device="cpu", dtype=torch.float32)
    assert opened.view(W4)(input_ids=token_ids(), use_cache=False).logits.isfinite().all()


LIKE = {"gemma": "llama", "seed_oss": "llama", "exaone4": "olmo2", "olmo": "llama", "olmoe": "mixtral",
        "ernie4_5": "llama", "helium": "llama", "hunyuan_v1_dense": "llama"}  # fmt: skip


@pytest.mark.parametrize("model_type", all_but_few_slow(LIKE, ("gemma", "olmoe")))
def test_a_type_in_no_entry_is_taken_for_the_family_it_is_wired_as(model_type, tmp_path, monkeypatch):
    more = {"model_type": model_type, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2}
    more |= {"sliding_window_pattern": 4, "sliding_window": 16}
    monkeypatch.setitem(CONFIGS, "other", CONFIGS["mistral"] | more)
    folder = save_tiny("other", tmp_path)
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    assert elastic.layout.family in (LIKE[model_type], "norms-unknown")
    with torch.no_grad():
        wanted = theirs(folder)(input_ids=token_ids()).logits
        found = elastic.view(FULL)(input_ids=token_ids(), use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert "compressed-tensors is not written for" in exporter("compressed-tensors").refuses(elastic, W4)


UNSUPPORTED = ("bert", "openai-gpt", "t5", "mamba", "rwkv", "ctrl", "nemotron_h", "minicpm3", "deepseek_v3",
               "qwen3_next", "jamba", "whisper", "clip", "vit", "roberta", "lfm2", "bart", "zamba2",
               "recurrent_gemma", "frobnicator", "granitemoe", "xlnet")  # fmt: skip


@pytest.mark.parametrize("model_type", all_but_few_slow(UNSUPPORTED, ("bert", "mamba")))
def test_an_unsupported_type_is_one_sentence_that_says_how_a_family_is_added(model_type, folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(LoadError) as refused:
        load(tmp_path)
    said = str(refused.value)
    assert f"models of type {model_type!r} are not supported" in said and "\n" not in said
    assert said.endswith("to add a family, write its entry in quept/models/families.py")


@pytest.mark.parametrize("model_type", ["gemma4"])
def test_a_model_that_needs_more_than_an_entry_says_what(model_type, folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(LoadError, match=rf"type '{model_type}' are not supported: .* opens$"):
        load(tmp_path)


def test_perplexity_is_that_of_a_loop_over_transformers_with_its_first_token(name, folders, tmp_path):
    folder = shutil.copytree(folders[name], tmp_path / name)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    tokenizer.save_pretrained(folder)
    text = "The quick brown fox jumps over the lazy dog. " * 8
    ids, model, lost = tokenizer(text, add_special_tokens=False)["input_ids"], theirs(folder), []
    for start in range(0, 4 * 31, 31):
        window = torch.tensor([[1, *ids[start : start + 31]]])
        with torch.no_grad():
            log_probs = model(input_ids=window).logits[0, :-1].double().log_softmax(-1)
        lost += (-log_probs.gather(1, window[0, 1:, None])).flatten().tolist()
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    windows = cut(text, elastic.tokenizer, context=32, tokens=128)
    logits = elastic.reference(windows.ids).double().log_softmax(-1)[:, :-1]
    found = -logits.gather(2, windows.targets[..., None]).mean()
    assert math.exp(found) == pytest.approx(math.exp(sum(lost) / len(lost)), rel=1e-5)
