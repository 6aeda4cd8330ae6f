"""The images to inspect: a few from a set, or the caller's own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab.data.images import flatten, pixels
from cnnlab.data.imageset import ImageSet
from cnnlab.data.loader import Preprocessing
from cnnlab.data.packed import in_memory
from cnnlab.io.decode import BadImage, bombs_refused
from cnnlab.io.errors import CnnlabError
from cnnlab.io.text import plural


@dataclass(frozen=True)
class Chosen:
    """The images to inspect. pixels: (N, C, H, W) uint8; labels: "" where unknown."""

    ids: list[str]
    labels: list[str]
    pixels: Tensor
    skipped: list[str]


def of_all_classes(images: ImageSet | None, count: int, p: Preprocessing) -> Chosen:
    """Return the first image of each class, then the second one of each class, and so on: `count` in all."""
    if images is None:
        return Chosen([], [], torch.zeros(0, p.channels, p.native_size, p.native_size, dtype=torch.uint8), [])
    labels = images.labels.tolist()
    seen: Counter[int] = Counter()
    turns = []
    for i, k in enumerate(labels):
        turns.append((seen[k], k, i))
        seen[k] += 1
    some = images.take(torch.tensor([i for _, _, i in sorted(turns)[:count]], dtype=torch.int64))
    return Chosen(some.ids, [images.classes[k] for k in some.labels.tolist()], in_memory(some.images, "inspect"), [])


def read(images: Any, p: Preprocessing, invert: bool, skip_bad: bool) -> Chosen:
    """Return the caller's images, decoded as in training. Raise CnnlabError."""
    flat = flatten(images)
    ids, decoded, skipped = [], [], []
    with bombs_refused():
        for number, image in enumerate(flat, 1):
            try:
                decoded.append(pixels(image, p.decoding, invert=invert))
                ids.append(str(image) if isinstance(image, str | Path) else f"image {number}")
            except BadImage as error:
                if not skip_bad:
                    raise CnnlabError(f"{error}; leave such files out with --skip-bad") from error
                skipped.append(str(error))
    if not decoded:
        raise CnnlabError(f"none of the {plural(len(flat), 'image')} could be read; the first: {skipped[0]}"
                          if skipped else "no images to inspect")  # fmt: skip
    return Chosen(ids, [""] * len(ids), torch.from_numpy(np.stack(decoded)), skipped)
