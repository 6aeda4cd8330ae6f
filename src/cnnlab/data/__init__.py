"""Data sources. A source is one file with a function `load`, and one line in DATASETS."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from platformdirs import user_cache_dir

from cnnlab.data import digits, folder, named, store, table
from cnnlab.data.files import Listing, copies, read_images
from cnnlab.data.imageset import ImageSet, SourceOptions, stratified_split, stratified_subset
from cnnlab.data.near_duplicates import shared
from cnnlab.io.errors import CnnlabError, expand, unknown
from cnnlab.io.kinds import file_kind

__all__ = [
    "DATASETS",
    "ImageSet",
    "SourceOptions",
    "copies_in_test",
    "data_folder",
    "load_images",
    "stratified_split",
    "stratified_subset",
]

DATASETS: dict[str, Callable[[str, SourceOptions], ImageSet | None]] = {
    "digits": digits.load,
    **{name: partial(named.load, name) for name in named.NAMED},
}
DESCRIPTIONS = {
    "digits": "handwritten digits that come with scikit-learn, so that a first training needs no download",
    **{
        name.replace("balanced", "SPLIT"): found.description
        for name, found in named.NAMED.items()
        if name == "emnist:balanced" or not name.startswith("emnist:")
    },
}
FOLDER, CSV, STORE = "folder:", "csv:", "store:"


def load_images(source: str, split: str, options: SourceOptions | None = None) -> ImageSet | None:
    """Return the `train`, `validation` or `test` split of `source`; None if it has no such split.

    source: a name in DATASETS, `folder:PATH`, `csv:FILE`, or `store:PATH` of a store by `cnnlab kaggle prepare`.
    Raises: CnnlabError for anything that is wrong with the name or the files.
    """
    if split not in ("train", "validation", "test"):
        raise unknown("split", split, ("train", "validation", "test"))
    options = options or SourceOptions(data_dir=data_folder())
    if options.columns and not source.startswith(CSV) and options.decoding is None:
        raise CnnlabError(f"columns={options.columns}: {source} has no columns, only csv:FILE has; leave it out")
    if source.startswith((FOLDER, CSV)):
        return read_images(_listing(source, options), split, options)
    if source.startswith(STORE):
        return store.load(expand(source.removeprefix(STORE)), split, options)
    if source not in DATASETS:
        if Path(source).is_dir():
            raise CnnlabError(f"unknown source {source!r}; for a folder of images write folder:{source}")
        if Path(source).is_file() and Path(source).suffix.lower() in (".csv", ".tsv"):
            raise CnnlabError(f"unknown source {source!r}; for a table of images and labels write csv:{source}")
        if kind := file_kind(expand(source)):
            raise CnnlabError(f"{source} {kind.in_place_of_folder()}, as folder:PATH")
        if parts := [name for name in DATASETS if name.startswith(f"{source}:")]:
            raise CnnlabError(f"{source} has several splits; choose one of {', '.join(parts)}")
        raise unknown("source", source, [*DATASETS, "folder:PATH", "csv:FILE", "store:PATH"])
    return DATASETS[source](split, options)


def copies_in_test(source: str, train: ImageSet, options: SourceOptions) -> int | None:
    """Return how many test images of `source` are also in `train`; None if there is no test split.

    Pixels are compared, labels are not read. For a folder, files are compared instead, since its test images are not
    decoded. Nothing is downloaded.
    """
    if source.startswith((FOLDER, CSV)):
        return copies(_listing(source, options), train.ids)
    if source.startswith(STORE):
        images = store.open_store(expand(source.removeprefix(STORE))).test_images
        return len(shared(train.images, images)) if len(images) else None
    if source in named.NAMED and not named.is_there(source, options.data_dir):
        return None
    test = load_images(source, "test", options)
    return None if test is None else len(shared(train.images, test.images))


def _listing(source: str, options: SourceOptions) -> Listing:
    """Return the files of `folder:PATH` or `csv:FILE`. A finished run may be evaluated on some of its classes only."""
    kind, _, name = source.partition(":")
    if not name:
        what = "folder; write folder:PATH" if kind == "folder" else "file; write csv:FILE"
        raise CnnlabError(f"{kind}: names no {what}")
    complete = options.decoding is None
    if kind == "folder":
        return folder.listing(expand(name), complete=complete)
    return table.listing(expand(name), options.columns, complete=complete)


def data_folder(named: str | Path | None = None) -> Path:
    """Return the folder of the datasets: `named`, else CNNLAB_DATA, else the user's cache folder."""
    return expand(named or os.environ.get("CNNLAB_DATA") or user_cache_dir("cnnlab"))
