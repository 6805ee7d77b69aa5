"""Static grids of activations, chosen width by width by what the answers suffer.

Where one token in hundreds decides (the class token of a vision transformer), squared error over all of them
clips exactly what the head reads. So squared error only proposes: its own choice among the percentiles, each
percentile alone, and all values that were seen (min-max). Proposals are compared by the divergence of the
model's answers from full precision with weights and activations at that width; the best one starts, and then
each role of layers takes min-max or squared error's instead where that helps the whole. So what comes out is
never worse than min-max on the pictures that it was chosen on; whether it, or what is learned from it, is
better than rounding each token by its own range is decided at the end of a run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from quept.config import Static
from quept.data.batches import Inputs
from quept.data.batches import batches as batches_of
from quept.engines.quept import Quept
from quept.models import LoadedModel, ModelLayout
from quept.numerics.adapters import RankSchedule
from quept.plan import PrecisionPlan

from .logits import logits_of
from .loss import divergence_loss
from .observe import Ends, observe, static_ends
from .trainable import Trainable

CHOSEN_ON = 16  # pictures
NOTHING = RankSchedule(((8,),), (0,))


def chosen_ends(
    model: nn.Module,
    layout: ModelLayout,
    batches: Iterable[Mapping[str, Tensor]],
    settings: Static,
    group: int | str,
    report: Callable[[str, float | None], None],
) -> tuple[Ends, dict[int, dict[str, float]]]:
    """The ends of the grids that were chosen, and the divergence of the proposals and of dynamic rounding,
    `{bits: {name: KL}}`; of one percentile alone there is nothing to choose."""
    batches = list(batches)
    seen = observe(model, layout.layers, batches, layout.fused)
    if len(settings.percentiles) == 1:
        return static_ends(seen, settings.widths, settings.percentiles), {}
    shown = {name: tensor[:CHOSEN_ON] for name, tensor in batches[0].items()}
    proposals = {
        "min-max": static_ends(seen, settings.widths, (1.0,)),
        "squared error": static_ends(seen, settings.widths, settings.percentiles),
    }
    for p in settings.percentiles:
        if p < 1:
            proposals[f"percentile {p:g}"] = static_ends(seen, settings.widths, (p,))
    with torch.no_grad():
        full = logits_of(model, shown).float().log_softmax(-1)
    roles: dict[str, list[str]] = {}
    for block in layout.blocks:
        for role, name in block.layers.items():
            roles.setdefault(role.partition(" ")[0], []).append(name)

    @torch.no_grad()
    def divergence(ends: Ends, bits: int) -> float:
        at = {name: {bits: found[bits]} for name, found in ends.items()}
        trainable = Trainable(model, layout, NOTHING, {}, group, 0, (), at)
        view = trainable.view(PrecisionPlan.uniform(bits, bits).keeping(layout.vision_layers))
        kl = divergence_loss(logits_of(view, shown).float(), full).item()
        return kl if math.isfinite(kl) else math.inf

    chosen: dict[str, dict[int, Tensor]] = {name: {} for name in layout.layers}
    measured: dict[int, dict[str, float]] = {}
    for number, bits in enumerate(settings.widths):
        report(f"choosing the grids of {bits} bits", number / len(settings.widths))
        found = {name: divergence(ends, bits) for name, ends in proposals.items()}
        dynamic = divergence({}, bits)
        start = min(found, key=found.__getitem__)
        best, ends = found[start], dict(proposals[start])
        for names in roles.values():
            for other in ("min-max", "squared error"):
                tried = ends | {name: proposals[other][name] for name in names}
                if any(tried[name] is not ends[name] for name in names):
                    kl = divergence(tried, bits)
                    if kl < best:
                        best, ends = kl, tried
        found |= {"chosen": best, "dynamic": dynamic}
        measured[bits] = {name: round(kl, 6) for name, kl in found.items()}
        for name, layer in ends.items():
            chosen[name][bits] = layer[bits]
    return chosen, measured


def starts_worse(transformed: Mapping[str, float], base: Mapping[str, float]) -> bool:
    """Whether a transformed model begins worse than rounding the base would, beyond what noise would show, so
    that its transform, shared by all widths, is not worth it. Both as `chosen_ends` measured them."""
    best = min(transformed["chosen"], transformed["dynamic"])
    return best > 1.1 * min(base["min-max"], base["dynamic"]) + 1e-5


def min_max(
    loaded: LoadedModel, settings: Static, group: int | str, inputs: Inputs, device: torch.device
) -> Quept:
    """Weights of `loaded` rounded to nearest, activations on grids from the least to the greatest value."""
    model = copy.deepcopy(loaded.model).to(device, torch.float32)
    shown = batches_of(inputs, settings.images, device)
    seen = observe(model, loaded.layout.layers, shown, loaded.layout.fused)
    ends = static_ends(seen, settings.widths, (1.0,))
    return Quept(group, Trainable(model, loaded.layout, NOTHING, {}, group, 0, loaded.online, ends).plain())
