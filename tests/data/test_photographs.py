"""Crops of photographs: what widths are compared on shows nothing that was learned from."""

import pytest
from PIL import Image

from quept.data.base import Wanted
from quept.data.photographs import KEPT_FROM, Photographs
from quept.models import load
from tests.tiny import save_tiny_vision


@pytest.mark.parametrize("count", [KEPT_FROM - 1, KEPT_FROM])
def test_held_out_are_whole_photographs_and_an_end_of_every_other_one(count, tmp_path):
    """Photographs are red with a blue end, and the first one, of enough, is grey."""
    (tmp_path / "photographs").mkdir()
    for number in range(count):
        picture = Image.new("RGB", (80, 60), "red")
        picture.paste("blue", (60, 0, 80, 60))
        if count == KEPT_FROM and number == 0:
            picture = Image.new("RGB", (60, 80), "grey")
        picture.save(tmp_path / f"photographs/{number}.png")
    loaded = load(save_tiny_vision("swin", tmp_path / "model"))
    wanted = Wanted(held_out=count)
    data = Photographs(str(tmp_path / "photographs"), 8).read(loaded, wanted, lambda *_: None)
    assert all(x[0].mean() > x[2].mean() for x in data.block_wise["x"])  # red, in other colors
    first, *others = data.held_out["x"]
    assert all(x[2].mean() > x[0].mean() for x in others)
    assert (first[2].mean() > first[0].mean()) == (count < KEPT_FROM)
