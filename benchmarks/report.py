"""How every benchmark prints: a table for people, then one JSON object with the figures and their conditions
as the last line."""

from __future__ import annotations

import json
import platform
import subprocess

import psutil
import torch


def report(title: str, figures: dict, **conditions: object) -> None:
    """Print figures (numbers by key) under a title; conditions such as model and dtype go along, the
    machine's are added."""
    print(f"\n{title}")
    for key, value in figures.items():
        print(f"  {key:<28} {value:>12.3f}" if isinstance(value, float) else f"  {key:<28} {value!s:>12}")
    machine = {
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    print(json.dumps(figures | {"conditions": conditions | machine}))


def _commit() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
