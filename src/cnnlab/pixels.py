"""One image file -> (C, H, W) uint8, without torch, so that a process which only decodes starts at once.

`python -m cnnlab.pixels` is such a process: see cnnlab.data.decoders, which starts and feeds it.
"""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cnnlab.errors import CnnlabError, reason

# What Pillow can open, by the ending of the name; other files in the folder are not images and are passed over.
_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}  # these need other programs
ENDINGS = frozenset(e for e, f in Image.registered_extensions().items() if f in Image.OPEN and f not in _NO_PIXELS)
FITS = ("pad", "crop", "stretch")
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


class BadImage(CnnlabError):
    """A file that should be an image and cannot be read as one. The text names it."""

    def __init__(self, text: str) -> None:
        # A name that is not UTF-8 must not break the report about it.
        super().__init__(text.encode("utf-8", "backslashreplace").decode())


def probe(source: Path | str, content: bytes | None = None) -> tuple[tuple[int, int], bool]:
    """((width, height) as stored, is it grey), from the header alone. Raises BadImage.

    source: the file; or where its bytes are at hand, as `content`, the name by which errors call it.
    """
    with _open(source, content) as image:
        return image.size, image.mode in _GREY


def decode(source: Path | str, channels: int, size: int, fit: str, content: bytes | None = None) -> np.ndarray:
    """`source` as (channels, size, size) uint8; what is transparent becomes black.

    `fit`: `pad` keeps all of the image and adds black bars, `crop` fills the square and cuts what stands out,
    `stretch` changes the proportions. `content` as for `probe`. Raises BadImage.
    """
    with _open(source, content) as image:
        return _square(image, source, channels, size, fit)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """While this holds, an image that would unpack to gigabytes is a BadImage rather than Pillow's warning.

    Around the whole read, not around each image: Python's warning filters belong to the process, not to a thread.
    """
    with warnings.catch_warnings():
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
                    pixels = _square(image, name, job.channels, job.size, job.fit)
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
        return Image.open(source if content is None else io.BytesIO(content))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"{source} is too large to be decoded safely: {reason(error)}") from error
    except FileNotFoundError as error:
        raise BadImage(f"{source} does not exist") from error
    except Exception as error:
        why = "not an image that Pillow can read" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise BadImage(f"{source} is damaged: {why}") from error


def _square(image: Image.Image, source: Path | str, channels: int, size: int, fit: str) -> np.ndarray:
    try:
        image = _eight_bits(ImageOps.exif_transpose(image))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        target = (size, size)
        if image.size != target:
            if fit == "stretch":
                image = image.resize(target, Image.Resampling.BILINEAR)
            elif fit == "crop":
                image = ImageOps.fit(image, target, Image.Resampling.BILINEAR)
            else:
                image = ImageOps.pad(image, target, Image.Resampling.BILINEAR)
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise BadImage(f"{source} is damaged: {reason(error)}") from error
    pixels = np.asarray(image)
    return pixels.reshape(1, size, size) if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit and floating-point greys as eight bits; Pillow's own conversion would cut them off at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        high = 65535 if values.max(initial=0) > 255 else 255 if values.max(initial=0) > 1 else 1
        return Image.fromarray(np.clip(values * (255 / high), 0, 255).astype(np.uint8))
    return image


if __name__ == "__main__":
    # From here on nobody reads what a decoder in C may say, and a full pipe would stop this process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    serve(sys.stdin.buffer, sys.stdout.buffer)
