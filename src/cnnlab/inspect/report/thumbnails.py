"""Small pictures of images, for a self-contained page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

from cnnlab.data.imageset import viewable

SIDE = 96  # pixels a side, at most
BUDGET = 9_000_000  # bytes of all pictures of a page, as text


class Thumbnails:
    """The pictures of a page as data URIs, without duplicates. budget: bytes that are left."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.uris: list[str] = []
        self.budget = budget
        self._places: dict[str, int] = {}

    def add(self, image: Tensor) -> int:
        """Add the picture of `image`, (C, H, W) uint8. Return its index in `uris`; -1 if the budget is used up."""
        return self.add_uri(data_uri(viewable(image))) if self.budget > 0 else -1

    def add_uri(self, uri: str) -> int:
        """Add a picture as a data URI. Return its index; see `add`."""
        place = self._places.get(uri)
        if place is not None:
            return place
        if len(uri) > self.budget:
            self.budget = 0  # refuse later ones too: what is left out should not depend on how well it compresses
            return -1
        self.budget -= len(uri)
        self._places[uri] = len(self.uris)
        self.uris.append(uri)
        return len(self.uris) - 1


def data_uri(array: np.ndarray) -> str:
    """Return (H, W, 1) or (H, W, 3) uint8 as PNG or JPEG, whichever is smaller, of at most 96 pixels a side."""
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
    picture.thumbnail((SIDE, SIDE))
    kinds = {"png": {}, "jpeg": {"quality": 88}} if picture.mode == "RGB" or max(picture.size) > 32 else {"png": {}}
    files = {kind: _file(picture, kind, options) for kind, options in kinds.items()}
    kind = min(files, key=lambda name: len(files[name]))
    return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}"


def _file(picture: Image.Image, kind: str, options: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
