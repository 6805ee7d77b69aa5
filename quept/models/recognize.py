"""The family of a language model whose type is in no entry of the table: the first that its modules fit.

`recognize(config)` builds the model without its weights (on torch's `meta` device), and takes a family where

    every linear layer but the head is one that the family names, and every one that it names is there;
    of two blocks' norms, each is read by the layers that the family says and stands where it says, which is
    seen by letting token ids run through: a layer reads a norm if its input is the very tensor that the norm
    gave.

A family of experts is taken by its layers alone: what runs through has no values to choose experts by, and no
transform is applied to one. Where norms stand as nobody's do, the last family that has the layers is taken:
a Llama's without norms (`norms-unknown`). Whatever is taken, a probe tries each transform (quept.transforms).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from .families import FAMILIES, LACKING, Family
from .layout import family_of, is_at, submodule

TOKENS = 4


def recognize(config: PretrainedConfig) -> str:
    """Returns the name of the family of this type or of this wiring; ValueError where there is none."""
    try:
        return family_of(config.model_type)
    except ValueError:
        if config.model_type not in LACKING and (found := _by_wiring(_settings(config))):
            return found
        raise


def _settings(config: PretrainedConfig) -> str:
    """As JSON that Python reads back: transformers' own writes infinity in its own way."""
    return json.dumps(config.to_diff_dict(), sort_keys=True)


@lru_cache(maxsize=8)
def _by_wiring(settings: str) -> str | None:
    settings = json.loads(settings)
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config).eval()
    except Exception:  # no causal language model, or a config that transformers raises nearly anything for
        return None
    fitting = [name for name, family in FAMILIES.items() if _has_layers(model, family)]
    if not fitting:
        return None
    if FAMILIES[fitting[0]].experts:
        return fitting[0]
    seen = wiring(model, FAMILIES[fitting[0]])
    return next((name for name in fitting if seen == expected_wiring(FAMILIES[name])), fitting[-1])


def _has_layers(model: nn.Module, family: Family) -> bool:
    """Whether a model's linear layers but the head are those that a family names."""
    ends = (family.embed, family.final_norm, family.head)
    if any(submodule(model, name) is None for name in ends):
        return False
    named, mixtures = set(), 0
    for name, block in model.named_modules():
        if is_at(name, family.blocks):
            mixture = bool(family.experts) and submodule(block, family.experts) is not None
            roles = family.roles if mixture or not family.experts else family.dense
            kept = family.kept if mixture else ()
            named |= {f"{name}.{path}" for path in (*_stored_paths(family, roles).values(), *kept) if path}
            mixtures += mixture
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return named == linears - {family.head} and bool(named) and (mixtures > 0) == bool(family.experts)


def _stored_paths(family: Family, roles: Mapping[str, str]) -> dict[str, str]:
    """`{role: the layer that holds its matrix}`, "" for those of experts."""
    fused = {f"{path}.{part}": path for path, parts in family.fused.items() for part in parts}
    return {role: "" if "*" in path else fused.get(path, path) for role, path in roles.items()}


def expected_wiring(family: Family) -> dict[str, frozenset[str]]:
    """Returns `{norm: paths of the layers that read it}` and, for one that stands behind a layer, `{norm +
    " after": {that layer}}`, as the table says."""
    paths = _stored_paths(family, family.roles)
    found = {norm: frozenset(paths[role] for role in roles) for norm, roles in family.norms.items()}
    return found | {f"{norm} after": frozenset([paths[role]]) for norm, role in family.after.items()}


@torch.no_grad()
def wiring(model: nn.Module, family: Family) -> dict[str, frozenset[str]]:
    """Returns the same as a model's last block shows it; {} where it cannot be run without weights."""
    block = [name for name, _ in model.named_modules() if is_at(name, family.blocks)][-1]
    module, found, kept = model.get_submodule(block), {}, {}
    writers = {path for role, path in _stored_paths(family, family.roles).items() if role in ("o", "down")}

    def saw(path: str, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        source, kind = kept.get(id(x), ("", ""))[:2]
        if isinstance(layer, nn.Linear):
            if kind == "norm":
                found.setdefault(source, set()).add(path)
            kept[id(y)] = path, "layer", y
        else:
            if kind == "layer" and source in writers:
                found.setdefault(f"{path} after", set()).add(source)
            kept[id(y)] = path, "norm", y

    handles = []
    for path, layer in module.named_modules():
        weights = list(layer.parameters())
        is_norm = "Norm" in type(layer).__name__ or (bool(weights) and all(p.ndim == 1 for p in weights))
        if isinstance(layer, nn.Linear) or is_norm:

            def hook(layer: nn.Module, args: tuple, y: torch.Tensor, path: str = path) -> None:
                if args:
                    saw(path, layer, args[0], y)

            handles.append(layer.register_forward_hook(hook))
    try:
        with torch.device(next(model.parameters()).device):
            ids, mask = torch.zeros(1, TOKENS, dtype=torch.long), torch.zeros(1, 1, TOKENS, TOKENS)
            model(
                input_ids=ids, attention_mask=mask, use_cache=False
            )  # a mask made already: none is looked at
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return {key: frozenset(value) for key, value in found.items()}
