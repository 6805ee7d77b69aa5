"""Tiny random models of every family, as folders for `from_pretrained`: two blocks, a real tokenizer.

    folder = save_tiny("llama", tmp_path / "llama")  # config, safetensors, tokenizer, chat template
    loaded = quept.load(folder)

Hidden and intermediate sizes differ between the families on purpose: 64 and 96 take groups of 64 and 32, 72
and 80 take whole rows. The same seed gives the same weights. Nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
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

CONFIGS: dict[str, dict] = {
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
}
FAMILIES = tuple(CONFIGS)


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
