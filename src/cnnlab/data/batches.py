"""The batches of a data source as a network sees them in training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.data import data_folder, load_images
from cnnlab.data.augment import Augmentation
from cnnlab.data.expected import options_for, preprocessing_for
from cnnlab.data.imageset import ImageSet
from cnnlab.data.loader import Loader
from cnnlab.data.own import own_images
from cnnlab.data.own_augment import Augment, OwnAugmentation
from cnnlab.data.splits import load_splits
from cnnlab.data.survey import fitted_recipe
from cnnlab.defaults import choose_recipe, has_generic_recipe
from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.recipe import Recipe


class SplitLoader:
    """The batches of one split: images (B, C, H, W) float32 and labels (B,) int64.

    Each iteration over the train split is another epoch, in a new order and with new augmentation. If the recipe mixes
    or weights images, the labels are (B, K), see `Loader.shuffled`. classes: K names; preprocessing: converts uint8
    images to the network's input.
    """

    def __init__(self, loader: Loader, classes: list[str], seed: int | None) -> None:
        self.classes = classes
        self.preprocessing = loader.preprocessing
        self._loader, self._seed, self._epoch = loader, seed, 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._seed is None:
            return iter(self._loader)
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._loader.shuffled(self._seed, epoch)


def loader(
    data: Any = "digits",
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    augment: Augment | None = None,
    **settings: Any,
) -> SplitLoader:
    """Return the batches that a network sees in training, on the CPU.

    data: a data source, for its default recipe; a recipe; or your own images, see `train`. split: train (shuffled and
    augmented as in training), validation or test (in order). data_dir: folder of the datasets. skip_bad: skip damaged
    images. augment: your own augmentation, see `train`. settings: settings of the recipe, such as batch_size=128. Raise
    CnnlabError if the settings are invalid, or the images cannot be read.
    """
    own = None if isinstance(data, Recipe | str) else own_images(data)
    recipe = data if isinstance(data, Recipe) else choose_recipe(data=own.name if own else data)
    recipe = recipe.changed(**settings)
    if split not in ("train", "validation", "test"):
        raise unknown("split", split, ("train", "validation", "test"))
    if split == "validation" and recipe.eval_split != "validation":
        raise CnnlabError(f"eval_split={recipe.eval_split}: no images are held out for validation")
    options = options_for(recipe, data_folder(data_dir), skip_bad=skip_bad)
    if not isinstance(data, Recipe) and has_generic_recipe(recipe.data):
        kept = {**settings, "recipe": "images", "image_size": 0}  # the images keep their size, whatever the network
        recipe, _ = fitted_recipe(recipe, kept, options, torch.device("cpu"), own.train if own else None)
        options = options_for(recipe, data_folder(data_dir), skip_bad=skip_bad)
    train_set, eval_set = load_splits(recipe, options, own)
    images: ImageSet | None = eval_set
    if split == "test" and recipe.eval_split != "test":
        images = None if own else load_images(recipe.data, "test", options.like(train_set))
    if images is None:
        raise CnnlabError(f"{recipe.data} has no test set; choose split=validation")
    preprocessing = preprocessing_for(recipe, train_set)
    if split == "train":
        batches = Loader(
            train_set,
            preprocessing,
            recipe.batch_size,
            torch.device("cpu"),
            augmentation=Augmentation.of(recipe),
            balance=recipe.balance,
            own=OwnAugmentation(augment) if augment is not None else None,
        )
        return SplitLoader(batches, train_set.classes, recipe.seed)
    return SplitLoader(Loader(images, preprocessing, recipe.batch_size, torch.device("cpu")), images.classes, seed=None)
