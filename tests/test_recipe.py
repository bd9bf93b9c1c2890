"""Recipes: what may stand in one, and what is said of what may not."""

import pytest

from sam_edge.errors import RecipeError
from sam_edge.recipe import read_recipe


def write(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_the_packaged_recipe_reads():
    assert read_recipe(None, {}).model == "nano"


def test_what_is_not_given_keeps_its_default_and_overrides_win(tmp_path):
    recipe = read_recipe(write(tmp_path, 'images = "a"\n[compress]\nratio = 0.25\n'), {"images": "b", "seed": 3})
    assert (recipe.images, recipe.seed, recipe.compress.ratio, recipe.compress.batch_size) == ("b", 3, 0.25, 4)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("modle = 'nano'", "unknown entry 'modle'"),
        ("[compress]\nratioo = 1", "unknown entry 'ratioo'"),
        ("[compress]\nratio = 'half'", "ratio must be float"),
        ("compress = 3", "must be a table"),
        ("[engine]\ntargets = 'sm89'", "list of strings"),
        ("seed = true", "seed must be int"),
        ("= =", "not TOML"),
        pytest.param("a = " + "1" * 5000, "not TOML", id="a number without end"),
        pytest.param("a = " + "[" * 100_000, "not TOML", id="nested without end"),
    ],
)
def test_what_a_recipe_does_not_have_is_refused(tmp_path, text, hint):
    with pytest.raises(RecipeError, match=hint):
        read_recipe(write(tmp_path, text), {})


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml", {})
