"""The images of a run: its own, wherever they are now, or other images of the same classes."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cnnlab.data import ImageSet, SourceOptions, data_folder, load_images
from cnnlab.data.own import MEMORY, OwnImages, own_images
from cnnlab.data.splits import load_splits
from cnnlab.inference.classifier import preprocessing_of
from cnnlab.io.errors import CnnlabError, SourceMissing, unknown
from cnnlab.io.text import truncate
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.own import check_own
from cnnlab.training.runs import Run

SPLITS = ("test", "validation", "train")


def check_held_out(run: Run) -> None:
    """Raise CnnlabError if the run has no validation images."""
    if run.recipe.eval_split != "validation":
        raise CnnlabError(
            f"{run.path} held no images out for validation (eval_split={run.recipe.eval_split}); train a run with "
            "eval_split=validation"
        )


def split_name(given: str | None) -> str | None:
    """Return the split that `given` abbreviates (val, valid) or extends (testing). Raise CnnlabError."""
    if given is None:
        return None
    word = given.strip().lower()
    found = [name for name in SPLITS if word and (name.startswith(word) or word.startswith(name))]
    if len(found) != 1:
        raise unknown("split", given, SPLITS)
    return found[0]


def validation_images(run: Run, data: Any = None) -> ImageSet:
    """Return the run's validation images. data: the images themselves, or where they are now; see `evaluate_run`.

    Raise CnnlabError if the run has none, or if the data have changed.
    """
    check_held_out(run)
    _, held_out = run_splits(run, data)
    assert held_out is not None
    return held_out


def run_splits(
    run: Run, data: Any = None, *, data_dir: str | Path | None = None, skip_bad: bool = False
) -> tuple[ImageSet, ImageSet | None]:
    """Return the training images of a run, and its validation images or None.

    No test image is read. data: the images themselves, or where they are now; see `evaluate_run`. Raise CnnlabError if
    they are gone or have changed.
    """
    recipe, own = run.recipe, None
    if isinstance(data, str):
        recipe = replace(recipe, data=data)
    elif data is not None or recipe.data.startswith(MEMORY):
        check_own(run.path, recipe, data=data)
        own = own_images(data, run.classes)
    held_out = recipe.eval_split == "validation"
    recipe = replace(recipe, eval_split="validation" if held_out else "train")
    train_set, evaluated = _own_splits(run, recipe, source_options(run, data_dir, skip_bad or _skipped_bad(run)), own)
    return train_set, evaluated if held_out else None


def source_options(run: Run, data_dir: str | Path | None, skip_bad: bool) -> SourceOptions:
    """Return the options for reading images as the run did. data_dir: Default: the one that the run started with."""
    return SourceOptions(
        data_dir=data_folder(data_dir or runs.data_dir(run)),
        decoding=preprocessing_of(run).decoding,
        columns=run.recipe.columns,
        skip_bad=skip_bad,
    )


def find_images(
    run: Run, split: str | None, options: SourceOptions, data: Any, own_split: str | None = None
) -> tuple[ImageSet, str, bool]:
    """Return the images to evaluate, their split, and whether these are not the run's own images.

    own_split: the default of `split` for the run's own images.
    """
    mine = split or own_split
    in_memory = run.recipe.data.startswith(MEMORY)
    if data is None:
        if in_memory:
            check_own(run.path, run.recipe, data=None)
        try:
            return (*_run_images(run, mine, options, run.recipe.data), False)
        except _OtherImages as error:
            raise CnnlabError(f"{error}, or other images to evaluate on") from error
    if not isinstance(data, str):
        own = own_images(data, run.classes)
        default = "validation" if run.recipe.eval_split == "validation" else "test"
        if in_memory and (mine or default) != "test":
            try:
                return (*_run_images(run, mine or default, options, run.recipe.data, own), False)
            except _OtherImages:
                if split is not None:
                    raise
        return same_classes(run, own.held_out or own.train, "these images"), split or "test", True
    try:
        return (*_run_images(run, mine, options, data), False)
    except _OtherImages:
        return (*_other_images(run, split, options, data), True)


class _OtherImages(CnnlabError):
    """An error for images that the run was not trained on."""


def _run_images(
    run: Run, split: str | None, options: SourceOptions, data: str, own: OwnImages | None = None
) -> tuple[ImageSet, str]:
    """Return the images of a split of the run's data, and its name. Default: test if there is one, else validation.

    data: where the images are. Raise _OtherImages if the training images there are not the run's.
    """
    options = replace(options, skip_bad=options.skip_bad or _skipped_bad(run))
    moved = data != run.recipe.data
    if not moved:
        _check_split(run, split)
    if own is None and not moved and (images := _test_images(run, split, options, data)) is not None:
        return images, "test"  # without reading the training images
    try:
        train_set, held_out = _own_splits(run, replace(run.recipe, data=data), options, own)
    except CnnlabError as error:
        if moved:
            raise _OtherImages(str(error)) from error
        raise
    if own is None and moved and (images := _test_images(run, split, options, data)) is not None:
        return images, "test"
    _check_split(run, split or "validation")
    return (train_set, "train") if split == "train" else (held_out, split or "validation")


def _check_split(run: Run, split: str | None) -> None:
    if split == "validation" and run.recipe.eval_split != "validation":
        raise CnnlabError(f"{run.path} held no images out for validation; evaluate --split test or train")


def _test_images(run: Run, split: str | None, options: SourceOptions, data: str) -> ImageSet | None:
    """Return the test images; None if `split` is another one, or if it is None and there are no test images."""
    if split not in (None, "test"):
        return None
    try:
        images = load_images(data, "test", options)
    except CnnlabError as error:
        raise _with_remedy(run, error) from error
    if images is None and split == "test":
        raise CnnlabError(f"{data} has no test set; evaluate --split validation")
    return None if images is None else same_classes(run, images, data)


def _skipped_bad(run: Run) -> bool:
    """Return whether training skipped damaged images. They must be skipped again to get the same images."""
    return bool(run.info["data"].get("skip_bad"))


def _own_splits(run: Run, recipe: Recipe, options: SourceOptions, own: OwnImages | None) -> tuple[ImageSet, ImageSet]:
    """Return the run's training images, and the images of the recipe's `eval_split`.

    Raise _OtherImages if the run was not trained on the recipe's data.
    """
    try:
        train_set, evaluated = load_splits(recipe, options, own)
    except CnnlabError as error:
        raise _with_remedy(run, error) from error
    if train_set.fingerprint() != run.info["data"]["fingerprint"]:
        raise _OtherImages(
            f"the images of {recipe.data} are not those that {run.path} was trained on; name where its own are with "
            "--data"
        )
    return same_classes(run, train_set, recipe.data), same_classes(run, evaluated, recipe.data)


def _other_images(run: Run, split: str | None, options: SourceOptions, data: str) -> tuple[ImageSet, str]:
    """Return all images of a split of another source, and its name. Default: the first of SPLITS that it has."""
    for name in SPLITS if split is None else (split,):
        images = load_images(data, name, options)
        if images is not None:
            return same_classes(run, images, data), name
    if split is None:
        raise CnnlabError(f"{data} holds no labelled images; cnnlab predict classifies images without labels")
    raise CnnlabError(
        f"{data} has no {split} split, and its images are not those that {run.path} was trained on; name where those "
        "are, or another split"
    )


def _with_remedy(run: Run, error: CnnlabError) -> CnnlabError:
    """Return the error, with advice in case the images of the run have moved."""
    if isinstance(error, SourceMissing):
        return CnnlabError(f"{error}; if the images of {run.path} are elsewhere now, name the place with --data")
    return error


def same_classes(run: Run, images: ImageSet, data: str) -> ImageSet:
    """Return the images with the run's classes and label numbers. Some classes may have no images.

    Raise CnnlabError for a class that the run does not know, and for images of another size or number of channels.
    """
    known = {unicodedata.normalize("NFC", name): k for k, name in enumerate(run.classes)}
    places = [known.get(unicodedata.normalize("NFC", name)) for name in images.classes]
    strangers = [name for name, place in zip(images.classes, places, strict=True) if place is None]
    if strangers:
        raise CnnlabError(
            f"{data} has classes that {run.path} was not trained on: {truncate(', '.join(strangers), 100)}; it knows "
            f"{truncate(', '.join(run.classes), 100)}"
        )
    expected = (run.info["preprocessing"]["channels"], *[run.info["preprocessing"]["native_size"]] * 2)
    if tuple(images.images.shape[1:]) != expected:
        sizes = [" x ".join(map(str, shape)) for shape in (images.images.shape[1:], expected)]
        raise CnnlabError(
            f"the images of {data} are {sizes[0]}, those that {run.path} was trained on {sizes[1]}; convert them"
        )
    return replace(images, labels=torch.tensor(places)[images.labels], classes=run.classes)
