"""Find the recipe, network and images that a call asks for."""

from __future__ import annotations

from typing import Any

from cnnlab.data.own import MEMORY, OwnImages, own_images
from cnnlab.defaults import choose_recipe, has_generic_recipe, own_recipe
from cnnlab.io.errors import CnnlabError
from cnnlab.models import MODELS
from cnnlab.models.own import Network, is_own, own_name
from cnnlab.recipe import Recipe


def choose(
    recipe: Recipe | str | Network | None, model: str | Network | None, data: Any, settings: dict[str, Any]
) -> tuple[Recipe, Network | None, OwnImages | None, frozenset[str] | None]:
    """Return the recipe with the settings applied, the caller's own network and images if any, and the given settings.

    The last value: the names of the settings that the caller gave, if the recipe is a default that is fitted to the
    images; else None.
    """
    if not isinstance(recipe, Recipe | str | None):
        if model is not None:
            raise CnnlabError(f"model= names a second network beside {own_name(recipe)}; leave it out")
        recipe, model = None, recipe
    network, model = (None, model) if isinstance(model, str | None) else (model, None)
    images = None if isinstance(data, str | None) else own_images(data)
    names: dict[str, Any] = {
        "model": own_name(network) if network is not None else model,
        "data": images.name if images else data,
    }
    changes = {key: value for key, value in names.items() if value is not None}
    given = None
    if recipe is None:  # the default one is for these data
        source = str(changes.pop("data", "digits"))
        given = frozenset((*changes, *settings)) if has_generic_recipe(source) else None
        if network is not None:
            recipe = own_recipe(source)
        else:
            changes.pop("model", None)
            recipe = choose_recipe(data=source, model=model)
    elif isinstance(recipe, str):
        if recipe in MODELS:
            raise CnnlabError(f"{recipe} is a network, not a recipe; pass it as model={recipe!r}")
        if recipe in ("images", "finetune"):
            given = frozenset(("recipe", *changes, *settings))
        recipe = choose_recipe(recipe=recipe, data=changes.pop("data", None))
    recipe = recipe.changed(**changes, **settings)
    if network is None and is_own(recipe.model) and model is None:
        raise CnnlabError(f"recipe {recipe.name!r} trains a network of your own, {recipe.model}: pass it as model=...")
    if images is None and recipe.data.startswith(MEMORY):
        raise CnnlabError(f"recipe {recipe.name!r} trains on images of your own, {recipe.data}: pass them as data=...")
    return recipe, network, images, given
