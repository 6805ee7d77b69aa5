"""A kind of data is one class and one entry in a table; recipes of before the table mean what they meant."""

import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

from quept.calibrate import calibrate
from quept.config import Recipe, RecipeError
from quept.data import SOURCES, Data, DataSource
from quept.presets import RECIPES, recipes
from quept.report.recipe import as_toml
from quept.zoo.catalogue import ASSETS
from tests.tiny import save_tiny

MANIFESTS = sorted(ASSETS.glob("*/*/manifest.json"))


@dataclass(frozen=True)
class Counting(DataSource):
    """A toy: the tokens 0, 1, 2, ... from a number on."""

    noun, models, sized = "numbers", ("language",), True
    first: int

    def shared(self):
        return self

    def identity(self):
        return []

    def describe(self):
        return f"numbers from {self.first}"

    def read(self, loaded, wanted, report):
        def ids(count: int) -> dict:
            row = (self.first + torch.arange(wanted.context)) % loaded.model.config.vocab_size
            return {"input_ids": row.repeat(count, 1)}

        return Data(ids(wanted.block_wise), ids(wanted.end_to_end), ids(wanted.held_out))


def test_a_new_kind_of_data_is_one_class_and_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "counting", Counting)
    settings = Recipe.load("tiny").to_dict() | {"data": {"kind": "counting", "first": 3}}
    recipe = Recipe.from_dict(settings)
    assert recipe.data == Counting(3) and Recipe.from_dict(recipe.to_dict()) == recipe
    made = calibrate(save_tiny("llama", tmp_path / "m"), recipe, tmp_path / "out", device="cpu")
    assert made.manifest.provenance["counting"] == "numbers from 3"
    assert tomllib.loads(as_toml(made.manifest.recipe))["data"] == {"kind": "counting", "first": 3}


@pytest.mark.parametrize("name", recipes())
def test_recipes_read_back_as_they_were_written(name):
    recipe = Recipe.load(name)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.relative_to(ASSETS).as_posix())
def test_the_recipe_in_a_shipped_manifest_opens_with_its_data(path):
    stored = json.loads(path.read_bytes())["recipe"]
    recipe = Recipe.from_dict(stored)
    data = stored.get(recipe.kind) or {key: value for key, value in stored["data"].items() if key != "kind"}
    assert asdict(recipe.data) == data and recipe.end_to_end.steps == stored["end_to_end"]["steps"]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_recipe_file_of_before_means_the_same(kind, tmp_path):
    new = next(path for path in sorted(RECIPES.glob("*.toml")) if Recipe.load(path).kind == kind)
    old = new.read_text().replace(f'[data]\nkind = "{kind}"\n', f"[{kind}]\n").replace("[data.", f"[{kind}.")
    assert "data]" not in old.split("[adapters]")[0]
    Path(tmp_path / new.name).write_text(old)
    assert Recipe.load(tmp_path / new.name) == Recipe.load(new)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "sound"}, "data must be a table with a kind: text, images, pairs"),
        ("text", "data must be a table"),
        ({"kind": ["text"]}, "data must be a table"),
        ({"kind": "images", "source": "x"}, "entry data.count is missing"),
        ({"kind": "images", "source": "x", "count": 0}, "data.count must be 1 or more"),
        ({"kind": "text", "sources": {"x": -1}}, "data.sources needs shares above 0"),
    ],
)
def test_data_that_make_no_sense_are_refused_in_words(data, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.from_dict(Recipe.load("tiny").to_dict() | {"data": data})


def test_scaling_is_searched_on_text_and_refused_on_pictures():
    settings = Recipe.load("vit-min-max").to_dict()
    scaling = next(s for s in Recipe.load("smollm2-weight-only").transforms if s["kind"] == "scaling")
    with pytest.raises(RecipeError, match="scaling are not for pictures"):
        Recipe.from_dict(settings | {"transforms": [scaling]})
