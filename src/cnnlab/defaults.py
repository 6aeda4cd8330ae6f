"""The default recipe of each data source, and the settings that depend on the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cnnlab.io.errors import CnnlabError
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES, find_recipe

# Sources that share the default recipe of another kind.
_LIKE = {
    "folder": "images", "csv": "images", "hf": "images", "torchvision": "images", "memory": "images",
    "pack": "images", "wds": "images", "parquet": "images",
    "cifar10": "images", "cifar100": "images", "stl10": "images",
    "mnist": "fashion-mnist", "kmnist": "fashion-mnist", "emnist": "fashion-mnist", "svhn": "fashion-mnist",
}  # fmt: skip

_MANY = 2000  # above this many images, a tenth of them is enough for validation


def choose_recipe(
    *,
    model: str | None = None,
    data: str | None = None,
    recipe: str | None = None,
    settings: Sequence[str] = (),
) -> Recipe:
    """Return the named recipe, else the default for the source, with the other arguments applied.

    settings: `key=value` strings. Raise CnnlabError for an unknown name or a bad value.
    """
    source = data or "digits"
    kind = source.partition(":")[0]
    kind = _LIKE.get(kind, kind)
    default = {"store": "cifar/10min"}.get(kind, kind if kind in RECIPES else "digits")
    if model is not None and has_published_weights(model):
        default = "finetune"
    elif default == "images" and model not in (None, RECIPES["images"].model):
        default = "own"  # its optimizer suits most networks
    chosen = find_recipe(recipe or default)
    if recipe is None and default == "own":
        chosen = replace(chosen, val_fraction=RECIPES["images"].val_fraction)  # the default's, to make them comparable
    if recipe is None:
        chosen = replace(chosen, data=source)
    elif data is None and chosen.data.endswith(":PATH"):
        more = ", a competition's prepared images; see cnnlab kaggle" if chosen.data.startswith("store:") else ""
        raise CnnlabError(f"recipe {chosen.name!r} needs --data {chosen.data}{more}")
    elif data is not None and (chosen.data.endswith(":PATH") or chosen.name == "finetune"):
        chosen = replace(chosen, data=data)  # made for any such source: the name lists no change
    elif data is not None:
        chosen = chosen.changed(data=data)
    if model is not None:
        chosen = chosen.changed(model=model)
    return chosen.with_settings(settings)


def own_recipe(data: str) -> Recipe:
    """Return the recipe for a network of your own on `data`, with the source's image size and validation fraction."""
    usual = choose_recipe(data=data)
    return replace(RECIPES["own"], data=data, image_size=usual.image_size, val_fraction=usual.val_fraction)


def fitted_settings(recipe: Recipe, *, count: int, side: int, flip: bool, fast: bool, size: int = 0) -> dict[str, Any]:
    """Return the settings of a default recipe that depend on the images.

    count: training images. side: pixels a side. flip: see `may_flip`. fast: whether the device has hardware support for
    16 bits. size: the network's input size; 0: not chosen by the caller. The number of epochs falls with the square
    root of `count`: few images need more epochs, and with many images further epochs cost more than they gain.
    """
    held_out = {"val_fraction": 0.1} if count > _MANY else {}
    if recipe.name.startswith("finetune"):  # scale only the epochs of all layers; those of the head take seconds
        whole = min(20, max(3, round(600 / max(count, 1) ** 0.5)))
        return {"epochs": recipe.freeze_epochs + whole, **({} if flip else {"flip": False}), **held_out}
    batch_size = next((size for most, size in ((500, 16), (2500, 64), (20_000, 128)) if count <= most), 256)
    epochs = round((2800 if fast else 1000) / max(count, 1) ** 0.5)
    settings = {"epochs": min(60, max(10, epochs)), "batch_size": batch_size, **held_out}
    if not recipe.name.startswith("images"):  # the caller's network, which may accept a single input size
        return settings
    size = size or max(16, min(side, 48 if fast else 32))
    shift = {"start_size": round(0.7 * size) if size >= 16 else 0, "shift": size // 12}
    return {**settings, "image_size": size, **shift, "flip": flip}


def may_flip(data: str, *, grey: bool) -> bool:
    """Return whether images of the source may be mirrored. Grey ones may show characters; SVHN's, in colour, do."""
    return not grey and _LIKE.get(data.partition(":")[0]) != "fashion-mnist"


def has_generic_recipe(data: str) -> bool:
    """Return whether the source has no recipe of its own: `fitted_settings` then adapts the default to its images."""
    return _LIKE.get(data.partition(":")[0]) == "images"


def has_published_weights(model: str) -> bool:
    """Return whether the network's name has a tag of published weights: `published_tag` without importing torch."""
    library, colon, base = model.partition(":")
    return model == "efficientnet-lite0.in1k" or (library in ("timm", "torchvision") and bool(colon) and "." in base)
