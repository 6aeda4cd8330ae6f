"""One image file -> (C, H, W) uint8, without torch, so that a process which only decodes starts at once.

`python -m cnnlab.io.decode` is such a process: see cnnlab.competition.decoders, which starts and feeds it.
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

# What is decoded, the most frequent first. Not all that Pillow knows: it goes by a file's first bytes, whatever its
# name, so a file called 1.png could be PostScript, which it hands to another program, or of a kind that is decoded in
# Python, slowly or without a bound (docs/security.md).
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "DIB", "ICO", "JPEG2000", "AVIF", "PCX", "SGI", "TGA")
# By the ending of the name; other files in a folder are not images and are passed over.
ENDINGS = frozenset(e for e, f in Image.registered_extensions().items() if f in _FORMATS and f in Image.OPEN)
_KNOWN = tuple(f for f in _FORMATS if f in Image.OPEN)  # a Pillow may be built without some
_LARGEST_FILE = 1 << 29  # bytes
_LARGE = 1 << 24  # pixels: of such images one is decoded at a time, whatever the number of threads
_one_large = threading.Lock()
FITS = ("pad", "crop", "stretch")
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


class BadImage(CnnlabError):
    """A file that should be an image and cannot be read as one. The text names it."""


def probe(source: Path | str, content: bytes | None = None) -> tuple[tuple[int, int], bool]:
    """((width, height) as stored, is it grey), from the header alone. Raises BadImage.

    source: the file; or where its bytes are at hand, as `content`, the name by which errors call it.
    """
    with _open(source, content) as image:
        return image.size, image.mode in _GREY


def decode(
    source: Path | str, channels: int, size: int, fit: str, content: bytes | None = None, *, invert: bool = False
) -> np.ndarray:
    """Return the image `source` as (channels, size, size) uint8. Transparent pixels become black.

    fit: `pad` keeps all of the image and adds black bars, `crop` fills the square and cuts off what is outside,
    `stretch` changes the proportions. invert: exchange black and white before the image is fitted, so that bars stay
    black. content: as for `probe`. Raises: BadImage.
    """
    with _open(source, content) as image:
        return square_pixels(image, source, channels, size, fit, invert)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """While this holds, an image that would unpack to gigabytes is a BadImage rather than Pillow's warning.

    Its other warnings (a damaged remark in a file whose pixels are whole) are not shown. Around the whole read, not
    around each image: Python's warning filters belong to the process, not to a thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@dataclass(frozen=True)
class Job:
    """Where decoded images go and how they should look.

    file: a .npy of (N, channels, size, size) uint8, whose pixels begin at byte `offset`; exact: an image of another
    size is not fitted but told; grey: an image with colours is not made grey but told.
    """

    file: str
    offset: int
    channels: int
    size: int
    fit: str
    exact: bool
    grey: bool


Trouble = tuple[int, str, str]
"""(row, kind, text): `bad` with its report, `size` with "30 x 20", or `colour`."""


def decode_into(job: Job, rows: Sequence[int], names: Sequence[str], contents: Sequence[bytes]) -> list[Trouble]:
    """Write each image to its row of the file; the rows of those in the answer are left as they are, which is black.

    Raises: OSError where the file cannot be written.
    """
    troubles: list[Trouble] = []
    # Plain writes: through a memory map, a full disk would be a fatal signal, and the pages would count as memory.
    with open(job.file, "r+b") as file, bombs_refused():  # noqa: PTH123 - a text
        for row, name, content in zip(rows, names, contents, strict=True):
            try:
                with _open(name, content) as image:
                    if job.exact and image.size != (job.size, job.size):
                        troubles.append((row, "size", f"{image.size[0]} x {image.size[1]}"))
                        continue
                    if job.grey and image.mode not in _GREY:
                        troubles.append((row, "colour", ""))
                        continue
                    pixels = square_pixels(image, name, job.channels, job.size, job.fit)
            except BadImage as error:
                troubles.append((row, "bad", str(error)))
                continue
            file.seek(job.offset + row * pixels.size)
            file.write(pixels.tobytes())
    return troubles


def write_batch(
    stream: IO[bytes], job: Job, rows: Sequence[int], names: Sequence[str], contents: Sequence[bytes]
) -> None:
    """Hand a batch to a process that runs `serve`: a line of JSON, then the images' bytes."""
    head = {"job": asdict(job), "rows": rows, "names": names, "sizes": [len(c) for c in contents]}
    stream.write(json.dumps(head).encode() + b"\n")
    stream.write(b"".join(contents))
    stream.flush()


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Decode the batches that come until there are no more, and answer each with a line of JSON."""
    while line := source.readline():
        head = json.loads(line)
        contents = [source.read(size) for size in head["sizes"]]
        answer: dict[str, Any]
        try:
            answer = {"troubles": decode_into(Job(**head["job"]), head["rows"], head["names"], contents)}
        except OSError as error:
            answer = {"failed": reason(error)}
        sink.write(json.dumps(answer).encode() + b"\n")
        sink.flush()


def _open(source: Path | str, content: bytes | None) -> Image.Image:
    try:
        if content is None and (size := os.stat(source).st_size) > _LARGEST_FILE:  # noqa: PTH116 - a text or a path
            raise BadImage(f"{source} is {size:,} bytes; more than {_LARGEST_FILE:,} is no image here")
        return Image.open(source if content is None else io.BytesIO(content), formats=_KNOWN)
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"{source} is too large to be decoded safely: {reason(error)}") from error
    except FileNotFoundError as error:
        raise BadImage(f"{source} does not exist") from error
    except Exception as error:
        why = "no image of a known format" if isinstance(error, UnidentifiedImageError) else reason(error)
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
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise BadImage(f"{source} is damaged: {reason(error)}") from error
    pixels = np.asarray(image)
    return pixels.reshape(1, size, size) if channels == 1 else pixels.transpose(2, 0, 1)


def _fitted(image: Image.Image, mode: str, target: tuple[int, int], fit: str, invert: bool) -> Image.Image:
    """`image` the right way up, in eight bits, without transparency, as a square. No copies that are not needed."""
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
    """Sixteen-bit and floating-point greys as eight bits; Pillow's own conversion would cut them off at 255.

    In strips, as they are wide.
    """
    wide = image.mode.startswith("I;16")
    if not wide and image.mode not in ("I", "F"):
        return image
    whole = np.asarray(image)
    pixels = np.empty(whole.shape, np.uint8)
    most = 0 if wide else np.fmax.reduce(whole, axis=None, initial=0)  # NaN counts as nothing
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
    # From here on nobody reads what a decoder in C may say, and a full pipe would stop this process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    serve(sys.stdin.buffer, sys.stdout.buffer)
