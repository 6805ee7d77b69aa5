"""What precision each layer runs at: a value that is passed along, never a state that is set.

A plan is a default plus rules. A rule is a layer name or a glob pattern over layer names with the bits it
stands for; the last matching rule wins. The same plan therefore reads well in a file ("everything at 4, every
down_proj at 8"), applies to any model, and turns into one number per layer only when it meets a model's layer
names::

    PrecisionPlan.uniform(4)
    PrecisionPlan.of({"*.down_proj": 8}, default=4)
    PrecisionPlan.load("presets/protect-edges.json").resolve(elastic.layers)

Widths: 2..8 bits, or 16 for "untouched". Weights, activations and the KV cache have separate widths. In place
of a width, weights may have a setting that an engine (see quept.engines) calls by a word: "nf4",
"routed:3.5". The KV cache has one width too, and rules over the names of the blocks that keep it::

    PrecisionPlan.of({}, 4, kv=4, kv_blocks={"model.layers.0": 8}).resolve_cache(elastic.cached_blocks)

Token embeddings may have a *graded* width, 5.5 say: more bits for the rows of common tokens than for those of
rare ones (see quept.numerics.graded).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import translate
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any, TypeVar

from quept.engines import GRADED_WIDTHS, WIDTHS, Setting, named_settings
from quept.files import parse_json, write_atomic

FULL = 16
QUANTIZED_BITS = tuple(WIDTHS)
WEIGHT_BITS = (*QUANTIZED_BITS, FULL)
ACTIVATION_BITS = (4, 5, 6, 7, 8, FULL)
KV_BITS = (2, 3, 4, 5, 6, 7, 8, FULL)
EMBEDDING_BITS = (2, 3, 4, 5, 6, 7, 8, FULL)
KEPT_BITS = 8  # of the layers that `keeping` spares
EMBEDDINGS = "embeddings"  # among its patterns: what `PrecisionPlan.embeddings` is the width of

REMEMBERED = 512  # plans, see `remembered`

FORMAT, VERSION = "quept-plan", 1
MAX_BYTES = 1_000_000  # a plan for a 100-billion-parameter model with every layer named is a tenth of this
MAX_RULES, MAX_PATTERN = (
    5_000,
    300,
)  # and has under 1,000 rules; a stranger's file must not keep matching busy


_T = TypeVar("_T")


class PlanError(ValueError):
    """A plan that cannot be read or does not fit the model; the message says what to change."""


def remembered(answer: Callable[[Any, PrecisionPlan], _T]) -> Callable[[Any, PrecisionPlan], _T]:
    """A method that answers something of a plan, whose latest answers are kept with the object: the same
    plans are asked about again and again, and have a rule for every layer."""
    kept = f"_{answer.__name__}_kept"

    @wraps(answer)
    def asked(self: Any, plan: PrecisionPlan) -> _T:
        if kept not in self.__dict__:
            self.__dict__[kept] = lru_cache(REMEMBERED)(partial(answer, self))
        return self.__dict__[kept](plan)

    return asked


def _check(what: str, bits: object, allowed: tuple[int | float, ...], hint: str = "") -> None:
    if (type(bits), bits) not in [(type(width), width) for width in allowed]:
        raise PlanError(f"{what} bits must be one of {', '.join(map(str, allowed))}; got {bits!r}{hint}")


@dataclass(frozen=True, slots=True)
class Bits:
    """What one linear layer is at: the setting of its stored weights and the width of its input activations
    (16 = untouched)."""

    weights: Setting = FULL
    activations: int = FULL

    def __post_init__(self) -> None:
        known = {int: lambda: WEIGHT_BITS, str: named_settings}.get(type(self.weights), tuple)
        if self.weights not in known():
            hint = f"; a whole model can also be at {', '.join(named_settings(listed=True))}"
            _check("weight", self.weights, WEIGHT_BITS, hint)
        _check("activation", self.activations, ACTIVATION_BITS)


@dataclass(frozen=True)
class PrecisionPlan:
    """A default and rules that override it for the linear layers of the blocks; the width of the KV cache and
    rules that override it for blocks; and the width of the token embeddings and the output head, one tensor
    in many models. Hashable; `name` is a label and takes no part in it."""

    default: Bits = Bits()
    rules: tuple[tuple[str, Bits], ...] = ()
    kv: int = FULL
    name: str = ""
    embeddings: int | float = FULL
    kv_blocks: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for bits in (self.kv, *(bits for _, bits in self.kv_blocks)):
            _check("KV cache", bits, KV_BITS)
        _check("embedding", self.embeddings, (*EMBEDDING_BITS, *GRADED_WIDTHS))
        for name in ("rules", "kv_blocks"):
            rules = getattr(self, name)
            last = {pattern: position for position, (pattern, _) in enumerate(rules)}
            if len(last) < len(rules):  # of a pattern said twice the last counts; JSON holds only one
                object.__setattr__(self, name, tuple(rules[i] for i in sorted(last.values())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrecisionPlan) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple:
        return (self.default, self.rules, self.kv, self.embeddings, self.kv_blocks)

    @classmethod
    def full(cls) -> PrecisionPlan:
        """Every layer untouched."""
        return cls(name="full precision")

    @classmethod
    def uniform(
        cls, weights: Setting, activations: int = FULL, kv: int = FULL, embeddings: int | float = FULL
    ) -> PrecisionPlan:
        """The same setting and widths for every layer."""
        widths = {"A": activations, "KV": kv, "E": embeddings}
        said = [f"{letter}{bits}" for letter, bits in widths.items() if bits != FULL]
        if weights == FULL and not said:
            return cls.full()
        name = named_settings().get(weights, f"W{weights}") + "".join(said)
        return cls(Bits(weights, activations), (), kv, name, embeddings)

    @classmethod
    def of(
        cls,
        rules: Mapping[str, Bits | int],
        default: Bits | int = FULL,
        kv: int = FULL,
        name: str = "",
        embeddings: int | float = FULL,
        kv_blocks: Mapping[str, int] | None = None,
    ) -> PrecisionPlan:
        """From `{layer name or pattern: Bits or weight bits}`, and of the KV cache `{block name or pattern:
        bits}`; later entries win over earlier ones."""
        as_bits = {pattern: b if isinstance(b, Bits) else Bits(b) for pattern, b in rules.items()}
        default = default if isinstance(default, Bits) else Bits(default)
        return cls(default, tuple(as_bits.items()), kv, name, embeddings, tuple((kv_blocks or {}).items()))

    def with_cache(self, widths: Mapping[str, int]) -> PrecisionPlan:
        """The plan with these widths of the KV cache, by block: the commonest for all, and a rule for each
        block that has another."""
        kv = Counter(widths.values()).most_common(1)[0][0] if widths else FULL
        rules = tuple((block, bits) for block, bits in widths.items() if bits != kv)
        return replace(self, kv=kv, kv_blocks=rules)

    @property
    def rounds_cache(self) -> bool:
        """Whether keys and values of any block are rounded."""
        return any(bits != FULL for bits in (self.kv, *dict(self.kv_blocks).values()))

    def keeping(self, patterns: Iterable[str], bits: int = KEPT_BITS) -> PrecisionPlan:
        """The plan with the layers of these patterns at 8 bits at least: what "all at 4 bits" means for a
        model whose every answer hangs on a few small layers (`ModelLayout.vision_layers`). A plan that has
        rules, or that is a setting of the whole model, says itself what it means and stays as it is. The
        pattern EMBEDDINGS stands for what has the plan's width for embeddings, where it gives them none."""
        weights, activations = self.default.weights, self.default.activations
        if self.rules or isinstance(weights, str):
            return self
        kept, patterns = Bits(max(weights, bits), max(activations, bits)), tuple(patterns)
        if EMBEDDINGS in patterns and weights != FULL and self.embeddings == FULL:
            return replace(self, embeddings=bits, name=f"{self.name}E{bits}" if self.name else "")
        rules = tuple((pattern, kept) for pattern in patterns if pattern != EMBEDDINGS)
        if not rules or kept == self.default:
            return self
        return replace(self, rules=rules, name=f"{self.name}, vision {bits}" if self.name else "")

    def resolve(self, layers: Iterable[str]) -> dict[str, Bits]:
        """Bits of every layer, in the order given. A rule that fits no layer is an error: it is a typo or
        another model's."""
        return _resolved(self.default, self.rules, list(layers), "layer")

    def resolve_cache(self, blocks: Iterable[str]) -> dict[str, int]:
        """Width of the KV cache of every block that keeps one, in the order given; PlanError as `resolve`
        raises it."""
        return _resolved(self.kv, self.kv_blocks, list(blocks), "block")

    def key(self, layers: Iterable[str]) -> str:
        """Identity of the assignment on these layers: 64 hex digits, the same for every spelling of it."""
        resolved = self.resolve(layers)
        kv = self._cache_of(list(resolved)) if self.kv_blocks else self.kv
        identity = [kv, [[name, b.weights, b.activations] for name, b in resolved.items()]]
        if self.embeddings != FULL:
            identity.append(self.embeddings)  # plans that leave them alone keep the key they always had
        text = json.dumps(identity)
        return hashlib.sha256(text.encode()).hexdigest()

    def _cache_of(self, layers: list[str]) -> int | list[int]:
        """The width that the KV cache has in the block of each layer; one number where all are alike."""
        widths = dict.fromkeys(layers, self.kv)
        for pattern, bits in self.kv_blocks:
            inside = re.compile(translate(f"{pattern}.*")).match
            within = [name for name in layers if name.startswith(f"{pattern}.") or inside(name)]
            if not within:
                raise PlanError(f"the KV cache has no block {pattern!r} in this model")
            widths.update(dict.fromkeys(within, bits))
        return widths[layers[0]] if len(set(widths.values())) == 1 else list(widths.values())

    def to_json(self, model: str | None = None, note: str = "") -> str:
        """The plan as a file people can read; `model` records which model it was made for, `note` anything
        for its readers."""
        head: dict = {"format": FORMAT, "version": VERSION}
        head |= {name: text for name, text in (("name", self.name), ("model", model), ("note", note)) if text}
        head |= {"weights": self.default.weights, "activations": self.default.activations, "kv": self.kv}
        if self.kv_blocks:
            head["kv_blocks"] = dict(self.kv_blocks)
        head["embeddings"] = self.embeddings
        head["layers"] = {
            pattern: b.weights
            if b.activations == self.default.activations
            else {"weights": b.weights, "activations": b.activations}
            for pattern, b in self.rules
        }
        return json.dumps(head, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, model: str | tuple[str, ...] = ()) -> PrecisionPlan:
        """Read what `to_json` writes. `model`: the name, or names, of the model it is wanted for; a plan made
        for another is refused, but for one of another artifact of it ("name:artifact").

        Raises PlanError with a sentence for anything that is not such a plan."""
        if len(text) > MAX_BYTES:
            raise PlanError(f"this file is not a plan: a plan has at most {MAX_BYTES // 1000} kB")
        data = parse_json(text, "a plan", FORMAT, VERSION, PlanError, object_pairs_hook=_last_wins)
        unknown = set(data) - {
            "format",
            "version",
            "name",
            "model",
            "weights",
            "activations",
            "kv",
            "kv_blocks",
            "embeddings",
            "layers",
            "note",
        }
        if unknown:
            raise PlanError(f"unknown plan entries: {', '.join(sorted(map(repr, unknown)))}")
        made_for = data.get("model")
        if made_for is not None and not isinstance(made_for, str):
            raise PlanError(f'"model" must be a text; got {made_for!r:.100}')
        models = (model,) if isinstance(model, str) else model
        if models and made_for and not {made_for, made_for.partition(":")[0]} & set(models):
            raise PlanError(
                f"this plan was made for the model {made_for!r}; the one open here is {models[0]!r}"
            )
        rules, kv_blocks = data.get("layers", {}), data.get("kv_blocks", {})
        for entry, said, of in (("layers", rules, "layer"), ("kv_blocks", kv_blocks, "block")):
            if not isinstance(said, dict):
                raise PlanError(f'"{entry}" must be an object of {of} name or pattern to bits')
            if len(said) > MAX_RULES or any(len(pattern) > MAX_PATTERN for pattern in said):
                raise PlanError(
                    f'"{entry}" holds at most {MAX_RULES} rules of at most {MAX_PATTERN} characters'
                )
        default = Bits(data.get("weights", FULL), data.get("activations", FULL))
        name = data.get("name", "")
        if not isinstance(name, str) or len(name) > 200:
            raise PlanError('"name" must be a text of at most 200 characters')
        as_bits = {pattern: _rule(pattern, value, default) for pattern, value in rules.items()}
        kv, embeddings = data.get("kv", FULL), data.get("embeddings", FULL)
        return cls(default, tuple(as_bits.items()), kv, name, embeddings, tuple(kv_blocks.items()))

    @classmethod
    def load(cls, path: str | Path, model: str | tuple[str, ...] = ()) -> PrecisionPlan:
        """Read a plan file; PlanError names the file."""
        try:
            with Path(path).open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror}") from None
        except ValueError:
            raise PlanError(f"cannot read the plan {str(path)!r}: that is not the name of a file") from None
        try:
            return cls.from_json(text, model)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> PrecisionPlan:
        """From what a person types: `full`, `W4`, `W4A8`, `W4A8KV4E8`, `W5E5.5`, a setting like `nf4`, or the
        path of a plan file."""
        if text.lower() in ("full", "fp", "16"):
            return cls.full()
        if text.lower() in named_settings():
            return cls.uniform(text.lower())
        number = r"(\d{1,3})"
        whole = rf"w?{number}(?:a{number})?(?:kv{number})?"
        short = re.fullmatch(rf"{whole}(?:e{number}(\.5)?)?", text, re.IGNORECASE)
        if short:
            *widths, half = short.groups()
            *others, embeddings = (int(bits) if bits else FULL for bits in widths)
            return cls.uniform(*others, embeddings + 0.5 if half else embeddings)
        if not os.path.isfile(text) and re.fullmatch(r"\.?\d*", Path(text).suffix):
            words = ", ".join(named_settings(listed=True))
            choices = f"full, W4, W4A8, W4A8KV4E8, {words} or the path of a plan file (.json)"
            raise PlanError(f"{text!r:.100} is not a plan: give {choices}")
        return cls.load(text)

    def save(self, path: str | Path, model: str | None = None) -> None:
        """Write the file; it appears whole or not at all."""
        write_atomic(path, self.to_json(model))


def _last_wins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; an entry said twice stands where it was said last, as the last rule wins."""
    said: dict[str, object] = {}
    for key, value in pairs:
        said.pop(key, None)
        said[key] = value
    return said


def _rule(pattern: str, value: object, default: Bits) -> Bits:
    said = value if isinstance(value, dict) else {"weights": value}
    unknown = set(said) - {"weights", "activations"}
    if unknown:
        raise PlanError(f"layer {pattern!r}: unknown entries {', '.join(sorted(map(repr, unknown)))}")
    try:
        return Bits(said.get("weights", default.weights), said.get("activations", default.activations))
    except PlanError as error:
        raise PlanError(f"layer {pattern!r}: {error}") from None


def _resolved(default: object, rules: Iterable[tuple[str, object]], names: list[str], kind: str) -> dict:
    """What of these rules the last that fits says of each name; PlanError for a rule that fits none."""
    resolved = dict.fromkeys(names, default)
    for pattern, value in rules:
        if pattern in resolved:
            resolved[pattern] = value
            continue
        matching = list(filter(re.compile(translate(pattern)).match, names))
        if not matching:
            raise PlanError(_no_match(pattern, names, kind))
        resolved.update(dict.fromkeys(matching, value))
    return resolved


def _no_match(pattern: str, names: list[str], kind: str) -> str:
    close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.5)
    hint = (
        f"; did you mean {close[0]!r}?"
        if close
        else f"; its {kind}s are named like {names[0]!r}"
        if names
        else ""
    )
    what = "pattern" if any(c in pattern for c in "*?[") else kind
    where = "this model" if kind == "layer" else "the KV cache of this model"
    return f"{what} {pattern!r} is not in {where}{hint}"
