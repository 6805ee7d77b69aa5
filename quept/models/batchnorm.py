"""Batch norm of convolutional classifiers, folded into the convolutions before it when a model is loaded.

    y = gamma (conv(x) - mean) / sqrt(var + eps) + beta
      = conv'(x),   W' = W gamma / sqrt(var + eps),   b' = (b - mean) gamma / sqrt(var + eps) + beta

computed in float64 and kept in float32, since 16 bits would change the function by up to a hundredth; full
precision and every plan run the same fewer modules. What training knew of
the activations stays: over its pictures, a channel of y has the mean beta and the deviation |gamma|
(`fold`'s result), and pictures can be made that have them too (`quept.data.distilled`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = Mapping[str, tuple[Tensor, Tensor]]


def fold(model: nn.Module, size: tuple[int, ...]) -> Statistics:
    """Folds every batch norm of `model`, which it changes; size (channels, height, width) of its pictures.

    Returns `{convolution: (mean, deviation)}` of its channels' outputs, each (channels,) float32. ValueError
    for a batch norm that reads no convolution."""
    norms, found = _norms(model), {}
    pairs = _pairs(model, size) if norms else {}
    for name, norm in norms:
        if name not in pairs:
            raise ValueError(f"its batch norm {name} reads no convolution of its own")
        convolution = model.get_submodule(pairs[name])
        gamma, beta = norm.weight.detach().double(), norm.bias.detach().double()
        scale = gamma / (norm.running_var.double() + norm.eps).sqrt()
        before = 0.0 if convolution.bias is None else convolution.bias.detach().double()
        weight = convolution.weight.detach().double() * scale[:, None, None, None]
        bias = (before - norm.running_mean.double()) * scale + beta
        dtype = convolution.weight.dtype
        convolution.weight = nn.Parameter(weight.to(dtype))
        convolution.bias = nn.Parameter(bias.to(dtype))
        model.set_submodule(name, getattr(norm, "act", nn.Identity()))  # timm's have their activation inside
        found[pairs[name]] = beta.float(), gamma.abs().float()
    return found


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def _pairs(model: nn.Module, size: tuple[int, ...]) -> dict[str, str]:
    """`{batch norm: the convolution whose output it reads}`, seen in a forward pass."""
    given: dict[int, str] = {}
    pairs: dict[str, str] = {}
    kept, hooks = [], []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def remember(_, __, out: Tensor, name: str = name) -> None:
                given[id(out)] = name
                kept.append(out)  # its id stays its own

            hooks.append(module.register_forward_hook(remember))
    for name, module in _norms(model):

        def find(_, args: tuple[Tensor, ...], name: str = name) -> None:
            if id(args[0]) in given:
                pairs[name] = given.pop(id(args[0]))

        hooks.append(module.register_forward_pre_hook(find))
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *size))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs
