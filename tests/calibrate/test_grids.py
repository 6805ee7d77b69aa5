"""Grids are chosen by what the answers suffer."""

import torch

from quept.calibrate.grids import chosen_ends, min_max
from quept.calibrate.observe import observe, static_ends
from quept.config import Static
from quept.models import load
from tests.tiny import pictures, save_tiny_vision


def test_the_chosen_grids_are_never_worse_than_a_proposal_where_they_were_chosen(tmp_path):
    loaded = load(save_tiny_vision("dinov2", tmp_path / "vit"))
    settings = Static((4, 8), (0.9, 0.99, 1.0), 8)
    batches = [{"x": pictures("dinov2", 8)}]
    model, layout = loaded.model.float(), loaded.layout
    ends, measured = chosen_ends(model, layout, batches, settings, "auto", lambda *_: None)
    assert set(ends) == set(layout.layers) and all(set(found) <= {4, 8} for found in ends.values())
    proposed = {"min-max", "squared error", "percentile 0.9", "percentile 0.99", "dynamic"}
    for kl in measured.values():
        assert set(kl) == proposed | {"chosen"} and kl["chosen"] == min(kl.values())


def test_min_max_reaches_to_every_token_and_not_to_a_sample(tmp_path):
    loaded = load(save_tiny_vision("dinov2", tmp_path / "vit"))
    model, x = loaded.model.float(), pictures("dinov2", 4)
    seen = observe(model, loaded.layout.layers, [{"x": x}], tokens=1)
    name = loaded.layout.layers[0]
    given = []
    model.get_submodule(name).register_forward_hook(lambda _, args, __: given.append(args[0]))
    with torch.no_grad():
        model(x)
    wanted = torch.stack(given[0].aminmax())
    assert torch.allclose(seen[name].ends[:, 0], wanted) and len(seen[name].inputs) == 1
    assert torch.equal(static_ends(seen, (4,), (1.0,))[name][4], seen[name].ends)
    engine = min_max(loaded, Static((4,), (1.0,), 4), "auto", {"x": x}, torch.device("cpu"))
    assert set(engine.static(name)) == {4}
