"""Tiny random models of every family. Language models as folders for `from_pretrained`: two blocks, a real
tokenizer. Classifiers of pictures as folders for timm.

    folder = save_tiny("llama", tmp_path / "llama")  # config, safetensors, tokenizer, chat template
    folder = save_tiny_vision("swin", tmp_path / "swin")  # config, safetensors
    loaded = quept.load(folder)

Hidden and intermediate sizes differ between the families on purpose: 64 and 96 take groups of 64 and 32, 72
and 80 take whole rows. The same seed gives the same weights. Nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

_LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # peaked enough that precisions differ
}

CONFIGS: dict[str, dict] = {  # of each wiring one; the first six are what most tests run through
    "llama": _LLAMA_LIKE | {"model_type": "llama", "tie_word_embeddings": True},
    "llama-untied": _LLAMA_LIKE
    | {"model_type": "llama", "tie_word_embeddings": False, "intermediate_size": 80},
    "mistral": _LLAMA_LIKE | {"model_type": "mistral", "tie_word_embeddings": False, "sliding_window": None},
    "qwen2": _LLAMA_LIKE | {"model_type": "qwen2", "tie_word_embeddings": True, "hidden_size": 96},
    "qwen3": _LLAMA_LIKE | {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 20},
    "opt": {
        "model_type": "opt",
        "hidden_size": 72,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 72,
        "init_std": 0.2,
        "tie_word_embeddings": True,
    },
    "gemma2": _LLAMA_LIKE
    | {
        "model_type": "gemma2",
        "tie_word_embeddings": True,
        "head_dim": 20,
        "sliding_window": 16,
        "query_pre_attn_scalar": 20,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma3": _LLAMA_LIKE
    | {
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "head_dim": 16,
        "sliding_window": 16,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": _LLAMA_LIKE | {"model_type": "phi3", "tie_word_embeddings": False, "sliding_window": None},
    "olmo2": _LLAMA_LIKE | {"model_type": "olmo2", "tie_word_embeddings": False},
    "olmo3": _LLAMA_LIKE
    | {
        "model_type": "olmo3",
        "tie_word_embeddings": False,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "smollm3": _LLAMA_LIKE | {"model_type": "smollm3", "tie_word_embeddings": True, "no_rope_layers": [1, 0]},
    "granite": _LLAMA_LIKE
    | {
        "model_type": "granite",
        "tie_word_embeddings": True,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
        "logits_scaling": 2.0,
    },
    "glm": _LLAMA_LIKE | {"model_type": "glm", "tie_word_embeddings": False, "head_dim": 16},
    "glm4": _LLAMA_LIKE | {"model_type": "glm4", "tie_word_embeddings": False, "head_dim": 16},
    "cohere": _LLAMA_LIKE | {"model_type": "cohere", "tie_word_embeddings": True, "logit_scale": 1.0},
    "vaultgemma": _LLAMA_LIKE | {"model_type": "vaultgemma", "tie_word_embeddings": True, "head_dim": 16},
    "arcee": _LLAMA_LIKE | {"model_type": "arcee", "tie_word_embeddings": False},
    "starcoder2": _LLAMA_LIKE | {"model_type": "starcoder2", "tie_word_embeddings": True},
    "phi": _LLAMA_LIKE | {"model_type": "phi", "tie_word_embeddings": False},
    "gpt-neox": _LLAMA_LIKE | {"model_type": "gpt_neox", "tie_word_embeddings": False},
    "nanochat": _LLAMA_LIKE | {"model_type": "nanochat", "tie_word_embeddings": False},
    "persimmon": _LLAMA_LIKE
    | {"model_type": "persimmon", "tie_word_embeddings": False, "num_key_value_heads": 4},
    "granite-dense": _LLAMA_LIKE
    | {
        "model_type": "granitemoehybrid",
        "tie_word_embeddings": True,
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
        "layer_types": ["full_attention", "full_attention"],
        "position_embedding_type": "rope",
        "attention_multiplier": 0.25,
        "mamba_n_heads": 4,
    },
}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
_FALCON = {
    "model_type": "falcon",
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
OLDER = {  # layers of their own names, positions in tables or as biases
    "gpt2": _GPT | {"model_type": "gpt2", "n_inner": 96, "tie_word_embeddings": True},
    "gpt-bigcode": _GPT | {"model_type": "gpt_bigcode", "n_inner": 96, "tie_word_embeddings": True},
    "gpt-neo": {
        "model_type": "gpt_neo",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,  # its attention is not scaled down
        "tie_word_embeddings": True,
    },
    "gptj": _GPT | {"model_type": "gptj", "n_inner": 96, "rotary_dim": 8, "tie_word_embeddings": False},
    "codegen": _GPT | {"model_type": "codegen", "n_inner": 96, "rotary_dim": 8, "tie_word_embeddings": False},
    "bloom": {
        "model_type": "bloom",
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    },
    "falcon": _FALCON,
    "falcon-40b": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-rw": _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "mpt": {
        "model_type": "mpt",
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    },
    "biogpt": {
        "model_type": "biogpt",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    },
}
CONFIGS |= OLDER
MIXTURES = {
    "mixtral": _LLAMA_LIKE
    | {"model_type": "mixtral", "tie_word_embeddings": False, "num_local_experts": 4, "sliding_window": None},
    "qwen3-moe": _LLAMA_LIKE
    | {
        "model_type": "qwen3_moe",
        "tie_word_embeddings": False,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "mlp_only_layers": [0],
    },
    "qwen2-moe": _LLAMA_LIKE
    | {
        "model_type": "qwen2_moe",
        "tie_word_embeddings": False,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "glm4-moe": _LLAMA_LIKE
    | {
        "model_type": "glm4_moe",
        "tie_word_embeddings": False,
        "head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
    "gpt-oss": _LLAMA_LIKE
    | {
        "model_type": "gpt_oss",
        "tie_word_embeddings": False,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
CONFIGS |= MIXTURES
ALL_FAMILIES = tuple(CONFIGS)
FAMILIES = ALL_FAMILIES[:6]


def all_but_few_slow(names: Iterable[str], few: Container[str]) -> list:
    """Parameters of a test that runs through all names, of which `make test-fast` takes a few."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]


def in_turn(names: Iterable, values: Iterable) -> list:
    """Parameters of a test: each name with one of the values in turn, instead of all with all."""
    named = [name if isinstance(name, tuple) else pytest.param(name) for name in names]
    pairs = zip(named, cycle(values), strict=False)
    return [pytest.param(*name.values, value, marks=name.marks) for name, value in pairs]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, without merges: a token a byte and four special ones; any text survives."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def tiny_model(
    name: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float16, **changes
) -> PreTrainedModel:
    """A model of `CONFIGS` with random weights, norms and biases included; `changes` go into its config."""
    settings = CONFIGS[name] | {
        "vocab_size": len(tiny_tokenizer()),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    settings |= changes
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms begin at one and biases at zero, which would hide them
                    parameter += 0.1 * torch.randn_like(parameter)
    for parameter in model.parameters():  # not model.to(dtype), which would round the rotary frequencies too
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a few rows multiplied by packed codes came out as multiplied by their values."""
    limit = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[expected.dtype]
    return found.dtype == expected.dtype and bool(
        (found - expected).abs().max() <= limit * expected.abs().max()
    )


def held(module: torch.nn.Module) -> object:
    """What a module of a view multiplies by: packed codes, or a tensor."""
    return module.codes if hasattr(module, "codes") else module.weight


def save_tiny(
    name: str, folder: str | Path, seed: int = 0, dtype: torch.dtype = torch.float16, **changes
) -> Path:
    """Write the model and its tokenizer to `folder` and return it."""
    folder = Path(folder)
    tiny_model(name, seed, dtype, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def token_ids(rows: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Ordinary token ids (rows, length), none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), len(tiny_tokenizer()), (rows, length), generator=generator)


# architecture of timm, its arguments, classes. Channels, widths and groups differ on purpose: "vit" is grey,
# 588 columns of a dinov2 patch take whole rows, "features" has no head, "swin" three stages.
VISION: dict[str, tuple[str, dict, int]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 64}, 10),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 32, "embed_dim": 48}, 6),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "embed_dim": 96}, 5),
    "features": ("vit_small_patch14_dinov2", {"img_size": 28, "embed_dim": 64}, 0),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 32,
            "depths": [2, 2, 1],
            "num_heads": [2, 4, 8],
        },
        7,
    ),
    "swin-v2": (
        "swinv2_tiny_window8_256",
        {
            "img_size": 32,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 32,
            "depths": [1, 1],
            "num_heads": [2, 4],
        },
        7,
    ),
    "deit3": ("deit3_small_patch16_224", {"img_size": 32, "embed_dim": 48}, 6),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 64}, 5),
    "eva02-split": ("eva02_base_patch14_448", {"img_size": 28, "embed_dim": 48}, 5),
    "siglip": ("vit_base_patch16_siglip_224", {"img_size": 32, "embed_dim": 64}, 0),
}
_DEPTH = {"depth": 2, "num_heads": 4}


def vision_config(name: str, **changes) -> dict:
    """The config.json of a model of `VISION`; `changes` go into its pretrained_cfg."""
    architecture, arguments, classes = VISION[name]
    arguments = arguments if "depths" in arguments else arguments | _DEPTH
    channels = arguments.get("in_chans", 3)
    size = arguments["img_size"]
    about = {
        "input_size": [channels, size, size],
        "fixed_input_size": True,
        "num_classes": classes,
        "mean": [0.5] * channels,
        "std": [0.25] * channels,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc" if name.startswith("swin") else "head",
    }
    return {
        "architecture": architecture,
        "num_classes": classes,
        "model_args": arguments,
        "pretrained_cfg": about | changes,
    }


def tiny_vision(name: str = "vit", seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> nn.Module:
    """A model of `VISION` with random weights, as timm makes it; norms, biases and scales included."""
    from timm import create_model

    config = vision_config(name, **changes)
    about = config["pretrained_cfg"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(
            config["architecture"],
            pretrained=False,
            **config["model_args"],
            num_classes=about["num_classes"],
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:  # peaked enough that precisions differ
                    parameter.copy_(0.2 * torch.randn_like(parameter))
                else:
                    parameter += 0.1 * torch.randn_like(parameter)
    held = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    model.load_state_dict(held)  # what a file of 16 bits holds
    return model.to(dtype).eval()


def save_tiny_vision(
    name: str, folder: str | Path, seed: int = 0, dtype: torch.dtype = torch.float16, **changes
) -> Path:
    """Write the model to `folder` in timm's format and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = vision_config(name, **changes)
    config["num_classes"] = config["pretrained_cfg"]["num_classes"]
    (folder / "config.json").write_text(json.dumps(config))
    state = tiny_vision(name, seed, dtype, **changes).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    return folder


def pictures(name: str = "vit", count: int = 3, seed: int = 0) -> torch.Tensor:
    """Prepared pictures (count, channels, height, width) for a model of `VISION`."""
    generator = torch.Generator().manual_seed(seed)
    size = vision_config(name)["pretrained_cfg"]["input_size"]
    return torch.randn(count, *size, generator=generator)
