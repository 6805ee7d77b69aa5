"""From tuned nested codes to an artifact: widths that prove better than nothing learned, routers, thresholds.

    learned widths -> compared on held-out text -> costs of tokens -> routers -> what widths go on to learn
    in the routed model -> compared again -> thresholds -> curve

A width that diverges less on held-out text as its codes were made loses what it learned. Thresholds are found
there too: one for each average, from the scores of tokens in the model at 2 bits and at 4, between which an
average lies, and then settled at some averages by what tokens of the routed model itself spend, on the texts
that the recipe names for it. The
divergence at some averages is measured, in between it is interpolated in its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quept.artifact import Artifact, Manifest
from quept.config import Recipe
from quept.data import Data
from quept.data.text import sequences, without
from quept.engines.mobiquant.engine import Branch, LayerParameters, MoBiQuant, Routes
from quept.engines.mobiquant.router import FURTHER
from quept.engines.reports import Reports
from quept.models import LoadedModel
from quept.numerics.nested import DEPTHS, STEPS, Grid
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel

from .loss import divergence_loss
from .nested import NestedLayer, NestedTrainable
from .routers import leaders_of, learned_router, observed_costs, scores_of, spent, static_map, threshold_for

Progress = Callable[[str, float | None], None]
AVERAGES = tuple(tenths / 10 for tenths in range(21, 80))
MEASURED = (2.5, 3.0, 4.0, 5.0)
TOGETHER = 4  # windows read at once
SETTLED = 12  # windows that averages are settled on, where the recipe names texts


def parameters_of(layer: NestedLayer) -> LayerParameters:
    """What was learned of a layer, rounded to what an artifact stores."""
    grids, branches = {}, {}
    for bits, learned in layer.clips.items():
        scales, zeros = learned.detach()
        scales = (scales.exp() * (layer.grid.scales > 0)).half().cpu()
        grids[int(bits)] = Grid(scales, (zeros * STEPS).round().clamp(0, 255).to(torch.uint8).cpu())
        own = layer.schedule.group_of(int(bits))
        branches[int(bits)] = Branch.of(layer.a[own].detach().cpu(), layer.b[own].detach().cpu())
    return LayerParameters(grids, branches)


@dataclass(frozen=True)
class HeldOut:
    """Text that no stage learned from, and what full precision says of it."""

    ids: Tensor
    log_probs: Tensor
    device: torch.device

    @classmethod
    def of(cls, elastic: ElasticModel, ids: Tensor, device: torch.device) -> HeldOut:
        """The reference is that of the model as it was loaded."""
        full = [elastic.reference(window[None])[0].log_softmax(-1) for window in ids]
        return cls(ids, torch.stack(full), device)

    def measure(self, elastic: ElasticModel, plan: PrecisionPlan) -> tuple[float, Reports]:
        """Mean KL of a plan, and what its layers said."""
        view, found = elastic.view(plan), Reports()
        with torch.no_grad(), found.listen():
            kl = [
                len(ids) * divergence_loss(view(ids.to(self.device), use_cache=False).logits, full).item()
                for ids, full in zip(self.ids.split(TOGETHER), self.log_probs.split(TOGETHER), strict=True)
            ]
        return round(sum(kl) / len(self.ids), 6), found


def nested_artifact(
    loaded: LoadedModel,
    transformed: LoadedModel,
    recipe: Recipe,
    group: int | str,
    trainable: NestedTrainable,
    data: Data,
    device: torch.device,
    tune: Callable[[Routes], None],
    log: Callable[..., None],
    report: Progress,
) -> Artifact:
    """The artifact of a run whose end-to-end stage is done, in memory. loaded: the base, transformed: as it
    was tuned; tune: goes on with the stage in the routed model."""
    manifest = Manifest(
        "mobiquant",
        loaded.source,
        loaded.fingerprint,
        group,
        loaded.layout.layers,
        provenance={"base": loaded.provenance, recipe.kind: recipe.data.describe()},
        recipe=recipe.shared().to_dict(),
        transforms=transformed.record.steps if transformed.record else (),
        config=loaded.config,
    )
    artifact = Artifact(manifest, MoBiQuant(group, _learned(trainable)), transformed.record)
    options = {"device": device, "dtype": torch.float32}
    rtn = ElasticModel(loaded, Artifact.rtn(loaded, group), **options | {"budget": 1})
    held_out = HeldOut.of(rtn, data.held_out["input_ids"], device)
    artifact = _compared(artifact, rtn, transformed, held_out, options, log, report)
    elastic = ElasticModel(transformed, artifact, **options)
    routes, scores = _routes(transformed, elastic, recipe, data, device, report)
    if recipe.routing.steps:
        tune(routes)
        artifact = replace(artifact, engine=MoBiQuant(group, _learned(trainable)))
        artifact = _compared(artifact, rtn, transformed, held_out, options, log, report)
    artifact = replace(artifact, engine=replace(artifact.engine, routes=routes))
    elastic = ElasticModel(transformed, artifact, **options)
    report("settling the thresholds", None)
    routes = settled(routes, shifts_of(elastic, _typical(loaded, recipe, data, report)))
    artifact = replace(artifact, engine=replace(artifact.engine, routes=routes))
    elastic = ElasticModel(transformed, artifact, **options)
    points = {float(bits): artifact.manifest.quality[f"W{bits}"]["kl"] for bits in DEPTHS}
    for average in MEASURED:
        plan = PrecisionPlan.uniform(f"routed:{average:g}")
        report(f"measuring {plan.name}", MEASURED.index(average) / len(MEASURED))
        points[average], found = held_out.measure(elastic, plan)
        static = PrecisionPlan.of(static_map(average, scores, routes.leaders, elastic.sizes.weights))
        beside = held_out.measure(elastic, static)[0]
        log("routed", average=average, kl=points[average], kl_static=beside, **found.means())
    routes = replace(routes, kl=_curve(points, routes.averages))
    return replace(artifact, engine=replace(artifact.engine, routes=routes))


def _learned(trainable: NestedTrainable) -> dict[str, LayerParameters]:
    return {name: parameters_of(layer) for name, layer in trainable.layers.items()}


def _compared(
    artifact: Artifact,
    rtn: ElasticModel,
    transformed: LoadedModel,
    held_out: HeldOut,
    options: Mapping[str, object],
    log: Callable[..., None],
    report: Progress,
) -> Artifact:
    """The artifact without the widths that lost, and what was measured of each depth."""
    plain = replace(artifact, engine=MoBiQuant(artifact.group))
    calibrated, plain = (ElasticModel(transformed, one, **options) for one in (artifact, plain))
    learned, quality = artifact.engine.learned, {}
    for bits in DEPTHS:
        plan = PrecisionPlan.uniform(bits)
        report(f"comparing {plan.name} with codes as they were made", bits / 8)
        found = {"kl_rtn": held_out.measure(rtn, plan)[0], "kl_plain": held_out.measure(plain, plan)[0]}
        own = any(bits in layer.grids for layer in learned.values())
        kl = held_out.measure(calibrated, plan)[0] if own else found["kl_plain"]
        kept = own and kl <= found["kl_plain"]
        log("compared", plan=plan.name, kl=kl if own else None, kept=kept, **found)
        quality[plan.name] = {"kl": min(kl, found["kl_plain"]), **found}
        if own and not kept:
            learned = {name: layer.without(bits) for name, layer in learned.items()}
    widths = {name: layer.widths for name, layer in learned.items()}
    manifest = replace(artifact.manifest, widths=widths, quality=quality)
    return replace(artifact, manifest=manifest, engine=MoBiQuant(artifact.group, learned))


def _routes(
    transformed: LoadedModel,
    elastic: ElasticModel,
    recipe: Recipe,
    data: Data,
    device: torch.device,
    report: Progress,
) -> tuple[Routes, Tensor]:
    """Routers of the recipe's kind, and thresholds on held-out text, the curve not measured yet; and the
    scores of its tokens in the model at 4 bits."""
    leaders = leaders_of(transformed)
    seen = observed_costs(
        transformed, elastic.values, data.block_wise["input_ids"], recipe.seed, device, report
    )
    generator, routers = torch.Generator().manual_seed(recipe.seed), {}
    for leader, found in seen.items():
        report("learning the routers", len(routers) / len(seen))
        shared = [name for name, other in leaders.items() if other == leader]
        error = torch.cat(
            [elastic.values(n, DEPTHS[0]) - transformed.model.get_submodule(n).weight.float() for n in shared]
        )
        routers[leader] = learned_router(found, recipe.routing, error, generator)
    report("searching the thresholds", None)
    weights = _weights(leaders, elastic)
    scores = {
        bits: scores_of(
            elastic.view(PrecisionPlan.uniform(bits)), routers, data.held_out["input_ids"], device
        )
        for bits in (2, 4)
    }
    thresholds, bits = [], []
    for average in AVERAGES:
        each = [threshold_for(average, found, weights) for found in scores.values()]
        share = min(1.0, (average - 2) / 2)  # of the model at 4 bits
        thresholds.append((1 - share) * each[0] + share * each[1])
        low, high = (spent(found, one) for found, one in zip(scores.values(), each, strict=True))
        bits.append((1 - share) * low + share * high)
    table = torch.tensor(thresholds)[:, None, None].expand(-1, len(routers), FURTHER).contiguous()
    averages = torch.tensor(AVERAGES)
    bits, kl = torch.stack(bits).float(), torch.zeros_like(averages)
    return Routes(leaders, routers, averages, table, bits, kl), scores[4]


def _typical(loaded: LoadedModel, recipe: Recipe, data: Data, report: Progress) -> Tensor:
    """Token ids (windows, context) of the texts that averages are settled on, none of which was learned
    from."""
    texts = recipe.routing.settled
    if not texts:
        return data.held_out["input_ids"]
    learned = torch.cat([part["input_ids"] for part in (data.block_wise, data.end_to_end)])
    found = []
    for name, share in texts.items():
        count = max(1, round(SETTLED * share / sum(texts.values())))
        most, context = count + len(learned), learned.shape[1]
        drawn = sequences({name: 1.0}, loaded.tokenizer, most, context, recipe.seed, report)
        found.append(without(drawn, learned)[:count])
    return torch.cat(found)


def _weights(leaders: Mapping[str, str], elastic: ElasticModel) -> Tensor:
    """Weights (routers,) of the layers of each router."""
    shared = dict.fromkeys(leaders.values(), 0)
    for name, leader in leaders.items():
        shared[leader] += elastic.sizes.weights[name]
    return torch.tensor(list(shared.values())).double()


def shifts_of(elastic: ElasticModel, ids: Tensor) -> dict[float, float]:
    """`{average: how far off its threshold is}` on token ids (windows, context): measured in the routed model
    itself, whose layers read what routed layers wrote."""
    routes, shifts = elastic.artifact.engine.routes, {}
    weights, first = _weights(routes.leaders, elastic), next(iter(routes.leaders))
    for average in MEASURED:
        view = elastic.view(PrecisionPlan.uniform(f"routed:{average:g}"))
        scores = scores_of(view, routes.routers, ids, elastic.device)
        shifts[average] = threshold_for(average, scores, weights) - float(routes.at(first, average)[0])
    return shifts


def settled(routes: Routes, shifts: Mapping[float, float]) -> Routes:
    """The routes with the thresholds of averages moved by `shifts`, {average: by how much}: in between in a
    straight line, at the ends of the range not at all. What layers get, and the divergence, follow."""
    ends = {float(DEPTHS[0]): 0.0, float(DEPTHS[-1]): 0.0}
    x, y = zip(*sorted((ends | dict(shifts)).items()), strict=True)
    before = routes.thresholds[:, 0, 0].double().numpy()
    after = before + np.interp(routes.averages.numpy(), x, y)
    order = np.argsort(before)

    def followed(curve: np.ndarray) -> Tensor:
        return torch.from_numpy(np.interp(after, before[order], curve[order])).float()

    bits = torch.stack([followed(column) for column in routes.bits.T.numpy()], 1)
    kl = followed(routes.kl.clamp(min=1e-12).log().numpy()).exp()
    moved = torch.from_numpy(after - before).float()[:, None, None]
    return replace(routes, thresholds=routes.thresholds + moved, bits=bits, kl=kl)


def _curve(points: Mapping[float, float], averages: Tensor) -> Tensor:
    """KL at each average, between measured points straight in its logarithm."""
    x, y = zip(*sorted(points.items()), strict=True)
    found = np.interp(averages.numpy(), x, np.log(np.maximum(y, 1e-12)))
    return torch.from_numpy(np.exp(found)).float()
