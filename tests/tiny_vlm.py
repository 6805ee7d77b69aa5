"""Tiny random vision-language models of every family, as folders for `from_pretrained`: a vision tower of two
blocks, a language model of two, a real processor with the tokenizer of `tiny`.

    folder = save_tiny_vlm("qwen2-vl", tmp_path / "qwen2-vl")

The shapes are those of the published models (grouped heads, patch merging, tiles), scaled down. The same seed
gives the same weights. Nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from tests import tiny

_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
_TOWER = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_QWEN = {
    "text_config": _TEXT | {"rope_parameters": _MROPE},
    "vision_config": {"depth": 2, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2},
}
_SIGLIP = _TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
_GEMMA = _TEXT | {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
_QWEN3 = {
    "text_config": _TEXT | {"head_dim": 16, "rope_parameters": _MROPE},
    "vision_config": _QWEN["vision_config"]
    | {
        "hidden_size": 48,
        "intermediate_size": 80,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    },
}
_IMAGE, _VIDEO = "<image>", "<video>"

# model_type and settings of the config. Sizes follow the published models, scaled down.
CONFIGS: dict[str, dict] = {
    "llava": {
        "model_type": "llava",
        "vision_config": _TOWER | {"model_type": "clip_vision_model", "projection_dim": 48},
        "text_config": _TEXT | {"model_type": "llama"},
        "vision_feature_layer": -1,
    },
    "llava-onevision": {
        "model_type": "llava_onevision",
        "vision_config": _TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False},
        "text_config": _TEXT | {"model_type": "qwen2"},
        "image_grid_pinpoints": [[32, 32], [64, 32], [32, 64]],
        "vision_feature_layer": -1,
    },
    "qwen2-vl": {
        "model_type": "qwen2_vl",
        "text_config": _QWEN["text_config"] | {"model_type": "qwen2_vl_text"},
        "vision_config": _QWEN["vision_config"] | {"embed_dim": 48, "hidden_size": 64, "mlp_ratio": 2},
    },
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        "text_config": _QWEN["text_config"] | {"model_type": "qwen2_5_vl_text"},
        "vision_config": _QWEN["vision_config"]
        | {
            "hidden_size": 48,
            "intermediate_size": 80,
            "out_hidden_size": 64,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
    },
    "internvl": {
        "model_type": "internvl",
        "vision_config": _TOWER
        | {"model_type": "internvl_vision", "image_size": [32, 32], "patch_size": [8, 8]},
        "text_config": _TEXT | {"model_type": "qwen2"},
    },
    "smolvlm": {
        "model_type": "smolvlm",
        "vision_config": _TOWER | {"model_type": "smolvlm_vision"},
        "text_config": _TEXT | {"model_type": "llama", "pad_token_id": 3},
        "scale_factor": 2,
    },
    "idefics3": {
        "model_type": "idefics3",
        "vision_config": _TOWER | {"model_type": "idefics3_vision"},
        "text_config": _TEXT | {"model_type": "llama", "pad_token_id": 3},
        "scale_factor": 2,
    },
    "gemma3": {
        "model_type": "gemma3",
        "vision_config": _SIGLIP,
        "text_config": _GEMMA
        | {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
        "mm_tokens_per_image": 4,
    },
    "paligemma": {
        "model_type": "paligemma",
        "vision_config": _SIGLIP,
        "text_config": _TEXT | {"model_type": "gemma", "head_dim": 16},
        "projection_dim": 64,
    },
    "paligemma2": {
        "model_type": "paligemma",
        "vision_config": _SIGLIP,
        "text_config": _GEMMA | {"model_type": "gemma2", "final_logit_softcapping": 5.0},
        "projection_dim": 64,
    },
    "qwen3-vl": {
        "model_type": "qwen3_vl",
        "text_config": _QWEN3["text_config"] | {"model_type": "qwen3_vl_text"},
        "vision_config": _QWEN3["vision_config"],
    },
    "qwen3-vl-moe": {
        "model_type": "qwen3_vl_moe",
        "text_config": _QWEN3["text_config"]
        | {
            "model_type": "qwen3_vl_moe_text",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [0],
        },
        "vision_config": _QWEN3["vision_config"],
    },
}
FAMILIES = tuple(CONFIGS)

_SPECIAL = {
    "llava": {"image_token": _IMAGE},
    "llava-onevision": {"image_token": _IMAGE, "video_token": _VIDEO},
    "qwen2-vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
    },
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": _VIDEO,
    },
    "idefics3": {
        "image_token": _IMAGE,
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    },
}
_SPECIAL["gemma3"] = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
_SPECIAL["smolvlm"] = _SPECIAL["idefics3"]
_SPECIAL |= dict.fromkeys(("qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe"), _SPECIAL["qwen2-vl"])
_SPECIAL |= dict.fromkeys(("paligemma", "paligemma2"), {"image_token": _IMAGE})
_PLACEHOLDER = {"internvl": "<IMG_CONTEXT>\n", "gemma3": "<start_of_image>"}
_PLACEHOLDER |= {
    name: "<|vision_start|><|image_pad|><|vision_end|>" for name in CONFIGS if name.startswith("qwen")
}


def chat_template(name: str) -> str:
    """Turns of text and pictures, in the shape of the families' own templates."""
    return (
        "{% for m in messages %}<s>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{% if part['type'] == 'image' %}"
        f"{_PLACEHOLDER.get(name, _IMAGE)}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )


def tiny_processor(name: str) -> ProcessorMixin:
    """The processor that the published models of this family have, for pictures of about 32 x 32."""
    tokenizer = tiny.tiny_tokenizer()
    special = _SPECIAL[name]
    tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
    named = {
        key: value
        for key, value in special.items()
        if key.endswith("image_token") or key in ("video_token", "boi_token", "eoi_token")
    }
    if name not in ("llava", "paligemma", "paligemma2"):
        tokenizer.init_kwargs |= named
        for key, value in named.items():
            setattr(tokenizer, key, value)
            setattr(tokenizer, f"{key}_id", tokenizer.convert_tokens_to_ids(value))
    size, half = {"height": 32, "width": 32}, [0.5] * 3
    plain = {"image_mean": half, "image_std": half}
    template = {"chat_template": chat_template(name)}
    if name == "llava":
        images = hf.CLIPImageProcessor(size=size, do_center_crop=False, **plain)
        return hf.LlavaProcessor(
            images,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            image_token=_IMAGE,
            **template,
        )
    if name == "llava-onevision":
        images = hf.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=CONFIGS[name]["image_grid_pinpoints"], **plain
        )
        video = hf.LlavaOnevisionVideoProcessor(size=size, **plain)
        return hf.LlavaOnevisionProcessor(
            images,
            tokenizer,
            video,
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            image_token=_IMAGE,
            video_token=_VIDEO,
            **template,
        )
    if name.startswith("qwen"):
        pixels = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
        settings = {"patch_size": 8, "merge_size": 2, "size": pixels, **plain}
        images = hf.Qwen2VLImageProcessor(**settings)
        video = hf.Qwen2VLVideoProcessor(**settings)
        if name.startswith("qwen3"):
            video = hf.Qwen3VLVideoProcessor(**settings)
            return hf.Qwen3VLProcessor(images, tokenizer, video, **template)
        kind = hf.Qwen2VLProcessor if name == "qwen2-vl" else hf.Qwen2_5_VLProcessor
        return kind(images, tokenizer, video, **template)
    if name == "gemma3":
        images = hf.Gemma3ImageProcessor(size=size, **plain)
        return hf.Gemma3Processor(images, tokenizer, image_seq_length=4, **template)
    if name.startswith("paligemma"):  # which comes without a template
        images = hf.SiglipImageProcessor(size=size, **plain)
        images.image_seq_length, tokenizer.chat_template = 16, None
        return hf.PaliGemmaProcessor(images, tokenizer)
    if name == "internvl":
        images = hf.GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, min_patches=1, max_patches=4, **plain
        )
        video = hf.InternVLVideoProcessor(size=size, **plain)
        return hf.InternVLProcessor(images, tokenizer, video, image_seq_length=4, **template)
    largest = {"longest_edge": 32}
    settings = {"size": {"longest_edge": 64}, "max_image_size": largest, "do_image_splitting": True, **plain}
    if name == "idefics3":
        return hf.Idefics3Processor(
            hf.Idefics3ImageProcessor(**settings), tokenizer, image_seq_len=4, **template
        )
    images = hf.SmolVLMImageProcessor(**settings)
    video = SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size=largest, **plain)
    return hf.SmolVLMProcessor(images, tokenizer, video, image_seq_len=4, **template)


def tiny_vlm(name: str = "llava", seed: int = 0, dtype: torch.dtype = torch.float16) -> PreTrainedModel:
    """A model of `CONFIGS` with random weights, norms and biases included."""
    tokenizer = tiny_processor(name).tokenizer
    settings = {
        key: dict(value) if isinstance(value, dict) else value for key, value in CONFIGS[name].items()
    }
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    settings["text_config"] |= {"vocab_size": len(tokenizer)} | ends
    settings |= ends | {"tie_word_embeddings": True}
    image = tokenizer.convert_tokens_to_ids(
        _SPECIAL[name].get("context_image_token", _SPECIAL[name].get("image_token"))
    )
    settings |= {"image_token_id": image, "image_token_index": image}
    if "video_token" in _SPECIAL[name]:
        video = tokenizer.convert_tokens_to_ids(_SPECIAL[name]["video_token"])
        settings |= {"video_token_id": video, "video_token_index": video}
    for key in ("vision_start", "vision_end"):
        if key in _SPECIAL[name]:
            settings[f"{key}_token_id"] = tokenizer.convert_tokens_to_ids(_SPECIAL[name][key])
    for key in ("boi_token", "eoi_token"):
        if key in _SPECIAL[name]:
            settings[f"{key}_index"] = tokenizer.convert_tokens_to_ids(_SPECIAL[name][key])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms begin at one and biases at zero, which would hide them
                    parameter += 0.1 * torch.randn_like(parameter)
    for parameter in model.parameters():  # not model.to(dtype), which would round the rotary frequencies too
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model.eval()


def save_tiny_vlm(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write the model and its processor to `folder` and return it."""
    folder = Path(folder)
    tiny_vlm(name, seed).save_pretrained(folder)
    tiny_processor(name).save_pretrained(folder)
    return folder


def picture(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture of noise, width x height."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())
