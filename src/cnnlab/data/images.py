"""One image file -> (C, H, W) uint8, the same way for training and for prediction."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cnnlab.errors import CnnlabError, reason

# What Pillow can open, by the ending of the name; other files in the folder are not images and are passed over.
_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}  # these need other programs
ENDINGS = frozenset(e for e, f in Image.registered_extensions().items() if f in Image.OPEN and f not in _NO_PIXELS)
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


class BadImage(CnnlabError):
    """A file that should be an image and cannot be read as one. The text names it."""

    def __init__(self, text: str) -> None:
        # A name that is not UTF-8 must not break the report about it.
        super().__init__(text.encode("utf-8", "backslashreplace").decode())


def image_files(folder: Path) -> Iterator[Path]:
    """Every file under `folder` whose name ends like an image's, hidden ones left out, in no particular order."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent)
        if here in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(here)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in ENDINGS:  # noqa: PTH122 - hot
                path = Path(parent, name)
                if path.is_file():  # not a pipe, which would never end
                    yield path


def probe(path: Path) -> tuple[tuple[int, int], bool]:
    """((width, height) as stored, is it grey), from the header alone. Raises BadImage."""
    with _open(path) as image:
        return image.size, image.mode in _GREY


def decode(path: Path, channels: int, size: int, fit: str) -> np.ndarray:
    """`path` as (channels, size, size) uint8; what is transparent becomes black.

    `fit`: `pad` keeps all of the image and adds black bars, `crop` fills the square and cuts what stands out,
    `stretch` changes the proportions. Raises BadImage.
    """
    with _open(path) as image:
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
            raise BadImage(f"{path} is damaged: {reason(error)}") from error
        pixels = np.asarray(image)
    return pixels.reshape(1, size, size) if channels == 1 else pixels.transpose(2, 0, 1)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """While this holds, an image that would unpack to gigabytes is a BadImage rather than Pillow's warning.

    Around the whole read, not around each image: Python's warning filters belong to the process, not to a thread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(f"{path} is too large to be decoded safely: {reason(error)}") from error
    except FileNotFoundError as error:
        raise BadImage(f"{path} does not exist") from error
    except Exception as error:
        why = "not an image that Pillow can read" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise BadImage(f"{path} is damaged: {why}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit and floating-point greys as eight bits; Pillow's own conversion would cut them off at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        high = 65535 if values.max(initial=0) > 255 else 255 if values.max(initial=0) > 1 else 1
        return Image.fromarray(np.clip(values * (255 / high), 0, 255).astype(np.uint8))
    return image
