"""A plan as a link: the equaliser's plan JSON <-> the query of a URL.

Plan JSON is `{"w": [bits per layer], "a": [bits per layer], "kv": 16, "e": 16}`; the query is `m` (the
model), `w`, and, where not all is 16, `a`, `kv` (the KV cache) and `e` (token embeddings and output head).
`w` and `a` hold one 3-bit index into (2, 3, 4, 5, 6, 7, 8, 16) per layer, in plan order, most significant bit
first, zero bits up to a whole byte, in base64url without padding: 210 layers are 106 characters. Where blocks
have a KV cache of different widths, "kv" is a list, and `k` holds it likewise in place of `kv`.

The page's script writes the same (`linkOf` in components/plan.js) and adds `p`, the page. A link comes from a
stranger: `decode` returns plan JSON that fits the description, None when the query holds no plan, and raises
`LinkError`, a sentence for the visitor, for anything else.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from quept.engines import GRADED_WIDTHS

CLASSIFY = "classify"  # `p`, the page in a link
ASK = "ask"
BITS = (2, 3, 4, 5, 6, 7, 8, 16)
_WORDS = {"w": "weight bits", "a": "activation bits", "k": "KV bits"}
# One width each, not one per layer: what it is of, and the description's name for the widths there are.
_SINGLE = {"kv": ("the KV cache", "kv_bits"), "e": ("the embeddings", "embedding_bits")}


class LinkError(ValueError):
    """A link that holds no valid plan; the message is a sentence for the visitor."""


def encode(plan_json: Mapping[str, Any], model: str = "") -> dict[str, str]:
    """The query parameters of `plan_json`; `model` becomes `m`, so that a link says which model it is for."""
    weights, activations = list(plan_json["w"]), list(plan_json.get("a") or ())
    if activations and len(activations) != len(weights):
        raise LinkError(f"the plan has {len(weights)} weight widths but {len(activations)} activation widths")
    query = {"m": model} if model else {}
    query["w"] = _pack(weights, "w")
    if any(bits != 16 for bits in activations):
        query["a"] = _pack(activations, "a")
    for key, (where, _) in _SINGLE.items():
        bits = plan_json.get(key, 16)
        if key == "kv" and isinstance(bits, list | tuple):
            query["k"] = _pack(bits, "k")
            continue
        if bits not in (*BITS, *(GRADED_WIDTHS if key == "e" else ())):
            raise LinkError(f"{_shown(bits)} is not a width for {where}; choose one of {_listed(BITS)}")
        if bits != 16:
            query[key] = str(bits)
    return query


def decode(params: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plan JSON in `params`, checked against `description` (the model's); None when it holds no plan.

    Raises LinkError for a link of another model, for a damaged one, and for a width the model does not offer.
    """
    given = {key: params[key] for key in ("m", "w", "a", "k", *_SINGLE) if key in params}
    for key, text in given.items():
        if not isinstance(text, str):
            raise LinkError(f"the link's '{key}' is not text; copy the whole link again")
    model = description["model"]
    if given.get("m", model) != model:
        raise LinkError(
            f"this link is for the model {_shown(given['m'])}, but this page has {_shown(model)} open; "
            "ask for a link made with this model, or start the app with that one"
        )
    if not given.keys() & {"w", "a", "k", *_SINGLE}:
        return None
    if "w" not in given:
        raise LinkError(
            "the link is incomplete: its weight bits ('w=…') are missing; copy the whole link again"
        )
    layers = len(description["layers"])
    plan_json = {"w": _unpack(given["w"], layers, "w", description["bits"]), "a": [16] * layers}
    if "a" in given:
        plan_json["a"] = _unpack(given["a"], layers, "a", description["activation_bits"])
    for key, (where, bits_of) in _SINGLE.items():
        offered = {str(bits): bits for bits in description.get(bits_of) or [16]}
        if key in given and given[key] not in offered:
            raise LinkError(
                f"the link asks for {_shown(given[key])} bits in {where}; "
                f"this model offers {_listed(offered)}"
            )
        plan_json[key] = offered[given[key]] if key in given else 16
    blocks = len(description.get("kv_blocks") or ())
    if "k" in given and not blocks:
        raise LinkError("the link asks for KV bits of single blocks, and this model keeps no keys and values")
    if "k" in given:
        widths = _unpack(given["k"], blocks, "k", description["kv_bits"])
        plan_json["kv"] = widths if len(set(widths)) > 1 else widths[0]
    return plan_json


def _pack(widths: Sequence[int], key: str) -> str:
    number = 0
    for bits in widths:
        if bits not in BITS:
            raise LinkError(f"{_shown(bits)} is not a width for {_WORDS[key]}; choose one of {_listed(BITS)}")
        number = number << 3 | BITS.index(bits)
    size = (3 * len(widths) + 7) // 8
    data = (number << 8 * size - 3 * len(widths)).to_bytes(size, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _unpack(text: str, layers: int, key: str, offered: Sequence[int]) -> list[int]:
    words, again = _WORDS[key], "copy the whole link again"
    odd = re.search(r"[^A-Za-z0-9_-]", text)
    if odd:
        raise LinkError(f"the link's {words} hold the character {odd[0]!a}, which no link has; {again}")
    size = (3 * layers + 7) // 8
    wanted = (4 * size + 2) // 3
    if len(text) != wanted:
        wrong = "too long" if len(text) > wanted else "cut short"
        raise LinkError(
            f"the link's {words} are {wrong}: {len(text)} characters, "
            f"where {layers} {'blocks' if key == 'k' else 'layers'} take {wanted}; {again}"
        )
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    number = int.from_bytes(data, "big") >> 8 * size - 3 * layers
    widths = [BITS[number >> 3 * (layers - 1 - i) & 7] for i in range(layers)]
    if _pack(widths, key) != text:  # bits beyond the last layer: not written by `encode`
        raise LinkError(f"the last character of the link's {words} was altered; {again}")
    for bits in widths:
        if bits not in offered:
            raise LinkError(f"the link asks for {bits} {words}; this model offers {_listed(offered)}")
    return widths


def _shown(value: Any) -> str:
    text = str(value)
    return f"'{text if len(text) <= 40 else text[:40] + '…'}'"


def _listed(widths: Any) -> str:
    return ", ".join(str(bits) for bits in widths)
