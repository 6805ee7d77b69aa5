"""The block-wise stage: QuEPT's reconstruction (arXiv 2602.12609), one block of the
network after another.

Two streams of hidden states flow through the blocks: X of the full-precision model, and X' of the calibrated,
quantized one. Block k learns to undo on X' what quantization did so far:

    Y = block_k(X), full precision
    for every epoch and every batch of X':
        loss_g = sum over tokens, mean over sequences and features, of |block_k at b_g (X') - Y|
        one backward pass for each bit group g, at a width b_g drawn from it; then one step of Adam
    X' <- merge over g of block_k at b_g (X')            quept.numerics.merge
    X  <- Y

The loss counts every position of every sequence, padding apart; with `activations` the inputs of the layers
are rounded to the width of the weights (4 and more: below, they stay), and `drop` leaves a share of them as
they were, drawn at random. Only the adapters, clips and static ends of the block itself are tuned, with all
rates falling along a cosine to a hundredth. Every batch runs with its own masks and positions (see capture).

Of a vision-language model the blocks are those of its language model. Vision tower and projector stay at full
precision and run once for each batch: both streams begin behind them, with the features of the pictures.

Before and after its steps a block is measured on all batches at one set of drawn widths. Where the sum over
the groups has risen, the block goes back to its start, and the log says so.

All draws follow from (seed, block, epoch, batch). Each finished block is a checkpoint of its own, and when a
run is taken up the streams are made again from those blocks: stopped anywhere, it ends with the same bytes.
That costs a pass forward for each group, where tuning cost three for each group and epoch, and no disk.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quept.config import BlockWise
from quept.data.batches import Inputs, rows, samples
from quept.data.ragged import MASK
from quept.numerics.merge import merge
from quept.plan import ACTIVATION_BITS, FULL, PrecisionPlan

from .activations import ActivationStore
from .capture import EMBEDDINGS, Call, Calls, entered
from .checkpoint import Checkpoint
from .errors import CalibrationError
from .optimizer import adam, step
from .precision import fast_products, seeded
from .trainable import Trainable

Progress = Callable[[str, float | None], None]
Losses = dict[str, float]  # of each bit group, by its widths: {"7,8": 0.01, "2": 3.2}


@dataclass(frozen=True)
class TunedBlock:
    """What became of one block. before, after: loss of each bit group (see the module docstring), a mean over
    all batches. kept: whether what was learned stays; if not, the block is at its start again."""

    block: str
    before: Losses
    after: Losses
    kept: bool


def tune_blocks(
    trainable: Trainable,
    settings: BlockWise,
    inputs: Inputs,
    seed: int,
    folder: Path,
    checkpoint: Checkpoint,
    log: Callable[..., None],
    report: Progress,
    device: torch.device | str = "cpu",
) -> None:
    """Run the stage on `trainable`, from where `checkpoint` has it. inputs: what the model's forward takes,
    `{"input_ids": (sequences, context)}` and whatever else, by sequence; pictures count as sequences, and so
    do conversations, all padded to one length. folder: for streams that do not fit into memory.

    Each block is a log line: "block" with the entries of TunedBlock, `seconds` and, to tell it apart in a log
    with several runs, `step` from 1. Raises CalibrationError for a loss that is not finite; the blocks before
    stay in the checkpoint."""
    blocks = trainable.layout.decoder_blocks
    done = 0
    while done < len(blocks) and (state := checkpoint.read(_stage(done))):
        trainable.load_state(state, blocks[done].layers.values())
        done += 1
    with ActivationStore(folder, settings.memory) as streams:
        if done == len(blocks):
            return
        tuning = BlockWiseTuning(trainable, settings, inputs, seed, streams, report, device)
        tuning.skip(done)
        began = time.monotonic()
        for tuned in tuning.run():
            now = time.monotonic()
            log("block", step=tuning.done, of=len(blocks), **asdict(tuned), seconds=round(now - began, 2))
            began = now
            layers = blocks[tuning.done - 1].layers.values()
            checkpoint.write(_stage(tuning.done - 1), trainable.state(layers))


class BlockWiseTuning:
    """The state of the stage: `done` blocks are tuned. full: the stream X, float32 (sequences, ..., hidden),
    outputs of the last tuned block; quantized: the stream X', the inputs of that block until the
    next one begins."""

    def __init__(
        self,
        trainable: Trainable,
        settings: BlockWise,
        inputs: Inputs,
        seed: int,
        streams: ActivationStore,
        report: Progress,
        device: torch.device | str = "cpu",
    ):
        count = samples(inputs)
        self.trainable, self.settings, self.seed, self.done = trainable, settings, seed, 0
        self.blocks = trainable.layout.decoder_blocks
        self.device, self._inputs, self._report = torch.device(device), inputs, report
        schedule = next(iter(trainable.layers.values())).schedule
        self.groups = {",".join(map(str, sorted(group))): group for group in schedule.groups}
        self.batches = [slice(i, min(i + settings.batch, count)) for i in range(0, count, settings.batch)]
        self._model, self._entered, self._masks = trainable.view(PrecisionPlan.full()), {}, {}
        self._calls = Calls(self._model, trainable.layout, self._batch(0))
        shape = (count, *self._calls.of(0, self._batch(0)).hidden.shape[1:])
        self._streams = streams
        self.full, self.quantized = (streams.new(name, *shape) for name in ("full", "quantized"))
        for number, part in enumerate(self.batches):
            inputs = self._batch(number)
            self.full[part] = self._calls.of(0, inputs).hidden.float().cpu()
            self.quantized[part] = self.full[part]
            if number in self._entered:  # the streams hold its embeddings now; what is left is small
                blank = torch.zeros((), dtype=inputs[EMBEDDINGS].dtype).expand(inputs[EMBEDDINGS].shape)
                self._entered[number] |= {EMBEDDINGS: blank}

    def run(self) -> Iterator[TunedBlock]:
        """The blocks that are left."""
        while self.done < len(self.blocks):
            yield self.step()

    def skip(self, blocks: int) -> None:
        """Bring the streams past this many blocks that are tuned already."""
        while self.done < blocks:
            self._report(f"going through block {self.done + 1}, tuned before", self.done / blocks)
            self._enter()
            self.done += 1

    def step(self) -> TunedBlock:
        """Tune the next block."""
        self._enter()
        index, trainable = self.done, self.trainable
        block = self.blocks[index]
        layers = tuple(block.layers.values())
        start = {name: t.clone() for name, t in trainable.state(layers).items()}
        before = self._measured(index, "before tuning")
        self._tune(index)
        after = self._measured(index, "after tuning")
        kept = sum(after.values()) <= sum(before.values())
        if not kept:
            trainable.load_state(start, layers)
        self.done += 1
        rounded = ({group: float(f"{x:.6g}") for group, x in losses.items()} for losses in (before, after))
        return TunedBlock(block.name, *rounded, kept)

    def _tune(self, index: int) -> None:
        """All steps of Adam on one block."""
        settings, trainable = self.settings, self.trainable
        layers = self.blocks[index].layers.values()
        optimizer = adam(
            trainable, settings.adapter_rates, settings.clip_rate, layers, settings.activation_rate
        )
        if optimizer is None:
            return
        steps, number = settings.epochs * len(self.batches), 0
        for epoch in range(settings.epochs):
            for batch in range(len(self.batches)):
                read, shown, where = self._read(index, batch), [], f"in epoch {epoch + 1}, batch {batch + 1}"
                for group, bits in self._drawn(index, epoch, batch).items():
                    if any(trainable.layers[name].learns(bits) for name in layers):
                        with seeded(self.device, self.seed, index, epoch, batch, group):
                            loss = self._loss(index, bits, read, where, settings.drop)
                        loss.backward()
                        shown.append(f"{group}: {loss.item():.3g}")
                step(optimizer, number, steps)
                number += 1
                self._progress(index, number / steps, f"epoch {epoch + 1}, loss {', '.join(shown)}")

    @torch.no_grad()
    def _measured(self, index: int, when: str) -> Losses:
        """Mean loss of each group over all batches, at widths that are the same whenever it is asked."""
        totals = dict.fromkeys(self.groups, 0.0)
        for batch in range(len(self.batches)):
            read = self._read(index, batch)
            for group, bits in self._drawn(index, "measure", batch).items():
                where = f"{when}, batch {batch + 1}"
                totals[group] += self._loss(index, bits, read, where).item() * len(read.x)
        return {group: total / len(self.full) for group, total in totals.items()}

    def _loss(self, index: int, bits: int, read: _Read, where: str, drop: float = 0.0) -> Tensor:
        """|block at bits (x) - y|, summed over tokens, mean over the rest."""
        plan = self._plan(bits)
        try:
            with fast_products(self.device):
                out = read.call.run(self.trainable.block(index, plan, drop), read.x)
            loss = (out.float() - read.y).abs()
            loss = (loss if read.counts is None else loss * read.counts[..., None]).mean((0, -1)).sum()
            sound, found = bool(torch.isfinite(loss)), loss.item()
        except ValueError as error:  # the grid refuses a weight whose adapter has left float16
            sound, found = False, f"not computable ({error})"
        if not sound:
            raise CalibrationError(
                f"the loss of {self.blocks[index].name} at {plan.name} is {found} {where}; "
                "the blocks before it are kept in the checkpoint; lower adapter_rates or clip_rate, and "
                "calibrate into another folder"
            )
        return loss

    @torch.no_grad()
    def _enter(self) -> None:
        """Bring both streams to the next block: X' to its inputs, X past it to its targets."""
        index = self.done
        if index:
            merged = (self._merged(index - 1, batch) for batch in range(len(self.batches)))
            self.quantized = self._refilled("quantized", self.quantized, merged)
        block = self.trainable.block(index, PrecisionPlan.full())
        passed = (self._passed(index, batch, block) for batch in range(len(self.batches)))
        self.full = self._refilled("full", self.full, passed)

    def _refilled(self, name: str, stream: Tensor, values: Iterable[Tensor]) -> Tensor:
        """The stream with these values, batch by batch: itself, or another where they have another shape, as
        behind the merging of patches."""
        filled = stream
        for part, value in zip(self.batches, values, strict=True):
            if value.shape[1:] != filled.shape[1:]:
                filled = self._streams.new(f"{name} {self.done}", len(stream), *value.shape[1:])
            filled[part] = value.cpu()
        if filled is not stream:
            self._streams.release(stream)
        return filled

    def _passed(self, index: int, batch: int, block: nn.Module) -> Tensor:
        """What a block makes of one batch of X."""
        return self._calls.of(index, self._batch(batch), self.full[self.batches[batch]]).run(block).float()

    def _merged(self, index: int, batch: int) -> Tensor:
        """What a tuned block hands on for one batch of X'."""
        read = self._read(index, batch)
        outputs = torch.stack(
            [
                read.call.run(self.trainable.block(index, self._plan(bits)), read.x).float()
                for bits in self._drawn(index, "merge", batch).values()
            ]
        )
        weights = torch.tensor(self.settings.merge, device=read.x.device)
        if read.counts is None:
            return merge(outputs, weights, self.settings.keep)
        merged = outputs[0].clone()  # padding takes no part in the ranking of tokens
        merged[read.counts] = merge(outputs[:, read.counts], weights, self.settings.keep)
        return merged

    def _read(self, index: int, batch: int) -> _Read:
        """What one batch is before a block."""
        part, inputs = self.batches[batch], self._batch(batch)
        call = self._calls.of(index, inputs, self.quantized[part])
        mask, x = self._masks.get(batch, inputs.get(MASK)), call.hidden
        return _Read(call, x, self.full[part].to(x.device), None if mask is None else mask.bool())

    def _batch(self, batch: int) -> Mapping[str, Any]:
        """What the decoder blocks read of one batch (see capture). Pictures are looked at when it is first
        asked."""
        if batch not in self._entered:
            inputs = rows(self._inputs, self.batches[batch], self.device)
            if not self.trainable.layout.language:
                return inputs
            self._masks[batch] = inputs.get(MASK)  # the language model is given others, made of it
            inputs = entered(self._model, self.trainable.layout, inputs)
            self._entered[batch] = {name: _on("cpu", value) for name, value in inputs.items()}
        return {name: _on(self.device, value) for name, value in self._entered[batch].items()}

    def _drawn(self, index: int, purpose: int | str, batch: int) -> dict[str, int]:
        """A width of each bit group, highest group first; purpose: the epoch, or what else is done."""
        draw = random.Random(f"{self.seed} {index} {purpose} {batch}")
        return {name: draw.choice(group) for name, group in self.groups.items()}

    def _plan(self, bits: int) -> PrecisionPlan:
        activations = self.settings.activations and bits in ACTIVATION_BITS
        return PrecisionPlan.uniform(bits, bits if activations else FULL)

    def _progress(self, index: int, fraction: float, what: str) -> None:
        blocks = len(self.blocks)
        self._report(f"block {index + 1} of {blocks}, {what}", (index + fraction) / blocks)


@dataclass(frozen=True)
class _Read:
    """A batch before a block. x: of the stream X', y: its targets, both (samples, ..., hidden). counts:
    (samples, tokens) bool, false on padding; None: all count."""

    call: Call
    x: Tensor
    y: Tensor
    counts: Tensor | None


def _on(device: torch.device | str, value: Any) -> Any:
    """Tensors, also those in lists and dictionaries, on a device."""
    if isinstance(value, dict):
        return {key: _on(device, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_on(device, one) for one in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _stage(index: int) -> str:
    """Name of a block's checkpoint."""
    return f"block-{index}"
