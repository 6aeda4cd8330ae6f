"""The recipe of a run: how it differs from a named recipe, and the command that trains the run again."""

from __future__ import annotations

import shlex
from typing import Any

from cnnlab.data.own import MEMORY
from cnnlab.models.own import is_own
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training.runs import Run

_OPTIONS = {"seed": "--seed", "epochs": "--epochs", "data": "--data", "batch_size": "--batch-size",
            "learning_rate": "--lr", "optimizer": "--optimizer"}  # fmt: skip
_FIXED = "digits"  # the recipe that the command starts from if the run's recipe has no known name, or is fitted
_FITTED = ("images", "finetune")  # to the images, unless a setting is given


def named_recipe(recipe: Recipe) -> Recipe | None:
    """Return the named recipe that `recipe` was derived from, or None."""
    return RECIPES.get(recipe.name.split(", ")[0])


def settings_table(recipe: Recipe) -> list[list[Any]]:
    """Return (setting, value, value in the named recipe) for each setting. Without a named recipe, both are equal."""
    base = (named_recipe(recipe) or recipe).to_dict()
    return [[key, value, base[key]] for key, value in recipe.to_dict().items() if key != "name"]


def command(run: Run) -> str:
    """Return the command that trains the run again, or "" if it used images, a network or augmentation from memory."""
    recipe = run.recipe
    if recipe.data.startswith(MEMORY) or run.augment or (is_own(recipe.model) and not run.builder):
        return ""
    origin = run.info.get("from") or {}
    if origin.get("kind") == "continued":
        return shlex.join(["cnnlab", "train", "--resume", origin["run"], "--epochs", str(recipe.epochs)])
    base = named_recipe(recipe)
    if base is None or base.name in _FITTED:
        base = RECIPES[_FIXED]
    words = ["cnnlab", "train", "--model", run.builder or recipe.model, "--recipe", base.name]
    if origin:
        words += ["--init-from", origin["run"]]
    was = base.to_dict()
    changed = {
        key: value for key, value in recipe.to_dict().items() if key not in ("name", "model") and value != was[key]
    }
    for key, option in _OPTIONS.items():
        if key in changed or key in ("data", "seed"):
            changed.pop(key, None)
            words += [option, _text(getattr(recipe, key))]
    for key, value in changed.items():
        words += ["--set", f"{key}={_text(value)}"]
    if run.info["data"].get("skip_bad"):
        words.append("--skip-bad")
    return shlex.join(words)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
