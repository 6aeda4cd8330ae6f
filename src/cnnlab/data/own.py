"""Your own images as Python objects: an `ImageSet`, a torch Dataset, or arrays (X, y)."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnnlab.data.imageset import ImageSet
from cnnlab.io.errors import CnnlabError
from cnnlab.io.stacks import MOST_CHANNELS
from cnnlab.recipe import LARGEST_SIDE

MEMORY = "memory:"
_MOST_CLASSES = 1_000_000
_CHUNK = 1024  # images converted at a time, to avoid a floating-point copy of all


@dataclass(frozen=True)
class OwnImages:
    """Your own images. name: `memory:` and the type. held_out: to evaluate on; None: a part of `train` is held out."""

    name: str
    train: ImageSet
    held_out: ImageSet | None = None


def own_images(data: Any, classes: list[str] | None = None) -> OwnImages:
    """Return `data` as image sets.

    data: an ImageSet; a torch Dataset or a list of pairs (image, label); a tuple (X, y) of images (N, C, H, W),
    (N, H, W) or, as an array, (N, H, W, C), and labels (N,) in 0..K-1; or a pair of these, to train and to evaluate
    on. Images hold uint8 in 0..255 or floating point in 0..1. classes: K names, for data without names of their own,
    which an ImageSet or a dataset's attribute `classes` gives. Default: numbers. Raise CnnlabError for anything else.
    """
    several = isinstance(data, tuple) and len(data) == 2 and not _is_array(data[0])
    parts = [_read(part) for part in (data if several else (data,))]
    known = classes or next((part.classes for part in parts if part.classes), None)
    known = known or [str(k) for k in range(max(int(part.labels.max()) for part in parts) + 1)]
    sets = [replace(part, classes=part.classes or known) for part in parts]
    for part in sets:
        _check(part)
    if several and (sets[0].classes != sets[1].classes or sets[0].images.shape[1:] != sets[1].images.shape[1:]):
        raise CnnlabError(
            f"the two image sets do not fit together: {_summary(sets[0])}, and {_summary(sets[1])}; convert one"
        )
    kind = type(data[0] if several else data)
    return OwnImages(f"{MEMORY}{'arrays' if kind is tuple else kind.__name__}", *sets)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)


def _read(data: Any) -> ImageSet:
    """Return the data as an ImageSet, whose `classes` are empty if there are no names."""
    if isinstance(data, ImageSet):
        if len(data) == 0:
            raise CnnlabError("the ImageSet holds no images")
        weights = None if data.weights is None else data.weights.cpu()
        images = data.images.cpu() if isinstance(data.images, Tensor) else data.images
        return replace(data, images=images, labels=data.labels.cpu(), weights=weights)
    if isinstance(data, tuple) and len(data) == 2 and _is_array(data[0]):
        images = as_uint8(data[0])
        labels, classes = _labels(data[1], len(images)), list[str]()
    elif _is_array(data):
        raise CnnlabError(f"an array of shape {tuple(data.shape)} without labels: pass a tuple (X, y)")
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes | dict | tuple):
        images, labels, classes = _read_items(data)
    else:
        raise CnnlabError(
            f"{type(data).__name__} holds no labelled images: pass a source's name, an ImageSet, a Dataset with a "
            "length, or arrays (X, y)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= _MOST_CLASSES:
        raise CnnlabError(f"labels from {low} to {high}: expected whole numbers 0..K-1")
    return ImageSet(images, labels, [str(i) for i in range(len(images))], classes)


def as_uint8(images: Any) -> Tensor:
    """Return an array or tensor of N images as (N, C, H, W) uint8. Raise CnnlabError."""
    shape = tuple(images.shape)
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            raise _wrong_type(images.dtype)
        if images.ndim == 4 and shape[3] in (1, 3, 4) and shape[2] != shape[3]:
            images = images.transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.array(images) if not images.flags.writeable else np.ascontiguousarray(images))
    images = images.detach().cpu()
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in shape:
        raise CnnlabError(f"images of shape {shape}: expected (N, C, H, W), (N, H, W) or, as an array, (N, H, W, C)")
    if images.dtype == torch.uint8:
        return torch.as_tensor(images.contiguous())
    if not images.is_floating_point():
        raise _wrong_type(str(images.dtype).removeprefix("torch."))
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # NaN fails, too
        raise CnnlabError(
            f"images with values from {low:g} to {high:g}: floating point must lie in 0..1; divide by 255, or leave "
            "out a normalization, which the recipe does"
        )
    whole = torch.empty(images.shape, dtype=torch.uint8)
    for at in range(0, len(images), _CHUNK):
        part = images[at : at + _CHUNK]
        part = part.float() if part.element_size() < 4 else part
        whole[at : at + _CHUNK] = (part * 255).round_().to(torch.uint8)
    return whole


def _wrong_type(dtype: object) -> CnnlabError:
    return CnnlabError(f"images of {dtype}: expected uint8 in 0..255 or floating point in 0..1; convert them")


def _labels(labels: Any, count: int) -> Tensor:
    """Return the labels (N,) as int64."""
    if not isinstance(labels, Tensor):
        try:
            array = np.asarray(labels)
        except ValueError as error:  # lists of several lengths
            raise CnnlabError(f"labels: expected {count} whole numbers 0..K-1, one for each image") from error
        if array.dtype.kind not in "iu":
            raise CnnlabError(f"labels of {array.dtype}: expected whole numbers 0..K-1; convert them to int64")
        labels = torch.from_numpy(array.astype(np.int64))
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        dtype = str(labels.dtype).removeprefix("torch.")
        raise CnnlabError(f"labels of {dtype}: expected whole numbers 0..K-1; convert them to int64")
    if labels.shape != (count,):
        remedy = {(count, 1): "; pass y[:, 0]"}.get(tuple(labels.shape), "")
        remedy = "; pass y.argmax(1)" if labels.ndim == 2 and labels.shape[1] > 1 else remedy
        raise CnnlabError(f"labels of shape {tuple(labels.shape)} for {count} images: expected ({count},){remedy}")
    return torch.as_tensor(labels.detach().cpu(), dtype=torch.int64)


def _read_items(dataset: Any) -> tuple[Tensor, Tensor, list[str]]:
    """Return the images, labels and class names, which may be [], of a dataset of pairs (image, label)."""
    count = len(dataset)
    if count == 0:
        raise CnnlabError(f"the {type(dataset).__name__} is empty")
    images, labels = torch.empty(0), torch.empty(count, dtype=torch.int64)
    for i in range(count):
        try:
            image, label = dataset[i]
            labels[i] = operator.index(label)
        except IndexError as error:
            raise CnnlabError(
                f"the {type(dataset).__name__} has no item {i}, but a length of {count}; correct its __len__"
            ) from error
        except (TypeError, ValueError, KeyError) as error:
            raise CnnlabError(
                f"item {i} of the {type(dataset).__name__} is not a pair (image, integer label)"
            ) from error
        if isinstance(image, Image.Image):
            if image.mode.startswith(("I", "F")):  # Pillow would clip its values at 255
                raise _wrong_type(f"Pillow's mode {image.mode}")
            image = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        if not _is_array(image):
            raise CnnlabError(
                f"image {i} of the {type(dataset).__name__} is {type(image).__name__}: expected a PIL image, an array "
                "or a tensor"
            )
        pixels = as_uint8(image[None])[0]
        if i == 0:
            images = torch.empty((count, *pixels.shape), dtype=torch.uint8)
        if pixels.shape != images.shape[1:]:
            raise CnnlabError(
                f"image {i} of the {type(dataset).__name__} has shape {tuple(pixels.shape)}, the first "
                f"{tuple(images.shape[1:])}; give all the same size, or name their folder as data='folder:PATH', which "
                "fits them to one"
            )
        images[i] = pixels
    names = getattr(dataset, "classes", None)
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return images, labels, list(names) if named and names is not None else []


def _check(images: ImageSet) -> None:
    """Raise CnnlabError unless the images are square and the labels fit the classes."""
    channels, height, width = images.images.shape[1:]
    if height != width:
        raise CnnlabError(f"images of {height}x{width} pixels: expected square ones; pad, crop or resize them")
    if height > LARGEST_SIDE or channels > MOST_CHANNELS:
        raise CnnlabError(f"{_summary(images)}: at most {LARGEST_SIDE} pixels a side and {MOST_CHANNELS} channels")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= len(images.classes):
        raise CnnlabError(f"labels from {low} to {high}: expected 0 to {len(images.classes) - 1}, one for each class")


def _summary(images: ImageSet) -> str:
    channels, height, width = images.images.shape[1:]
    return f"{len(images.classes)} classes, {channels} channels, {height}x{width} pixels"
