"""What the browser sends besides plans, as pydantic models: anybody's JSON, so all of it is checked here.

A request that is not of its form is answered with NOT_UNDERSTOOD: no page of ours sends one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quept.checked import AnyWidth
from quept.export import EXPORTERS
from quept.plan import ACTIVATION_BITS, FULL

AS_WEIGHTS = "as weights"
NOT_UNDERSTOOD = "This request was not understood: reload the page"


LONGEST, LARGEST_FILE = 300, 200_000  # characters of a pattern, and of a file of constraints
Limits = Annotated[dict[Annotated[str, Field(max_length=LONGEST)], AnyWidth], Field(max_length=1000)]
Widths = Annotated[list[int], Field(max_length=16)]
AnyWidths = Annotated[list[AnyWidth], Field(max_length=16)]


class BudgetRequest(BaseModel):
    """A budget and what limits it; see components/budget.py. budget: bytes, or text that says one; None: no
    budget is asked for. table: the name of the sensitivities to place bits by, "" for those that predictions
    read. pins: (number of a layer or -1 for the embeddings, the bits it keeps). pin, floor, ceiling, widths,
    embeddings, kv: as the command line's options. file: the text of a file of constraints, to be read.
    target: the format whose files the budget counts, "" for packed weights in memory."""

    model_config = ConfigDict(strict=True, frozen=True)

    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | str | None = None
    ties: Literal["none", "qkv", "block"] = "none"
    activations: Literal[ACTIVATION_BITS] | Literal["as weights"] = FULL
    full_embeddings: bool = False
    pins: list[Annotated[list[int | float], Field(min_length=2, max_length=2)]] = []
    pin: Limits = {}
    floor: Limits = {}
    ceiling: Limits = {}
    widths: Widths | None = None
    embeddings: AnyWidths | None = None
    kv: Widths | None = None
    table: str = ""
    file: Annotated[str, Field(max_length=LARGEST_FILE)] = ""
    turn: int = 0
    target: Literal["", *EXPORTERS] = ""

    @classmethod
    def read(cls, sent: Mapping[str, Any]) -> Self:
        """Returns the request; ValueError with a sentence for the visitor."""
        try:
            return cls.model_validate(dict(sent))
        except ValidationError:
            raise ValueError(NOT_UNDERSTOOD) from None
