"""Recipes: read from files, checked entry by entry, nothing accepted and ignored."""

import pytest

from quept.config import Recipe, RecipeError
from quept.presets import RECIPES, recipes

SMALL = """
note = "n"
[text.sources]
squad-passages = 1
[adapters]
groups = [[5, 6, 7, 8], [3, 4], [2]]
steps = [0, 4, 4]
[clip.start]
2 = 1.0
[end_to_end]
steps = 3
batch = 1
context = 32
draws = [[2], [3, 4]]
adapter_rates = [0.0, 1e-3, 1e-3]
clip_rate = 0.02
"""


def read(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    return Recipe.load(tmp_path / "r.toml")


def test_a_recipe_reads_and_survives_json(tmp_path):
    recipe = read(tmp_path, SMALL)
    assert recipe.name == "r" and recipe.clip.start == {2: 1.0} and recipe.end_to_end.draws == ((2,), (3, 4))
    assert recipe.adapters.total == 8 and recipe.block_wise is None
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_that_comes_along_is_sound(name):
    recipe = Recipe.load(name)
    assert recipe.name == name and recipe.note and (RECIPES / f"{name}.toml").is_file()


def test_a_built_in_model_may_leave_its_name_out():
    assert Recipe.load("weight-only", "smollm2-135m") == Recipe.load("smollm2-weight-only")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("steps = 3", "stepps = 3", "unknown entry end_to_end.stepps; there are steps, batch"),
        ('note = "n"', 'note = "n"\nmystery = 1', "unknown entry mystery; there are name, note"),
        ("steps = 3", "", "entry end_to_end.steps is missing"),
        ("steps = 3", "steps = 0", "steps must be 1 or more"),
        ("steps = 3", "steps = true", "end_to_end.steps cannot be True"),
        ("steps = 3", 'steps = "3"', "end_to_end.steps cannot be '3'"),
        ("[3, 4]]\nadapter", "[3, 4, 9]]\nadapter", "draws \\[9\\], in no bit group"),
        (
            "groups = [[5, 6, 7, 8], [3, 4], [2]]",
            "groups = [[5, 6, 7, 8], [3], [2]]",
            "draws \\[4\\], in no bit group",
        ),
        ("groups = [[5, 6, 7, 8], [3, 4], [2]]", "groups = [[3, 4], [5, 6], [2]]", "from high widths to low"),
        ("steps = [0, 4, 4]", "steps = [0, 4]", "as many rank steps as bit groups"),
        ("2 = 1.0", "8 = 1.0", "clips widths of the bit groups below 8"),
        ("2 = 1.0", "two = 1.0", "'two', which is not a width"),
        ("adapter_rates = [0.0, 1e-3, 1e-3]", "adapter_rates = [1e-3]", "one rate for each bit group"),
        ("squad-passages = 1", "squad-passages = -1", "shares above 0"),
        (
            "[end_to_end]",
            '[[transforms]]\nkind = "spin"\n[end_to_end]',
            "have the kinds norms, rotation, scaling",
        ),
        (
            "[end_to_end]",
            '[[transforms]]\nkind = "scaling"\n[end_to_end]',
            "scaling entry of transforms is damaged: bits: it is missing",
        ),
        ("squad-passages = 1", "", "at least one text"),
        ("[end_to_end]", "[end_to_end", "is not a recipe"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, old, new, told):
    assert old in SMALL
    with pytest.raises(RecipeError, match=f"r.toml.*{told}"):
        read(tmp_path, SMALL.replace(old, new, 1))


def test_a_recipe_without_a_stage_or_of_another_name_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="one of the two is needed"):
        read(tmp_path, SMALL[: SMALL.index("[end_to_end]")])
    with pytest.raises(RecipeError, match="no recipe 'nothing': give .*smollm2-weight-only"):
        Recipe.load("nothing")
