"""The data type that every source returns: images as uint8, in memory or in files, with labels, ids and class names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnnlab.data.packed import PackedImages, Pixels, take
from cnnlab.io.decode import Decoding
from cnnlab.io.errors import CnnlabError

Report = Callable[[str, int, int], None]
"""A callback for the progress of a long read: (what, done, total); total 0 means unknown."""


def no_report(what: str, done: int, total: int) -> None:
    """Ignore the progress."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options for all sources; each uses those that concern it.

    decoding: how a finished run decoded its images, or how the training images were decoded. Default: chosen from the
    training images and the other options. columns: names of a table's columns, see `Recipe`. size_limit: largest side
    if image_size is 0; images of different sizes get the median of their longer sides, up to this limit. 0: no limit,
    and the source's default for images of different sizes. interpolation: of resized images, see `Decoding`.
    """

    data_dir: Path
    image_size: int = 0
    fit: str = "pad"
    background: str = "auto"
    decoding: Decoding | None = None
    columns: str = ""
    skip_bad: bool = False
    report: Report = no_report
    size_limit: int = 0
    interpolation: str = "bilinear"

    def like(self, train: ImageSet) -> SourceOptions:
        """Return the options for the other splits of the source, decoded as the images of `train` were."""
        return replace(self, decoding=self.decoding or train.decoding)


@dataclass(frozen=True)
class ImageSet:
    """Decoded images.

    images: (N, C, H, W) uint8, a tensor or rows of a packed set; labels: (N,) int64 in 0..K-1; ids: N strings;
    classes: K names; skipped: errors of the files that could not be read; passed_over: files and folders that are not
    data, by kind, such as `.heic` or `empty folder`; decoding: how the files were decoded; warnings: suspected
    problems. groups: N group names, such as a patient or a video, or None; weights: (N,) float32, relative weights of
    the images in the training loss, or None if all are 1; images of weight 0 are not trained on. notes: choices made
    when the source was read.

    Raise CnnlabError, naming the image, for a weight that is negative, NaN or Inf.
    """

    images: Pixels
    labels: Tensor
    ids: list[str]
    classes: list[str]
    skipped: tuple[str, ...] = ()
    passed_over: Mapping[str, list[str]] = field(default_factory=dict)
    decoding: Decoding | None = None
    warnings: tuple[str, ...] = ()
    groups: list[str] | None = None
    weights: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images: expected (N, C, H, W) uint8, got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.shape != (n,) or self.labels.dtype != torch.int64 or len(self.ids) != n:
            raise ValueError(f"expected {n} int64 labels and ids, got {tuple(self.labels.shape)} and {len(self.ids)}")
        if self.groups is not None and len(self.groups) != n:
            raise ValueError(f"expected {n} groups, got {len(self.groups)}")
        if self.weights is not None and (self.weights.shape != (n,) or self.weights.dtype != torch.float32):
            raise ValueError(f"expected {n} float32 weights, got {self.weights.dtype} {tuple(self.weights.shape)}")
        if self.weights is not None:
            wrong = (~((self.weights >= 0) & self.weights.isfinite())).nonzero().flatten().tolist()
            if wrong:
                rest = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
                raise CnnlabError(
                    f"the weight of image {self.ids[wrong[0]]} is {self.weights[wrong[0]]:g}{rest}: weights must be "
                    "finite and at least 0; correct it"
                )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> ImageSet:
        """Return the images at `index` (M,) int64, in that order."""
        places = index.tolist()
        return replace(
            self,
            images=take(self.images, index),
            labels=self.labels[index],
            ids=[self.ids[i] for i in places],
            groups=None if self.groups is None else [self.groups[i] for i in places],
            weights=None if self.weights is None else self.weights[index],
        )

    def fingerprint(self) -> str:
        """Return a hash of pixels (for a packed set, of their hashes), labels, class names and weights, in order."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\0".join([str(tuple(self.images.shape)), *self.classes]).encode())
        if isinstance(self.images, PackedImages):
            digest.update(self.images.fingerprint())
        else:
            digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        if self.weights is not None:
            digest.update(self.weights.contiguous().numpy().data)
        return digest.hexdigest()


def sample_rows(images: Pixels, labels: Tensor, num_classes: int, each: int = 8) -> list[list[np.ndarray]]:
    """Return the first `each` images of each class as arrays (H, W, C) uint8, one row per class."""
    rows = []
    for k in range(num_classes):
        index = (labels == k).nonzero().flatten()[:each]
        rows.append([viewable(image) for image in images[index]])
    return rows


def viewable(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) uint8 as (H, W, C) with one or three channels. Average any other number of channels."""
    pixels = image.permute(1, 2, 0).numpy()
    return pixels if pixels.shape[2] in (1, 3) else pixels.mean(2, keepdims=True).astype(np.uint8)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split `labels` (N,) into (training index, validation index), each sorted.

    The same fraction of each class is held out, rounded: at least one image, but never all. A class of one image stays
    in training. The same labels, fraction and seed give the same split on every machine.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique(sorted=True).tolist():
        members = (labels == k).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        count = min(max(1, round(len(members) * fraction)), len(members) - 1) if fraction > 0 else 0
        held_out[members[order[:count]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def stratified_subset(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return a sorted index (count,) of `labels` (N,) with the same fraction of each class, up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    totals = torch.bincount(labels)
    rank = torch.zeros(len(labels), dtype=torch.float64)  # of each image within its class, 0..1
    for k in range(len(totals)):
        members = order[labels[order] == k]
        rank[members] = (torch.arange(len(members)) + 0.5).double() / max(1, len(members))
    return rank.argsort(stable=True)[:count].sort().values
