"""Plans as files of real engines: what each format makes of a plan, and the files, made once and kept while
there is room.

    offers(opened, plan)                what each format weighs, rounds, refuses; JSON
    for state in exports.make(...)      a file in the making; at the end where a browser fetches it
    exports.path(opened, plan, "gguf")  the file, if it was made

Files lie in a folder of this process, which goes with it; the oldest go when there would be more than KEPT
bytes. One is made at a time, and others wait in line. A folder is kept as one zip archive.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quept.allocate.solve.constraints import AllocationError
from quept.export import EXPORTERS, Exporter, exporter
from quept.export.base import settings_of
from quept.plan import FULL, PlanError, PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.sizes import Sizes

from .budget import sentence
from .gate import Admission

KEPT = 4_000_000_000
FREE = 500_000_000  # bytes of the disk that are left alone
ADDED = 0.2  # bits a weight more than packed that are worth a word
POLL_S = 0.2


class Opened(Protocol):
    """An opened model, and the bytes of its files."""

    name: str
    elastic: ElasticModel

    def file_sizes(self, target: str) -> Sizes: ...


@dataclass(frozen=True)
class Made:
    """A file: the plan's own, or an archive of its folder. nbytes: of what it unpacks to."""

    path: Path
    nbytes: int


def offers(opened: Opened, plan: PrecisionPlan, plan_json: Callable[[PrecisionPlan], dict]) -> list[dict]:
    """What each format makes of a plan; JSON. The smallest file that keeps the plan and that an engine other
    than ours runs is marked."""
    rows = [_offer(opened, plan, name, plan_json) for name in EXPORTERS]
    real = [
        row for row in rows if row["bytes"] and not exporter(row["format"]).ours and row["format"] != "hf"
    ]
    if len(real) > 1:
        min(real, key=lambda row: row["bytes"])["least"] = True
    return rows


def _offer(
    opened: Opened, plan: PrecisionPlan, name: str, plan_json: Callable[[PrecisionPlan], dict]
) -> dict[str, Any]:
    target, elastic = exporter(name), opened.elastic
    row = {
        "format": name,
        "title": target.title,
        "engines": ", ".join(target.engines),
        "exact": target.exact,
        "kind": target.suffix or "folder",
        "bytes": None,
        "refused": "",
        "nearest": None,
        "adds": [],
        "share": None,
    }
    try:
        if why := target.refuses(elastic, plan):
            row["refused"] = sentence(PlanError(why))
            near = target.nearest(elastic, plan)
            size = opened.file_sizes(name).deploy(near)
            return row | {"nearest": {"plan": plan_json(near), "bytes": size}}
        sizes = opened.file_sizes(name)
    except (PlanError, AllocationError):
        return row
    size, packed = sizes.deploy(plan), elastic.sizes.deploy(plan)
    return row | {"bytes": size, "share": size / packed - 1, "adds": _adds(target, elastic, sizes, plan)}


def _adds(target: Exporter, elastic: ElasticModel, sizes: Sizes, plan: PrecisionPlan) -> list[str]:
    """ "3, 4 bits cost 5 in Q4_1", of the widths that take more than we pack them in."""
    places, found = target.places(elastic), {}
    for layer, bits in plan.resolve(elastic.layers).items():
        ours, theirs = (8 * s.layers[layer][bits.weights] / s.weights[layer] for s in (elastic.sizes, sizes))
        if theirs - ours > ADDED:
            found.setdefault((bits.weights, places[layer][bits.weights]), []).append(theirs)
    costs: dict[tuple[str, str], list[int]] = {}
    for (bits, held), each in sorted(found.items()):
        cost = f"{round(sum(each) / len(each), 1):g}"
        costs.setdefault((cost, "" if held in (f"{bits} bits", f"{cost} bits") else held), []).append(bits)
    return [
        f"{', '.join(map(str, widths))} bits cost {cost}" + (f" in {held}" if held else "")
        for (cost, held), widths in costs.items()
    ]


class Exports:
    """See the module docstring. kept: bytes on disk at most."""

    def __init__(self, kept: int = KEPT):
        self._folder = tempfile.TemporaryDirectory(prefix="quept-exports-")
        self.folder, self._kept = Path(self._folder.name).resolve(), kept
        self._made: OrderedDict[tuple[str, str, str], Made] = OrderedDict()
        self._lock, self._admission = threading.Lock(), Admission(1)

    def path(self, opened: Opened, plan: PrecisionPlan, name: str) -> Path | None:
        """The file of a plan, None if it was not made or has gone."""
        made = self._find(_key(opened, plan, name))
        return made and made.path

    def make(
        self, opened: Opened, plan: PrecisionPlan, name: str, gate: Callable[[], AbstractContextManager]
    ) -> Iterator[dict[str, Any]]:
        """The file in the making: {"format", "status": "queued", "making", "done" or "error", "message",
        "fraction"}, at the end with its "name", "bytes", "path" below `folder`, and "commands". Weights are
        rounded one layer at a time behind the gate."""
        state = {"format": name, "status": "making", "message": "Rounding", "fraction": 0.0}
        key = _key(opened, plan, name)
        try:
            with self._admission.enter() as place:
                for position in place.wait():
                    yield state | {"status": "queued", "message": f"Number {position} in line"}
                if not self._find(key):
                    yield from self._make(key, opened, plan, name, gate, state)
            yield state | self._told(key, name)
        except (PlanError, AllocationError, OSError, RuntimeError) as error:
            yield state | {"status": "error", "message": sentence(error)}

    def _make(self, key, opened: Opened, plan: PrecisionPlan, name: str, gate, state) -> Iterator[dict]:
        target, elastic = exporter(name), opened.elastic
        if why := target.refuses(elastic, plan):
            raise PlanError(why)
        self._make_room(opened.file_sizes(name).deploy(plan), target)
        settings = [(layer, bits) for layer, bits in settings_of(elastic, plan).items() if bits != FULL]
        kept = []  # until the file is written: what is let go would be rounded again
        for i, (layer, bits) in enumerate(settings):
            with gate():
                kept.append(elastic.bank.weight(layer, bits))
            if i % 16 == 0:
                yield state | {"fraction": 0.5 * i / len(settings)}
        progress: dict[str, Any] = {"message": "Writing", "fraction": 0.5}
        done: list[Made | BaseException] = []
        place = self.folder / secrets.token_urlsafe(12)

        def heard(stage: str, fraction: float | None) -> None:
            progress.update(message=stage.capitalize(), fraction=0.5 + 0.4 * (fraction or 0.0))

        def work() -> None:
            try:
                done.append(_written(target, elastic, plan, place / _stem(opened.name, plan), heard))
            except BaseException as error:
                done.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            yield state | progress
            thread.join(POLL_S)
        if isinstance(done[0], BaseException):
            shutil.rmtree(place, ignore_errors=True)
            raise done[0]
        with self._lock:
            self._made[key] = done[0]

    def _make_room(self, size: int, target: Exporter) -> None:
        needed = size if target.suffix else 2 * size  # the folder, then its archive
        if needed > self._kept:
            raise OSError(
                f"this file would have {size / 1e9:.1f} GB, more than this page makes: write it with "
                f"`quept export --to {target.name}`"
            )
        with self._lock:
            while (
                self._made and sum(m.path.stat().st_size for m in self._made.values()) + needed > self._kept
            ):
                _, oldest = self._made.popitem(last=False)
                shutil.rmtree(oldest.path.parent, ignore_errors=True)
        if shutil.disk_usage(self.folder).free < needed + FREE:
            raise OSError("the disk of this server is full: try again later, or export on your own machine")

    def _find(self, key: tuple[str, str, str]) -> Made | None:
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
            return self._made.get(key)

    def _told(self, key: tuple[str, str, str], name: str) -> dict[str, Any]:
        made = self._find(key)
        inside = made.path.name.removesuffix(".zip")
        unpack = [] if inside == made.path.name else [f"unzip {made.path.name}"]
        lines = [line.format(path=inside) for line in exporter(name).commands]
        return {
            "status": "done",
            "message": "",
            "fraction": 1.0,
            "name": made.path.name,
            "bytes": made.nbytes,
            "path": made.path.relative_to(self.folder).as_posix(),
            "commands": unpack + lines,
        }


def _written(target: Exporter, elastic: ElasticModel, plan: PrecisionPlan, stem: Path, heard) -> Made:
    out = stem.with_name(stem.name + target.suffix)
    compared = target.write(elastic, plan, out, heard)
    if target.suffix:
        return Made(out, compared.nbytes)
    archive = out.with_name(f"{out.name}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(out.iterdir()):
            packed.write(file, f"{out.name}/{file.name}")
            file.unlink()
    out.rmdir()
    return Made(archive, compared.nbytes)


def _key(opened: Opened, plan: PrecisionPlan, name: str) -> tuple[str, str, str]:
    return opened.elastic.identity, plan.key(opened.elastic.layers), name


def _stem(model: str, plan: PrecisionPlan) -> str:
    """ "smollm2-135m-best-4-bits": what a file is called."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{Path(model).name} {plan.name or 'plan'}".lower()).strip("-.")[:80]
