"""Equalizer: the bits of every layer as one fader per block, painted by dragging.

In:  `description`, what `describe(model)` returns (blocks, roles, layers, bits, sizes, prediction); `folded`,
     whether the map of the layers begins folded; `value`,
     a plan as JSON: {"w": [bits per layer], "a": [bits per layer], "kv": 16, "e": 16}, layers in the same
     order; "kv" is the width of the KV cache, or a list with one for each of the description's `kv_blocks`
     where they differ; "e" is the width of the token embeddings and the output head.
Out: the same dictionary, checked in `preprocess`, because what a browser sends is anybody's text. Wrong input
     raises gr.Error with a sentence that never repeats what came in (Gradio shows messages as HTML).
Events: `commit`, once per edit of the visitor, when the pointer or key is let go; never during a drag, and
     never for a value that came from Python. Give its listener `trigger_mode="always_last"` or `"multiple"`:
     with Gradio's default, "once", edits made while the handler runs are lost; and `show_progress="hidden"`,
     or the faders fade.

To show another model, return `Equalizer(description=..., value=...)` from a handler. The script,
equalizer.js, tells the other components of the page about every change through the DOM event `quept:predict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gradio.events import EventListener, Events

from app.components.widget import Widget
from app.toast import refusal

FULL = 16
PLAN_KEYS = ("w", "a", "kv", "e")


class PlanJsonError(ValueError):
    """A plan that does not fit the model; the message is a sentence for the visitor."""


def full_plan(description: Mapping[str, Any]) -> dict[str, Any]:
    """The plan JSON that leaves every layer of the described model untouched."""
    count = len(description["layers"])
    return {"w": [FULL] * count, "a": [FULL] * count, "kv": FULL, "e": FULL}


def check_plan(plan: object, description: Mapping[str, Any]) -> dict[str, Any]:
    """A fresh, complete plan JSON; "a", "kv" and "e" may be left out and mean 16.

    Raises PlanJsonError, which names layers, counts and allowed widths and never repeats text that was sent.
    """
    if not isinstance(plan, Mapping):
        raise PlanJsonError(
            'A plan is an object like {"w": [4, 4, ...], "kv": 16}. Move a fader to make one.'
        )
    if not set(plan) <= set(PLAN_KEYS):
        raise PlanJsonError('A plan has the keys "w", "a", "kv" and "e" and no others.')
    if "w" not in plan:
        raise PlanJsonError('This plan has no weight bits: give "w", one number for each layer.')
    full = full_plan(description)
    return {
        "w": _check_widths(plan["w"], "weight", _weight_bits(description), description),
        "a": _check_widths(
            plan.get("a", full["a"]), "activation", _activation_bits(description), description
        ),
        "kv": _check_cache(plan.get("kv", FULL), description),
        "e": _check_width(plan.get("e", FULL), "The embeddings", _embedding_bits(description)),
    }


def _weight_bits(description: Mapping[str, Any]) -> list[int]:
    return list(description["bits"])


def _activation_bits(description: Mapping[str, Any]) -> list[int]:
    return list(description.get("activation_bits") or [FULL])


def _kv_bits(description: Mapping[str, Any]) -> list[int]:
    return list(description.get("kv_bits") or [FULL])


def _embedding_bits(description: Mapping[str, Any]) -> list[int | float]:
    return list(description.get("embedding_bits") or [FULL])


def _check_widths(widths: object, kind: str, allowed: list[int], description: Mapping[str, Any]) -> list[int]:
    layers = description["layers"]
    if not isinstance(widths, list | tuple):
        raise PlanJsonError(f"The {kind} bits of a plan are a list with one number for each layer.")
    if len(widths) != len(layers):
        raise PlanJsonError(
            f"This plan gives {kind} bits for {len(widths):,} layers, but the model on this page has "
            f"{len(layers):,}. It belongs to another model: reload the page or choose a preset."
        )
    return [
        _check_width(width, f"Layer {layer['name']} ({kind})", allowed)
        for width, layer in zip(widths, layers, strict=True)
    ]


def _check_cache(widths: object, description: Mapping[str, Any]) -> int | list[int]:
    """One width, or a list of them where blocks differ."""
    allowed, blocks = _kv_bits(description), description.get("kv_blocks") or []
    if not isinstance(widths, list | tuple):
        return _check_width(widths, "The KV cache", allowed)
    if len(widths) != len(blocks):
        raise PlanJsonError(
            f"This plan gives KV bits for {len(widths):,} blocks, but the model on this page keeps keys and "
            f"values in {len(blocks):,}. It belongs to another model: reload the page or choose a preset."
        )
    names = (f"The KV cache of block {description['blocks'][block]}" for block in blocks)
    checked = [_check_width(bits, name, allowed) for bits, name in zip(widths, names, strict=True)]
    return checked if len(set(checked)) > 1 else checked[0] if checked else FULL


def _check_width(width: object, owner: str, allowed: list[int | float]) -> int | float:
    if (type(width), width) not in [(type(bits), bits) for bits in allowed]:
        shape = "as a whole number" if all(isinstance(bits, int) for bits in allowed) else "as one of these"
        said = f"not {width}" if isinstance(width, int) and abs(width) < 10**6 else shape
        raise PlanJsonError(f"{owner} can have {_listed(allowed)} bits, {said}.")
    return width


def _listed(numbers: list[int | float]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


class Equalizer(Widget):
    """Faders for the bits of every layer; see the module's docstring."""

    NAME = "equalizer"
    SCRIPTS = ("dom.js", "terms.js", "plan.js", "why.js", "locks.js", "picker.js")
    PROPS = ("description", "folded")  # of which an update may leave out any
    EVENTS: ClassVar[list] = [
        EventListener("commit", doc="Triggered once when the visitor has let go after changing bits."),
        Events.change,
    ]

    @property
    def described(self) -> dict[str, Any]:
        """The description this component was made with (for a visitor: since the last update)."""
        description = self.props.get("description")
        if description is None:
            raise ValueError("an Equalizer needs a description: Equalizer(description=describe(model))")
        return description

    def preprocess(self, payload: dict[str, Any] | None) -> dict[str, Any]:
        """The visitor's plan, checked; gr.Error with a sentence when it does not fit the model."""
        if payload is None or payload == "":
            return full_plan(self.described)
        try:
            return check_plan(payload, self.described)
        except PlanJsonError as error:
            raise refusal(error, title="Plan not understood") from None

    def postprocess(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """The plan to show, complete; PlanJsonError when it does not fit the description."""
        return full_plan(self.described) if value is None else check_plan(value, self.described)

    def api_info(self) -> dict[str, Any]:
        widths = {"type": "array", "items": {"type": "integer"}}
        return {
            "type": "object",
            "title": "plan",
            "description": "bits of every layer's weights (w) and activations (a), of the KV cache (kv; one "
            "number, or one for each block), and of the token embeddings and output head (e)",
            "properties": {
                "w": widths,
                "a": widths,
                "kv": {"anyOf": [{"type": "integer"}, widths]},
                "e": {"type": "integer"},
            },
            "required": ["w"],
        }

    def example_payload(self) -> dict[str, Any]:
        return full_plan(self.described)

    def example_value(self) -> dict[str, Any]:
        return full_plan(self.described)
