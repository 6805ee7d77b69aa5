"""What full precision answers on the windows: computed once in fp32, kept on disk, read back by every
measurement.

A reference is a folder `<base identity>-<data id>` with one safetensors file per window, made when the
window is first wanted, so that the first estimate of a new model waits for one window and not for all. A file
holds, for the P = context - 1 scored positions and a vocabulary of V:

    logits  (P, V) fp16   the row's logits minus the row's largest one
    lse     (P,)   fp32   log-sum-exp of *these rounded values*: log p = logits - lse sums to 1 again
    nll     (P,)   fp32   -log p(next token), before rounding
    top     (P,)   int32  the most likely token, before rounding

Why fp16 is enough. Rounding changes a value x by a relative error of at most u = 2^-11, and x is small where
p is large, because it is counted from the row's largest logit. After the renormalisation, KL(p || p_rounded)
= Var_p(error) / 2 + ...: the first-order term is the mean error, and the normaliser takes exactly that away.
So a model compared with itself shows at most u^2 E_p[x^2] / 2, about 1e-6 nats (quantizing to 8 bits costs
1e-3). Against another distribution q the first-order term is Cov_p(error, log p/q), a sum of tens of
thousands of rounding errors of either sign, far below the standard error of the mean over tokens.

Size: `P * (2 V + 12)` bytes a window and a small header, 50 MB for SmolLM2 with windows of 512, so 402 MB for
4,096 tokens. All references together stay within `limit` bytes (4 GB unless `limit` is given): the ones not
used for longest are removed, never the one being written; windows that would not fit beside the reference's
own others are computed again each time instead of being stored.

Files appear by rename and carry a checksum. A truncated, damaged or foreign file is computed again. Any
number of threads and processes may share a folder: a lock lets one of them compute a missing window while the
others wait for it (so nobody may ask for a window while holding the gate that the computing one waits for).
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import LongTensor, Tensor

from quept.data.evalset import EvalBatch, EvalSet
from quept.data.windows import Windows
from quept.files import write_tensors
from quept.zoo import cache_dir

from .forward import Gate, NonFiniteLogits, chunks
from .intervals import mean_and_error

if TYPE_CHECKING:
    from quept.runtime import ElasticModel

FORMAT, VERSION = "quept-reference", 1
LIMIT = 4_000_000_000
_DTYPES = {"logits": torch.float16, "lse": torch.float32, "nll": torch.float32, "top": torch.int32}
_LOWEST = torch.finfo(torch.float16).min  # probability 0 in fp32, and finite
_log = logging.getLogger(__name__)

Forward = Callable[[LongTensor], Tensor]


@dataclass(frozen=True)
class ReferenceWindow:
    """One window of the reference; `logits` is mapped from disk and read-only in spirit. Drop it to give the
    pages back.
    """

    logits: Tensor
    lse: Tensor
    nll: Tensor
    top: Tensor

    def first(self, positions: int) -> ReferenceWindow:
        """The same of the first positions."""
        return ReferenceWindow(*(getattr(self, name)[:positions] for name in _DTYPES))

    def log_probs(self, rows: slice, device: torch.device) -> Tensor:
        """Normalised fp32 log-probabilities of some rows, a new tensor on `device`."""
        return self.logits[rows].to(device, torch.float32).sub_(self.lse[rows, None].to(device))


@dataclass(frozen=True)
class Reference:
    """Use `Reference.open`. `window(i)` answers from disk, or computes, stores and answers."""

    identity: str
    windows: Windows
    forward: Forward
    folder: Path
    limit: int = LIMIT
    _checked: set[int] = field(
        default_factory=set, repr=False
    )  # windows whose checksum this object has seen right
    _nll: dict[int, Tensor] = field(default_factory=dict, repr=False)  # of the windows read so far

    @classmethod
    def open(
        cls, identity: str, windows: Windows, forward: Forward, cache: Path, limit: int = LIMIT
    ) -> Reference:
        """The reference of the model of this identity on `windows`, kept under `cache` (normally
        `cache_dir() / "reference"`).

        `forward` takes ids (1, context) and gives fp32 logits (1, context, V) of the full-precision model; it
        is called only for windows that are not on disk, so it may load that model when first called. Nothing
        is computed by opening.
        """
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{identity}-{windows.id}")
        return cls(identity, windows, forward, Path(cache) / name, limit)

    def __len__(self) -> int:
        return len(self.windows)

    def stored(self) -> int:
        """How many windows are on disk."""
        return sum(self._path(i).exists() for i in range(len(self)))

    def whole(self) -> tuple[float, float] | None:
        """The mean of -log p(next token) over all windows and its standard error; None while any of them is
        not known."""
        for i in set(range(len(self))) - self._nll.keys():
            try:
                with safe_open(self._path(i), framework="pt") as file:
                    self._nll[i] = file.get_tensor("nll")
            except (SafetensorError, OSError):
                return None
        return mean_and_error(torch.cat([self._nll[i] for i in range(len(self))]))

    def window(self, i: int, gate: Gate = nullcontext) -> ReferenceWindow:
        """Window i. When it must be computed, `gate` is held around that.

        Raises ValueError when `forward` does not give finite fp32 logits of the right shape.
        """
        found = self._read(i)
        if found is not None:
            return found
        with self._lock():
            found = self._read(i)  # another thread or process may have been first
            if found is not None:
                return found
            with gate():
                made = self._compute(i)
            self._write(i, made)
        return made

    def _path(self, i: int) -> Path:
        return self.folder / f"window-{i:05d}.safetensors"

    def _lock(self) -> FileLock | nullcontext:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = self.folder.with_name(self.folder.name + ".lock")
            lock.touch()
        except OSError:  # a folder that cannot be written needs no protection: _write will say so
            return nullcontext()
        return FileLock(lock)

    def _labels(self, i: int, parts: dict[str, Tensor]) -> dict[str, str | int]:
        return {
            "version": VERSION,
            "model": self.identity,
            "data": self.windows.id,
            "window": i,
            "crc32": _checksum(parts),
        }

    def _read(self, i: int) -> ReferenceWindow | None:
        path = self._path(i)
        try:
            with safe_open(path, framework="pt") as file:
                labels = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
                parts = {name: file.get_tensor(name) for name in _DTYPES}
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            _log.warning("reference window %s is damaged (%s); computing it again", path.name, error)
            return None
        if i not in self._checked:
            if labels != self._labels(i, parts) or any(
                parts[n].dtype != dtype for n, dtype in _DTYPES.items()
            ):
                _log.warning(
                    "reference window %s is not what was written there; computing it again", path.name
                )
                return None
            self._checked.add(i)
        if i == 0:
            with suppress(OSError):
                os.utime(self.folder)  # marks the reference as used, for the eviction
        return ReferenceWindow(**parts)

    @torch.no_grad()
    def _compute(self, i: int) -> ReferenceWindow:
        ids = self.windows.ids[i]
        logits = self.forward(ids[None])
        logits = logits[0] if logits.ndim == 3 else logits
        if logits.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the reference's forward gave {logits.dtype} logits; load the reference model in float32 "
                "(a half-precision reference is itself off by about 0.001 nats)"
            )
        if logits.ndim != 2 or logits.shape[0] != len(ids):
            raise ValueError(
                f"the reference's forward gave logits of shape {tuple(logits.shape)} for {len(ids)} tokens"
            )
        logits, targets = logits[:-1], self.windows.targets[i].to(logits.device)
        positions, vocabulary = logits.shape
        rounded = torch.empty(positions, vocabulary, dtype=torch.float16)
        lse, nll = (torch.empty(positions, dtype=torch.float32) for _ in range(2))
        top = torch.empty(positions, dtype=torch.int32)
        for rows in chunks(positions, vocabulary, logits.device):
            chunk = logits[rows]
            highest, best = chunk.max(-1, keepdim=True)
            top[rows] = best[:, 0].to("cpu", torch.int32)
            chunk = chunk - highest
            nll[rows] = (chunk.logsumexp(-1) - chunk.gather(-1, targets[rows, None])[:, 0]).cpu().float()
            rounded[rows] = chunk.clamp_(min=_LOWEST).to("cpu", torch.float16)
            lse[rows] = rounded[rows].to(logits.device, torch.float32).logsumexp(-1).cpu()
        if not (nll.isfinite().all() and lse.isfinite().all()):
            raise NonFiniteLogits(
                f"the full-precision model's logits are not finite in window {i}: "
                "its weights or its float32 cast are damaged"
            )
        return ReferenceWindow(rounded, lse, nll, top)

    def _write(self, i: int, made: ReferenceWindow) -> None:
        parts = {name: getattr(made, name) for name in _DTYPES}
        size = sum(tensor.nbytes for tensor in parts.values()) + 4096
        try:
            if size + _bytes_in(self.folder) - _size(self._path(i)) > self.limit:
                _log.warning(
                    "reference window %d is not stored: it would pass the limit of %d bytes", i, self.limit
                )
                return
            for left_behind in self.folder.glob(".*.tmp"):  # by a process that was killed: we hold the lock
                left_behind.unlink()
            make_room(self.folder.parent, self.limit - size, keep=self.folder)
            write_tensors(self._path(i), parts, {FORMAT: json.dumps(self._labels(i, parts))})
            self._checked.add(i)
        except OSError as error:  # full or read-only disk: measuring goes on, only slower
            _log.warning("reference window %d could not be stored (%s); it will be computed again", i, error)


@dataclass(frozen=True)
class BatchReference:
    """Full precision's answers to a set that comes in batches, a small file each. compute(batch) gives what
    is kept of a batch, finite, on the CPU. Safe to share."""

    data: EvalSet
    compute: Callable[[EvalBatch], dict[str, Tensor]]
    folder: Path
    limit: int = LIMIT

    def batch(self, number: int, batch: EvalBatch, gate: Gate = nullcontext) -> dict[str, Tensor]:
        """What is kept of batch `number`. Where it must be computed, `gate` is held."""
        path = self.folder / f"batch-{number:05d}.safetensors"
        if found := kept_batch(path, batch.rows):
            return found
        with gate():
            answers = self.compute(batch)
        keep(path, {"rows": batch.rows} | answers, self.limit)
        return answers


def open_reference(
    elastic: ElasticModel,
    data: Windows | EvalSet,
    cache: Path | None = None,
    compute: Callable[[EvalBatch], dict[str, Tensor]] | None = None,
    limit: int = LIMIT,
) -> Reference | BatchReference:
    """The full-precision answers of a model to some data, in the ordinary cache unless another is given.
    of a set in batches `compute` says what is kept. Nothing is computed by
    opening."""
    cache = cache or cache_dir() / "reference"
    if compute is None:
        return Reference.open(elastic.base_identity, data, elastic.reference, cache, limit)
    return BatchReference(data, compute, Path(cache) / f"{elastic.base_identity}-{data.id}", limit)


def make_room(cache: Path, limit: int, keep: Path | None = None) -> None:
    """Remove the references under `cache` that were not used for longest until all together hold at most
    `limit` bytes.

    `keep` is never removed. A window that another process has mapped stays readable for it until it lets go.
    """
    folders = [folder for folder in cache.iterdir() if folder.is_dir()]
    total = sum(_bytes_in(folder) for folder in folders)
    for folder in sorted((f for f in folders if f != keep), key=lambda f: f.stat().st_mtime):
        if total <= limit:
            return
        total -= _bytes_in(folder)
        shutil.rmtree(folder, ignore_errors=True)


def keep(path: Path, tensors: dict[str, Tensor], limit: int) -> None:
    """Store a part of a reference at `path`, all references within `limit` bytes. Where the disk is full or
    read-only it is not stored: measuring goes on, only slower."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_room(path.parent.parent, limit, keep=path.parent)
        write_tensors(path, tensors)
    except OSError as error:
        _log.warning("%s could not be stored (%s); it will be computed again", path.name, error)


def kept_batch(path: Path, rows: Tensor) -> dict[str, Tensor] | None:
    """What `keep` stored of a batch, if it was of these rows (else more or fewer pictures could be read
    then); the reference counts as used."""
    with suppress(OSError, SafetensorError, KeyError):
        kept = load_file(path)
        os.utime(path.parent)  # for the eviction
        if torch.equal(kept["rows"], rows):
            return kept
    return None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else iter(())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes_in(folder: Path) -> int:
    return sum(_size(path) for path in _files(folder))


def _checksum(parts: dict[str, Tensor]) -> str:
    crc = 0
    for name in sorted(parts):
        crc = zlib.crc32(parts[name].contiguous().numpy(), crc)
    return f"{crc:08x}"
