"""Recipes: what may stand in one, and what is said of what may not."""

import pytest

from sam_edge.commands.workshop.recipe import read_recipe
from sam_edge.errors import RecipeError


def write(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_the_packaged_recipe_reads():
    assert read_recipe(None, {}).model == "nano"


def test_what_is_not_given_keeps_its_default_and_overrides_win(tmp_path):
    recipe = read_recipe(write(tmp_path, 'images = "a"\n[compress]\nratio = 0.25\n'), {"images": "b", "seed": 3})
    slim = recipe.compress
    assert (recipe.images, recipe.seed, slim.prune.ratio, slim.distil.batch_size) == ("b", 3, 0.25, 4)


def test_tables_hold_the_steps_own_options_and_every_step_has_the_seed(tmp_path):
    text = "seed = 5\n[compress]\nimportance = 'taylor'\nimportance_images = 3\nepochs = 2\nlearning_rate = 1\n"
    recipe = read_recipe(write(tmp_path, text + "[quantize]\nmetric = 'mse'\n[engine]\ntargets = []\n"), {})
    slim = recipe.compress
    assert (slim.prune.importance, slim.importance.images, slim.distil.epochs) == ("taylor", 3, 2)
    assert (slim.distil.learning_rate, recipe.quantize.metric, recipe.engine.targets) == (1.0, "mse", ())
    assert {slim.prune.seed, slim.distil.seed, recipe.quantize.seed} == {5}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("modle = 'nano'", "unknown entry 'modle'"),
        ("[compress]\nratioo = 1", "unknown entry 'ratioo'"),
        ("[compress]\nimages = 3", "unknown entry 'images'; allowed: .*importance_images"),
        ("[compress]\nratio = 'half'", "ratio must be float"),
        ("[compress]\nranking = 'best'", "ranking must be one of local, global, got 'best'"),
        ("[quantize]\nseed = 3", "unknown entry 'seed'"),
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
