"""Fashion-MNIST as the manual's code reads it: two iterators of (X, y), fed from memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from cnnlab.data import SourceOptions, data_folder, fashion_mnist, load_images
from cnnlab.data.imageset import ImageSet
from cnnlab.device.hardware import available_cores
from cnnlab.io.errors import CnnlabError

_LABELS = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
OLD_FOLDER = Path("..") / "data"  # where d2l keeps its data


def load_data_fashion_mnist(batch_size: int, resize: int | Sequence[int] | None = None) -> tuple[Batches, Batches]:
    """The training and the test images of Fashion-MNIST, as two iterables of batches (X, y).

    X: (B, 1, H, W) float32 in 0..1, not normalised; y: (B,) int64. resize: pixels a side, or (H, W); unsaid: 28 as
    they are. The training images come in another order each time, drawn from torch's global generator just as its
    DataLoader does, so that the same seed gives the same batches; the last batch is kept.

    Unlike the original's, they need no worker processes, and are resized in float32 by the batch: up to the original's
    rounding to whole grey levels (at most 1/255) the pixels are the same. The files are those of `cnnlab train --data
    fashion-mnist`, or those that d2l has left in ../data. Raises: CnnlabError for a size or batch size that is none,
    and as that source does.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise CnnlabError(f"batch_size={batch_size!r}: choose a whole number from 1 on")
    size = _size(resize)
    here = data_folder()
    folder = OLD_FOLDER if fashion_mnist.is_there(OLD_FOLDER) and not fashion_mnist.is_there(here) else here
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
        raise CnnlabError(f"resize={resize!r}: choose pixels a side, as 224, or (height, width)")
    return sides


class Batches:
    """An image set in memory, given by the batch as often as one likes: X (B, C, H, W) float32 in 0..1, y (B,) int64.

    Iterating gives tensors on the CPU; `on(device)` makes the batches on that device, from uint8 images that lie
    there. len: batches in a pass. size: (H, W) of what is given; None: that of the images.
    """

    def __init__(self, images: ImageSet, batch_size: int, size: tuple[int, int] | None, *, shuffle: bool) -> None:
        self.batch_size = batch_size
        self._size = size
        self._there = {torch.device("cpu"): (images.images, images.labels)}
        # torch's own loader draws the order: as many numbers from its generator as the original's, and the same ones.
        self._order: DataLoader[Tensor] = DataLoader(
            range(len(images)),  # type: ignore[arg-type] # all that it asks for is a length and items
            batch_size,
            shuffle=shuffle,
            collate_fn=torch.tensor,
        )

    def __len__(self) -> int:
        """Batches in a pass."""
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A pass over all images, on the CPU."""
        return self.on(torch.device("cpu"))

    def on(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """A pass over all images, gathered and resized on `device`, to which they are copied the first time."""
        order = torch.cat(list(self._order))  # (N,); drawn now, before whoever iterates draws numbers of their own
        return self._pass(order.to(device), device)

    def _pass(self, order: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        if device not in self._there:
            images, labels = self._there[torch.device("cpu")]
            self._there[device] = images.to(device), labels.to(device)
        images, labels = self._there[device]
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
    """Worker processes for a DataLoader of one's own: 4, or as many as there are cores, where those are fewer.

    The original says 4 always. On Windows and macOS 0: each worker there starts Python anew, which takes longer than
    small images do, and which a notebook's own functions do not survive.
    """
    return min(4, available_cores()) if sys.platform.startswith("linux") else 0


def get_fashion_mnist_labels(labels: Any) -> list[str]:
    """The names of the classes in `labels`, a tensor (N,) or any sequence of whole numbers in 0..9."""
    names = []
    for label in labels:
        if not 0 <= int(label) < len(_LABELS):
            raise CnnlabError(f"{int(label)} is no class of Fashion-MNIST; its classes are 0 to {len(_LABELS) - 1}")
        names.append(_LABELS[int(label)])
    return names


def show_images(
    imgs: Any, num_rows: int, num_cols: int, titles: Sequence[str] | None = None, scale: float = 1.5
) -> Any:
    """Show images in a grid of `num_rows` by `num_cols`, each `scale` inches a side; returns the array of its axes.

    imgs: tensors (H, W) or (1, H, W), on any device, or Pillow images; those beyond the grid are left out.
    """
    from matplotlib import pyplot as plt  # slow to import, so only here

    _, grid = plt.subplots(num_rows, num_cols, figsize=(num_cols * scale, num_rows * scale), squeeze=False)
    axes = grid.flatten()
    for place in axes:
        place.set_axis_off()
    for i, (place, image) in enumerate(zip(axes, imgs, strict=False)):
        if isinstance(image, Tensor):
            image = image.detach().cpu()
            image = (image[0] if image.ndim == 3 and len(image) == 1 else image).numpy()
        place.imshow(image)
        if titles and i < len(titles):
            place.set_title(titles[i])
    return axes
