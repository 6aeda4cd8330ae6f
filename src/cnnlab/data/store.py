"""A prepared competition: a folder with its decoded images in plain arrays, which are memory-mapped.

PATH/train.npy, PATH/test.npy    (N, C, H, W) uint8
PATH/sample.csv                  the sample submission, if there is one
PATH/store.json                  ids, labels, classes, and notes on the files
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnlab.data.files import fixed_fit_note
from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.io.decode import FITS, Decoding
from cnnlab.io.errors import CnnlabError, SourceMissing, expand, reason
from cnnlab.io.files import read_json
from cnnlab.io.schema import COUNT, NUMBER, Number, check
from cnnlab.io.text import truncate
from cnnlab.recipe import LARGEST_SIDE

FORMAT = "cnnlab store 3"

STORE_LIMIT = 1 << 28  # bytes of store.json: five million images have less
_INFO = {
    "key": str, "fingerprint": str, "channels": (1, 3), "image_size": Number(1, LARGEST_SIDE, whole=True),
    "fit": (None, *FITS), "background": ("black", "white"), "low": NUMBER, "high": NUMBER,
    "classes": [str], "labels": [COUNT], "train_ids": [str], "test_ids": [str], "sample_ids": (None, [str]),
    "skipped": [str], "unreadable_test": [str], "sample_without_image": [str], "report": [str], "lists?": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Store:
    """A prepared competition.

    info: the content of store.json; train: images (N, C, H, W) mapped from the disk, in the order of the labels file;
    test_images: (M, C, H, W), in the order of the sample submission, then the others; M may be 0; test_ids: M texts, as
    in the sample submission; sample_ids, sample: ids and file of the sample submission, None if there is none.
    """

    path: Path
    info: dict[str, Any]
    train: ImageSet
    test_images: Tensor
    test_ids: list[str]
    sample_ids: list[str] | None
    sample: Path | None


def load(path: Path, split: str, options: SourceOptions) -> ImageSet | None:
    """Return the training images of `store:PATH`; None for other splits, since the test images have no labels.

    The files were decoded as `ImageSet.decoding` says when the store was prepared. Raise CnnlabError if `options` ask
    for other pixel values.
    """
    store = open_store(path)
    how = store.train.decoding
    assert how is not None
    if options.background not in ("auto", how.background):
        raise CnnlabError(
            f"{path} has {how.background} behind transparent pixels, not {options.background}; prepare it again: "
            f"cnnlab kaggle prepare --background {options.background}"
        )
    if other := options.decoding:
        ranges = [f"{d.low:g} to {d.high:g}" for d in (how, other)]
        if how.high > how.low and other.high > other.low and ranges[0] != ranges[1]:
            raise CnnlabError(
                f"{path}: its values {ranges[0]} became 0 to 255, but the run was trained with {ranges[1]}; give the "
                "image files themselves, as folder:PATH"
            )
    if split != "train":
        return None
    # Without `fit`, all images had the right size already: the training decides how to fit other files.
    fit = store.info["fit"]
    notes = (fixed_fit_note(path, fit, options.fit),) if fit and options.decoding is None and fit != options.fit else ()
    return replace(store.train, decoding=how if fit else replace(how, fit=options.fit), notes=notes)


def open_store(path: Path) -> Store:
    """Map a prepared store into memory. Raise CnnlabError if `path` is not a complete store."""
    path = expand(path)
    if not (path / "store.json").is_file():
        raise SourceMissing(f"{path} is not a prepared store: no store.json; create one with cnnlab kaggle prepare")
    info = read_json(path / "store.json", STORE_LIMIT)
    if info.get("format") != FORMAT:
        format_ = truncate(repr(info.get("format")), 60)
        raise CnnlabError(f"{path / 'store.json'} has format {format_}, not {FORMAT!r}; prepare it again")
    check(path / "store.json", info, _INFO, "delete it and prepare it again")
    try:
        ids, labels = info["train_ids"], torch.tensor(info["labels"], dtype=torch.int64)
        train, test = (
            torch.from_numpy(
                mapped(path / f"{part}.npy", (len(info[f"{part}_ids"]), info["channels"], *[info["image_size"]] * 2))
            )
            for part in ("train", "test")
        )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(info["classes"]):
            raise ValueError("a label is not among the classes")
        fit = info["fit"] or "pad"
        how = Decoding(info["channels"], info["image_size"], fit, info["background"], info["low"], info["high"])
        images = ImageSet(train, labels, ids, info["classes"], tuple(info["skipped"]), decoding=how)
        sample = None if info["sample_ids"] is None else path / "sample.csv"
        if sample and not sample.is_file():
            raise ValueError("it has no sample.csv")
        return Store(path, info, images, test, info["test_ids"], info["sample_ids"], sample)
    except (KeyError, TypeError, ValueError, OSError, OverflowError, RuntimeError) as error:
        raise CnnlabError(f"{path} is damaged: {reason(error, 200)}; delete it and prepare it again") from error


def intact(store: Store) -> bool:
    """Return whether images, ids and labels are unchanged since the preparation. Reads all of them."""
    info = store.info
    about = [info["train_ids"], info["labels"], info["classes"], info["test_ids"]]
    return fingerprint(store.path, about) == info.get("fingerprint")


def fingerprint(folder: Path, about: list[Any]) -> str:
    """Return a hash of the pixels of both parts in the store's `folder`, and of the values `about` them."""
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    for part in ("train", "test"):
        with (folder / f"{part}.npy").open("rb") as file:
            digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return digest.hexdigest()


def mapped(path: Path, shape: tuple[int, ...], kind: str = "|u1") -> NDArray[Any]:
    """Memory-map the array in a .npy file, which must have exactly this shape and type.

    Changes are not written to the file. The header is compared, not parsed, since NumPy parses it as Python source.
    Raise ValueError if the file does not fit, and OSError if it cannot be read.
    """
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
    wanted = head.getvalue()
    with path.open("rb") as file:
        if file.read(len(wanted)) != wanted:
            raise ValueError(f"{path.name} does not hold {' x '.join(map(str, shape))} numbers of type {kind}")
    dtype = np.dtype(kind)
    if path.stat().st_size != len(wanted) + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path.name} is incomplete")
    if math.prod(shape) == 0:  # nothing to map
        return np.empty(shape, dtype)
    # Copy-on-write: PyTorch has no read-only tensors.
    return np.memmap(path, dtype, "c", len(wanted), shape)
