"""Options: recipes, --set, and one clear line for every mistake."""

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from segue.errors import BadOption
from training.options import NeuralOptions, Options, check_options, read_options, shipped_recipes


def test_defaults_are_the_papers() -> None:
    options = NeuralOptions()
    assert (options.dimension, options.window, options.learning_rate) == (128, 20, 0.005)
    assert (options.negatives, options.alpha, options.beta, options.temperature) == (1000, 1.0, 0.5, 0.1)


def test_what_is_said_later_wins(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("epochs = 3\nalpha = 0.2\nbeta = 0.1\n")
    options = read_options(NeuralOptions, recipe, ["alpha=0.7", "objective=next-played", "skip_input=false"], beta=0.0)
    assert (options.epochs, options.alpha, options.beta) == (3, 0.7, 0.0)
    assert options.objective == "next-played"
    assert options.skip_input is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["epoch=3"], "unknown option 'epoch', use epochs: this model has alpha, batch_size, beta"),
        (["epochs=-1"], "option epochs = '-1': expected a number of at least 0"),
        (["epochs"], "--set 'epochs': expected key=value"),
        (["objective=last"], "option objective = 'last': expected 'next' or 'next-played'"),
        (["alpha=0", "beta=0"], "alpha and beta are both 0"),
        (["temperature=nan"], "temperature"),
        (["epochs=two"], "option epochs = 'two': expected a whole number$"),
        (["window=1.5"], r"option window = '1\.5': expected a whole number$"),
        (["alpha=much"], "option alpha = 'much': expected a number$"),
        (["log_q=perhaps"], "option log_q = 'perhaps': expected true or false$"),
        (["dropout=1"], "option dropout = '1': expected a number below 1$"),
        (["heads=2"], r"unknown option 'heads': .*; heads is an option of sasrec, bert4rec$"),
        (["decay=0.1"], r"unknown option 'decay', use .*; decay is an option of vmis-knn$"),
    ],
)
def test_a_wrong_option_is_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(BadOption, match=message) as caught:
        read_options(NeuralOptions, None, settings)
    assert "\n" not in str(caught.value)


def test_a_baseline_takes_no_option_of_an_encoder() -> None:
    with pytest.raises(BadOption, match="unknown option 'epochs': this model has seed, window"):
        read_options(Options, None, ["epochs=3"])


def test_a_missing_recipe_names_those_that_are_shipped() -> None:
    with pytest.raises(BadOption, match=r"no recipe 'nowhere': expected a TOML file or one of .*demo"):
        read_options(NeuralOptions, "nowhere", [])


def test_a_broken_recipe_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("epochs = = 3")
    with pytest.raises(BadOption, match="is not TOML"):
        read_options(NeuralOptions, tmp_path / "r.toml", [])


def test_every_option_says_what_it_means() -> None:
    for kind in (Options, NeuralOptions):
        for name, field in kind.model_fields.items():
            assert field.description, name


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_is_valid(recipe: str) -> None:
    pytest.importorskip("torch")
    from training.registry import MODELS

    tables = tomllib.loads((resources.files("training") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8"))
    assert tables
    for model in tables:
        read_options(MODELS[model].options, recipe, [], model)


def test_a_table_of_a_recipe_is_for_the_model_of_its_name(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[sasrec]\nepochs = 3\n[caser]\nepochs = 4\n")
    assert read_options(NeuralOptions, recipe, [], "sasrec").epochs == 3
    assert read_options(NeuralOptions, recipe, [], "caser").epochs == 4
    assert read_options(NeuralOptions, recipe, [], "gru4rec") == NeuralOptions()
    recipe.write_text("dropout = 0.1\n[sasrec]\nepochs = 3\n")
    with pytest.raises(BadOption, match="dropout is outside of its tables"):
        read_options(NeuralOptions, recipe, [], "sasrec")


def test_a_model_that_sees_no_skips_has_no_skip_loss() -> None:
    with pytest.raises(BadOption, match="plays=played removes the skips"):
        check_options(NeuralOptions, {"plays": "played"})
    assert check_options(NeuralOptions, {"plays": "played", "beta": 0}).plays == "played"
