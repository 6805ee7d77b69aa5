"""Each weight's point on the grid is chosen for what the layer gives."""

from dataclasses import replace

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from quept.artifact import Artifact
from quept.calibrate import calibrate
from quept.calibrate.comparison import helps
from quept.calibrate.in_turn import chosen_in_turn
from quept.calibrate.ranges import searched_factors
from quept.calibrate.residual import owed, scale_of
from quept.calibrate.rounding import second_nearest, seen_by_layers
from quept.config import Recipe
from quept.engines.quept import LayerParameters, Quept
from quept.models import load
from quept.numerics import quantize
from quept.numerics.adapters import RankSchedule
from quept.numerics.grid import Rounding
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.models.test_convolutional import X, save_tiny_cnn
from tests.tiny import pictures, save_tiny_vision

NO_RANKS = RankSchedule(((8, 7, 6, 5, 4, 3, 2),), (0,))


def seen(columns=48, rows=400):
    """Inputs that hang together and are not around zero, as behind an activation."""
    draw = torch.Generator().manual_seed(0)
    few = torch.randn(rows, 8, generator=draw) @ torch.randn(8, columns, generator=draw)
    return (few + 0.3 * torch.randn(rows, columns, generator=draw)).relu()


@pytest.mark.parametrize("bits", range(2, 9))
def test_what_a_layer_gives_suffers_less_than_by_rounding_to_nearest(bits):
    x, w = seen(), torch.randn(20, 48, generator=torch.Generator().manual_seed(1))
    second = second_nearest(Rounding(w, bits, 16), x.T @ x / len(x))
    near, chosen = (quantize(w, bits, 16, second=s)[1] for s in (None, second))
    errors = [((x @ (values - w).T) ** 2).mean() for values in (near, chosen)]
    assert errors[1] < 0.5 * errors[0] and 0 < second.float().mean() < 0.5


def test_where_inputs_have_nothing_to_do_with_each_other_every_weight_stays():
    w = torch.randn(20, 48, generator=torch.Generator().manual_seed(1))
    assert not second_nearest(Rounding(w, 4, 16, None, 0.9, 0.9), torch.eye(48)).any()
    assert not second_nearest(Rounding(w, 4, 16), torch.zeros(48, 48)).any()


def test_searched_ends_of_ranges_lose_less_where_columns_count(bits=3):
    w = torch.randn(20, 42, generator=torch.Generator().manual_seed(1)) ** 3
    counts = torch.rand(42, generator=torch.Generator().manual_seed(2)) ** 4
    factors = searched_factors(w, bits, 16, counts)
    assert factors.shape == (2, 20, 3) and 0 < factors.min() < factors.max() <= 1
    whole, cut = ((quantize(w, bits, 16, *f)[1] - w) for f in ((1.0, 1.0), factors[..., None]))
    whole, cut = ((error.square() * counts).sum(1) for error in (whole, cut))
    assert (cut <= whole).all() and cut.sum() < 0.9 * whole.sum()


@pytest.mark.parametrize("family", ["vit", "swin", "dinov2"])
def test_layers_that_are_rounded_in_turn_undo_what_rounding_did_before(family, tmp_path):
    """On other pictures than those that were looked at."""
    loaded = load(save_tiny_vision(family, tmp_path / "model"))
    model, layout, empty = loaded.model.float(), loaded.layout, torch.zeros(0, 0)
    x = pictures(family, 24)
    shown = [{"x": part} for part in x[:16].split(8)]
    bare = {name: LayerParameters(NO_RANKS, empty, empty, {}, ()) for name in layout.layers}
    chosen = chosen_in_turn(model, layout, bare, 3, "auto", shown, seen_by_layers(model, layout, shown, 0))
    assert all(layer.widths == (3,) and set(layer.second) == {3} for layer in chosen.values())
    full, errors = model(x[16:]), []
    for layers in (bare, chosen):
        artifact = Artifact.rtn(loaded, "auto")
        artifact = replace(artifact, engine=Quept("auto", layers))
        elastic = ElasticModel(loaded, artifact, dtype=torch.float32, device="cpu")
        with torch.no_grad():
            errors.append((elastic.view(PrecisionPlan.uniform(3))(x[16:]) - full).square().mean())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_the_residual_stream_is_nearer_where_layers_that_add_to_it_make_good_what_it_lost(
    family, tmp_path, monkeypatch
):
    """Behind the last block, on pictures that were looked at; on others not farther, with so few."""
    loaded = load(save_tiny_vision(family, tmp_path / "model"))
    model, layout, empty = loaded.model.float(), loaded.layout, torch.zeros(0, 0)
    x = pictures(family, 48)
    shown = [{"x": part} for part in x[:32].split(8)]
    seen = seen_by_layers(model, layout, shown, 0)
    bare = {name: LayerParameters(NO_RANKS, empty, empty, {}, ()) for name in layout.layers}
    full, errors = model.forward_features(x), []
    for _ in range(2):
        layers = chosen_in_turn(model, layout, bare, 3, "auto", shown, seen)
        artifact = replace(Artifact.rtn(loaded, "auto"), engine=Quept("auto", layers))
        view = ElasticModel(loaded, artifact, dtype=torch.float32, device="cpu").view(
            PrecisionPlan.uniform(3)
        )
        with torch.no_grad():
            errors.append((view.forward_features(x) - full).square().mean((1, 2)))
        monkeypatch.setattr("quept.calibrate.in_turn.scale_of", lambda *streams: None)
    compensated, plain = errors
    assert compensated[:32].mean() < 0.95 * plain[:32].mean()
    assert compensated[32:].mean() < 1.05 * plain[32:].mean()


def test_layers_undo_what_rounding_of_activations_did_before_them(tmp_path):
    """On pictures that were looked at."""
    loaded = load(save_tiny_vision("dinov2", tmp_path / "model"))
    model, layout, empty = loaded.model.float(), loaded.layout, torch.zeros(0, 0)
    x = pictures("dinov2", 32)
    shown = [{"x": part} for part in x.split(8)]
    seen = seen_by_layers(model, layout, shown, 0)
    bare = {name: LayerParameters(NO_RANKS, empty, empty, {}, ()) for name in layout.layers}
    full, errors = model.forward_features(x), []
    for activations in (16, 4):
        layers = chosen_in_turn(model, layout, bare, 4, "auto", shown, seen, activations=activations)
        artifact = replace(Artifact.rtn(loaded, "auto"), engine=Quept("auto", layers))
        elastic = ElasticModel(loaded, artifact, dtype=torch.float32, device="cpu")
        with torch.no_grad():
            view = elastic.view(PrecisionPlan.uniform(4, 4))
            errors.append((view.forward_features(x) - full).square().mean())
    assert errors[1] < 0.9 * errors[0]


def test_a_layer_wins_back_what_the_stream_lost_before_it(bits=4):
    x, draw = seen(), torch.Generator().manual_seed(1)
    w, scale = torch.randn(20, 48, generator=draw), torch.rand(20, generator=draw)
    scale[0] = 0  # a channel to which nothing is added
    stream = torch.randn(len(x), 20, generator=draw)
    lossy = stream + 0.1 * x @ torch.randn(48, 20, generator=draw)
    assert torch.allclose(scale_of(stream, x @ w.T, stream + scale * (x @ w.T)), scale, atol=1e-4)
    assert scale_of(stream, x @ w.T, torch.nn.functional.layer_norm(stream + x @ w.T, (20,))) is None
    pull = owed(lossy, stream, scale).T @ x
    errors = []
    for lost in (torch.zeros_like(pull), pull):
        second = second_nearest(Rounding(w, bits, 16), x.T @ x, lost)
        values = quantize(w, bits, 16, second=second)[1]
        errors.append((lossy + scale * (x @ values.T) - stream - scale * (x @ w.T)).square().mean(0))
    assert (errors[1] <= 1.01 * errors[0]).all() and errors[1].sum() < 0.9 * errors[0].sum()


def test_layers_win_back_what_the_convolutions_lose_that_are_none(tmp_path):
    """On other pictures than those that were looked at."""
    save_tiny_cnn("test_efficientnet", tmp_path / "cnn")
    loaded = load(tmp_path / "cnn")
    model, layout, empty = loaded.model.float(), loaded.layout, torch.zeros(0, 0)
    x = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    shown = [{"x": part} for part in x[:24].split(8)]
    seen = seen_by_layers(model, layout, shown, 0)
    bare = {name: LayerParameters(NO_RANKS, empty, empty, {}, ()) for name in layout.layers}
    full, errors = model(x[24:]), []
    for known in ((), layout.other_convolutions):
        told = replace(layout, other_convolutions=known)
        layers = chosen_in_turn(model, told, bare, 8, "auto", shown, seen)
        artifact = replace(Artifact.rtn(loaded, "auto"), engine=Quept("auto", layers))
        elastic = ElasticModel(loaded, artifact, dtype=torch.float32, device="cpu")
        with torch.no_grad():
            view = elastic.view(PrecisionPlan.uniform(8, embeddings=8))
            errors.append((view(x[24:]) - full).square().mean())
    assert errors[1] < 0.9 * errors[0]


def test_an_artifact_holds_the_choice_as_a_bit_for_each_weight():
    w, second = torch.randn(6, 42), torch.rand(6, 42) < 0.3
    empty = torch.zeros(0, 0)
    layer = LayerParameters(NO_RANKS, empty, empty, {}, ()).choosing(4, second)
    assert layer.nbytes == 6 * 6
    assert torch.equal(layer.quantize(w, 4, 16)[1], quantize(w, 4, 16, second=second)[1])
    assert torch.equal(layer.without(4).quantize(w, 4, 16)[1], quantize(w, 4, 16)[1])
    assert torch.equal(layer.quantize(w, 5, 16)[1], quantize(w, 5, 16)[1])


def test_of_the_last_block_the_class_token_alone_counts(tmp_path):
    loaded = load(save_tiny_vision("vit", tmp_path / "vit"))
    seen = seen_by_layers(loaded.model.float(), loaded.layout, [{"x": pictures("vit", 4)}], 0)
    first, *_, last = (name for name in loaded.layout.layers if name.endswith("fc2"))
    ranks = [int(torch.linalg.matrix_rank(seen[name].moments, rtol=1e-4)) for name in (first, last)]
    assert ranks[0] > 4 >= ranks[1]


def test_a_width_keeps_chosen_rounding_where_ithelps(tmp_path):
    recipe = {
        "name": "tiny", "note": "for tests", "held_out": 8,
        "data": {"kind": "photographs", "source": str(tmp_path / "data"), "count": 16},
        "adapters": {"groups": [[8], [5], [4], [3]], "steps": [0, 0, 0, 0]},
        "rounding": {"widths": [3, 4, 8], "images": 16},
    }  # fmt: skip
    (tmp_path / "data").mkdir()
    for number, x in enumerate(X.sigmoid()):
        to_pil_image(x).save(tmp_path / "data" / f"{number}.png")
    save_tiny_cnn("test_efficientnet", tmp_path / "cnn")
    made = calibrate(tmp_path / "cnn", Recipe.from_dict(recipe), tmp_path / "out", device="cpu")
    quality, learned = made.manifest.quality, made.engine.learned
    rows = {bits: quality[f"W{bits}E8"] for bits in (3, 4, 8)}
    kept = {bits for bits, row in rows.items() if row["kl"] < row["kl_rtn"]}
    assert {3, 4} <= kept and all(set(layer.second) == kept for layer in learned.values())
    again = Artifact.open(tmp_path / "out").engine.learned
    for name, layer in learned.items():
        assert all(torch.equal(marks, again[name].second[bits]) for bits, marks in layer.second.items())
    name, short = made.manifest.layers[0], {4: torch.zeros(1, 1, dtype=torch.uint8)}
    odd = replace(made.engine, learned={name: replace(learned[name], second=short)})
    assert "its choices of rounding are not" in odd.misfit(name, 8, 16)


def test_a_choice_is_judged_by_each_picture_and_never_against_the_average():
    before = torch.ones(40)
    before[0] = 40.0  # near a tie of two answers
    better, worse = before * 0.9, before * 0.9
    better[0], worse[0] = 42.0, 45.0
    assert helps(better, before, 1.0) and not helps(worse, before, 1.0)
    by_chance = before * torch.tensor([0.9, 1.08]).repeat(20)
    assert by_chance.mean() < before.mean() and not helps(by_chance, before, 1.0)
    assert helps(before * 0.999, before, 0.0)
