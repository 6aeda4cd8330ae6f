"""A source as the rows of a packed set: image files (unchanged, reduced or decoded), or a source's pixels."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cnnlab.data import is_listed, list_files, load_images
from cnnlab.data.files import DecodedStats, Sizes, side_for, survey_files, warnings_of
from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.data.pack import FORMAT
from cnnlab.io.decode import (
    LARGEST_FILE,
    BadImage,
    Decoding,
    Item,
    NoSuchImage,
    Picture,
    decode_checked,
    probe,
    read_image,
)
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.stacks import Stack

T = TypeVar("T")
_SMALL = 128  # images of one size, up to this side in pixels, are stored as pixels
_QUALITY = 90  # of a reduced JPEG
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """An image to be stored. low, high: its extreme pixel values; size: (width, height) of a reduced file."""

    content: bytes
    low: int
    high: int
    uniform: bool
    remarks: Sequence[str] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Rows:
    """The rows of a source, split by split.

    counts: images in each split; make: i -> row i; shape: (C, H, W) of raw pixels; info: further entries of pack.json.
    """

    source: str
    classes: list[str]
    counts: dict[str, int]
    ids: list[str]
    labels: NDArray[np.int64]
    groups: list[str] | None
    weights: list[float] | None
    shape: tuple[int, int, int] | None
    make: Callable[[int], Row | BadImage]
    warnings: Callable[[str, DecodedStats, NDArray[np.int64]], Iterable[str]]
    info: dict[str, Any]
    sizes: Sizes | None = None

    def key(self) -> str:
        """Return a hash of everything that the packed set depends on, except for the bytes of the files."""
        about = [FORMAT, self.source, self.classes, self.counts, self.shape, self.info, self.groups, self.weights]
        digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
        digest.update("\0".join(self.ids).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def rows_of(source: str, options: SourceOptions, size: int, quality: int) -> Rows:
    """Return the rows of a source. size, quality: see `pack`. Raise CnnlabError if it cannot be packed."""
    if is_listed(source):
        return _rows_of_files(source, options, size, quality)
    if size or quality:
        raise CnnlabError(f"{source} holds pixels, which --size and --quality do not change; leave them out")
    return _rows_of_pixels(source, options)


def _rows_of_files(source: str, options: SourceOptions, size: int, quality: int) -> Rows:
    """Return the rows of a listed source: pixels if all images are small and of one size, else image files."""
    listing = list_files(source, options)
    found = survey_files(listing, options.background)
    side = side_for(found.sizes, options, listing.name)
    sizes = found.sizes
    raw = sizes is not None and sizes.smallest == sizes.largest == (side, side) and side <= _SMALL
    raw = raw and not size and not quality
    how = Decoding(found.channels, side, "pad", found.background, found.low, found.high, lows=found.lows,
                   highs=found.highs)  # fmt: skip
    parts = {split: listing.parts[split] for split in _SPLITS if split in listing.parts}
    files = [file for part in parts.values() for file in part.files]

    def make(row: int) -> Row | BadImage:
        file = files[row]
        try:
            content, now = _file_bytes(file), None
            if raw and (shape := probe(str(file), content).size) != (side, side):
                return BadImage(f"{file} is {shape[0]} x {shape[1]} pixels, and the others {side} x {side}")
            if size or quality:
                content, now = _smaller(str(file), content, size, quality)
            pixels, remarks = decode_checked(Item(str(file), lambda: content), how)
        except BadImage as error:
            return error
        low, high = int(pixels.min()), int(pixels.max())
        uniform = all(channel.min() == channel.max() for channel in pixels)
        if row >= len(parts["train"].files):
            now = None  # the training images decide the size of all
        return Row(pixels.tobytes() if raw else content, low, high, uniform, remarks, now)

    counts = {split: len(part.files) for split, part in parts.items()}
    return Rows(
        source,
        list(listing.classes),
        counts,
        [listing.id_of(file) for file in files],
        np.array([label for part in parts.values() for label in part.labels], np.int64),
        _joined([part.groups for part in parts.values()], counts, ""),
        _joined([part.weights for part in parts.values()], counts, 1.0),
        (found.channels, side, side) if raw else None,
        make,
        lambda split, seen, labels: [
            *(found.warnings if split == "train" else ()), *warnings_of(listing, split, seen, labels),
        ],
        {**_info(how), "fit": None, "notes": [*listing.notes, *found.notes], "size": size, "quality": quality,
         "passed_over": {kind: list(map(str, paths)) for kind, paths in listing.passed_over.items()}},
        sizes or Sizes((side, side), (side, side), side, True),
    )  # fmt: skip


def _rows_of_pixels(source: str, options: SourceOptions) -> Rows:
    """Return the rows of a source that decodes its own files, as pixels."""
    sets: dict[str, ImageSet] = {}
    for split in _SPLITS:
        found = load_images(source, split, options.like(sets["train"]) if "train" in sets else options)
        if found is not None:
            sets[split] = found
    if "train" not in sets:
        raise CnnlabError(f"{source} has no training images")
    train = sets["train"]
    shape = train.images.shape[1:]
    places = [(images, i) for images in sets.values() for i in range(len(images))]

    def make(row: int) -> Row:
        images, i = places[row]
        pixels = images.images[i].numpy()
        uniform = all(channel.min() == channel.max() for channel in pixels)
        return Row(pixels.tobytes(), int(pixels.min()), int(pixels.max()), uniform)

    how = train.decoding or Decoding(shape[0], shape[1])
    counts = {split: len(images) for split, images in sets.items()}
    weights = [None if images.weights is None else images.weights.tolist() for images in sets.values()]
    return Rows(
        source,
        list(train.classes),
        counts,
        [id_ for images in sets.values() for id_ in images.ids],
        np.concatenate([images.labels.numpy() for images in sets.values()]),
        _joined([images.groups for images in sets.values()], counts, ""),
        _joined(weights, counts, 1.0),
        (shape[0], shape[1], shape[2]),
        make,
        lambda split, _seen, _labels: sets[split].warnings,
        {**_info(how), "fit": train.decoding.fit if train.decoding else None, "notes": list(train.notes),
         "passed_over": {kind: list(map(str, paths)) for kind, paths in train.passed_over.items()}},
    )  # fmt: skip


def _joined(columns: Iterable[Sequence[T] | None], counts: dict[str, int], absent: T) -> list[T] | None:
    """Return the splits' values in one list, with `absent` for splits without; None if no split has any."""
    columns = list(columns)
    if all(column is None for column in columns):
        return None
    return [
        value
        for column, count in zip(columns, counts.values(), strict=True)
        for value in ([absent] * count if column is None else column)
    ]


def _info(how: Decoding) -> dict[str, Any]:
    return {
        "channels": how.channels, "background": how.background, "low": how.low, "high": how.high,
        "lows": list(how.lows), "highs": list(how.highs),
    }  # fmt: skip


def _file_bytes(file: Path | Item) -> bytes:
    """Return the bytes of an image file, or of a PNG of an image that a library has opened. Raise BadImage."""
    try:
        if isinstance(file, Item):
            found = file.read()
            return found if isinstance(found, bytes) else _encoded(found, "PNG")
        if file.stat().st_size > LARGEST_FILE:
            raise BadImage(f"{file} is larger than the limit for an image, {LARGEST_FILE:,} bytes")
        return file.read_bytes()
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise NoSuchImage(f"{file} does not exist") from error
    except Exception as error:  # the item's library may raise anything
        raise BadImage(f"{file} cannot be read: {reason(error, 200)}") from error


def _smaller(name: str, content: bytes, size: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """Return an image file as a JPEG, and its (width, height). name: for messages. Raise BadImage.

    The shorter side is reduced to `size`, unless that is 0. Images that JPEG cannot hold (more than eight bits,
    transparency, other than one or three channels) stay as they are. Without `quality`, so do JPEGs and WebPs that are
    small enough.
    """

    def convert(image: Picture) -> tuple[bytes, tuple[int, int]]:
        if isinstance(image, Stack):
            return content, image.size
        plain = image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") and not image.has_transparency_data
        if not plain or (not quality and min(image.size) <= size and image.format in ("JPEG", "WEBP")):
            return content, image.size
        upright = ImageOps.exif_transpose(image)
        upright = upright.convert("L" if image.mode in ("1", "L") else "RGB")
        scale = size / min(upright.size)
        if size and scale < 1:
            w, h = upright.size
            upright = upright.resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.LANCZOS)
        return _encoded(upright, "JPEG", quality=quality or _QUALITY), upright.size

    return read_image(name, content, convert)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
