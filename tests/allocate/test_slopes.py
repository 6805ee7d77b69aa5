"""What an option would change at a plan is the derivative on the way to it, and steps keep to the budget."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from quept.allocate.search.on_data import DataMeter
from quept.allocate.search.race import MeasurementLog
from quept.allocate.search.slopes import Descent, has_slopes, slopes
from quept.allocate.search.space import Space, stand_in
from quept.allocate.solve.constraints import Constraints
from quept.data.images import save_images
from quept.evaluate import ImageTask
from quept.models.clone import clone
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny_vision

CONSTRAINTS = Constraints(widths=(3, 4, 5), embeddings=(8,))


@pytest.fixture(scope="module")
def meter(tmp_path_factory) -> DataMeter:
    folder = save_tiny_vision("vit", tmp_path_factory.mktemp("seeing") / "tiny-vit")
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 16, 16), dtype=torch.uint8, generator=noise)
    save_images(folder / "images.safetensors", "noise", pixels, torch.arange(12) % 10)
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    budget = elastic.sizes.deploy(PrecisionPlan.uniform(4, embeddings=8))
    space = Space.of(elastic, stand_in(elastic.sizes), CONSTRAINTS, budget)
    task = ImageTask(elastic, folder / "references")
    return DataMeter(elastic, task, space, MeasurementLog(None, elastic), PrecisionPlan.full(), nullcontext)


def found_at(meter, picks):
    return slopes(meter.elastic, meter.space, picks, meter.losses)


def test_the_slope_is_the_derivative_of_kl_on_the_way_to_the_option(meter):
    elastic, space, step = meter.elastic, meter.space, 1e-2
    picks = space.uniform(4, 8)
    view, name = elastic.view(space.plan(picks)), space.units[2].layers[0]
    here, there, layer = elastic.values(name, 4), elastic.values(name, 3), view.get_submodule(name)

    def at(share: float) -> float:
        moved = layer.bound(here + share * (there - here), layer.bits)
        with torch.no_grad():
            return sum(loss.item() for loss in meter.losses(clone(view, {name: moved})))

    slope = (at(step) - at(-step)) / (2 * step)
    assert found_at(meter, picks).first[space.offsets[2]] == pytest.approx(slope, rel=0.02)
    assert at(0.0) == pytest.approx(meter.kl(picks, 0))


def test_only_neighbours_are_known_and_staying_costs_nothing(meter):
    space = meter.space
    picks = space.uniform(3, 8)
    found, layers = found_at(meter, picks), space.offsets[:-1]
    assert (found.first[picks] == 0).all() and (found.second[picks] == 0).all()
    assert np.isfinite(found.second[layers + 1]).all() and np.isinf(found.second[layers + 2]).all()


def test_steps_fit_the_budget_and_differ_from_what_was_seen(meter):
    space, seen = meter.space, set()
    best = space.uniform(3, 8)
    descent = Descent(space, lambda picks: found_at(meter, picks))
    while (picks := descent.step(best, lambda picks: picks.tobytes() in seen)) is not None:
        assert space.fits(picks) and picks.tobytes() not in seen and abs(picks - best).max() <= 1
        seen.add(picks.tobytes())
    assert seen


def test_no_gradient_flows_where_inputs_are_rounded(meter):
    assert has_slopes(meter.elastic, meter.search, PrecisionPlan.uniform(4, embeddings=8))
    assert not has_slopes(meter.elastic, meter.search, PrecisionPlan.parse("W4A8"))
