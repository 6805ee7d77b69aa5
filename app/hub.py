"""Models of the Hugging Face hub that `--preset hub` opens, and whether the hub answers."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping

HUB = (  # with what each downloads
    "Qwen/Qwen2.5-0.5B-Instruct",  # 1 GB
    "HuggingFaceTB/SmolVLM-256M-Instruct",  # 0.5 GB
    "timm/deit_tiny_patch16_224.fb_in1k",  # 23 MB
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",  # 88 MB
    "timm/swin_tiny_patch4_window7_224.ms_in1k",  # 114 MB
)
HUB_GB = 1.7
PATIENCE = 3.0  # seconds


def public_hub(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a Space from which the hub can be reached: there its models are the default."""
    return "SPACE_ID" in environ and answers(environ.get("HF_ENDPOINT", "https://huggingface.co"))


def answers(endpoint: str) -> bool:
    """Whether the hub at this address knows the first of the models, within PATIENCE."""
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models/{HUB[0]}", timeout=PATIENCE) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False
