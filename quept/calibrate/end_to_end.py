"""The end-to-end stage: adapters and clips of all layers tuned together, on the divergence of the whole model
from full precision.

A step reads one batch, asks the full-precision model for its log-probabilities once, and for each bit group
that the recipe draws from does a forward and a backward pass at one of its widths; then one step of Adam.
Groups own separate tensors and hold the ranks they borrow constant, so what one group learns never pulls
another; a parameter that took no part in a step is left alone by it. Every few steps one more pass runs a
plan that draws a width for every layer, so that mixtures are trained and not only uniform plans. In a uniform
plan of a vision-language model vision tower and projector keep 8 bits (`PrecisionPlan.keeping`).

Where a recipe says so (`features`) what the blocks give is compared too, channel by channel: with few
pictures the answers alone would be learned by heart.

Divergence counts every position of a text; of a conversation about pictures, those of its loss mask:
what it expects in the middle of a picture or of a question was never trained and says nothing.

Everything a step does follows from the settings and its number: a run stopped after any step and resumed from
its checkpoint ends with the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quept.config import EndToEnd
from quept.data.batches import Inputs, rows, samples
from quept.numerics.adapters import RankSchedule
from quept.plan import ACTIVATION_BITS, FULL, Bits, PrecisionPlan

from .errors import CalibrationError
from .logits import logits_of
from .loss import divergence_loss, features_loss
from .optimizer import adam, step
from .precision import fast_products, seeded
from .trainable import Trainable


@dataclass(frozen=True)
class Step:
    """What one step did: number from 1, of how many, and the divergence of each pass by its plan's name."""

    number: int
    of: int
    losses: dict[str, float]


class EndToEndTuning:
    """The state of the stage: `run()` yields after every step and may be left and taken up at any of them.
    Step after step reads the next `batch` samples of the inputs, from the first again behind the last."""

    def __init__(
        self,
        trainable: Trainable,
        settings: EndToEnd,
        schedule: RankSchedule,
        inputs: Inputs,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        self.trainable, self.settings, self.schedule = trainable, settings, schedule
        self.inputs, self.seed, self.device, self.done = inputs, seed, torch.device(device), 0
        self.optimizer = adam(
            trainable,
            settings.adapter_rates,
            settings.clip_rate,
            activation_rate=settings.activation_rate,
            betas=(0.9, 0.99),
        )
        if self.optimizer is None:
            raise ValueError("there is nothing to learn: give a bit group ranks, or a width clip factors")

    def run(self) -> Iterator[Step]:
        """The steps that are left."""
        while self.done < self.settings.steps:
            yield self.step()

    def step(self) -> Step:
        settings, number = self.settings, self.done
        index = torch.arange(number * settings.batch, (number + 1) * settings.batch) % samples(self.inputs)
        inputs = rows(self.inputs, index, self.device)
        with torch.no_grad():
            full, wanted = self._run(self.trainable.view(PrecisionPlan.full()), inputs)
            log_probs = full.float().log_softmax(-1)
        losses: dict[str, float] = {}
        convolves = self.trainable.layout.convolutional
        for plan in self.plans(number):
            view = self.trainable.view(plan, settings.checkpointed, settings.drop)
            fast = nullcontext() if convolves else fast_products(self.device)  # see ElasticModel's dtype
            try:
                with fast, seeded(self.device, self.seed, number, plan.name):
                    logits, found = self._run(view, inputs)
            except ValueError as error:  # a weight that left the range of its grid
                raise self._broken(plan, str(error)) from None
            loss = divergence_loss(logits, log_probs)
            total = loss
            if settings.features:
                total = loss + settings.features * features_loss(found, wanted, 1 if convolves else -1)
            if not torch.isfinite(total):
                raise self._broken(plan, f"the loss is {total.item()}")
            total.backward()
            losses[plan.name] = round(loss.item(), 6)
        step(self.optimizer, number, settings.steps, settings.warmup)
        self.done += 1
        return Step(self.done, settings.steps, losses)

    def _run(self, view: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits and, where they count, what every block but the head gives."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: tuple, out: Tensor | tuple[Tensor, ...]) -> None:
            out = out[0] if isinstance(out, tuple) else out
            outputs.append(out.clone())  # an activation behind it may change it where it is

        for block in self.trainable.layout.blocks if self.settings.features else ():
            if block.name != self.trainable.layout.head:
                view.get_submodule(block.name).register_forward_hook(keep)
        return logits_of(view, inputs), outputs

    def _broken(self, plan: PrecisionPlan, why: str) -> CalibrationError:
        return CalibrationError(
            f"end to end, step {self.done + 1} of {self.settings.steps}, {plan.name}: {why}; the last good "
            "checkpoint is kept: calibrate into another folder with lower rates"
        )

    def plans(self, number: int) -> list[PrecisionPlan]:
        """The plans that step `number` (from 0) trains."""
        draw, settings = random.Random(f"{self.seed} {number}"), self.settings
        plans = []
        for widths in settings.draws:
            bits = draw.choice(widths)
            plan = PrecisionPlan.uniform(bits, self._activations(bits, draw))
            plans.append(plan.keeping(self.trainable.layout.vision_layers))
        if settings.mixed_every and (number + 1) % settings.mixed_every == 0:
            rules = {}
            for layer in self.trainable.layers:
                bits = draw.choice(self.schedule.widths)
                rules[layer] = Bits(bits, self._activations(bits, draw))
            plans.append(PrecisionPlan.of(rules, name="mixed"))
        return plans

    def _activations(self, bits: int, draw: random.Random) -> int:
        """Width of the inputs of a layer at `bits`."""
        if not self.settings.activations or bits not in ACTIVATION_BITS:
            return FULL
        wider = [b for b in self.schedule.widths if b > bits]
        return draw.choice(wider) if wider and draw.random() < self.settings.wider else bits

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on from here, as tensors by name."""
        names = {id(p): name for name, p in _named(self.trainable)}
        state = {"steps done": torch.tensor(self.done)} | self.trainable.state()
        for p, moments in self.optimizer.state.items():
            state |= {f"{names[id(p)]}.{key}": torch.as_tensor(value) for key, value in moments.items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.done = int(state["steps done"])
        self.trainable.load_state(state)
        for name, p in _named(self.trainable):
            moments = {
                key: state[f"{name}.{key}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in state
            }
            if moments:
                self.optimizer.state[p] = {
                    key: m.clone() if key == "step" else m.clone().to(p.device) for key, m in moments.items()
                }


def _named(trainable: Trainable) -> Iterator[tuple[str, nn.Parameter]]:
    for name, layer in trainable.layers.items():
        for key, p in layer.named_parameters():
            yield f"{name}.{key}", p
