"""Random numbers for the images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Random draws for each image of a batch, of which this process may have only some rows.

    Numbers are always drawn for the whole batch, so they do not depend on how it is divided. generator: on the images'
    device. batch: size of the whole batch; rows: the rows of this process. Default: all.
    """

    def __init__(self, generator: torch.Generator, batch: int = 0, rows: slice = slice(None)) -> None:
        self.generator, self._batch, self._rows = generator, batch, rows

    def rand(self, images: Tensor, *shape: int) -> Tensor:
        """Return uniform numbers in 0..1 for images (B, ...), float32; -1 in `shape` stands for B."""
        whole, dim = self._whole(images, shape)
        return self._own(torch.rand(whole, generator=self.generator, device=images.device), dim)

    def randint(self, images: Tensor, high: int, *shape: int) -> Tensor:
        """Return integers 0..high-1 for images (B, ...), int64; -1 in `shape` stands for B."""
        whole, dim = self._whole(images, shape)
        return self._own(torch.randint(high, whole, generator=self.generator, device=images.device), dim)

    def _whole(self, images: Tensor, shape: tuple[int, ...]) -> tuple[list[int], int]:
        return [(self._batch or len(images)) if n == -1 else n for n in shape], shape.index(-1)

    def _own(self, numbers: Tensor, dim: int) -> Tensor:
        start, stop, _ = self._rows.indices(numbers.shape[dim])
        return numbers.narrow(dim, start, stop - start)
