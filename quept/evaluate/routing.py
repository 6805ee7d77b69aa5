"""How often each expert of a mixture is chosen on a text.

    counts = routing_counts(elastic, windows)     # {"model.layers.3.mlp.experts": (experts,) int64}
    asked(elastic, windows)                       # {"model.layers.3.mlp.experts.7.up_proj": 0.12}

Every token chooses a few experts in every block, so that a block's counts add up to that many times the
tokens. An expert that is seldom asked costs little divergence at few bits, which a measured table of
sensitivities (quept.allocate) shows by itself: it is measured on text too.
"""

from __future__ import annotations

import torch
from torch import LongTensor, nn

from quept.data.windows import Windows
from quept.models import FAMILIES
from quept.models.clone import clone
from quept.runtime import ElasticModel


@torch.inference_mode()
def routing_counts(elastic: ElasticModel, windows: Windows) -> dict[str, LongTensor]:
    """Returns the counts of every block with experts, by the name of these, at full precision; {} for a model
    that has none."""
    path, model = FAMILIES[elastic.layout.family].experts, clone(elastic.full_precision(), {})
    counts: dict[str, LongTensor] = {}

    def listen(name: str, experts: nn.Module) -> None:
        counts[name] = torch.zeros(sum(key.isdecimal() for key in experts._modules), dtype=torch.int64)

        def seen(_module: nn.Module, args: tuple) -> None:
            counts[name] += args[1].flatten().bincount(minlength=len(counts[name])).cpu()

        experts.register_forward_pre_hook(seen)

    for block in elastic.layout.decoder_blocks if path else ():
        if any(" " in role for role in block.layers):
            listen(f"{block.name}.{path}", model.get_submodule(f"{block.name}.{path}"))
    for ids in windows.ids if counts else ():
        model(input_ids=ids[None].to(elastic.device), use_cache=False)
    return counts


def asked(elastic: ElasticModel, windows: Windows) -> dict[str, float]:
    """Returns the share of the tokens that ask the expert which a layer is of, for every layer of one."""
    shares = {
        f"{name}.{expert}.": count / windows.ids.numel()
        for name, of in routing_counts(elastic, windows).items()
        for expert, count in enumerate(of.tolist())
    }
    return {layer: share for layer in elastic.layers for at, share in shares.items() if layer.startswith(at)}
