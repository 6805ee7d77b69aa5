"""Static grids of activations, chosen width by width by what the answers suffer.

Where one token in hundreds decides (the class token of a vision transformer), squared error over all of them
clips exactly what the head reads. So squared error only proposes: its own choice among the percentiles, each
percentile alone, all values that were seen (min-max), and no grid at all (dynamic: each token by its own
range). Proposals are compared by the divergence of the model's answers from full precision with weights and
activations at that width; the best one starts, and then each role of layers takes min-max, squared error's or
dynamic instead where that helps the whole. So what comes out is never worse than min-max or dynamic on the
pictures that it was chosen on.
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

CHOSEN_ON = 16  # pictures; eight take some grids for as good as others that lose a fifth more on others
NOTHING = RankSchedule(((8,),), (0,))


def chosen_ends(
    model: nn.Module,
    layout: ModelLayout,
    batches: Iterable[Mapping[str, Tensor]],
    settings: Static,
    group: int | str,
    report: Callable[[str, float | None], None],
    known: bool = False,
) -> tuple[Ends, dict[int, dict[str, float]]]:
    """The ends of the grids that were chosen, none where dynamic rounding was, and the divergence of the
    proposals, `{bits: {name: KL}}`; of one percentile alone there is nothing to choose. known: only between
    min-max and dynamic, for all layers alike."""
    batches = list(batches)
    seen = observe(model, layout.layers, batches, layout.fused)
    if len(settings.percentiles) == 1:
        return static_ends(seen, settings.widths, settings.percentiles), {}
    shown = {name: tensor[:CHOSEN_ON] for name, tensor in batches[0].items()}
    proposals = {"min-max": static_ends(seen, settings.widths, (1.0,))}
    if not known:
        proposals["squared error"] = static_ends(seen, settings.widths, settings.percentiles)
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
    def divergence(ends: Mapping[str, Tensor], bits: int) -> float:
        at = {name: {bits: found} for name, found in ends.items()}
        trainable = Trainable(model, layout, NOTHING, {}, group, 0, (), at)
        view = trainable.view(PrecisionPlan.uniform(bits, bits).keeping(layout.vision_layers))
        kl = divergence_loss(logits_of(view, shown).float(), full).item()
        return kl if math.isfinite(kl) else math.inf

    chosen: dict[str, dict[int, Tensor]] = {name: {} for name in layout.layers}
    measured: dict[int, dict[str, float]] = {}
    for number, bits in enumerate(settings.widths):
        report(f"choosing the grids of {bits} bits", number / len(settings.widths))
        proposed = {what: {name: e[bits] for name, e in ends.items()} for what, ends in proposals.items()}
        proposed["dynamic"] = {}
        found = {what: divergence(ends, bits) for what, ends in proposed.items()}
        start = min(found, key=found.__getitem__)
        best, ends = found[start], proposed[start]
        for names in roles.values() if not known else ():
            rest = {name: e for name, e in ends.items() if name not in names}
            for other in ("min-max", "squared error", "dynamic"):
                tried = rest | {name: e for name, e in proposed[other].items() if name in names}
                if any(tried.get(name) is not ends.get(name) for name in names):
                    kl = divergence(tried, bits)
                    if kl < best:
                        best, ends = kl, tried
        measured[bits] = {what: round(kl, 6) for what, kl in (found | {"chosen": best}).items()}
        for name, layer in ends.items():
            chosen[name][bits] = layer
    return chosen, measured


def starts_worse(transformed: Mapping[str, float], base: Mapping[str, float]) -> bool:
    """Whether a transformed model begins worse than rounding the base would, beyond what noise would show, so
    that its transform, shared by all widths, is not worth it. Both as `chosen_ends` measured them."""
    return transformed["chosen"] > 1.1 * min(base["min-max"], base["dynamic"]) + 1e-5


def min_max(
    loaded: LoadedModel, settings: Static, group: int | str, inputs: Inputs, device: torch.device
) -> Quept:
    """Weights of `loaded` rounded to nearest, activations on grids from the least to the greatest value."""
    model = copy.deepcopy(loaded.model).to(device, torch.float32)
    shown = batches_of(inputs, settings.images, device)
    seen = observe(model, loaded.layout.layers, shown, loaded.layout.fused)
    ends = static_ends(seen, settings.widths, (1.0,))
    return Quept(group, Trainable(model, loaded.layout, NOTHING, {}, group, 0, loaded.online, ends).plain())
