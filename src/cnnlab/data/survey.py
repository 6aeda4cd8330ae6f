"""What a source holds, seen before it is decoded: what the default recipe is chosen by."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from statistics import median

from cnnlab.data import SourceOptions, is_listed, list_files, load_images
from cnnlab.data.imageset import ImageSet
from cnnlab.io.decode import BadImage, bombs_refused, probe
from cnnlab.io.errors import CnnlabError

_PROBED = 500  # files whose headers are read, evenly spaced


@dataclass(frozen=True)
class Survey:
    """count: images to train on, validation included; classes: K; side: usual longer side in pixels.

    channels: 1 if all images are grey.
    """

    count: int
    classes: int
    side: int
    channels: int

    @property
    def grey(self) -> bool:
        """Whether all images are grey."""
        return self.channels == 1

    @property
    def kind(self) -> str:
        """What the images are called: grey, colour or 5-channel."""
        return {1: "grey", 3: "colour"}.get(self.channels, f"{self.channels}-channel")


def survey(source: str, options: SourceOptions, own: ImageSet | None = None) -> Survey:
    """Return what the training images of `source` are, or `own` ones. Raise CnnlabError if they cannot be found."""
    if own is None and is_listed(source):
        listing = list_files(source, options)
        files = listing.parts["train"].files
        headers = []
        with bombs_refused():
            for file in files[:: max(1, len(files) // _PROBED)]:
                with contextlib.suppress(BadImage):  # decoding will name it
                    headers.append(probe(file))
        side = round(median(max(header.size) for header in headers)) if headers else 0
        return Survey(len(files), len(listing.classes), side, max((header.channels for header in headers), default=3))
    images = own or load_images(source, "train", options)
    if images is None:
        raise CnnlabError(f"{source} has no training images")
    return Survey(len(images), len(images.classes), images.images.shape[2], images.images.shape[1])
