"""Static grids of activations, chosen width by width by what the answers suffer.

Where one token in hundreds decides (the class token of a vision transformer), squared error over all of them
clips exactly what the head reads. So squared error only proposes: its own choice among the percentiles, each
percentile alone, all values that were seen (min-max), and no grid at all, each token rounded by its own range
(dynamic). Proposals are compared by the divergence of the model's answers from full precision with weights
and activations at that width; the best one starts, and then each role of layers takes min-max or dynamic
instead where that helps the whole. Min-max and dynamic everywhere are proposals, so the grids that come out
are never worse than either on the pictures they were chosen on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping

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
    online: Collection[str],
    report: Callable[[str, float | None], None],
) -> tuple[Ends, dict[int, dict[str, float]]]:
    """The ends of the grids that were chosen, a layer without a width being dynamic there, and the divergence
    of the proposals, `{bits: {name: KL}}`."""
    batches = list(batches)
    seen = observe(model, layout.layers, batches, layout.fused)
    shown = {name: tensor[:CHOSEN_ON] for name, tensor in batches[0].items()}
    proposals: dict[str, Ends] = {"dynamic": {}, "min-max": static_ends(seen, settings.widths, (1.0,))}
    for p in settings.percentiles:
        if p < 1:
            proposals[f"percentile {p:g}"] = static_ends(seen, settings.widths, (p,))
    if len(settings.percentiles) > 1:
        proposals["squared error"] = static_ends(seen, settings.widths, settings.percentiles)
    with torch.no_grad():
        full = logits_of(model, shown).float().log_softmax(-1)
    roles: dict[str, list[str]] = {}
    for block in layout.blocks:
        for role, name in block.layers.items():
            roles.setdefault(role.partition(" ")[0], []).append(name)

    @torch.no_grad()
    def divergence(ends: Ends, bits: int) -> float:
        at = {name: {bits: found[bits]} for name, found in ends.items() if bits in found}
        trainable = Trainable(model, layout, NOTHING, {}, group, 0, online, at)
        view = trainable.view(PrecisionPlan.uniform(bits, bits).keeping(layout.vision_layers))
        kl = divergence_loss(logits_of(view, shown).float(), full).item()
        return kl if math.isfinite(kl) else math.inf

    chosen: dict[str, dict[int, Tensor]] = {name: {} for name in layout.layers}
    measured: dict[int, dict[str, float]] = {}
    for number, bits in enumerate(settings.widths):
        report(f"choosing the grids of {bits} bits", number / len(settings.widths))
        found = {name: divergence(ends, bits) for name, ends in proposals.items()}
        start = min(found, key=found.__getitem__)
        best, ends = found[start], dict(proposals[start])
        for names in roles.values():
            for other in ("min-max", "dynamic"):
                taken = proposals[other]
                tried = {n: e for n, e in ends.items() if n not in names}
                tried |= {n: taken[n] for n in names if n in taken}
                if all(tried.get(n) is ends.get(n) for n in names):
                    continue
                kl = divergence(tried, bits)
                if kl < best:
                    best, ends = kl, tried
        measured[bits] = {name: round(kl, 6) for name, kl in found.items()} | {"chosen": round(best, 6)}
        for name, layer in ends.items():
            chosen[name][bits] = layer[bits]
    return chosen, measured


def min_max(
    loaded: LoadedModel, settings: Static, group: int | str, inputs: Inputs, device: torch.device
) -> Quept:
    """Weights of `loaded` rounded to nearest, activations on grids from the least to the greatest value."""
    model = copy.deepcopy(loaded.model).to(device, torch.float32)
    shown = batches_of(inputs, settings.images, device)
    seen = observe(model, loaded.layout.layers, shown, loaded.layout.fused)
    ends = static_ends(seen, settings.widths, (1.0,))
    return Quept(group, Trainable(model, loaded.layout, NOTHING, {}, group, 0, loaded.online, ends).plain())
