"""Which images to train on and which to evaluate on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cnnlab.data import CSV, SourceOptions, load_images, stratified_split, stratified_subset
from cnnlab.data.grouping import Grouping, deal, group_names, grouping_of, share_difference, stratified_folds
from cnnlab.data.imageset import ImageSet
from cnnlab.data.own import MEMORY, OwnImages
from cnnlab.io.csv import first, quoted
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import escape, plural
from cnnlab.recipe import Recipe


@dataclass(frozen=True)
class Pool:
    """The images of a source before they are divided.

    train: the training images; validation images are held out of them unless the source has its own, `evaluated`.
    grouping: the groups of `train`.
    """

    train: ImageSet
    evaluated: ImageSet | None
    grouping: Grouping | None


@dataclass(frozen=True)
class Splits:
    """The images to train on and those to evaluate on.

    notes: how they were divided, for the first lines of a training. info: the folds and groups, for run.json.
    """

    train: ImageSet
    evaluated: ImageSet
    notes: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)


def load_splits(recipe: Recipe, options: SourceOptions, own: OwnImages | None = None) -> tuple[ImageSet, ImageSet]:
    """Return the images to train on and those to evaluate on. Arguments and errors: see `load_pool` and `divide`."""
    splits = divide(load_pool(recipe, options, own), recipe)
    return splits.train, splits.evaluated


def load_pool(recipe: Recipe, options: SourceOptions, own: OwnImages | None = None) -> Pool:
    """Return the images of `recipe.data`, or `own` in their place, and their groups.

    The test set is read only for `eval_split=test`. Raise CnnlabError if the source lacks the split, has
    validation images in spite of `folds`, or has an image without a group.
    """
    separate = recipe.eval_split != "train"
    if own is not None:
        train_set, evaluated = own.train, own.held_out if separate else None
    else:
        loaded = load_images(recipe.data, "train", options)
        if loaded is None:
            raise CnnlabError(f"{recipe.data} has no training images")
        train_set = loaded
        evaluated = load_images(recipe.data, recipe.eval_split, options.like(train_set)) if separate else None
    if recipe.eval_split == "test" and evaluated is None:
        pair = ", or pass data=(train, test)" if recipe.data.startswith(MEMORY) else ""
        raise CnnlabError(f"{recipe.data} has no test set; set eval_split=validation and a val_fraction{pair}")
    if recipe.folds and evaluated is not None:
        raise CnnlabError(
            f"folds={recipe.folds}: {recipe.data} has validation images of its own; "
            + ("set columns=split=" if recipe.data.startswith(CSV) else "put them among the training images")
            + ", or folds=0"
        )
    drawn = recipe.eval_split == "validation" and evaluated is None
    grouping = grouping_of(train_set, recipe.group, recipe.group_duplicates and drawn, options.report)
    return Pool(train_set, evaluated, grouping)


def divide(pool: Pool, recipe: Recipe) -> Splits:
    """Divide the images as `eval_split`, `val_fraction`, `fold` and `limit` say. Hold out whole groups.

    With `overfit` both parts are the same images. Raise CnnlabError if nothing can be held out, or if a class has
    images to evaluate on, but none to train on.
    """
    if recipe.overfit:
        splits = _drop_zero_weights(Splits(pool.train, pool.train))
        few = few_batches(limited(splits.train, recipe), recipe)
        return replace(splits, train=few, evaluated=few)
    if pool.evaluated is not None:
        _check_classes(pool.train, pool.evaluated, recipe)
        splits = Splits(pool.train, pool.evaluated, _leaks(pool, recipe))
    elif recipe.eval_split == "train":
        # Enough to see whether the training works, and few enough to cost little of an epoch.
        some = stratified_subset(pool.train.labels, 5000, recipe.split_seed)
        splits = Splits(pool.train, pool.train.take(some))
    elif recipe.folds:
        splits = _fold(pool, recipe)
    else:
        splits = _held_out(pool, recipe)
    splits = _drop_zero_weights(splits)
    return replace(splits, train=limited(splits.train, recipe), evaluated=limited(splits.evaluated, recipe))


def _drop_zero_weights(splits: Splits) -> Splits:
    """Leave the images of weight 0 out of the training. Raise CnnlabError if no others are left."""
    weights = splits.train.weights
    if weights is None or bool((weights > 0).all()):
        return splits
    index = (weights > 0).nonzero().flatten()
    if len(index) == 0:
        raise CnnlabError("every training image has weight 0; give those to train on a weight above 0")
    note = f"weights: {plural(len(weights) - len(index), 'training image')} of weight 0 left out"
    return replace(splits, train=splits.train.take(index), notes=(*splits.notes, note))


def limited(images: ImageSet, recipe: Recipe) -> ImageSet:
    """Return at most `recipe.limit` images, or all for 0: the same share of each class, drawn with `split_seed`."""
    if recipe.limit == 0 or len(images) <= recipe.limit:
        return images
    index = stratified_subset(images.labels, recipe.limit, recipe.split_seed)
    return images.take(index)


def few_batches(images: ImageSet, recipe: Recipe) -> ImageSet:
    """Return the images of `overfit` batches, the same share of each class. Raise CnnlabError if there are too few."""
    batches = math.ceil(len(images) / recipe.batch_size)
    if recipe.overfit > batches:
        raise CnnlabError(
            f"overfit={recipe.overfit}: {len(images):,} images make {plural(batches, 'batch')} of "
            f"{recipe.batch_size}; set overfit={batches}, or a smaller batch_size"
        )
    return images.take(stratified_subset(images.labels, recipe.overfit * recipe.batch_size, recipe.split_seed))


def _held_out(pool: Pool, recipe: Recipe) -> Splits:
    """Hold out `val_fraction` of the images."""
    images, grouping = pool.train, pool.grouping
    if grouping is None:
        train_index, held_out = stratified_split(images.labels, recipe.val_fraction, recipe.split_seed)
        if len(held_out) == 0:
            raise CnnlabError(f"{recipe.data} has one image per class: none can be held out for validation; add images")
        return Splits(images.take(train_index), images.take(held_out))
    shares = [1 - recipe.val_fraction, recipe.val_fraction]
    part = deal(images.labels, grouping.units, shares, recipe.split_seed)
    return _divided(images, grouping, part == 1, "validation", {})


def fold_of(pool: Pool, recipe: Recipe) -> Tensor:
    """Return the fold that evaluates on each of the N images of `pool`: (N,) int64 in 1..folds.

    Raise CnnlabError for more folds than groups, and for a class of one image or of one group.
    """
    images, grouping, folds = pool.train, pool.grouping, recipe.folds
    units = torch.arange(len(images)) if grouping is None else grouping.units
    what, number = ("image", len(images)) if grouping is None else ("group", grouping.count)
    if folds > number:
        raise CnnlabError(f"folds={folds} exceeds the {plural(number, what)}; choose fewer folds")
    each, why = _units_of_classes(images, units), f"a single {what}"
    if 1 not in each:
        if grouping is None:
            return stratified_folds(images.labels, folds, recipe.split_seed) + 1
        fold = deal(images.labels, units, [1 / folds] * folds, recipe.split_seed) + 1
        each, why = _units_of_classes(images, fold), "all its groups in one fold"
        if 1 not in each:
            return fold
    raise CnnlabError(
        f"folds={folds}: class {quoted(images.classes[each.index(1)])} has {why}, so a network would be evaluated on a "
        "class that it never saw; add images, or remove the class"
    )


def _fold(pool: Pool, recipe: Recipe) -> Splits:
    if not recipe.fold:
        raise CnnlabError(
            f"folds={recipe.folds} without a fold: --folds {recipe.folds} or cnnlab.train_folds trains all; fold=1 to "
            f"{recipe.folds} is one"
        )
    fold = fold_of(pool, recipe)
    info = {"folds": recipe.folds, "fold": recipe.fold}
    what = f"fold {recipe.fold} of {recipe.folds}"
    if pool.grouping is not None:
        return _divided(pool.train, pool.grouping, fold == recipe.fold, what, info)
    held_out = fold == recipe.fold
    train, evaluated = (pool.train.take(part.nonzero().flatten()) for part in (~held_out, held_out))
    return Splits(train, evaluated, (f"{what}: {plural(len(evaluated), 'image')} held out",), info)


def _divided(images: ImageSet, grouping: Grouping, held_out: Tensor, what: str, info: dict[str, Any]) -> Splits:
    """Divide `images` by the mask `held_out` (N,). what: for the note. Raise CnnlabError if it is empty."""
    if not held_out.any():
        example = f"; the group of {quoted(images.ids[0])} is {quoted(grouping.names[0])}" if grouping.by else ""
        raise CnnlabError(
            f"no image can be held out for validation: by {grouping.by or 'near duplicates'}, all images of a "
            f"class are in one group{example}; set group to smaller groups, or group=none"
        )
    train, evaluated = (images.take(part.nonzero().flatten()) for part in (~held_out, held_out))
    difference = share_difference(images.labels, evaluated.labels)
    counts = [len(grouping.units[part].unique()) for part in (held_out, torch.ones_like(held_out))]
    info = {**info, "by": grouping.by or "near duplicates", "groups": counts[1], "held_out": counts[0],
            "class_shares_within": difference, "tied": grouping.tied}  # fmt: skip
    points = math.ceil(1000 * difference) / 10
    within = f"class shares within {points:g} {'point' if points == 1 else 'points'}"
    duplicates = f"near duplicates on one side: {grouping.tied:,} of {plural(len(images), 'image')}"
    if grouping.by:
        what = f"{what} by group: {counts[0]:,} of {plural(counts[1], 'group')} ({grouping.by})"
        duplicates = duplicates if grouping.tied else ""
    notes = [f"{what}, {within}", *filter(None, [duplicates])]
    missing = [name for k, name in enumerate(images.classes) if not (evaluated.labels == k).any()]
    if missing:
        one = _units_of_classes(images, grouping.units)
        single = [name for name in missing if one[images.classes.index(name)] == 1]
        why = ": all its images are of one group" if single else ""
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        notes.append(f"warning: no image of class {escape((single or missing)[0])}{more} is held out{why}")
    return Splits(train, evaluated, tuple(notes), info)


def _units_of_classes(images: ImageSet, units: Tensor) -> list[int]:
    """Return, for each of the K classes, the number of units that have images of it."""
    pairs = torch.stack([images.labels, units]).unique(dim=1)
    return torch.bincount(pairs[0], minlength=len(images.classes)).tolist()


def _check_classes(train: ImageSet, evaluated: ImageSet, recipe: Recipe) -> None:
    """Raise CnnlabError for a class that has images to evaluate on, but none to train on."""
    counts = [torch.bincount(images.labels, minlength=len(train.classes)).tolist() for images in (train, evaluated)]
    only = [k for k, (n, m) in enumerate(zip(*counts, strict=True)) if m and not n]
    if only:
        name, held = quoted(train.classes[only[0]]), plural(counts[1][only[0]], f"{recipe.eval_split} image")
        raise CnnlabError(f"class {name} has {held}, but none to train on; add some, or remove the class")


def _leaks(pool: Pool, recipe: Recipe) -> tuple[str, ...]:
    """Return a warning if a group has images on both sides of the source's own split."""
    if pool.grouping is None or pool.evaluated is None:
        return ()
    named = group_names(pool.evaluated, recipe.group)
    shared = set(pool.grouping.names) & set(named[0]) if named else set()
    if not shared:
        return ()
    return (
        f"warning: {plural(len(shared), 'group')} ({first(sorted(shared))}) are among the training and the "
        f"{recipe.eval_split} images, which inflates the accuracy",
    )
