"""Decode one image file into (C, H, W) uint8, in the same way for training and for prediction.

This module does not import torch, so that a decoding process starts quickly: `python -m cnnlab.io.decode` is one, see
cnnlab.competition.decoders.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cnnlab.io.errors import CnnlabError, reason

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
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


class BadImage(CnnlabError):
    """An image file that cannot be decoded. The text names it."""


def probe(source: Path | str, content: bytes | None = None) -> tuple[tuple[int, int], bool]:
    """Return ((width, height) as stored, whether it is grey) from the header alone. Raises: BadImage.

    source: the file; or, with its bytes as `content`, its name in error messages.
    """
    with _open(source, content) as image:
        return image.size, image.mode in _GREY


def decode(
    source: Path | str, channels: int, size: int, fit: str, content: bytes | None = None, *, invert: bool = False
) -> np.ndarray:
    """Decode an image as (channels, size, size) uint8; transparent pixels become black.

    fit: `pad` keeps the whole image and adds black bars, `crop` fills the square and cuts off the rest, `stretch`
    changes the proportions. invert: exchange black and white before the image is fitted, so that bars stay black.
    content: see `probe`. Raises: BadImage.
    """
    with _open(source, content) as image:
        return square_pixels(image, source, channels, size, fit, invert)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Turn Pillow's warning about a decompression bomb into a BadImage, and hide its other warnings.

    Use it around the whole read, not around each image: warning filters belong to the process, not to a thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def image_files(folder: Path, *, follow_outside: bool = True) -> Iterator[Path]:
    """Yield every file under `folder` with the ending of an image, except hidden ones, in no particular order.

    follow_outside: follow links that lead outside `folder`; if False, such a link raises CnnlabError.
    """
    visited: set[str] = set()
    root = os.path.realpath(folder)

    def check(path: str | Path) -> None:
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise CnnlabError(f"{str(path)!r} is a link that leads outside {folder}; put the images themselves there")

    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link to a folder further up
            folders.clear()
            continue
        visited.add(real)
        if not follow_outside:
            check(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in ENDINGS:  # noqa: PTH122 - called often
                path = Path(parent, name)
                if path.is_file():  # not a pipe, which would block
                    if not follow_outside and path.is_symlink():
                        check(path)
                    yield path


@dataclass(frozen=True)
class Job:
    """Where decoded images go and what they must look like.

    file: a .npy of (N, channels, size, size) uint8 whose pixels begin at byte `offset`; same_size: report an image of
    another size instead of fitting it; grey_only: report a colour image instead of converting it.
    """

    file: str
    offset: int
    channels: int
    size: int
    fit: str
    same_size: bool
    grey_only: bool


Fault = tuple[int, str, str]
"""(row, kind, text) of an image that was not stored. kind: `bad`, `size` or `colour`; text: an error message for it."""


def decode_into(job: Job, rows: Sequence[int], names: Sequence[str], contents: Sequence[bytes]) -> list[Fault]:
    """Write each image to its row of the file. The rows of faulty images stay as they are, which is black.

    Raises: OSError if the file cannot be written.
    """
    faults: list[Fault] = []
    # Plain writes: with a memory map, a full disk would be a fatal signal, and the pages would count as memory.
    with open(job.file, "r+b") as file, bombs_refused():  # noqa: PTH123 - a text
        for row, name, content in zip(rows, names, contents, strict=True):
            try:
                with _open(name, content) as image:
                    if job.same_size and image.size != (job.size, job.size):
                        faults.append((row, "size", f"{name} is {image.size[0]} x {image.size[1]}"))
                        continue
                    if job.grey_only and image.mode not in _GREY:
                        faults.append((row, "colour", f"{name} is a colour image"))
                        continue
                    pixels = square_pixels(image, name, job.channels, job.size, job.fit)
            except BadImage as error:
                faults.append((row, "bad", str(error)))
                continue
            file.seek(job.offset + row * pixels.size)
            file.write(pixels.tobytes())
    return faults


def write_batch(
    stream: IO[bytes], job: Job, rows: Sequence[int], names: Sequence[str], contents: Sequence[bytes]
) -> None:
    """Send a batch to a process that runs `serve`: a line of JSON, then the content of the image files."""
    head = {"job": asdict(job), "rows": rows, "names": names, "sizes": [len(c) for c in contents]}
    stream.write(json.dumps(head).encode() + b"\n")
    stream.write(b"".join(contents))
    stream.flush()


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Decode batches until the source ends; answer each with a line of JSON."""
    while line := source.readline():
        head = json.loads(line)
        contents = [source.read(size) for size in head["sizes"]]
        answer: dict[str, Any]
        try:
            answer = {"faults": decode_into(Job(**head["job"]), head["rows"], head["names"], contents)}
        except OSError as error:
            answer = {"failed": reason(error)}
        sink.write(json.dumps(answer).encode() + b"\n")
        sink.flush()


def _open(source: Path | str, content: bytes | None) -> Image.Image:
    try:
        if content is None and (size := os.stat(source).st_size) > _LARGEST_FILE:  # noqa: PTH116 - a text or a path
            raise BadImage(f"{source} is {size:,} bytes; the limit for an image is {_LARGEST_FILE:,}")
        return Image.open(source if content is None else io.BytesIO(content), formats=_KNOWN)
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"{source} is too large to be decoded safely: {reason(error)}") from error
    except FileNotFoundError as error:
        raise BadImage(f"{source} does not exist") from error
    except Exception as error:
        why = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise BadImage(f"{source} is damaged: {why}") from error


def square_pixels(
    image: Image.Image, source: Path | str, channels: int, size: int, fit: str, invert: bool = False
) -> np.ndarray:
    """Return an opened image as (channels, size, size) uint8, as `decode` does; `source` names it in errors.

    The image may be changed in place. Raises: BadImage.
    """
    large = image.size[0] * image.size[1] > _LARGE
    try:
        with _one_large if large else nullcontext():
            image = _fitted(image, "L" if channels == 1 else "RGB", (size, size), fit, invert)
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise BadImage(f"{source} is damaged: {reason(error)}") from error
    pixels = np.asarray(image)
    return pixels.reshape(1, size, size) if channels == 1 else pixels.transpose(2, 0, 1)


def _fitted(image: Image.Image, mode: str, target: tuple[int, int], fit: str, invert: bool) -> Image.Image:
    """Return `image` upright, in eight bits, without transparency, as a square; copy only if needed."""
    ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode != mode:
        image = image.convert(mode)
    if invert:
        image = ImageOps.invert(image)
    if image.size == target:
        return image
    if fit == "stretch":
        return image.resize(target, Image.Resampling.BILINEAR)
    if fit == "crop":
        return ImageOps.fit(image, target, Image.Resampling.BILINEAR)
    return ImageOps.pad(image, target, Image.Resampling.BILINEAR)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale sixteen-bit and floating-point greys to eight bits; Pillow's own conversion would clip them at 255.

    Works in strips to save memory.
    """
    wide = image.mode.startswith("I;16")
    if not wide and image.mode not in ("I", "F"):
        return image
    whole = np.asarray(image)
    pixels = np.empty(whole.shape, np.uint8)
    most = 0 if wide else np.fmax.reduce(whole, axis=None, initial=0)  # ignores NaN
    high = 65535 if most > 255 else 255 if most > 1 else 1
    for top in range(0, len(whole), 256):
        strip = whole[top : top + 256]
        if wide:
            pixels[top : top + 256] = strip >> 8
        else:
            values = np.nan_to_num(strip.astype(np.float64) * (255 / high))
            pixels[top : top + 256] = np.clip(values, 0, 255)
    return Image.fromarray(pixels)


if __name__ == "__main__":
    # Nobody reads what a decoder in C prints, and a full pipe would block this process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    serve(sys.stdin.buffer, sys.stdout.buffer)
