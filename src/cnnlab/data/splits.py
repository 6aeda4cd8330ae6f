"""Which images to train on and which to evaluate on."""

from __future__ import annotations

from collections.abc import Callable

from cnnlab.data import SourceOptions, load_images, stratified_split, stratified_subset
from cnnlab.data.imageset import ImageSet
from cnnlab.data.own import MEMORY, OwnImages
from cnnlab.io.errors import CnnlabError
from cnnlab.recipe import Recipe


def load_splits(recipe: Recipe, options: SourceOptions, own: OwnImages | None = None) -> tuple[ImageSet, ImageSet]:
    """Return the images to train on and those to evaluate on, by `eval_split`, `val_fraction` and `limit`.

    own: images in place of the source `recipe.data`. The test set is read only for `eval_split=test`. Raise CnnlabError
    if the source lacks the split.
    """
    if own is None:
        train_set, eval_set = _whole_splits(recipe, lambda split: load_images(recipe.data, split, options))
    else:
        train_set, eval_set = _whole_splits(recipe, {recipe.eval_split: own.held_out, "train": own.train}.get)
    return limited(train_set, recipe), limited(eval_set, recipe)


def limited(images: ImageSet, recipe: Recipe) -> ImageSet:
    """Return at most `recipe.limit` images, or all for 0: the same share of each class, drawn by `split_seed`."""
    if recipe.limit == 0 or len(images) <= recipe.limit:
        return images
    index = stratified_subset(images.labels, recipe.limit, recipe.split_seed)
    return images.take(index)


def _whole_splits(recipe: Recipe, load: Callable[[str], ImageSet | None]) -> tuple[ImageSet, ImageSet]:
    train_set = load("train")
    assert train_set is not None
    if recipe.eval_split == "test":
        test_set = load("test")
        if test_set is None:
            pair = ", or pass data=(train, test)" if recipe.data.startswith(MEMORY) else ""
            raise CnnlabError(f"{recipe.data} has no test set; set eval_split=validation and a val_fraction{pair}")
        return train_set, test_set
    if recipe.eval_split == "train":
        # Enough to see whether the training works, and few enough to cost little of an epoch.
        return train_set, train_set.take(stratified_subset(train_set.labels, 5000, recipe.split_seed))
    own = load("validation")
    if own is not None:
        return train_set, own
    train_index, held_out = stratified_split(train_set.labels, recipe.val_fraction, recipe.split_seed)
    if len(held_out) == 0:
        raise CnnlabError(f"{recipe.data} has one image per class: none can be held out for validation; add images")
    return train_set.take(train_index), train_set.take(held_out)
