"""Each width at the best that is known of it, by what held-out data say.

At each width an artifact has, as it will be stored, what was learned, or else the same (transformed) weights
rounded to nearest, with activations on the grids where learning began or rounded by the range of each token.
At the widths of `recipe.rounding` each weight's point on the grid is chosen too. What was learned or chosen
is kept where it helps, on ENOUGH pictures by more than noise; of two choices the better.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from quept.artifact import Artifact
from quept.config import Recipe
from quept.data import Data
from quept.data.batches import batches, samples
from quept.engines.quept import LayerParameters, Quept
from quept.models import LoadedModel, ModelLayout
from quept.models.vision import class_logits
from quept.numerics.grid import group_size
from quept.plan import ACTIVATION_BITS, FULL, KEPT_BITS, PrecisionPlan
from quept.runtime import ElasticModel

from .in_turn import chosen_in_turn
from .logits import answer_logits, arguments, logits_of
from .loss import divergences
from .rounding import second_nearest, seen_by_layers

Progress = Callable[[str, float | None], None]
Choose = Callable[[Artifact, int, int, Callable[[float], None]], Artifact]  # weight and activation bits
COMPARED = 16  # samples on which widths are compared where nothing was learned or chosen
SHOWN = 8  # pictures at once that moments are of
NOISE = 1.0  # standard errors by which what was learned must be better than what is given up for it
ENOUGH = 20  # pictures: of fewer, or of the few sequences of a text, no error can be told
LEAST = 1e-9  # of a divergence, below which it is noise of summation


@dataclass(frozen=True)
class Compared:
    """One width: a plan with it, and the layers whose width stands or falls there."""

    bits: int
    plan: PrecisionPlan
    decided: Collection[str]


@dataclass(frozen=True)
class Comparison:
    """What widths are compared on and with. loaded: the base; transformed: as it was tuned."""

    loaded: LoadedModel
    transformed: LoadedModel
    recipe: Recipe
    data: Data
    device: torch.device
    log: Callable[..., None]
    report: Progress

    def settled(self, artifact: Artifact, plain: Artifact, model: nn.Module) -> Artifact:
        """The artifact with each width at the best that is known of it, and what was measured in its
        manifest. plain: the artifact without anything learned; model: the transformed one, in the dtype to
        compute in."""
        choose = self._rounding(model) if self.recipe.rounding else None
        rtn = self._opened(Artifact.rtn(self.loaded, artifact.group), self.loaded)
        by_token = rtn
        if self.transformed is not self.loaded:
            by_token = self._opened(Artifact.rtn(self.transformed, artifact.group))
        on_grids = self._opened(plain) if self.recipe.static else by_token
        calibrated, quality, compared = self._opened(artifact), {}, self._compared()
        for i, at in enumerate(compared):
            self.report(f"comparing {at.plan.name} with round-to-nearest", i / len(compared))
            base = self._divergence(rtn, at.plan)
            token = self._divergence(by_token, at.plan) if by_token is not rtn else base
            grids = self._divergence(on_grids, at.plan) if on_grids is not by_token else token
            found = {"kl_rtn": _mean(base), "kl_plain": _mean(grids)}
            on_grid = _mean(grids) <= _mean(token)
            best, kept, kl = grids if on_grid else token, False, None
            if any(at.bits in artifact.manifest.widths[name] for name in at.decided):
                kl = self._divergence(calibrated, at.plan)
                kept = helps(kl, best, self._noise)
                best = kl if kept else best
            shown_kl = None if kl is None else _mean(kl)
            self.log("compared", plan=at.plan.name, kl=shown_kl, kept=kept, kl_token=_mean(token), **found)
            unlearned = [
                {name: plain.engine.static(name).get(at.bits) if static else None for name in at.decided}
                for static in (on_grid, not on_grid)
            ]
            if not kept:
                artifact = _without(artifact, at.bits, unlearned[0])
                if self.loaded.layout.vision_layers:  # 8 bits are a part of the plans that follow
                    calibrated = self._opened(artifact)
            if self.recipe.rounding and at.bits in self.recipe.rounding.widths:
                starts = [artifact]
                if kept:
                    static = {name: artifact.engine.static(name).get(at.bits) for name in at.decided}
                    starts.append(_without(artifact, at.bits, static))
                if self.recipe.static and at.bits in self.recipe.rounding.in_turn:
                    starts.append(_without(artifact, at.bits, unlearned[1]))  # what is won back hangs on it
                within = partial(self.report, f"choosing the rounding of {at.bits} bits")
                artifact, best = self._rounded(at, artifact, best, starts, choose, kept, within)
            quality[at.plan.name] = {"kl": _mean(best), **found}
        return replace(artifact, manifest=replace(artifact.manifest, quality=quality))

    def _rounded(
        self,
        at: Compared,
        artifact: Artifact,
        best: Tensor,
        starts: Sequence[Artifact],
        choose: Choose,
        kept: bool,
        report: Callable[[float | None], None],
    ) -> tuple[Artifact, Tensor]:
        """The artifact with points on the grid chosen from the best of `starts`, and its divergence, or as it
        was. kept: the first start is what was learned."""
        taken = False
        for start in starts:
            report(None)
            chosen = choose(start, at.bits, at.plan.default.activations, report)
            kl = self._divergence(self._opened(chosen), at.plan)
            found = helps(kl, best, 0.0 if taken else self._noise)
            of = kept and start is starts[0]
            self.log("rounding", plan=at.plan.name, learned=of, kl=_mean(kl), kept=found)
            if found:
                artifact, best, taken = chosen, kl, True
        return artifact, best

    def _rounding(self, model: nn.Module) -> Choose:
        """What chooses the points on the grid that the weights of an artifact go to at a width."""
        self.report("looking at the inputs of the layers", None)
        settings, of = self.recipe.rounding, self.transformed
        shown = list(batches(self.data.block_wise, settings.images, self.device, SHOWN))
        seen = seen_by_layers(model, of.layout, shown, self.recipe.seed)

        def choose(artifact: Artifact, bits: int, activations: int, report: Callable) -> Artifact:
            before, group = artifact.engine.learned, artifact.group
            if bits in settings.in_turn:
                layers = chosen_in_turn(
                    model, of.layout, before, bits, group, shown, seen, report, activations
                )
                return _holding(artifact, layers)
            layers = {}
            for name, layer in before.items():
                weight = of.model.get_submodule(name).weight.detach().flatten(1).to(seen[name].moments.device)
                rounding = layer.rounding(weight, bits, group_size(weight.shape[1], group))
                layers[name] = layer.choosing(bits, second_nearest(rounding, seen[name].moments))
            return _holding(artifact, layers)

        return choose

    def _compared(self) -> list[Compared]:
        """Of a vision-language model what sees has plans of its own below 8 bits, and those come last, since
        it keeps 8 bits in the others."""
        recipe, layout, found = self.recipe, self.loaded.layout, []
        stage, sees = recipe.end_to_end or recipe.block_wise, vision_side(self.loaded.layout)
        activations = stage.activations if stage else recipe.static is not None
        for bits in sorted(recipe.adapters.widths, reverse=bool(sees)):
            plan = PrecisionPlan.uniform(bits, bits if activations and bits in ACTIVATION_BITS else FULL)
            decided = set(layout.layers) - (set() if bits == KEPT_BITS else sees)
            found.append(Compared(bits, plan.keeping(layout.vision_layers), decided))
        if sees and recipe.end_to_end and recipe.end_to_end.mixed_every:
            for bits in [at.bits for at in found if at.bits < KEPT_BITS]:
                plan = PrecisionPlan.of(
                    dict.fromkeys(sorted(sees), bits), default=FULL, name=f"vision {bits}"
                )
                found.append(Compared(bits, plan, sees))
        return found

    def _opened(self, artifact: Artifact, loaded: LoadedModel | None = None) -> ElasticModel:
        options = {"device": self.device, "dtype": torch.float32, "budget": 1}  # nothing is wanted twice
        return ElasticModel(loaded or self.transformed, artifact, **options)

    def _divergence(self, elastic: ElasticModel, plan: PrecisionPlan) -> Tensor:
        """Of a plan from full precision, of each held-out sample."""
        view = elastic.view(plan)
        with torch.no_grad():
            return torch.cat([divergences(logits_of(view, x), full) for x, full in self._held_out])

    @cached_property
    def _held_out(self) -> list[tuple[Mapping[str, Tensor], Tensor]]:
        """Inputs, and full precision's log-probabilities."""
        rtn = self._opened(Artifact.rtn(self.loaded, self.loaded.group), self.loaded)
        shown = batches(self.data.held_out, self._count, self.device, self.recipe.data.together)
        return [(inputs, _reference(rtn, inputs).log_softmax(-1)) for inputs in shown]

    @property
    def _count(self) -> int:
        """Samples that widths are compared on."""
        chooses = self.recipe.end_to_end or self.recipe.block_wise or self.recipe.rounding
        held_out = samples(self.data.held_out)
        return held_out if chooses else min(COMPARED, held_out)

    @property
    def _noise(self) -> float:
        return NOISE if self.loaded.kind == "vision" and self._count >= ENOUGH else 0.0


def _mean(kl: Tensor) -> float:
    return round(kl.mean().item(), 6)


def helps(kl: Tensor, than: Tensor, noise: float) -> bool:
    """Whether it is less on average of the same samples, and its share of what it was by more than so many
    standard errors: a few pictures, near a tie of two answers, make most of the average."""
    share = kl.clamp(min=LEAST).log() - than.clamp(min=LEAST).log()
    error = share.std(correction=0) / len(share) ** 0.5
    return bool(kl.mean() < than.mean() and (not noise or share.mean() < -noise * error))


def _without(artifact: Artifact, bits: int, grids: Mapping[str, Tensor | None]) -> Artifact:
    """The artifact with a width of some layers rounded to nearest, on the grid given for each or on none."""
    learned = artifact.engine.learned
    layers = dict(learned) | {name: learned[name].without(bits, grid) for name, grid in grids.items()}
    return _holding(artifact, layers)


def _holding(artifact: Artifact, layers: Mapping[str, LayerParameters]) -> Artifact:
    """The artifact with these layers."""
    manifest = replace(artifact.manifest, widths={name: layer.widths for name, layer in layers.items()})
    return replace(artifact, engine=Quept(artifact.group, layers), manifest=manifest)


def worse(quality: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The plans of `Manifest.quality` at which round-to-nearest of the base, which transforms and grids
    shared by all widths cannot go back to, is better than what was stored, beyond what noise would show."""
    return [plan for plan, row in quality.items() if row["kl"] > 1.05 * row["kl_rtn"] + 1e-5]


def vision_side(layout: ModelLayout) -> set[str]:
    """The layers of vision tower and projector of a vision-language model; none of any other."""
    return set(layout.layers) - {name for block in layout.decoder_blocks for name in block.layers.values()}


def _reference(elastic: ElasticModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Full-precision logits, where they count."""
    asked = arguments(inputs)
    logits = elastic.reference(asked.get("x", asked))
    return class_logits(logits) if "x" in asked else answer_logits(logits, inputs)
