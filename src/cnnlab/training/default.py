"""The default recipe for images of your own: what it takes from the images and the device."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import torch

from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.data.survey import survey
from cnnlab.device.hardware import has_bfloat16, has_float16
from cnnlab.io.text import plural
from cnnlab.recipe import Recipe
from cnnlab.recipes import fitted


def fitted_recipe(
    recipe: Recipe, given: Container[str], options: SourceOptions, device: torch.device, own: ImageSet | None = None
) -> tuple[Recipe, list[str]]:
    """Return `recipe` with the settings that depend on its images, and a line that says what was chosen and why.

    given: settings that the caller has set, which stay. own: images in place of the source's. The name stays, since
    this is what the recipe says. Raise CnnlabError if the images cannot be found.
    """
    images = survey(recipe.data, options, own)
    fast = has_bfloat16(device) or has_float16(device)
    chosen = fitted(recipe, count=images.count, side=images.side, grey=images.grey, fast=fast)
    chosen = {key: value for key, value in chosen.items() if key not in given}
    if not chosen:
        return recipe, []
    line = (
        f"chosen for {images.count:,} {images.kind} images of {images.side} pixels, "
        f"{plural(images.classes, 'class')}, on {device.type}: {recipe.model}, "
        f"{', '.join(f'{key}={value}' for key, value in chosen.items())}; --model and --set change it"
    )
    return replace(recipe, **chosen), [line]
