"""One calibration run: a model and a recipe in, an artifact folder out, re-opened and checked before it is
called done.

    transforms -> static grids -> block-wise stage -> end-to-end stage -> each width compared with
    round-to-nearest, and its rounding chosen (see `comparison`) -> artifact

What is in the folder while it runs: progress.jsonl, one line for every step and decision, and checkpoint.*,
replaced by renaming, from which the same command goes on to the same bytes. When it is done: manifest.json,
learned.safetensors and progress.jsonl; the checkpoint is removed.

`rtn`, round-to-nearest, learns nothing: its artifact records the model's fingerprint and the grid.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from quept.artifact import Artifact, Manifest
from quept.config import Recipe
from quept.data import Data
from quept.data.batches import Inputs, batches, rows
from quept.engines.mobiquant.engine import ROUTED, Routes
from quept.engines.quept import Quept
from quept.files import append_line, read_lines, resume_lines
from quept.models import LoadedModel, ModelLayout, load
from quept.models.families import KINDS
from quept.plan import KEPT_BITS
from quept.transforms import check_kinds

from .block_wise import tune_blocks
from .checkpoint import Checkpoint
from .comparison import Comparison, vision_side, worse
from .end_to_end import EndToEndTuning
from .errors import CalibrationError
from .grids import NOTHING, chosen_ends, starts_worse
from .nested import NestedTrainable
from .nested_artifact import nested_artifact
from .observe import Ends, observe
from .prepare import prepared
from .trainable import Trainable

Progress = Callable[[str, float | None], None]
LOG = "progress.jsonl"
SHOWN = 8  # windows of text on which the magnitudes of inputs are seen
SAVE_EVERY = 120.0  # seconds between two checkpoints; a step takes seconds, writing one about a second


def calibrate_rtn(
    source: str | Path, out: str | Path, group: int | str | None = None, progress: Progress | None = None
) -> Artifact:
    """Round-to-nearest as an artifact in the folder `out`, as read back from there.

    group: columns per scale, "auto", "row", or None for the model's own default. A folder that holds another
    artifact is left alone. Raises CalibrationError, LoadError, ArtifactError, or ValueError for a bad
    group."""
    loaded = load(source, progress)
    artifact = Artifact.rtn(loaded, loaded.group if group is None else group)
    if Artifact.is_one(out) and Artifact.open(out).manifest != artifact.manifest:
        raise CalibrationError(
            f"{out} already holds another artifact; give another folder, or delete that one first"
        )
    artifact.save(out)
    return _read_back(out, artifact.manifest, loaded)


def calibrate(
    source: str | Path,
    recipe: Recipe,
    out: str | Path,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> Artifact:
    """Calibrate `source` (zoo name, folder or hub id) by `recipe` into the folder `out`, and return the
    artifact as read back from there.

    A folder in which this very run was begun is gone on with; one that holds anything else is left alone.
    Raises CalibrationError, LoadError, ArtifactError, TransformError, or ValueError for bad texts, pictures
    or pairs."""
    report = progress or (lambda stage, fraction: None)
    out = Path(out)
    loaded = load(source, report)
    _check_kind(recipe, loaded)
    group = recipe.group if recipe.group is not None else loaded.group
    run = _identity(loaded, recipe, group)
    if Artifact.is_one(out):
        raise CalibrationError(
            f"{out} already holds an artifact; give another folder, or delete that one first"
        )
    checkpoint = Checkpoint(out / "checkpoint", run)
    log = _Log(out / LOG, run, recipe)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    began = time.monotonic()
    data = recipe.data.read(loaded, recipe.wanted, report)
    transformed = prepared(loaded, recipe, group, data, report)
    log(
        "transforms",
        steps=[step["kind"] for step in (transformed.record.steps if transformed.record else ())],
    )
    static = None
    if recipe.static:
        transformed, static = _grids(loaded, transformed, recipe, group, data, device, log, report)
    model = copy.deepcopy(transformed.model).to(device, torch.float32)
    layout, online, start = loaded.layout, transformed.online, recipe.clip.start
    if recipe.routing:
        begun = checkpoint.read("end-to-end") is not None
        trainable = _nested(model, transformed, recipe, group, data, device, report, begun)
    else:
        trainable = Trainable(model, layout, recipe.adapters, start, group, recipe.seed, online, static)
    seconds = {"preparing": time.monotonic() - began}
    if stage := recipe.block_wise:
        tune_blocks(trainable, stage, data.block_wise, recipe.seed, out, checkpoint, log, report, device)
        seconds["block-wise"] = log.seconds("block")
    if recipe.end_to_end:
        tuning = EndToEndTuning(
            trainable, recipe.end_to_end, recipe.adapters, data.end_to_end, recipe.seed, device
        )
        _tune(tuning, checkpoint, log, report)
    began = time.monotonic()
    if recipe.routing:

        def tune(routes: Routes) -> None:
            nonlocal began
            at = time.monotonic()
            tuning = _in_routed_model(trainable, routes, recipe, data.end_to_end, device)
            _tune(tuning, checkpoint, log, report, "routed", recipe.end_to_end.steps)
            began += time.monotonic() - at

        artifact = nested_artifact(
            loaded, transformed, recipe, group, trainable, data, device, tune, log, report
        )
    else:
        artifact = _artifact(loaded, transformed, recipe, group, trainable)
        plain = replace(artifact, engine=Quept(group, trainable.plain()))
        comparison = Comparison(loaded, transformed, recipe, data, device, log, report)
        artifact = comparison.settled(artifact, plain, model)
        if artifact.record and (lost := worse(artifact.manifest.quality)):
            log("transforms given up", plans=lost)
            artifact = _untransformed(loaded, recipe, group, data, device, log, report)
    if recipe.end_to_end:
        seconds["end to end"] = log.seconds("end to end")
    seconds["comparing"] = time.monotonic() - began
    log("done", seconds_per_stage={name: round(s, 1) for name, s in seconds.items()})
    report("writing the artifact", None)
    artifact = artifact.store(out)
    checkpoint.remove()
    return _read_back(out, artifact.manifest, loaded)


def _grids(
    loaded: LoadedModel,
    transformed: LoadedModel,
    recipe: Recipe,
    group: int | str,
    data: Data,
    device: torch.device,
    log: _Log,
    report: Progress,
) -> tuple[LoadedModel, Ends]:
    """The grids that activations start from, and the model that they are of: the base where a transform
    would make a width begin worse than rounding it."""
    report("searching the grids of the activations", None)
    shown, layout = list(batches(data.block_wise, recipe.static.images, device)), loaded.layout

    def chosen(of: LoadedModel, known: bool = False) -> tuple[Ends, dict[int, dict[str, float]]]:
        model = copy.deepcopy(of.model).to(device, torch.float32)
        return chosen_ends(model, layout, shown, recipe.static, group, report, known)

    static, measured = chosen(transformed)
    log("grids", measured={f"A{bits}": kl for bits, kl in measured.items()})
    if transformed is not loaded and measured:
        _, without = chosen(loaded, known=True)
        if lost := [bits for bits in measured if starts_worse(measured[bits], without[bits])]:
            log("transforms given up", widths=lost, measured={f"A{b}": without[b] for b in lost})
            return loaded, chosen(loaded)[0]
    return transformed, static


def _nested(
    model: nn.Module,
    loaded: LoadedModel,
    recipe: Recipe,
    group: int | str,
    data: Data,
    device: torch.device,
    report: Progress,
    begun: bool,
) -> NestedTrainable:
    """What a recipe with routers learns of the transformed model's weights; begun: there is a checkpoint."""
    if begun:
        return NestedTrainable(model, loaded.layout, recipe.adapters, group, recipe.seed)
    report("looking at the inputs of the layers", None)
    shown = observe(model, loaded.layout.layers, batches(data.block_wise, SHOWN, device, 1))
    magnitudes = {name: seen.inputs.square().mean(0).sqrt() for name, seen in shown.items()}
    return NestedTrainable(model, loaded.layout, recipe.adapters, group, recipe.seed, magnitudes)


def _in_routed_model(
    trainable: NestedTrainable, routes: Routes, recipe: Recipe, inputs: Inputs, device: torch.device
) -> EndToEndTuning:
    """The end-to-end stage once more, on what it has not read of the inputs, at plans that are routed and at
    each of its widths."""
    trainable.routed(routes)
    stage, settings = recipe.end_to_end, recipe.routing
    draws = (
        tuple(f"{ROUTED}{average:g}" for average in settings.averages),
        tuple(sorted({bits for draw in stage.draws for bits in draw})),
    )
    unread = rows(inputs, slice(stage.steps * stage.batch, None), "cpu")
    stage = replace(stage, steps=settings.steps, draws=draws, mixed_every=0)
    return EndToEndTuning(trainable, stage, recipe.adapters, unread, recipe.seed, device)


def _tune(
    tuning: EndToEndTuning,
    checkpoint: Checkpoint,
    log: _Log,
    report: Progress,
    stage: str = "end-to-end",
    before: int = 0,
) -> None:
    """Run the end-to-end stage from where its checkpoint is. before: steps that came before it."""
    found = checkpoint.read(stage)
    if found:
        tuning.load_state(found)
    saved = began = time.monotonic()
    for step in tuning.run():
        now = time.monotonic()
        number, of = before + step.number, before + step.of
        log("end to end", step=number, of=of, losses=step.losses, seconds=round(now - began, 2))
        began = now
        shown = ", ".join(f"{name} {loss:.3f}" for name, loss in step.losses.items())
        report(f"end to end, step {number} of {of}: KL {shown}", number / of)
        if now - saved > SAVE_EVERY or step.number == step.of:
            checkpoint.write(stage, tuning.state())
            saved = time.monotonic()


def _artifact(
    loaded: LoadedModel, transformed: LoadedModel, recipe: Recipe, group: int | str, trainable: Trainable
) -> Artifact:
    """What was learned, as an artifact in memory."""
    widths = [
        bits for bits in recipe.adapters.widths if recipe.adapters.ranks(bits) or bits in recipe.clip.start
    ]
    reached = _reached(recipe, loaded.layout, widths)
    manifest = Manifest(
        "quept",
        loaded.source,
        loaded.fingerprint,
        group,
        loaded.layout.layers,
        provenance={"base": loaded.provenance, recipe.kind: recipe.data.describe()},
        recipe=recipe.shared().to_dict(),
        widths=reached,
        transforms=transformed.record.steps if transformed.record else (),
        config=loaded.config,
    )
    return Artifact(manifest, Quept(group, trainable.learned(reached)), transformed.record)


def _reached(recipe: Recipe, layout: ModelLayout, widths: list[int]) -> dict[str, tuple[int, ...]]:
    """Those of the widths at which a stage has run each layer. Vision tower and projector of a
    vision-language model take no part in the block-wise stage, and in the other one at all widths only where
    it draws a width for every layer."""
    stage = recipe.end_to_end
    seen = widths if stage and stage.mixed_every else [b for b in widths if stage and b == KEPT_BITS]
    sees = vision_side(layout)
    return {name: tuple(seen if name in sees else widths) for name in layout.layers}


def _untransformed(
    loaded: LoadedModel,
    recipe: Recipe,
    group: int | str,
    data: Data,
    device: torch.device,
    log: _Log,
    report: Progress,
) -> Artifact:
    """The best that is known of the base itself: grids, and rounding that is chosen."""
    static = _grids(loaded, loaded, recipe, group, data, device, log, report)[1] if recipe.static else None
    model = copy.deepcopy(loaded.model).to(device, torch.float32)
    bare = Trainable(model, loaded.layout, NOTHING, {}, group, recipe.seed, loaded.online, static)
    manifest = _artifact(loaded, loaded, recipe, group, bare).manifest
    plain = Artifact(
        replace(manifest, widths=dict.fromkeys(loaded.layout.layers, ())), Quept(group, bare.plain())
    )
    return Comparison(loaded, loaded, recipe, data, device, log, report).settled(plain, plain, model)


def _check_kind(recipe: Recipe, loaded: LoadedModel) -> None:
    found = f"{loaded.title} {KINDS[loaded.kind]}, and the recipe {recipe.name}"
    if loaded.kind not in recipe.data.models:
        raise ValueError(f"{found} calibrates on {recipe.data.noun}")
    check_kinds(recipe.transforms, loaded)
    if not recipe.data.given:
        raise ValueError(f"the recipe {recipe.name} needs {recipe.data.noun}: give a folder of them")


def _identity(loaded: LoadedModel, recipe: Recipe, group: int | str) -> str:
    """What a run is: base, recipe, grid, and the data themselves."""
    what = [loaded.identity, recipe.shared().to_dict(), group, recipe.data.identity()]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _read_back(out: str | Path, manifest: Manifest, loaded: LoadedModel) -> Artifact:
    read = Artifact.open(out)
    read.check_base(loaded)
    if json.loads(read.manifest.to_json()) != json.loads(manifest.to_json()):
        raise CalibrationError(f"{out} does not read back as it was written: the disk may be full or failing")
    return read


class _Log:
    """progress.jsonl: a head that names the run, then a line for everything that happens."""

    def __init__(self, path: Path, run: str, recipe: Recipe):
        self._path = path
        head = {"what": "run", "run": run, "recipe": recipe.shared().to_dict()}
        other = (
            f"{path.parent} holds another run, begun with another recipe, text or model: give another folder"
        )
        resume_lines(path, head, lambda _: CalibrationError(other))

    def __call__(self, what: str, **entries: object) -> None:
        append_line(self._path, {"what": what, **entries})

    def seconds(self, what: str) -> float:
        """Time of all steps of a stage, each counted once however often the run was cut."""
        last = {line["step"]: line["seconds"] for line in read_lines(self._path) if line.get("what") == what}
        return sum(last.values())
