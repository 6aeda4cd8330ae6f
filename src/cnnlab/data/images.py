"""Convert paths, PIL images, arrays and tensors to (C, H, W) uint8, as `decode` reads a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cnnlab.data.own import as_uint8
from cnnlab.io.decode import Decoding, decode, square_pixels
from cnnlab.io.errors import CnnlabError, expand
from cnnlab.io.stacks import Stack
from cnnlab.io.walk import IMAGE, walk


def flatten(images: Any) -> list[Any]:
    """Return the single images in `images`, each a path, a PIL image, an array or a tensor.

    images: one of these, a folder, a batch (B, C, H, W) or (B, H, W, C), or a list of any of them. The images of a
    folder come sorted by name. Raise CnnlabError for a missing path, an empty folder, or another type.
    """
    if isinstance(images, str | Path):
        return list(image_paths([images])[0])
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim in (2, 3):
            return [images]
        if images.ndim == 4:
            return list(images)
        raise CnnlabError(f"images of shape {tuple(images.shape)}: expected (C, H, W) or (B, C, H, W)")
    if isinstance(images, list | tuple):
        return [image for item in images for image in flatten(item)]
    raise CnnlabError(f"{type(images).__name__} is not an image: give a path, PIL image, array, tensor or list")


def image_paths(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Return the image files in `paths`, and a line on what else is in each folder: `40 .heic in photos`.

    paths: files, or folders that are searched; the images of a folder come sorted by name. Raise CnnlabError for a
    missing path and for a folder without images.
    """
    files: list[Path] = []
    others = []
    for path in map(expand, paths):
        if not path.is_dir():
            if not path.is_file():
                raise CnnlabError(f"{path} does not exist; give image files or folders of images")
            files.append(path)
            continue
        found, counts = [], Counter[str]()
        for kind, file in walk(path):
            if kind == IMAGE:
                found.append(file)
            else:
                counts[kind or "without a usual extension"] += 1
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
        if not found:
            there = f" ({kinds})" if kinds else ""
            raise CnnlabError(f"{path} holds no images that can be read{there}; give image files or folders of images")
        files += sorted(found)
        others += [f"{kinds} in {path}"] * bool(kinds)
    return files, others


def pixels(image: Any, how: Decoding, *, invert: bool = False) -> np.ndarray:
    """Convert one image, see `flatten`, to (channels, size, size) uint8, as `decode` does with a file.

    Arrays and tensors hold uint8 in 0..255 or floating point in 0..1. A tensor is (C, H, W); an array may also be
    (H, W, C), as PIL gives it, or (H, W). Raise CnnlabError.
    """
    if isinstance(image, str | Path):
        return decode(image, how, invert=invert)
    if isinstance(image, Image.Image):
        return square_pixels(image.copy(), "the PIL image", how, invert)
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == how.channels != image.shape[0]:
        image = image.transpose(2, 0, 1)  # (H, W, C), also of many channels
    array = as_uint8(image[None])[0].numpy()
    if array.shape == (how.channels, how.size, how.size):
        return 255 - array if invert else array
    if len(array) == how.channels not in (1, 3):
        return square_pixels(Stack(array.transpose(1, 2, 0)), "the array", how, invert)
    if len(array) not in (1, 3, 4) or how.channels not in (1, 3):
        raise CnnlabError(f"an image has {len(array)} channels, this network takes {how.channels}")
    picture = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    return square_pixels(picture, "the array", how, invert)
