"""Data sources, one module each. Those with a fixed name have a function `load` and an entry in DATASETS."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from platformdirs import user_cache_dir

from cnnlab.data import digits, folder, hub, named, pack, parquet, store, table, torchvision_sets, webdataset
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
    "list_files",
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
FOLDER, CSV, HUB, TORCHVISION = "folder:", "csv:", "hf:", "torchvision:"
WDS, PARQUET = "wds:", "parquet:"
STORE, PACK = "store:", "pack:"
PATHS = (FOLDER, CSV, WDS, PARQUET, STORE, PACK)
"""Kinds of sources that name a file or a folder."""
_LISTED = {
    FOLDER: "folder; write folder:PATH",
    CSV: "file; write csv:FILE",
    HUB: "data set; write hf:NAME",
    WDS: "shards; write wds:PATTERN",
    PARQUET: "file; write parquet:FILE_OR_FOLDER",
    TORCHVISION: "data set; write torchvision:NAME",
}
FORMS = {
    "folder:PATH": "your own images, one sub-folder per class",
    "csv:FILE": "your own images, named with their labels in a table",
    "torchvision:NAME": "a set of labelled images of torchvision, such as Flowers102",
    "hf:NAME": "an image set of the Hugging Face hub, or the path of a local one; needs the extra hf",
    "wds:PATTERN": "tar shards with files as KEY.jpg and KEY.cls, or KEY.json, such as those of WebDataset",
    "parquet:PATH": "Parquet files with the bytes and the labels of images; needs the extra parquet",
    "store:PATH": "a competition's images, written by `cnnlab kaggle prepare`",
    "pack:PATH": "any of these as `cnnlab data pack` writes it, read from the disk: larger than memory",
}
LISTED = tuple(_LISTED)  # sources of image files, which are decoded


def load_images(source: str, split: str, options: SourceOptions | None = None) -> ImageSet | None:
    """Return the `train`, `validation` or `test` split of `source`; None if it has no such split.

    source: a name in DATASETS, or one of the FORMS. Raise CnnlabError if anything is wrong with the name or the files.
    """
    if split not in ("train", "validation", "test"):
        raise unknown("split", split, ("train", "validation", "test"))
    options = options or SourceOptions(data_dir=data_folder())
    if options.columns and not source.startswith((CSV, HUB, WDS, PARQUET)) and options.decoding is None:
        raise CnnlabError(f"columns={options.columns}: only csv, hf, wds and parquet have columns; leave it out")
    if source.startswith(TORCHVISION):
        source = torchvision_sets.named_alike(source.removeprefix(TORCHVISION)) or source
    if source.startswith(LISTED):
        return read_images(list_files(source, options), split, options)
    if source.startswith(STORE):
        return store.load(expand(source.removeprefix(STORE)), split, options)
    if source.startswith(PACK):
        return pack.load(expand(source.removeprefix(PACK)), split, options)
    if source not in DATASETS:
        path = expand(source)
        if source and path.is_dir():
            raise CnnlabError(f"unknown source {source!r}; for a folder of images write folder:{source}")
        if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
            raise CnnlabError(f"unknown source {source!r}; for a table of images and labels write csv:{source}")
        if kind := file_kind(path):
            raise CnnlabError(f"{source} {kind.in_place_of_folder()}")
        if parts := [name for name in DATASETS if name.startswith(f"{source}:")]:
            raise CnnlabError(f"{source} has several splits; choose one of {', '.join(parts)}")
        raise unknown("source", source, [*DATASETS, *FORMS])
    return DATASETS[source](split, options)


def copies_in_test(source: str, train: ImageSet, options: SourceOptions) -> int | None:
    """Return how many test images of `source` are also in `train`; None if there is no test split.

    Compare pixels, not labels. For a folder or a table, compare files instead, so that no test image has to be decoded.
    Download nothing.
    """
    if source.startswith((FOLDER, CSV)):
        return copies(list_files(source, options), train.ids)
    options = replace(options, decoding=train.decoding)
    if source.startswith(STORE):
        images = store.open_store(expand(source.removeprefix(STORE))).test_images
        return len(shared(train.images, images)) if len(images) else None
    if source in named.NAMED and not named.is_there(source, options.data_dir):
        return None
    test = load_images(source, "test", options)
    return None if test is None else len(shared(train.images, test.images))


def list_files(source: str, options: SourceOptions) -> Listing:
    """Return the files of a source in LISTED.

    With `options.decoding`, as in the evaluation of a finished run, the source may lack some of the classes.
    """
    kind = next(kind for kind in LISTED if source.startswith(kind))
    name = source.removeprefix(kind)
    if not name:
        raise CnnlabError(f"{kind} names no {_LISTED[kind]}")
    complete = options.decoding is None
    if kind == FOLDER:
        return folder.listing(expand(name), complete=complete)
    if kind == WDS:
        return webdataset.listing(name, options)
    if kind == PARQUET:
        return parquet.listing(name, options)
    if kind == CSV:
        return table.listing(expand(name), options.columns, complete=complete)
    return hub.listing(name, options) if kind == HUB else torchvision_sets.listing(name, options)


def is_listed(source: str) -> bool:
    """Return whether a source consists of image files, which `list_files` lists and cnnlab decodes."""
    named_set = source.startswith(TORCHVISION) and torchvision_sets.named_alike(source.removeprefix(TORCHVISION))
    return source.startswith(LISTED) and not named_set


def absolute(source: str) -> str:
    """Make the path in a source, if it has one, absolute: a run may be resumed or evaluated from another folder."""
    kind, colon, name = source.partition(":")
    if not name or (f"{kind}:" not in PATHS and (kind != "hf" or not hub.local(name))):
        return source
    return f"{kind}{colon}{expand(name).absolute()}"


def data_folder(named: str | Path | None = None) -> Path:
    """Return the folder of the datasets: `named`, else CNNLAB_DATA, else the user's cache folder."""
    return expand(named or os.environ.get("CNNLAB_DATA") or user_cache_dir("cnnlab"))
