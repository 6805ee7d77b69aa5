"""Crops of photographs: what widths are compared on shows nothing that was learned from."""

import pytest
from PIL import Image

from quept.data.base import Wanted
from quept.data.photographs import KEPT_FROM, Photographs
from quept.models import load
from tests.tiny import save_tiny_vision


@pytest.mark.parametrize("count", [KEPT_FROM - 1, KEPT_FROM])
def test_of_enough_photographs_one_is_held_out(count, tmp_path):
    """Held out are grey ones, learned from are colored ones."""
    (tmp_path / "photographs").mkdir()
    for number in range(count):
        Image.new("RGB", (60, 60), "red" if number else "grey").save(tmp_path / f"photographs/{number}.png")
    loaded = load(save_tiny_vision("swin", tmp_path / "model"))
    data = Photographs(str(tmp_path / "photographs"), 8).read(loaded, Wanted(held_out=2), lambda *_: None)
    grey = [bool((x.amax(0) - x.amin(0)).max() < 0.1) for x in (*data.block_wise["x"], *data.held_out["x"])]
    assert grey[8:] == [True, count == KEPT_FROM] and (count < KEPT_FROM or not any(grey[:8]))
