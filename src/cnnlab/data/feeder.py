"""Batches on the device, from a copy of the set there, from the host or from files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cnnlab.data.packed import PackedImages, Pixels


class Feeder:
    """Batches of a uint8 set on the device: from a copy of the set there or, if it does not fit, from the host.

    From the host, each batch is gathered into one of two pinned buffers and copied while the device computes on the
    previous batch. Such a batch is valid until the next one is requested. The images of a packed set are read from
    their files a few batches ahead and then take the same path.
    """

    def __init__(self, images: Pixels, labels: Tensor, device: torch.device, resident: bool | None = None) -> None:
        self._images = images  # (N, C, H, W) uint8
        if isinstance(images, PackedImages):
            resident = False
        elif resident or (resident is None and fits_on_device(images, device)):
            resident, self._images = True, images.to(device)
        self.resident = bool(resident)
        self.labels = labels.to(device)  # (N,)
        self._device = device

    def __call__(self, order: Tensor, sizes: list[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the batches of `order` (N,) int64 on the host, divided into `sizes`.

        Each batch is images (B, C, H, W) uint8, labels (B,) and indices (B,) on the device.
        """
        # A copy from pinned memory does not make the host wait.
        cuda = self._device.type == "cuda"
        pinned = order.pin_memory() if cuda else order
        numbers = pinned.to(self._device, non_blocking=cuda).split(sizes)
        if self.resident and isinstance(self._images, Tensor):
            for index in numbers:
                # On a CPU, five times as fast as indexing: it copies whole images.
                yield torch.index_select(self._images, 0, index), self.labels[index], index
        else:
            for x, index in zip(self._from_host(order.split(sizes)), numbers, strict=True):
                yield x, self.labels[index], index

    def _from_host(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        cuda = self._device.type == "cuda"
        shape = (2, max(map(len, parts), default=0), *self._images.shape[1:])
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
        here = torch.empty(shape, dtype=torch.uint8, device=self._device) if self._device.type != "cpu" else host
        side = torch.cuda.Stream(self._device) if cuda else None  # copies while the main stream computes
        main = torch.cuda.current_stream(self._device) if cuda else None
        copied, used = ([torch.cuda.Event() for _ in range(2)] if cuda else [] for _ in range(2))
        if side and main:
            side.wait_stream(main)  # the old content of that memory may still be in use

        images = self._images
        ahead = images.batches(parts) if isinstance(images, PackedImages) else None

        def send(number: int) -> None:
            turn, n = number % 2, len(parts[number])
            if cuda:
                copied[turn].synchronize()  # from two batches ago: now the host may overwrite its buffer
            if isinstance(images, Tensor):
                torch.index_select(images, 0, parts[number], out=host[turn, :n])
            elif ahead is not None:
                host[turn, :n] = next(ahead)
            if side:
                with torch.cuda.stream(side):
                    used[turn].wait()  # until the device has read the old batch
                    here[turn, :n].copy_(host[turn, :n], non_blocking=True)
                    copied[turn].record()
            elif here is not host:
                here[turn, :n].copy_(host[turn, :n])

        try:
            for number in range(len(parts)):
                if number == 0:
                    send(0)
                if number + 1 < len(parts):
                    send(number + 1)
                if main:
                    main.wait_event(copied[number % 2])
                yield here[number % 2, : len(parts[number])]
                if main:
                    used[number % 2].record(main)
        finally:
            if side and main:
                main.wait_stream(side)  # before anything else gets the memory of `here`


def fits_on_device(images: Tensor, device: torch.device) -> bool:
    """Return whether the set takes at most half of the free memory of a CUDA device; True for other devices."""
    if device.type != "cuda":
        return True
    free, reserved = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
    if images.nbytes <= free // 2:
        return True
    if images.nbytes > (free + reserved - torch.cuda.memory_allocated(device)) // 2:
        return False
    torch.cuda.empty_cache()
    return images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
