"""What a source holds, seen before it is decoded: what the default recipe is chosen by."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from statistics import median

from cnnlab.data import CSV, FOLDER, SourceOptions, list_files, load_images
from cnnlab.data.imageset import ImageSet
from cnnlab.io.decode import BadImage, bombs_refused, probe
from cnnlab.io.errors import CnnlabError

_PROBED = 500  # files whose headers are read, evenly spaced


@dataclass(frozen=True)
class Survey:
    """count: images to train on, validation included; classes: K; side: usual longer side in pixels; grey: all are."""

    count: int
    classes: int
    side: int
    grey: bool


def survey(source: str, options: SourceOptions, own: ImageSet | None = None) -> Survey:
    """Return what the training images of `source` are, or `own` ones. Raise CnnlabError if they cannot be found."""
    if own is None and source.startswith((FOLDER, CSV)):
        listing = list_files(source, options)
        files = listing.parts["train"].files
        headers = []
        with bombs_refused():
            for file in files[:: max(1, len(files) // _PROBED)]:
                with contextlib.suppress(BadImage):  # decoding will name it
                    headers.append(probe(file))
        side = round(median(max(header.size) for header in headers)) if headers else 0
        return Survey(len(files), len(listing.classes), side, all(header.grey for header in headers))
    images = own or load_images(source, "train", options)
    if images is None:
        raise CnnlabError(f"{source} has no training images")
    return Survey(len(images), len(images.classes), images.images.shape[2], images.images.shape[1] == 1)
