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
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.jpeg import is_cut, with_end_marker
from cnnlab.io.kinds import file_kind, kind_of
from cnnlab.io.stacks import Guard, NotAnImage, Stack, as_stack, damaged, nodata_of, open_stack, scaled
from cnnlab.io.strip import without_metadata
from cnnlab.io.text import plural
from cnnlab.io.values import Values, summarize

# The formats that we decode, the most frequent first. Pillow knows more, and goes by a file's first bytes, not its
# name: a file called 1.png could be PostScript, which Pillow passes to another program, or a format that is decoded in
# Python, slowly or without a bound on memory (docs/security.md).
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "DIB", "ICO", "JPEG2000", "AVIF", "PCX", "SGI", "TGA",
            "HEIF")  # fmt: skip
with suppress(ImportError):  # installed by the extra `images`
    import pillow_heif

    pillow_heif.register_heif_opener()
# File name endings of images; other files in a folder are ignored.
ENDINGS = frozenset(e for e, f in Image.registered_extensions().items() if f in _FORMATS and f in Image.OPEN) | {".npy"}
_KNOWN = tuple(f for f in _FORMATS if f in Image.OPEN)  # Pillow may be built without some
LARGEST_FILE = 1 << 29  # bytes
_LARGE = 1 << 26  # bytes of pixels, 4 a pixel in Pillow: larger images are read one at a time, to bound the memory
_one_large = threading.RLock()
_reads_lock = threading.Lock()
# The reads in progress, see `bombs_refused`: the replaced filters for the first one, None for the others.
_reads: list[warnings.catch_warnings[None] | None] = []
FITS = ("pad", "crop", "stretch")
BACKGROUNDS = ("auto", "black", "white")
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_GREY = {"1", "L", "LA", "La", *_DEEP}
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """An image without a file of its own. name: its id, also for messages. read: returns its bytes, or opens it."""

    name: str
    read: Callable[[], bytes | Image.Image]

    def __str__(self) -> str:
        return self.name


Picture = Image.Image | Stack
"""An opened image."""

Source = Path | str | Item
"""An image file, the name of an image whose bytes are given, or an item."""


class BadImage(CnnlabError):
    """An image file that cannot be decoded. The text names it."""


class NoSuchImage(BadImage):
    """An image file that is not there."""


class TooLarge(BadImage):
    """An image file beyond a size limit. It need not be damaged."""


@dataclass(frozen=True)
class Decoding:
    """How the images of one source are decoded: the same for training, evaluation and prediction.

    size: pixels a side; 0 keeps each image's own size. fit: `pad` keeps the whole image and adds bars, `crop` fills the
    square and cuts off the rest, `stretch` changes the proportions. background: black or white, behind transparent
    pixels. low, high: the values of 16-bit, 32-bit and floating-point greys and colours that become 0 and 255. If both
    are 0, high is 65535, 255 or 1, depending on each image's type and largest value. lows, highs: the same per channel,
    for images that are neither grey nor colour. interpolation: for resizing, bilinear or bicubic.
    """

    channels: int
    size: int
    fit: str = "pad"
    background: str = "black"
    low: float = 0.0
    high: float = 0.0
    interpolation: str = "bilinear"
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Header:
    """The pixel format of an image file. size: (width, height) as stored. deep: more than eight bits per channel.

    channels: 1 for grey, 3 for colour, or another number; opacity is not counted.
    """

    size: tuple[int, int]
    channels: int
    deep: bool
    transparent: bool

    @property
    def grey(self) -> bool:
        """Whether there is one channel."""
        return self.channels == 1


def probe(source: Source, content: bytes | None = None) -> Header:
    """Read the header of an image. Raise BadImage.

    source: the file; or, with its bytes as `content`, its name in error messages.
    """
    return read_image(source, content, header_of)


def header_of(image: Picture) -> Header:
    """Return the header of an opened image."""
    if isinstance(image, Stack):
        return Header(image.size, image.channels, image.deep, image.alpha)
    channels = 1 if image.mode in _GREY else 3
    return Header(image.size, channels, image.mode in _DEEP, bool(image.has_transparency_data))


def decode(source: Source, how: Decoding, content: bytes | None = None, *, invert: bool = False) -> np.ndarray:
    """Decode an image as (channels, size, size) uint8, or (channels, H, W) for a size of 0.

    invert: invert the image before it is fitted, so that added bars stay black. content: see `probe`.
    Raise BadImage.
    """
    return read_image(source, content, lambda image: square_pixels(image, source, how, invert))


CUT = "look cut off: a part of the picture is missing"
STRIP = "are so long and narrow that fewer than two rows of pixels are left"
CROP = "are so long and narrow that less than an eighth is left; --set fit=pad or stretch keeps all of it"
TINY = "are at most 3 x 3 pixels"
PAGES = "hold several pages or frames; only the first is used"


def decode_checked(source: Source, how: Decoding) -> tuple[np.ndarray, list[str]]:
    """Decode an image file; also return remarks on it, such as `CUT` and `STRIP`. Raise BadImage."""

    def use(image: Picture) -> tuple[np.ndarray, list[str]]:
        odd = [PAGES] if isinstance(image, Image.Image) and _frames(image) > 1 else []
        short, long = sorted(image.size)
        if how.fit == "pad" and short * how.size < 2 * long and how.size > 2:
            odd.append(STRIP)
        if how.fit == "crop" and short * 8 < long:
            odd.append(CROP)
        if long < 4:
            odd.append(TINY)
        if isinstance(image, Image.Image) and image.format in ("JPEG", "MPO"):
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
    """Summarize the values of an image of more than eight bits, all channels together. content: see `probe`."""

    def values(image: Picture) -> Values:
        return summarize(image.values if isinstance(image, Stack) else np.asarray(image), nodata_of(image))

    return read_image(source, content, values)


def channel_values(source: Source) -> list[Values]:
    """Summarize the values of each channel of a multi-channel image. Raise BadImage."""

    def values(image: Picture) -> list[Values]:
        pixels = image.values if isinstance(image, Stack) else np.asarray(image)[..., None]
        return [summarize(pixels[..., c], nodata_of(image)) for c in range(pixels.shape[2])]

    return read_image(source, None, values)


def ink(source: Source, content: bytes | None = None) -> float | None:
    """Return the mean grey level, 0 to 255, of the opaque parts of an image; None if it has none.

    content: see `probe`. Raise BadImage.
    """

    def mean(image: Picture) -> float | None:
        if isinstance(image, Stack):
            image = _colours(image, Decoding(3, 1))
        grey, alpha = (np.asarray(band, np.float64) for band in image.convert("RGBA").convert("LA").split())
        return float((grey * alpha).sum() / alpha.sum()) if alpha.any() else None

    return read_image(source, content, mean)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Turn Pillow's warning about a decompression bomb into a BadImage, and hide its other warnings.

    Use it around the whole read, not around each image: warning filters belong to the process, not to a thread. Reads
    may overlap, in threads or as generators that end in any order: the last one restores the filters.
    """
    with _reads_lock:
        replaced = None if _reads else warnings.catch_warnings()
        _reads.append(replaced)
        if replaced:
            replaced.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        yield
    finally:
        with _reads_lock:
            if last := _reads.pop():
                last.__exit__(None, None, None)


def read_image(source: Source, content: bytes | None, use: Callable[[Picture], T]) -> T:
    """Open an image and call `use`; if that fails, try again with a repaired copy. Raise BadImage.

    Repairs leave all pixels as they are: broken metadata is dropped, and a JPEG's end marker is added.
    """
    if isinstance(source, Item):
        try:
            found = source.read()
        except MemoryError:
            raise
        except Exception as error:  # from whichever library reads it
            raise BadImage(f"{source} cannot be read: {reason(error, 200)}") from error
        if isinstance(found, Image.Image):
            with _one_at_a_time() as guard:
                return _used(found, source, use, b"", guard)
        source, content = source.name, found
    path = source

    def attempt(content: bytes | None) -> T:
        with _one_at_a_time() as guard, _open(path, content, guard) as image:
            return _used(image, path, use, content, guard)

    try:
        return attempt(content)
    except TooLarge:
        raise
    except BadImage:
        whole = b""
        with suppress(OSError):
            whole = Path(source).read_bytes() if content is None else content
        for repair in (partial(without_metadata, keep_exif=True), without_metadata, with_end_marker):
            if repaired := repair(whole):
                with suppress(BadImage):
                    return attempt(repaired)
        raise


@contextmanager
def _one_at_a_time() -> Iterator[Guard]:
    """Yield a guard that makes a large image wait until no other thread works on one."""
    with ExitStack() as held:
        yield lambda size: held.enter_context(_one_large) if size > _LARGE else None


def _used(image: Picture, source: Source, use: Callable[[Picture], T], content: bytes | None, guard: Guard) -> T:
    try:
        if isinstance(image, Image.Image):
            guard(image.width * image.height * 4)
            if not isinstance(source, Item):
                image = as_stack(image, source, content, guard) or image
        return use(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise _bad(source, error) from error


def _bad(source: Source, error: Exception) -> BadImage:
    if isinstance(error, NotAnImage):
        return BadImage(f"{source} {error}")
    return BadImage(f"{source} is damaged: {damaged(error)}")


@contextmanager
def _open(source: Path | str, content: bytes | None, guard: Guard) -> Iterator[Picture]:
    try:
        if content is None and (size := os.stat(source).st_size) > LARGEST_FILE:  # noqa: PTH116 - a text or a path
            raise TooLarge(f"{source} is {size:,} bytes; the limit for an image is {LARGEST_FILE:,}")
        found: Picture | None = None
        try:
            found = Image.open(source if content is None else io.BytesIO(content), formats=_KNOWN)
        except UnidentifiedImageError:
            try:
                found = open_stack(source, content, guard)
            except MemoryError:
                raise
            except Exception as error:  # tifffile and NumPy raise nearly anything for a damaged file
                raise _bad(source, error) from error
            if found is None:
                raise
    except (BadImage, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = re.search(r"\((\d+) pixels", str(error))
        count = f"{int(pixels[1]):,} pixels" if pixels else "too many pixels"
        raise TooLarge(f"{source} has {count}, the limit is {Image.MAX_IMAGE_PIXELS:,}; make it smaller") from error
    except FileNotFoundError as error:
        raise NoSuchImage(f"{source} does not exist") from error
    except Exception as error:
        why = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else reason(error)
        with suppress(OSError):
            if kind := file_kind(Path(source)) if content is None else kind_of(content):
                raise BadImage(f"{source} {kind.in_place_of_image()}") from error
            if content == b"" or (content is None and not Path(source).stat().st_size):
                why = "it is empty"
        raise BadImage(f"{source} is damaged: {why}") from error
    with found if isinstance(found, Image.Image) else nullcontext():
        yield found


def square_pixels(image: Picture, source: Source, how: Decoding, invert: bool = False) -> np.ndarray:
    """Return an opened image as (channels, size, size) uint8, as `decode` does; `source` names it in errors.

    The image may be changed in place. Raise BadImage.
    """
    channels = header_of(image).channels
    if channels != how.channels and {channels, how.channels} - {1, 3}:
        raise BadImage(f"{source} has {plural(channels, 'channel')}, {how.channels} are expected; convert it")
    try:
        if isinstance(image, Stack) and channels not in (1, 3):
            pixels = image.eight_bits(how.low, how.high, how.lows, how.highs)
            bands = (Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(channels))
            single = replace(how, channels=1)
            return np.stack([np.asarray(_fitted(band, single, invert)) for band in bands])
        if isinstance(image, Stack):
            image = _colours(image, how)
        pixels = np.asarray(_fitted(image, how, invert))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise BadImage(f"{source} is damaged: {reason(error)}") from error
    return pixels[None] if how.channels == 1 else pixels.transpose(2, 0, 1)


def _colours(stack: Stack, how: Decoding) -> Image.Image:
    """Return a stack of one or three channels, with or without opacity, as an 8-bit image."""
    pixels = stack.eight_bits(how.low, how.high, how.lows, how.highs)
    if not stack.alpha:
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    most = np.iinfo(stack.pixels.dtype).max if stack.pixels.dtype.kind in "iu" else 1.0
    alpha = np.clip(stack.pixels[..., -1:].astype(np.float64) * (255 / most) + 0.5, 0, 255).astype(np.uint8)
    colour = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return Image.fromarray(np.concatenate([colour, alpha], 2))


def _fitted(image: Image.Image, how: Decoding, invert: bool) -> Image.Image:
    """Return `image` upright, in eight bits, without transparency, as a square; copy only if needed."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _DEEP:  # Pillow's own conversion would clip them at 255
        image = Image.fromarray(scaled(np.asarray(image), how.low, how.high))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, how.background), image)
    if image.mode == "LAB":  # Pillow cannot convert it to grey directly
        image = image.convert("RGB")
    mode, target = "L" if how.channels == 1 else "RGB", (how.size, how.size)
    if image.mode != mode:
        image = image.convert(mode)
    if invert:
        image = ImageOps.invert(image)
    if image.size == target or not how.size:
        return image
    filter_ = Image.Resampling[how.interpolation.upper()]
    if how.fit == "stretch":
        return image.resize(target, filter_)
    if how.fit == "crop":
        return ImageOps.fit(image, target, filter_)
    return ImageOps.pad(image, target, filter_)
