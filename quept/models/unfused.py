"""A layer of its own for each matrix: layers that hold several (query, key and value; gate and up), and the
experts of a mixture, are taken apart when a model is opened; a matrix that lies transposed (GPT-2's) is
turned.

`unfuse(model)` puts in the place of each such module one that computes the same from its parts, which are
ordinary linear layers over the very rows of the parameter:

    self_attn.qkv_proj.weight               self_attn.qkv_proj.{q,k,v}_proj.weight
    mlp.experts.gate_up_proj[7]             mlp.experts.7.{gate,up}_proj.weight
    mlp.experts.down_proj[7]                mlp.experts.7.down_proj.weight

    h.0.mlp.c_fc.weight (in, out)           h.0.mlp.c_fc.weight (out, in)

From then on plans, transforms, calibration and sizes need not know. `as_stored(model, state)` is the way
back: tensors under the names, and in the shapes, in which transformers keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from .families import Family
from .slots import Joined, Slot, put


def head_size(config: PretrainedConfig) -> int:
    """Returns the channels of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def key_heads(config: PretrainedConfig) -> int:
    """Returns the heads of keys, and of values."""
    if getattr(config, "new_decoder_architecture", False):  # Falcon's, which keeps them once for each query
        return config.num_attention_heads
    if getattr(config, "multi_query", False):  # StarCoder, Falcon
        return 1
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


# Rows of a part that is no equal share of what it lies in.
ROWS: Mapping[str, Callable[[PretrainedConfig], int]] = {
    "q_proj": lambda config: config.num_attention_heads * head_size(config),
    "k_proj": lambda config: key_heads(config) * head_size(config),
    "v_proj": lambda config: key_heads(config) * head_size(config),
}


class Turned(nn.Linear):
    """A linear layer whose matrix transformers keeps as (in, out)."""


def unfuse(model: nn.Module, family: Family) -> None:
    """Takes the fused layers and experts of a model that was just opened apart, in place. ValueError where
    the rows of a layer are not those of its parts."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            turned = Turned(*module.weight.shape, device="meta", dtype=module.weight.dtype)
            turned.weight = nn.Parameter(module.weight.data.T.contiguous(), requires_grad=False)
            turned.bias = module.bias
            model.set_submodule(name, turned.train(model.training))
            continue
        path = path_in_block(name, family.blocks)
        if path in family.fused:
            slots = list(_of_rows(name, module, family.fused[path], model.config))
        elif path and path == family.experts:
            slots = list(_of_experts(name, module))
        else:
            continue
        layers = {slot.name: _linear(slot, model) for slot in slots}
        model.set_submodule(name, put(slots, layers, model)[name])


def as_stored(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of an unfused model as transformers stores it."""
    state = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, Turned) and f"{name}.weight" in state:
            state[f"{name}.weight"] = state[f"{name}.weight"].T.contiguous()
        if isinstance(module, Joined):
            for key in ("weight", "bias"):
                parts = [f"{name}.{part}.{key}" for part in module._modules]
                if all(part in state for part in parts):
                    state[f"{name}.{key}"] = torch.cat([state.pop(part) for part in parts])
        for parameter, (names, turns) in getattr(module, "products", {}).items():
            of = [e for e in module._modules if e.isdecimal()]
            found = [[state.pop(f"{name}.{e}.{part}.weight") for part in names] for e in of]
            whole = torch.stack([torch.stack(p, 1).flatten(0, 1) if turns else torch.cat(p) for p in found])
            transposed = getattr(module, "is_transposed", False)
            state[f"{name}.{parameter}"] = whole.mT.contiguous() if transposed else whole
    return state


def _of_rows(
    name: str, module: nn.Linear, parts: tuple[str, ...], config: PretrainedConfig
) -> Iterator[Slot]:
    whole, at = module.weight.shape[0], 0
    config = config.get_text_config()
    for part in parts:
        rows = ROWS[part](config) if part in ROWS else whole // len(parts)
        yield Slot(f"{name}.{part}", name, rows=(at, at + rows))
        at += rows
    if at != whole:
        raise ValueError(f"{name} has {whole} rows, and {', '.join(parts)} would be {at}")


def _of_experts(name: str, module: nn.Module) -> Iterator[Slot]:
    """transformers says how the parameters of experts lie: (experts, out, in) or transposed; gate and up one
    after the other or in turns."""
    transposed = getattr(module, "is_transposed", False)
    turns = not getattr(module, "is_concatenated", True)
    for parameter, weight in module.named_parameters(recurse=False):
        if weight.ndim != 3:
            continue  # biases, which the module adds itself
        rows = weight.shape[2 if transposed else 1]
        parts = ("gate_proj", "up_proj") if parameter == "gate_up_proj" else (parameter,)
        for place, part in enumerate(parts):
            at = None
            if len(parts) > 1:
                half = rows // 2
                at = (place, rows, 2) if turns else (place * half, (place + 1) * half)
            for expert in range(len(weight)):
                yield Slot(f"{name}.{expert}.{part}", name, parameter, at, expert, transposed)


def _linear(slot: Slot, model: nn.Module) -> nn.Linear:
    weight, bias = slot.weight(model), slot.bias(model)
    layer = nn.Linear(*reversed(weight.shape), bias=False, device="meta", dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer.train(model.training)


def path_in_block(name: str, blocks: str) -> str:
    """Returns where in its block a module is; "" for one that is in none."""
    count = blocks.count(".") + 1
    parts = name.split(".")
    return ".".join(parts[count:]) if fnmatchcase(".".join(parts[:count]), blocks) else ""
