"""The small helpers of the manual's code: sums, times, devices, accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.d2l.data import Batches
from cnnlab.device.hardware import pick_device
from cnnlab.io.errors import CnnlabError, reason

# What the manual's texts call by these names in every framework.


def size(x: Tensor) -> int:
    """Number of elements."""
    return x.numel()


def argmax(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Where the largest element is: `x.argmax(...)`, with `axis` or `dim`."""
    return x.argmax(*args, **kwargs)


def astype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers in another type."""
    return x.type(dtype)


def reduce_sum(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The sum: `x.sum(...)`, with `axis` or `dim`."""
    return x.sum(*args, **kwargs)


class Accumulator:
    """`n` sums that grow together, from 0; `accumulator[i]` is one of them.

    Adding a tensor reads its value, for which a GPU must finish what it was asked to do.
    """

    def __init__(self, n: int) -> None:
        self.data = [0.0] * n

    def add(self, *args: Any) -> None:
        """Add a number to each sum. Raises: CnnlabError for more or fewer than there are sums."""
        if len(args) != len(self.data):
            raise CnnlabError(f"Accumulator({len(self.data)}).add took {len(args)} values; give one for each sum")
        self.data = [total + float(value) for total, value in zip(self.data, args, strict=True)]

    def reset(self) -> None:
        """Begin again from 0."""
        self.data = [0.0] * len(self.data)

    def __getitem__(self, index: int) -> float:
        return self.data[index]


class Timer:
    """Seconds between `start` and `stop`, as many spans as one likes, in `times`. It starts when it is made.

    It times what the program waits for: a GPU may still be at work when it stops.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        """Begin a span."""
        self.tik = time.perf_counter()

    def stop(self) -> float:
        """End it; returns its seconds."""
        self.times.append(time.perf_counter() - self.tik)
        return self.times[-1]

    def avg(self) -> float:
        """Seconds of a span, on average. Raises: CnnlabError before the first `stop`."""
        if not self.times:
            raise CnnlabError("Timer.avg: nothing has been timed yet; call stop first")
        return self.sum() / len(self.times)

    def sum(self) -> float:
        """Seconds of all spans together."""
        return float(sum(self.times))

    def cumsum(self) -> list[float]:
        """Seconds up to the end of each span."""
        return list(accumulate(self.times))


def try_gpu(i: int = 0) -> torch.device:
    """The CUDA device number `i` if there is one, else the CPU; for 0, Apple's MPS comes before the CPU."""
    if i < 0:
        raise CnnlabError(f"try_gpu({i}): devices are counted from 0")
    if torch.cuda.device_count() > i:
        return torch.device(f"cuda:{i}")
    if i == 0 and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def try_all_gpus() -> list[torch.device]:
    """Every CUDA device; where there is none, what `try_gpu` gives. Never empty."""
    return [torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count())] or [try_gpu()]


def as_device(device: torch.device | str | None) -> torch.device:
    """The device that was meant; None: `try_gpu()`. Raises: CnnlabError where it is unknown or absent."""
    if device is None:
        return try_gpu()
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise CnnlabError(f"device {device!r} is none ({reason(error)[:80]}); take try_gpu()") from error
    return pick_device(str(found)) if found.type in ("cuda", "mps") else found


def accuracy(y_hat: Tensor, y: Tensor) -> float:
    """How many predictions are right: a count, as 3.0, not a share.

    y_hat: (B, K) scores, whose largest is the prediction, or (B,) classes; y: (B,) true classes.
    """
    return float(hits(y_hat, y))


def hits(y_hat: Tensor, y: Tensor) -> Tensor:
    """The same count as a scalar tensor that stays on its device."""
    if y_hat.ndim > 1 and y_hat.shape[1] > 1:
        y_hat = y_hat.argmax(1)
    return (y_hat.type(y.dtype) == y).sum()


def evaluate_accuracy(net: Any, data_iter: Iterable[Any]) -> float:
    """The share of the images of `data_iter` that `net`, a module or a function, predicts right.

    As `evaluate_accuracy_gpu`: a module's batches go to where its weights are.
    """
    return evaluate_accuracy_gpu(net, data_iter)


def evaluate_accuracy_gpu(net: Any, data_iter: Iterable[Any], device: torch.device | str | None = None) -> float:
    """The share of the images of `data_iter` that `net` predicts right, on `device`.

    net: a module, which is put into eval mode and left in it, or a function; data_iter: batches (X, y). device:
    unsaid, where the module's weights are; a function gets the batches as they come. Raises: CnnlabError where
    `data_iter` gives no pairs, or nothing.
    """
    if isinstance(net, nn.Module):
        net.eval()
        if device is None:
            first = next(net.parameters(), None)
            device = None if first is None else first.device
    where = None if device is None else as_device(device)
    right: Tensor | None = None
    count = 0
    with torch.no_grad():
        for x, y in pairs(data_iter, where):
            x, y = moved(x, where), moved(y, where)
            now = hits(net(x), y)
            right = now if right is None else right + now  # on the device: a GPU is waited for once, at the end
            count += y.numel()
    if right is None or not count:
        raise CnnlabError(
            "the iterator gave no images to evaluate; make it anew if it can be gone through only once, and leave out "
            "drop_last=True if it is a DataLoader of fewer images than a batch"
        )
    return int(right) / count


def pairs(data_iter: Iterable[Any], device: torch.device | None) -> Iterator[tuple[Any, Tensor]]:
    """The batches (X, y) of `data_iter`; our own are made on `device`, others come as they are.

    Raises: CnnlabError for a batch that is no such pair.
    """
    if isinstance(data_iter, Batches):
        yield from data_iter.on(device or torch.device("cpu"))
        return
    for number, batch in enumerate(data_iter, 1):
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            kind = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
            raise CnnlabError(f"batch {number} is a {kind}, not a pair (X, y) of tensors: images and their classes")
        yield batch[0], batch[1]


def moved(x: Any, device: torch.device | None) -> Any:
    """A tensor, or a list of them, on `device`; None: where it is."""
    if device is None:
        return x
    return [part.to(device) for part in x] if isinstance(x, list) else x.to(device)
