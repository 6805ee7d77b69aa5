"""Record: how a model's weights were transformed, so that it can be done again on the same base.

`steps` are settings in the order in which they are taken; each kind comes at most once:

    {"kind": "norms"}
    {"kind": "rotation", "seed": 0, "heads": true, "online": true}
    {"kind": "scaling", "bits": [3, 4], "group": "auto", "grid": 20, "tokens": 2048}   (how they were found)
    {"kind": "reparameterisation", "strength": 1.0, "percentile": 0.999, "images": 128}   (likewise)

`tensors` are the scales, `{name of the norm or linear layer that is divided: (channels,) float32}`, and of a
reparameterisation also the shifts, `{name of the norm + ".shift": (channels,)}`. A file holds the steps as
JSON (`to_json`) and the tensors as safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor


class TransformError(ValueError):
    """A record that is damaged, or does not fit the model; the message says why."""


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _truth(value: object) -> bool:
    return isinstance(value, bool)


# {kind: {setting: what its value must be}}; every setting is required
KINDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "norms": {},
    "rotation": {"seed": _whole, "heads": _truth, "online": _truth},
    "scaling": {
        "bits": lambda value: isinstance(value, list) and all(map(_whole, value)),
        "group": lambda value: value in ("auto", "row") or _whole(value),
        "grid": _whole,
        "tokens": _whole,
    },
    "reparameterisation": {"strength": _share, "percentile": _share, "images": _whole},
}
WITH_TENSORS = ("scaling", "reparameterisation")
SHIFT = ".shift"  # ends the name of a tensor that is added, not multiplied


@dataclass(frozen=True, eq=False)
class Record:
    """The steps and their tensors, both copied and checked; TransformError for a step or tensor nobody knows.
    Equal if all of it is, to the bit."""

    steps: tuple[Mapping[str, object], ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        try:
            steps = json.loads(json.dumps(list(self.steps), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise TransformError(f"the steps of a record must be plain JSON: {error}") from None
        for step in steps:
            _check(step)
        kinds = [step["kind"] for step in steps]
        if len(set(kinds)) < len(kinds):
            raise TransformError(f"each kind of step comes at most once in a record; got {', '.join(kinds)}")
        for name, tensor in self.tensors.items():
            if tensor.ndim != 1 or tensor.dtype != torch.float32:
                raise TransformError(
                    f"scales of {name} must be (channels,) float32; got {tuple(tensor.shape)} {tensor.dtype}"
                )
            if not (torch.isfinite(tensor) & ((tensor > 0) | name.endswith(SHIFT))).all():
                raise TransformError(f"scales of {name} must be positive and finite")
        users = [kind for kind in kinds if kind in WITH_TENSORS]
        if len(users) > 1 or (self.tensors and not users):
            raise TransformError(f"scales belong to one step of the kind {' or '.join(WITH_TENSORS)}")
        tensors = {name: self.tensors[name].detach().cpu().clone() for name in sorted(self.tensors)}
        object.__setattr__(self, "steps", tuple(steps))
        object.__setattr__(self, "tensors", MappingProxyType(tensors))

    @property
    def identity(self) -> str:
        """64 hex digits over all of it."""
        digest = hashlib.sha256(self.to_json().encode())
        for name, tensor in self.tensors.items():
            digest.update(f"\n{name} {len(tensor)}\n".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def to_json(self) -> str:
        """The steps, without the tensors: a JSON list."""
        return json.dumps(self.steps, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, tensors: Mapping[str, Tensor] | None = None) -> Record:
        """The record with these steps and tensors; TransformError if they are damaged or unknown here."""
        try:
            steps = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TransformError(f"the steps of a record cannot be read: {error}") from None
        if not isinstance(steps, list):
            raise TransformError("the steps of a record must be a JSON list")
        return cls(tuple(steps), tensors or {})


def _check(step: object) -> None:
    kind = step.get("kind") if isinstance(step, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise TransformError(f"no step of the kind {kind!r}; there is {', '.join(KINDS)}")
    known = KINDS[kind]
    if odd := sorted((set(step) - {"kind"}) ^ set(known)):
        raise TransformError(
            f"a {kind} step has exactly these settings: {', '.join(known) or 'none'}; not {odd}"
        )
    for name, sound in known.items():
        if not sound(step[name]):
            raise TransformError(f"{name} of a {kind} step cannot be {step[name]!r}")
