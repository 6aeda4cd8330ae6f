"""The lines that a training prints first: what it found in the data, and what it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from cnnlab.data import LISTED
from cnnlab.data.imageset import ImageSet
from cnnlab.io.text import escape, plural, truncate
from cnnlab.recipe import Recipe
from cnnlab.training.runs import Run

_LISTED = 12  # classes that are listed one by one
_IMBALANCED = 5  # print a hint if the largest class has this many times as many images as the smallest


def class_counts(images: ImageSet) -> list[int]:
    """Return the number of images of each class, (K,)."""
    return torch.bincount(images.labels, minlength=len(images.classes)).tolist()


def passed_over_text(passed_over: Mapping[str, list[str]]) -> str:
    """Return the skipped files and folders by number and kind, such as `2 .heic, 1 empty folder "birds"`."""
    parts = []
    for kind, paths in sorted(passed_over.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(paths) == 1:
            parts.append(f'1 {kind} "{escape(Path(paths[0]).name)}"')
        else:
            head, _, tail = kind.partition(" ")  # folder of runs, folders of runs
            phrase = tail.startswith(("of ", "with", "outside"))
            many = kind if kind.startswith(".") else f"{head}s {tail}" if phrase else f"{kind}s"
            parts.append(f"{len(paths):,} {many}")
    return ", ".join(parts)


def network_lines(run: Run) -> Iterator[str]:
    """Yield the lines about a new run: its network with the input, its recipe, its folder."""
    recipe, model, images = run.recipe, run.info["model"], run.info["preprocessing"]
    size, native = model["image_size"], images["native_size"]
    resized = f", resized from {native}" if size != native else ""
    fit = f"; fit={images['fit']}" if recipe.data.startswith(LISTED) else ""
    yield (
        f"network: {model['name']}, {plural(model['parameters'], 'parameter')}; "
        f"input {model['in_channels']} x {size} x {size}{resized}{fit}"
    )
    if weights := model.get("weights"):
        smaller = f"; input {size} pixels, see image_size" if not recipe.image_size else ""
        yield f"weights: {weights['origin']}, licence {weights['license']}, with their own normalisation{smaller}"
    yield (
        f"recipe: {recipe.name}; {plural(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, {recipe.optimizer}, "
        f"learning rate {recipe.learning_rate:g}, {recipe.schedule}"
    )
    if recipe.overfit:
        yield (
            f"overfit: the same {plural(run.info['data']['train'], 'image')} are trained on and evaluated, "
            f"{plural(recipe.passes, 'pass')} an epoch, without augmentation"
        )
    elif run.augment:
        yield f"augment: your own {run.augment}, after the recipe's augmentation"
    before = run.info.get("from")
    if before is not None:
        done = f" after {plural(before['epochs'], 'epoch')}" if before["kind"] == "continued" else ", its weights"
        yield f"from: {before['run']}{done}"
    yield f"run: {run.path}"


def classes_text(classes: list[str], *splits: list[int]) -> str:
    """Return the names with the numbers of images, such as `cats 90 + 10`; for many classes, the range of numbers.

    splits: the number of images of each class, (K,), in each split.
    """
    each = list(zip(*splits, strict=True))
    if len(each) > _LISTED:
        totals = [sum(counts) for counts in each]
        return f"{len(each)} classes of {min(totals):,} to {max(totals):,} images"
    names = [truncate(escape(name), 40) for name in classes]
    numbers = [" + ".join(f"{n:,}" for n in counts) for counts in each]
    return ", ".join(map(" ".join, zip(names, numbers, strict=True)))


def data_lines(train_set: ImageSet, eval_set: ImageSet, recipe: Recipe) -> Iterator[str]:
    """Yield the lines about the images: classes with counts, what was skipped, how values were scaled, warnings."""
    splits = {"train": class_counts(train_set)}
    if recipe.eval_split != "train":
        splits[recipe.eval_split] = class_counts(eval_set)
    sums = ", ".join(f"{sum(counts):,} {split}" for split, counts in splits.items())
    shape = " x ".join(map(str, train_set.images.shape[1:]))
    yield f"data: {sums}; images {shape}"
    yield f"classes ({' + '.join(splits)}): {classes_text(train_set.classes, *splits.values())}"
    for note in train_set.notes:
        yield f"note: {note}"
    if train_set.passed_over:
        yield f"skipped: {passed_over_text(train_set.passed_over)}"
    yield from decoding_lines(train_set, recipe.data)
    for warning in dict.fromkeys([*train_set.warnings, *eval_set.warnings]):
        yield f"warning: {warning}"


def decoding_lines(images: ImageSet, source: str) -> Iterator[str]:
    """Yield how values and transparent pixels were decoded, where that was measured. source: such as `folder:PATH`."""
    how = images.decoding
    if how is not None and how.high > how.low:
        yield f"values: {how.low:g} to {how.high:g} were scaled to 0 to 255"
    if how is not None and how.lows:
        ranges = ", ".join(f"{low:g} to {high:g}" for low, high in zip(how.lows, how.highs, strict=True))
        yield f"values of each channel were scaled to 0 to 255: {truncate(ranges, 200)}"
    if how is not None and how.background == "white":
        # The pixels of a store are decoded already.
        prepare = "cnnlab kaggle prepare --background black"
        remedy = prepare if source.startswith("store:") else "--set background=black"
        yield f"background: white behind transparent pixels; {remedy} changes it"


def balance_lines(images: ImageSet, balance: str) -> Iterator[str]:
    """Yield how `balance` treats the rarest and the most common class, or a hint to set it; also the images' weights.

    images: the training images.
    """
    numbers = {k: n for k, n in enumerate(class_counts(images)) if n}
    rarest, largest = (find(numbers, key=lambda k: numbers[k]) for find in (min, max))
    rare, common = (
        f"{truncate(escape(images.classes[k]), 40)} ({plural(numbers[k], 'image')})" for k in (rarest, largest)
    )
    ratio = numbers[largest] / numbers[rarest]
    often, seldom = (_short(len(images) / (len(numbers) * numbers[k])) for k in (rarest, largest))
    if ratio == 1 and balance != "none":
        yield f"balance: {balance}; all classes have {plural(numbers[rarest], 'image')}, so it changes little"
    elif balance == "weights":
        yield f"balance: weights; in the loss, an image of {rare} has weight {often}, one of {common} {seldom}"
    elif balance == "sampler":
        yield (
            f"balance: sampler; an epoch of {len(images):,} images uses an image of {rare} {often} times on average, "
            f"one of {common} {seldom} times"
        )
    elif ratio >= _IMBALANCED:
        yield (
            f"hint: {common} has {ratio:,.0f} times as many images as {rare}; balance=weights or balance=sampler gives "
            "all classes equal weight, select=balanced_accuracy selects the epoch by the mean over the classes"
        )
    if images.weights is not None:
        low, high = (float(w) for w in images.weights.double().div(images.weights.double().mean()).aminmax())
        yield f"weights: in the loss, the images have {low:.3g} to {high:.3g} times the mean weight"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
