"""How far two tables of one model agree is counted over layers, or over blocks where one was measured so."""

from dataclasses import replace

import pytest

from quept.allocate.sensitivity.agreement import agreement, rank_correlation
from quept.models.families import FAMILIES
from quept.models.layout import Block, ModelLayout
from tests.allocate.test_table import table

LAYERS = {"0.q": 0.1, "0.up": 0.2, "1.q": 0.3, "1.up": 0.4}
BLOCKS = [Block(b, {r: f"{b}.{r}" for r in ("q", "up")}, "language") for b in "01"]
LAYOUT = ModelLayout(next(iter(FAMILIES)), tuple(BLOCKS), "", "", "")


def costing(costs, **changes):
    return table(layers={name: {3: cost} for name, cost in costs.items()}, **changes)


def test_the_order_and_the_shares_are_compared_and_not_the_level():
    found = agreement(costing(LAYERS), costing({name: 5 * cost for name, cost in LAYERS.items()}), LAYOUT)
    assert found.correlation == 1 and all(ratio == pytest.approx(1) for _, ratio in found.apart)
    turned = agreement(costing(LAYERS), costing(LAYERS | {"0.q": 4.0}), LAYOUT)
    assert turned.of == "layers" and turned.correlation < 1 and turned.apart[0][0] == "0.q"
    assert turned.apart[0][1] == pytest.approx(40)
    words = turned.describe()
    assert "correlation of -0.20 (1" in words and "differ most on 0.q (40 times as much)" in words


def test_a_table_measured_per_block_is_compared_by_blocks():
    other = replace(costing({"0.q": 0.9, "0.up": 0.9, "1.q": 0.1, "1.up": 0.1}), per="block")
    found = agreement(costing(LAYERS), other, LAYOUT)
    assert (
        found.of == "blocks"
        and found.correlation == -1
        and dict(found.apart)["0"] > 1 > dict(found.apart)["1"]
    )


def test_ranks_are_spearmans():
    assert rank_correlation([1, 2, 3, 4], [1, 20, 3, 400]) == pytest.approx(0.8)
