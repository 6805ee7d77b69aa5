"""The recipes for models of 7B parameters run: every stage and transform of theirs, on a Llama of the same
shape made 32 times narrower, with streams that are kept on disk."""

import pytest
import torch

from quept.calibrate import calibrate
from quept.config import Recipe
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny, token_ids

SHAPE = {  # Llama-2-7B's, a 32nd
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
SMALLER = {
    "block_wise": {"sequences": 2, "context": 32, "epochs": 1, "memory": 1000},
    "end_to_end": {"steps": 2, "context": 32},
    "routing": {"sequences": 2, "epochs": 1, "hidden": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quept-7b-weight-only", "quept-7b-weight-act", "mobiquant-7b"])
def test_a_recipe_for_7b_models_runs_on_their_shape(name, tmp_path):
    folder = save_tiny("llama-untied", tmp_path / "model", **SHAPE)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    settings = Recipe.load(name).to_dict()
    for stage, changes in SMALLER.items():
        if settings.get(stage):
            settings[stage] |= changes
    settings["adapters"]["steps"] = [min(4, step) for step in settings["adapters"]["steps"]]
    settings["held_out"] = 2
    recipe = Recipe.from_dict(settings).at({str(tmp_path / "text.txt"): 1}, "--text")
    made = calibrate(folder, recipe, tmp_path / "run", device="cpu")
    assert made.manifest.recipe["name"] == name
    opened = ElasticModel.open(tmp_path / "run", device="cpu", dtype=torch.float32)
    logits = opened.view(PrecisionPlan.uniform(4))(input_ids=token_ids(), use_cache=False).logits
    assert logits.isfinite().all()
