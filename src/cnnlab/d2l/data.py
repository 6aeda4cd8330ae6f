"""Fashion-MNIST as the manual's code reads it: two iterables of batches (X, y), from memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from cnnlab.d2l.checks import is_count
from cnnlab.data import SourceOptions, data_folder, load_images, named
from cnnlab.data.imageset import ImageSet
from cnnlab.data.packed import in_memory
from cnnlab.device.hardware import available_cores
from cnnlab.io.errors import CnnlabError

_LABELS = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
OLD_FOLDER = Path("..") / "data"  # d2l's data folder


def load_data_fashion_mnist(batch_size: int, resize: int | Sequence[int] | None = None) -> tuple[Batches, Batches]:
    """Return the training and the test images of Fashion-MNIST as two iterables of batches (X, y).

    X: (B, 1, H, W) float32 in 0..1, not normalized; y: (B,) int64. resize: side in pixels, or (H, W). Default: 28,
    unresized. The training images are shuffled for each pass with torch's global generator, exactly as its DataLoader
    does, so the same seed gives the same batches. The last batch is kept.

    Unlike the original's, the iterables need no worker processes, and they resize whole batches in float32. Resized
    pixels differ from the original's by its rounding to grey levels, at most 1/255. The files are those of `cnnlab
    train --data fashion-mnist`, or those that d2l downloaded to ../data. Raise CnnlabError for an invalid size or
    batch size, and if the files cannot be downloaded or read.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise CnnlabError(f"batch_size={batch_size!r}: choose an integer of at least 1")
    size = _size(resize)
    ours, there = data_folder(), partial(named.is_there, "fashion-mnist")
    folder = OLD_FOLDER if there(OLD_FOLDER) and not there(ours) else ours
    parts = []
    for split in ("train", "test"):
        images = load_images("fashion-mnist", split, SourceOptions(data_dir=folder))
        assert images is not None
        parts.append(Batches(images, batch_size, size, shuffle=split == "train"))
    return parts[0], parts[1]


def _size(resize: Any) -> tuple[int, int] | None:
    if not resize and resize in (None, 0):
        return None
    sides = tuple(resize) if isinstance(resize, Sequence) and not isinstance(resize, str) else (resize, resize)
    if len(sides) != 2 or not all(isinstance(n, int) and 1 <= n <= 4096 for n in sides):
        raise CnnlabError(f"resize={resize!r}: choose a side in pixels, such as 224, or (height, width)")
    return sides


class Batches:
    """An iterable over an image set in memory: X (B, C, H, W) float32 in 0..1, y (B,) int64.

    Iterating yields tensors on the CPU; `on(device)` builds the batches on that device, from a copy of the uint8 images
    there. len: batches per pass. size: (H, W) of the batches; None: that of the images.
    """

    def __init__(self, images: ImageSet, batch_size: int, size: tuple[int, int] | None, *, shuffle: bool) -> None:
        self.batch_size = batch_size
        self._size = size
        self._copies = {torch.device("cpu"): (in_memory(images.images, "this loop"), images.labels)}
        # torch's DataLoader draws the order, so the same random numbers are drawn as by the original.
        self._order: DataLoader[Tensor] = DataLoader(
            range(len(images)),  # type: ignore[arg-type] # a DataLoader needs only a length and items
            batch_size,
            shuffle=shuffle,
            collate_fn=torch.tensor,
        )

    def __len__(self) -> int:
        """Return the number of batches per pass."""
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over all images once, on the CPU."""
        return self.on(torch.device("cpu"))

    def on(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over all images once, on `device`; the first call copies them there."""
        order = torch.cat(list(self._order))  # (N,); drawn now, before the caller draws random numbers
        return self._pass(order.to(device), device)

    def _pass(self, order: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        if device not in self._copies:
            images, labels = self._copies[torch.device("cpu")]
            self._copies[device] = images.to(device), labels.to(device)
        images, labels = self._copies[device]
        for rows in order.split(self.batch_size):
            yield self._resized(images[rows]), labels[rows]

    def _resized(self, images: Tensor) -> Tensor:
        x = images.float().div_(255)
        before = (x.shape[2], x.shape[3])
        if self._size is None or self._size == before:
            return x
        smaller = self._size[0] < before[0] or self._size[1] < before[1]
        return F.interpolate(x, size=self._size, mode="bilinear", antialias=smaller)


def get_dataloader_workers() -> int:
    """Return a number of worker processes for a DataLoader: 4, or the number of cores if that is less.

    The original always returns 4. On Windows and macOS it is 0: there each worker starts a new Python, which takes
    longer than reading small images and cannot import functions that are defined in a notebook.
    """
    return min(4, available_cores()) if sys.platform.startswith("linux") else 0


def get_fashion_mnist_labels(labels: Any) -> list[str]:
    """Return the class names of `labels`, a tensor (N,) or any sequence of integers in 0..9."""
    names = []
    for label in labels:
        if not 0 <= int(label) < len(_LABELS):
            raise CnnlabError(f"{int(label)} is not a class of Fashion-MNIST; use 0 to {len(_LABELS) - 1}")
        names.append(_LABELS[int(label)])
    return names


def show_images(
    imgs: Any, num_rows: int, num_cols: int, titles: Sequence[str] | None = None, scale: float = 1.5
) -> Any:
    """Show images in a grid of `num_rows` by `num_cols`, each `scale` inches wide; return the array of axes.

    imgs: tensors or arrays (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels, on any device, or Pillow images;
    images that do not fit the grid are dropped. Raise CnnlabError for other images, and for a grid without places.
    """
    from matplotlib import pyplot as plt  # slow to import

    from cnnlab.io.fonts import report_numbers, use_fonts

    if not (is_count(num_rows) and is_count(num_cols)):
        raise CnnlabError(f"a grid of {num_rows!r} by {num_cols!r}: choose integers of at least 1")
    if not isinstance(imgs, Iterable):
        raise CnnlabError(f"imgs is a {type(imgs).__name__}; pass a tensor or a list of images")
    figure, grid = plt.subplots(num_rows, num_cols, figsize=(num_cols * scale, num_rows * scale), squeeze=False)
    axes = grid.flatten()
    for place in axes:
        place.set_axis_off()
    for i, (place, image) in enumerate(zip(axes, imgs, strict=False)):
        try:
            place.imshow(_for_showing(image))
        except (TypeError, ValueError, RuntimeError) as error:
            plt.close(place.figure)
            shape = f"of shape {tuple(image.shape)}" if hasattr(image, "shape") else f"a {type(image).__name__}"
            raise CnnlabError(
                f"image {i + 1} is {shape}; pass images (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels"
            ) from error
        if titles and i < len(titles):
            place.set_title(titles[i])
    use_fonts(figure)  # for titles in Chinese, for example
    report_numbers()
    return axes


def _for_showing(image: Any) -> Any:
    """Return an image in the layout of matplotlib: (H, W) or (H, W, C); leave others unchanged."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        return image
    if image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4):
        image = image.transpose(1, 2, 0)
    return image[:, :, 0] if image.shape[2] == 1 else image
