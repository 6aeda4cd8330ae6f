"""Timing, and reading statistics, without making the host wait for a GPU."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def record_event(device: torch.device, timed: bool = False) -> Any:
    """Record an event after all work queued on a GPU, and return it."""
    event: Any
    if device.type == "mps":
        event = torch.mps.event.Event(enable_timing=timed)
        event.record()
    else:
        event = torch.cuda.Event(enable_timing=timed)
        event.record(torch.cuda.current_stream(device))  # default: the first GPU's stream
    return event


class Stopwatch:
    """A sum of the seconds between `start` and `stop`, from events in a GPU's queue, or from the clock on the CPU.

    seconds: the initial sum.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._times: list[Any] = []
        self._seconds = seconds

    def start(self) -> None:
        """Start an interval."""
        self._times.append(self._now())

    def stop(self) -> None:
        """End the interval."""
        self._times.append(self._now())

    def seconds(self) -> float:
        """Return the sum so far. Call it after `synchronize`."""
        for start, end in zip(self._times[::2], self._times[1::2], strict=True):
            self._seconds += end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
        self._times.clear()
        return self._seconds

    def _now(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        return record_event(self._device, timed=True)


class AsyncScalarReader:
    """A reader of a small tensor of statistics, for the display. It does not stop a GPU; values may be a moment old."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copy: Tensor | None = None
        self._images = 0
        self._ready: torch.cuda.Event | None = None

    def __call__(self, statistics: Tensor, images: int) -> list[float] | None:
        """Return each sum divided by its number of images, as of this call or an earlier one; None if none is known."""
        if self._device.type == "cpu":
            return [value / images for value in statistics.tolist()]
        if self._device.type != "cuda":  # MPS has no asynchronous copy: the display shows whole epochs there
            return None
        values = None
        if self._copy is not None and self._ready is not None and self._ready.query():
            values = [value / self._images for value in self._copy.tolist()]
            self._copy = None
        if self._copy is None:
            self._copy = torch.empty(statistics.shape, dtype=statistics.dtype, pin_memory=True)
            self._copy.copy_(statistics, non_blocking=True)
            self._images = images
            self._ready = record_event(self._device)
        return values
