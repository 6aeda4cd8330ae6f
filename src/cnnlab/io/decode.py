"""Decode one image file into (C, H, W) uint8, in the same way for training and for prediction.

This module does not import torch, so that a decoding process starts quickly: see cnnlab.io.decode_jobs.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.jpeg import closed, is_cut
from cnnlab.io.kinds import file_kind, kind_of
from cnnlab.io.strip import without_metadata
from cnnlab.io.values import Values, summarize

# The formats that we decode, the most frequent first. Pillow knows more, and goes by a file's first bytes, not its
# name: a file called 1.png could be PostScript, which Pillow passes to another program, or a format that is decoded in
# Python, slowly or without a bound on memory (docs/security.md).
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "DIB", "ICO", "JPEG2000", "AVIF", "PCX", "SGI", "TGA")
# File name endings of images; other files in a folder are ignored.
ENDINGS = frozenset(e for e, f in Image.registered_extensions().items() if f in _FORMATS and f in Image.OPEN)
_KNOWN = tuple(f for f in _FORMATS if f in Image.OPEN)  # a Pillow may be built without some
_LARGEST_FILE = 1 << 29  # bytes
_LARGE = 1 << 24  # pixels: larger images are decoded one at a time, to bound the memory of the threads
_one_large = threading.Lock()
FITS = ("pad", "crop", "stretch")
BACKGROUNDS = ("auto", "black", "white")
DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
GREY = {"1", "L", "LA", "La", *DEEP}
_GDAL_NODATA = 42113  # the tag of a TIFF that names the value of missing data
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """An image that is no file of its own. name: in messages, and its id; read: return its file's bytes, or open it."""

    name: str
    read: Callable[[], bytes | Image.Image]

    def __str__(self) -> str:
        return self.name


Source = Path | str | Item
"""An image file, the name of one whose bytes are at hand, or an item."""


class BadImage(CnnlabError):
    """An image file that cannot be decoded. The text names it."""


class TooLarge(BadImage):
    """An image file beyond a limit, which need not be damaged."""


@dataclass(frozen=True)
class Decoding:
    """How the images of one source are decoded: the same for training, evaluation and prediction.

    fit: `pad` keeps the whole image and adds bars, `crop` fills the square and cuts off the rest, `stretch` changes the
    proportions. background: black or white, behind transparent pixels. low, high: the values of 16-bit, 32-bit and
    floating-point greys that become 0 and 255; both 0: the range of the type, for each image by itself.
    interpolation: bilinear or bicubic, of resized images.
    """

    channels: int
    size: int
    fit: str = "pad"
    background: str = "black"
    low: float = 0.0
    high: float = 0.0
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Header:
    """What a file says of its pixels. size: (width, height) as stored; deep: more than eight bits."""

    size: tuple[int, int]
    grey: bool
    deep: bool
    transparent: bool


def probe(source: Source, content: bytes | None = None) -> Header:
    """Read the header of an image. Raises: BadImage.

    source: the file; or, with its bytes as `content`, its name in error messages.
    """
    return read_image(
        source, content, lambda i: Header(i.size, i.mode in GREY, i.mode in DEEP, bool(i.has_transparency_data))
    )


def decode(source: Source, how: Decoding, content: bytes | None = None, *, invert: bool = False) -> np.ndarray:
    """Decode an image as (channels, size, size) uint8.

    invert: exchange black and white before the image is fitted, so that bars stay black. content: see `probe`.
    Raises: BadImage.
    """
    return read_image(source, content, lambda image: square_pixels(image, source, how, invert))


CUT = "look cut off: a part of the picture is missing"
STRIP = "are so long and narrow that less than two rows of pixels are left"
CROP = "are so long and narrow that less than an eighth is left; --set fit=pad or stretch keeps all of it"
TINY = "are at most 3 x 3 pixels"
PAGES = "hold several pages or frames; only the first is used"


def decode_checked(source: Source, how: Decoding) -> tuple[np.ndarray, list[str]]:
    """Decode an image file; also return what is odd about it: `CUT`, `STRIP` and their like. Raises: BadImage."""

    def use(image: Image.Image) -> tuple[np.ndarray, list[str]]:
        odd = [PAGES] if _frames(image) > 1 else []
        short, long = sorted(image.size)
        if how.fit == "pad" and short * how.size < 2 * long and how.size > 2:
            odd.append(STRIP)
        if how.fit == "crop" and short * 8 < long:
            odd.append(CROP)
        if long < 4:
            odd.append(TINY)
        if image.format in ("JPEG", "MPO"):
            opened = getattr(image, "fp", None)
            with nullcontext(opened) if isinstance(source, Item) else Path(source).open("rb") as stream:
                image.load()
                odd += [CUT] if stream and not stream.closed and is_cut(stream, image) else []
        return square_pixels(image, source, how), odd

    return read_image(source, None, use)


def _frames(image: Image.Image) -> int:
    """Return the number of pages or frames; 1 for a photograph with a preview, and if only the first can be read."""
    with suppress(Exception):  # a damaged directory of a TIFF
        return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    return 1


def value_range(source: Source, content: bytes | None = None) -> Values:
    """Return the values of an image of deep greys. content: see `probe`. Raises: BadImage."""

    def values(image: Image.Image) -> Values:
        with _one_large if image.size[0] * image.size[1] > _LARGE else nullcontext():
            nodata = None
            with suppress(KeyError, ValueError, TypeError):
                nodata = float(getattr(image, "tag_v2", {})[_GDAL_NODATA])
            return summarize(np.asarray(image), nodata)

    return read_image(source, content, values)


def ink(source: Source, content: bytes | None = None) -> float | None:
    """Return the mean grey level, 0 to 255, of the opaque parts of an image; None if it has none.

    content: see `probe`. Raises: BadImage.
    """

    def mean(image: Image.Image) -> float | None:
        with _one_large if image.size[0] * image.size[1] > _LARGE else nullcontext():
            grey, alpha = (np.asarray(band, np.float64) for band in image.convert("RGBA").convert("LA").split())
            return float((grey * alpha).sum() / alpha.sum()) if alpha.any() else None

    return read_image(source, content, mean)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Turn Pillow's warning about a decompression bomb into a BadImage, and hide its other warnings.

    Use it around the whole read, not around each image: warning filters belong to the process, not to a thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_image(source: Source, content: bytes | None, use: Callable[[Image.Image], T]) -> T:
    """Open an image and call `use`; if that fails, try again with a repaired copy. Raises: BadImage.

    Repaired is what leaves all pixels as they are: broken metadata are dropped, a JPEG's end marker is added.
    """
    if isinstance(source, Item):
        try:
            found = source.read()
        except Exception as error:  # of whatever library it comes from
            raise BadImage(f"{source} cannot be read: {reason(error, 200)}") from error
        if isinstance(found, Image.Image):
            return _used(found, source, use)
        source, content = source.name, found
    path = source

    def attempt(content: bytes | None) -> T:
        with _open(path, content) as image:
            return _used(image, path, use)

    try:
        return attempt(content)
    except TooLarge:
        raise
    except BadImage:
        whole = b""
        with suppress(OSError):
            whole = Path(source).read_bytes() if content is None else content
        for repair in (partial(without_metadata, keep_exif=True), without_metadata, closed):
            if repaired := repair(whole):
                with suppress(BadImage):
                    return attempt(repaired)
        raise


def _used(image: Image.Image, source: Source, use: Callable[[Image.Image], T]) -> T:
    try:
        return use(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise BadImage(f"{source} is damaged: {reason(error)}") from error


def _open(source: Path | str, content: bytes | None) -> Image.Image:
    try:
        if content is None and (size := os.stat(source).st_size) > _LARGEST_FILE:  # noqa: PTH116 - a text or a path
            raise TooLarge(f"{source} is {size:,} bytes; the limit for an image is {_LARGEST_FILE:,}")
        return Image.open(source if content is None else io.BytesIO(content), formats=_KNOWN)
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = re.search(r"\((\d+) pixels", str(error))
        count = f"{int(pixels[1]):,} pixels" if pixels else "too many pixels"
        raise TooLarge(f"{source} has {count}, the limit is {Image.MAX_IMAGE_PIXELS:,}; make it smaller") from error
    except FileNotFoundError as error:
        raise BadImage(f"{source} does not exist") from error
    except Exception as error:
        why = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else reason(error)
        with suppress(OSError):
            if kind := file_kind(Path(source)) if content is None else kind_of(content):
                raise BadImage(f"{source} {kind.in_place_of_image()}") from error
            if content == b"" or (content is None and not Path(source).stat().st_size):
                why = "it is empty"
        raise BadImage(f"{source} is damaged: {why}") from error


def square_pixels(image: Image.Image, source: Source, how: Decoding, invert: bool = False) -> np.ndarray:
    """Return an opened image as (channels, size, size) uint8, as `decode` does; `source` names it in errors.

    The image may be changed in place. Raises: BadImage.
    """
    large = image.size[0] * image.size[1] > _LARGE
    try:
        with _one_large if large else nullcontext():
            image = _fitted(image, how, invert)
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise BadImage(f"{source} is damaged: {reason(error)}") from error
    pixels = np.asarray(image)
    return pixels.reshape(1, how.size, how.size) if how.channels == 1 else pixels.transpose(2, 0, 1)


def _fitted(image: Image.Image, how: Decoding, invert: bool) -> Image.Image:
    """Return `image` upright, in eight bits, without transparency, as a square; copy only if needed."""
    ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bits(image, how)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, how.background), image)
    mode, target = "L" if how.channels == 1 else "RGB", (how.size, how.size)
    if image.mode != mode:
        image = image.convert(mode)
    if invert:
        image = ImageOps.invert(image)
    if image.size == target:
        return image
    filter_ = Image.Resampling[how.interpolation.upper()]
    if how.fit == "stretch":
        return image.resize(target, filter_)
    if how.fit == "crop":
        return ImageOps.fit(image, target, filter_)
    return ImageOps.pad(image, target, filter_)


def _eight_bits(image: Image.Image, how: Decoding) -> Image.Image:
    """Scale deep greys to eight bits, in strips to save memory; Pillow's own conversion would clip them at 255."""
    if image.mode not in DEEP:
        return image
    whole = np.asarray(image)
    low, high = how.low, how.high
    if high <= low:  # no range was measured
        most = np.fmax.reduce(whole, axis=None, initial=0)  # ignores NaN
        low, high = 0.0, 65535 if image.mode.startswith("I;16") or most > 255 else 255 if most > 1 else 1
    pixels = np.empty(whole.shape, np.uint8)
    for top in range(0, len(whole), 256):
        values = np.nan_to_num((whole[top : top + 256].astype(np.float64) - low) * (255 / (high - low)))
        pixels[top : top + 256] = np.clip(values + 0.5, 0, 255)
    return Image.fromarray(pixels)
