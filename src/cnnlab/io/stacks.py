"""Images that Pillow cannot hold: more than eight bits of colour, and any number of channels (TIFF, `.npy`)."""

from __future__ import annotations

import io
import logging
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from cnnlab.io.errors import CnnlabError, reason

NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_CHANNELS = 64
_GDAL_NODATA = 42113  # the tag of a TIFF that names the value of missing data
_ALPHA = (1, 2)  # values of TIFF's tag ExtraSamples
_DEFLATE, _PACKBITS, _LZMA = (8, 32946, 50013), 32773, 34925  # values of the tag Compression
_BITS, _SAMPLES, _EXTRA, _FORMAT, _ORIENTATION = 258, 277, 338, 339, 274  # numbers of tags
# Axes that are channels: as tifffile names them for ImageJ and OME (C), for samples (S) and for its own arrays (Q).
_CHANNEL_AXES = "CSQ"


Guard = Callable[[int], object]
"""Called with the number of bytes of an image's pixels before they are read."""


class NotAnImage(CnnlabError):
    """An array that is not an image. The message does not name the file."""


@dataclass(frozen=True)
class Stack:
    """An image as an array. pixels: (H, W, C) of any real type; alpha: whether the last channel is opacity.

    format, size: as in a Pillow image. nodata: the file's value for missing data.
    """

    pixels: np.ndarray
    alpha: bool = False
    format: str = "stack"
    nodata: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def channels(self) -> int:
        """The number of channels, without opacity."""
        return int(self.pixels.shape[2]) - self.alpha

    @property
    def deep(self) -> bool:
        """Whether the values are neither uint8 nor bool."""
        return self.pixels.dtype not in (np.uint8, np.bool_)

    @cached_property
    def values(self) -> np.ndarray:
        """The pixels (H, W, C) without opacity."""
        return self.pixels[..., : self.channels]

    def eight_bits(
        self, low: float, high: float, lows: Sequence[float] = (), highs: Sequence[float] = ()
    ) -> np.ndarray:
        """Return the values as (H, W, C) uint8. low and high become 0 and 255; lows, highs: the same per channel."""
        values = self.values
        if not self.deep:
            return values.astype(np.uint8) * (255 if values.dtype == np.bool_ else 1)
        if not lows:
            return scaled(values, low, high)
        return np.stack([scaled(values[..., c], *ends) for c, ends in enumerate(zip(lows, highs, strict=True))], 2)


def as_stack(image: Any, source: Path | str, content: bytes | None, guard: Guard) -> Stack | None:
    """Return the pixels of an opened image whose channels or bits Pillow would drop; None for all others."""
    if image.format == "PNG" and image.mode in ("RGB", "RGBA") and image.tile and "16B" in str(image.tile[0][3]):
        guard(image.width * image.height * 8)
        return _deep_png(image, source, content)
    if image.format == "PPM" and image.mode == "RGB" and image.tile and image.tile[0][0] == "ppm":
        guard(image.width * image.height * 6)
        return _deep_ppm(source, content)
    if image.format == "TIFF":
        if _needs_tifffile(image):
            return open_stack(source, content, guard)
        if _grey_pages(image):
            return open_stack(source, content, guard, pages=True)
    return None


def open_stack(source: Path | str, content: bytes | None, guard: Guard, *, pages: bool = False) -> Stack | None:
    """Return the pixels of a TIFF or `.npy` file; None if it is neither.

    pages: return None unless the pages are the channels of one image; Pillow then reads the first page. Raise
    NotAnImage, or any error of the libraries.
    """
    with _stream(source, content) as file:
        head = file.read(8)
        file.seek(0)
        if head.startswith(NPY):
            return _npy(file, guard)
        return _tiff(file, guard, pages) if head.startswith(_TIFF) else None


def _stream(source: Path | str, content: bytes | None) -> IO[bytes]:
    return Path(source).open("rb") if content is None else io.BytesIO(content)


def _needs_tifffile(image: Any) -> bool:
    tags = image.tag_v2
    bits, samples = max(tags.get(_BITS, (1,))), tags.get(_SAMPLES, 1)
    if samples > 1 and image.mode not in ("CMYK", "LAB", "YCbCr", "P", "PA"):
        extra = tags.get(_EXTRA, (0,))
        dropped = samples > len(image.getbands()) and (len(extra) > 1 or extra[0] not in _ALPHA)
        unmarked = samples == 4 and _EXTRA not in tags  # Pillow takes the fourth for opacity
        return bool(bits != 8 or dropped or unmarked)
    # Pillow would read the upper half of unsigned 32-bit numbers as negative.
    return bool(image.mode == "I" and bits == 32 and max(tags.get(_FORMAT, (1,))) == 1)


def _grey_pages(image: Any) -> bool:
    with suppress(Exception):  # a damaged directory: Pillow will say so
        return image.mode in ("1", "L", "I", "F", "I;16", "I;16B") and int(image.n_frames) > 1
    return False


def _tiff(file: IO[bytes], guard: Guard, pages: bool) -> Stack | None:
    """Read the first series; None if its pages are not the channels of one image."""
    import tifffile  # slow to import, and rarely needed

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # errors are raised as well
    with tifffile.TiffFile(file) as tiff:
        series, page = tiff.series[0], tiff.pages.first
        sides = dict(zip(series.axes, map(int, series.shape), strict=True))  # no axis comes twice
        axes = "".join(axis for axis, side in sides.items() if side > 1 or axis in "YX")
        shape = [sides[axis] for axis in axes]
        _check_pixels(shape)
        extra = [int(kind) for kind in getattr(page, "extrasamples", ())]
        alpha = "S" in axes and len(extra) == 1 and extra[0] in _ALPHA
        if len(axes) > 3 or (len(axes) == 3 and not set(axes) & set(_CHANNEL_AXES)):
            return None  # depth, time or unrelated pages
        if pages and len(axes) == 2:
            return None  # pages of other sizes
        guard(int(np.prod(shape)) * series.dtype.itemsize)
        _refuse_bombs(file, series)
        pixels: np.ndarray = series.asarray().reshape(shape)
        if "Q" in axes:  # tifffile's own note of an array's shape
            return Stack(_channels_last(pixels), format="TIFF")
        if len(axes) == 3 and axes[2] not in _CHANNEL_AXES:
            pixels = np.moveaxis(pixels, next(i for i, axis in enumerate(axes) if axis in _CHANNEL_AXES), 2)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        orientation = page.tags.get(_ORIENTATION)
        pixels = _upright(pixels, int(orientation.value) if orientation is not None else 1)
        tag = page.tags.get(_GDAL_NODATA)
    return Stack(_checked(pixels), alpha, "TIFF", _number(tag.value if tag is not None else None))


def _refuse_bombs(file: IO[bytes], series: Any) -> None:
    """Raise NotAnImage for tiles or strips that decompress to more than their declared size.

    imagecodecs decodes into a buffer of that size; without it, tifffile decodes everything there is.
    """
    page = series.pages[0]
    _check_pixels(page.chunks)
    if "imagecodecs" in sys.modules or int(page.compression) not in (*_DEFLATE, _PACKBITS, _LZMA):
        return
    most = int(np.prod(page.chunks)) * series.dtype.itemsize * 2 + 1024
    for frame in series.pages:
        for start, count in zip(frame.dataoffsets, frame.databytecounts, strict=True) if frame is not None else ():
            fits = count <= most  # no more than this is read
            if fits and int(page.compression) != _PACKBITS:
                file.seek(start)
                content = file.read(count)
                if int(page.compression) == _LZMA:
                    fits = len(lzma.LZMADecompressor().decompress(content, most + 1)) <= most
                else:
                    fits = len(zlib.decompressobj().decompress(content, most + 1)) <= most
            if not fits:
                raise NotAnImage("has a strip or a tile that holds more than its size says; save it again")


def nodata_of(image: Any) -> float | None:
    """Return the value for missing data in a file of GDAL, or None. image: a Stack or a Pillow image."""
    return image.nodata if isinstance(image, Stack) else _number(getattr(image, "tag_v2", {}).get(_GDAL_NODATA))


def _number(text: Any) -> float | None:
    try:
        return None if text is None else float(text)
    except (ValueError, TypeError):
        return None


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (H, W, C) turned and mirrored according to EXIF's orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _npy(file: IO[bytes], guard: Guard) -> Stack:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "buif":
        raise NotAnImage(f"holds values of type {dtype}, not numbers of an image; save uint8, uint16 or float32")
    _check_pixels(shape)
    guard(int(np.prod(shape, dtype=object)) * dtype.itemsize)
    file.seek(0)
    pixels = np.lib.format.read_array(file, allow_pickle=False)
    return Stack(_channels_last(pixels), format="NPY")


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """Return an array (H, W), (H, W, C) or (C, H, W) as (H, W, C): the smaller of first and last axis is C."""
    shape = " x ".join(map(str, pixels.shape))
    if pixels.ndim == 2:
        return _checked(pixels[..., None])
    if pixels.ndim != 3:
        raise NotAnImage(f"is an array of {shape}; save one image, as (H, W), (H, W, C) or (C, H, W)")
    if pixels.shape[0] == pixels.shape[2]:
        raise NotAnImage(f"is an array of {shape}: its channels could be first or last; save (C, H, W) with another C")
    side = pixels.shape[1]
    if side > 4 and (pixels.shape[2] == side < pixels.shape[0] or pixels.shape[0] == side < pixels.shape[2]):
        raise NotAnImage(
            f"is an array of {shape}: many images, or one of {side} channels? Save each image to a file of its own, "
            "(H, W) or (H, W, C)"
        )
    return _checked(np.moveaxis(pixels, 0, 2) if pixels.shape[0] < pixels.shape[2] else pixels)


def _check_pixels(shape: Any) -> None:
    count = int(np.prod([int(side) for side in shape], dtype=object)) if shape else 0
    most = (Image.MAX_IMAGE_PIXELS or 1 << 27) * 4
    if count > most:
        raise NotAnImage(f"has {count:,} values, the limit is {most:,}; make it smaller")


def _checked(pixels: np.ndarray) -> np.ndarray:
    shape = " x ".join(map(str, pixels.shape))
    if 0 in pixels.shape:
        raise NotAnImage(f"is an array of {shape}, with no pixels; remove it")
    if pixels.shape[2] > MOST_CHANNELS:
        raise NotAnImage(f"has {pixels.shape[2]} channels ({shape}); at most {MOST_CHANNELS} are read")
    if pixels.dtype.kind not in "buif":
        raise NotAnImage(f"holds values of type {pixels.dtype}, not numbers of an image; save uint8, uint16 or float32")
    return pixels.astype(np.float32) if pixels.dtype == np.float16 else pixels  # float16 cannot hold values._HUGE


def _deep_png(image: Any, source: Path | str, content: bytes | None) -> Stack:
    """Read a PNG of 16 bits per channel. Pillow keeps the upper byte of each value, or with `;16L` the lower one."""
    first = image.tile[0]
    raw = first[3] if isinstance(first[3], str) else first[3][0]
    grey = raw.startswith("LA")

    def read(mode: str) -> np.ndarray:
        with _stream(source, content) as file, Image.open(file, formats=("PNG",)) as half:
            opened: Any = half
            opened.tile = [tile._replace(args=mode) for tile in opened.tile]
            return np.asarray(half).astype(np.uint16)

    if grey:  # two bytes of grey and two of opacity, as if they were four values
        both = read("RGBA")
        pixels = both[..., ::2] * 256 + both[..., 1::2]
    else:
        pixels = read(raw) * 256 + read(raw.replace(";16B", ";16L"))
    return Stack(_upright(pixels, image.getexif().get(_ORIENTATION, 1)), image.mode == "RGBA", "PNG")


def _deep_ppm(source: Path | str, content: bytes | None) -> Stack | None:
    """Read a binary PPM of 16 bits per channel; return None for one of eight bits."""
    with _stream(source, content) as file:
        whole = file.read()
    head = re.match(rb"P6" + rb"(?>(?:\s|#[^\n]*\n)+)(\d{1,9})" * 3 + rb"\s", whole)
    if head is None or int(head[3]) < 256:
        return None
    width, height, most = map(int, head.groups())
    values = np.frombuffer(whole, ">u2", width * height * 3, head.end()).reshape(height, width, 3)
    scaled = values if most == 65535 else np.rint(values.astype(np.float64) * (65535 / most))
    return Stack(scaled.astype(np.uint16), format="PPM")


def damaged(error: Exception) -> str:
    """Return why a stack could not be read, with the remedy if a package is missing."""
    text = reason(error, 200)
    missing = re.search(r"imagecodecs|COMPRESSION\.\w+", text)
    return f"its compression needs another package ({text}); pip install imagecodecs" if missing else text


def scaled(whole: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale values (H, W, ...) to uint8, from low to 0 and from high to 255, in strips to save memory."""
    if high <= low:  # no range was measured
        most = np.fmax.reduce(whole, axis=None, initial=0)  # ignores NaN
        low, high = 0.0, 65535 if whole.dtype.str[1:] == "u2" or most > 255 else 255 if most > 1 else 1
    pixels = np.empty(whole.shape, np.uint8)
    for top in range(0, len(whole), 256):
        values = np.nan_to_num((whole[top : top + 256].astype(np.float64) - low) * (255 / (high - low)))
        pixels[top : top + 256] = np.clip(values + 0.5, 0, 255)
    return pixels
