from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnlab.defaults import choose_recipe
from cnnlab.io.errors import CnnlabError
from cnnlab.recipe import SETTINGS, Recipe, recipe_json
from cnnlab.recipes import RECIPES
from cnnlab.training.optim import learning_rate

recipes = st.builds(
    Recipe,
    name=st.text(max_size=20),
    epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 4096),
    learning_rate=st.floats(0, 10),
    momentum=st.floats(0, 0.99),
    weight_decay=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "one-cycle"]),
    warmup=st.floats(0, 1),
    flip=st.booleans(),
    val_fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**31 - 1),
)


@given(recipes)
def test_a_json_round_trip_keeps_the_recipe(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(recipe_json(recipe))) == recipe


def test_recipes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_named_recipes_have_their_names(name: str) -> None:
    assert RECIPES[name].name == name


def test_only_the_manuals_recipes_evaluate_on_the_test_set() -> None:
    for name, recipe in RECIPES.items():
        # Kaggle holds back the labels of the competition, so there is no test set.
        assert (recipe.eval_split == "test") == (name.startswith("manual/") and recipe.data == "fashion-mnist")


def test_settings_are_parsed_by_their_types() -> None:
    r = Recipe().with_settings(
        ["epochs=3", "learning_rate=0.5", "momentum=.9", "nesterov=yes", "schedule=cosine", "batch-size=8"]
    )
    assert (r.epochs, r.learning_rate, r.momentum, r.nesterov, r.schedule, r.batch_size) == (
        3,
        0.5,
        0.9,
        True,
        "cosine",
        8,
    )


def test_changed_settings_appear_in_the_name() -> None:
    changed = RECIPES["manual/lenet"].with_settings(["epochs=3", "learning_rate=0.9", "seed=4"])
    assert changed.name == "manual/lenet, epochs=3"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epoch=3", "epochs"),
        ("lr=3", "learning_rate"),
        ("bs=3", "batch_size"),
        ("xyzzy=3", "alternating_flip, average"),
        ("epochs", "key=value"),
        ("epochs=three", "whole number"),
        ("epochs=1.5", "whole number"),
        ("epochs=0", "1 and 100000"),
        ("learning_rate=-1", "0 and 1000"),
        ("learning_rate=nan", "finite"),
        ("learning_rate=inf", "finite"),
        ("momentum=1", "0 and 0.9999"),
        ("flip=maybe", "true or false"),
        ("schedule=cosin", "constant, cosine, one-cycle"),
        ("val_fraction=0", "eval_split=test"),
        ("nesterov=true", "nesterov=false"),
        ("alternating_flip=true", "flip=true"),
        ("crop_scale=0", "0.01 and 1"),
    ],
)
def test_bad_settings_are_reported_with_a_remedy(setting: str, message: str) -> None:
    with pytest.raises(CnnlabError) as caught:
        Recipe().with_settings([setting])
    assert message in str(caught.value)
    assert setting.split("=")[0] in str(caught.value)


@given(
    st.sampled_from(sorted(SETTINGS)),
    st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.lists(st.integers())),
)
def test_any_value_is_accepted_or_refused_in_one_line(key: str, value: object) -> None:
    try:
        Recipe(**{key: value})  # type: ignore[arg-type]
    except CnnlabError as error:
        assert "\n" not in str(error)
        assert key in str(error)


def test_recipes_are_chosen_by_data_and_model() -> None:
    assert choose_recipe() is not None
    assert choose_recipe().name == "digits"
    assert choose_recipe(data="fashion-mnist").name == "fashion-mnist"
    folder = choose_recipe(data="folder:/x")
    assert (folder.name, folder.data) == ("images", "folder:/x")
    assert choose_recipe(data="folder:/x", model="lenet").name == "own, model=lenet"
    mixed = choose_recipe(model="lenet", data="digits", recipe="manual/lenet-bn", settings=["epochs=2"])
    assert mixed.name == "manual/lenet-bn, data=digits, model=lenet, epochs=2"
    same = choose_recipe(model="lenet-bn", data="fashion-mnist", recipe="manual/lenet-bn")
    assert same == RECIPES["manual/lenet-bn"]
    with pytest.raises(CnnlabError, match=r"'manual/lenett'.*manual/lenet\b"):
        choose_recipe(recipe="manual/lenett")
    with pytest.raises(CnnlabError, match="--data folder:PATH"):
        choose_recipe(recipe="images")


# The schedules, against their definitions


@given(recipes, st.integers(1, 5000))
def test_learning_rate_stays_between_zero_and_the_peak(recipe: Recipe, steps: int) -> None:
    for step in {0, steps // 3, steps // 2, steps - 1}:
        rate = learning_rate(recipe, step, steps)
        assert 0 <= rate <= recipe.learning_rate * (1 + 1e-12)


def test_schedules_match_their_formulas() -> None:
    r = Recipe(learning_rate=2.0)
    assert [learning_rate(r, s, 4) for s in range(4)] == [2.0] * 4
    r = Recipe(learning_rate=2.0, schedule="cosine")
    assert [round(learning_rate(r, s, 4), 12) for s in range(4)] == [
        round(1 + math.cos(math.pi * s / 4), 12) for s in range(4)
    ]
    r = Recipe(learning_rate=1.0, schedule="one-cycle", warmup=0.5)
    assert [learning_rate(r, s, 8) for s in range(8)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("key", ["epochs", "limit"])
def test_a_recipe_that_lacks_a_setting_is_refused(key: str) -> None:
    values = RECIPES["digits"].to_dict()
    del values[key]
    with pytest.raises(CnnlabError, match=rf"lacks.*\b{key}\b"):
        Recipe.from_dict(values)
