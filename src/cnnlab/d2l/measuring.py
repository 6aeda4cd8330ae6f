"""The small helpers of the manual's code: tensor functions, sums, timers, devices, accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.d2l.checks import ONE_HOT, as_labels, check_finite, check_labels, check_object, explained, pixel_sum
from cnnlab.d2l.data import Batches
from cnnlab.device.hardware import pick_device
from cnnlab.io.errors import CnnlabError, reason

# The framework-independent names of the manual's listings.


def size(x: Tensor) -> int:
    """Return the number of elements."""
    return x.numel()


def argmax(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the index of the largest element: `x.argmax(...)`, with `axis` or `dim`."""
    return x.argmax(*args, **kwargs)


def astype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor converted to `dtype`."""
    return x.type(dtype)


def reduce_sum(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the sum: `x.sum(...)`, with `axis` or `dim`."""
    return x.sum(*args, **kwargs)


class Accumulator:
    """`n` running sums that start from 0; `accumulator[i]` reads one.

    Adding a GPU tensor synchronizes with the GPU.
    """

    def __init__(self, n: int) -> None:
        self.data = [0.0] * n

    def add(self, *args: Any) -> None:
        """Add one number to each sum. Raise CnnlabError for more or fewer numbers."""
        if len(args) != len(self.data):
            raise CnnlabError(f"Accumulator({len(self.data)}).add got {len(args)} values; pass one for each sum")
        self.data = [total + float(value) for total, value in zip(self.data, args, strict=True)]

    def reset(self) -> None:
        """Set all sums to 0."""
        self.data = [0.0] * len(self.data)

    def __getitem__(self, index: int) -> float:
        return self.data[index]


class Timer:
    """A stopwatch: `times` has the seconds of each interval from `start` to `stop`. It starts on creation.

    It does not synchronize: a GPU may still be computing when it stops.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        """Start an interval."""
        self.tik = time.perf_counter()

    def stop(self) -> float:
        """Stop the interval and return its seconds."""
        self.times.append(time.perf_counter() - self.tik)
        return self.times[-1]

    def avg(self) -> float:
        """Return the mean seconds of an interval. Raise CnnlabError before the first `stop`."""
        if not self.times:
            raise CnnlabError("Timer.avg: no interval yet; call stop first")
        return self.sum() / len(self.times)

    def sum(self) -> float:
        """Return the total seconds of all intervals."""
        return float(sum(self.times))

    def cumsum(self) -> list[float]:
        """Return the cumulative seconds up to the end of each interval."""
        return list(accumulate(self.times))


def try_gpu(i: int = 0) -> torch.device:
    """Return CUDA device `i` if it exists, else the CPU; for i=0, Apple's MPS is preferred to the CPU."""
    if i < 0:
        raise CnnlabError(f"try_gpu({i}): use an index of at least 0")
    if torch.cuda.device_count() > i:
        return torch.device(f"cuda:{i}")
    if i == 0 and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def try_all_gpus() -> list[torch.device]:
    """Return all CUDA devices, or `[try_gpu()]` if there are none. Never empty."""
    return [torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count())] or [try_gpu()]


def as_device(device: torch.device | str | None) -> torch.device:
    """Return the device; None: `try_gpu()`. Raise CnnlabError if it is unknown or missing."""
    if device is None:
        return try_gpu()
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise CnnlabError(f"unknown device {device!r} ({reason(error, 80)}); use try_gpu()") from error
    return pick_device(str(parsed)) if parsed.type in ("cuda", "mps") else parsed


def accuracy(y_hat: Any, y: Any) -> float:
    """Return the number of correct predictions: a count such as 3.0, not a fraction.

    y_hat: (B, K) scores, or (B,) predicted classes; y: (B,) or (B, 1) true classes; tensors, arrays or lists. Raise
    CnnlabError for other values, and for shapes that do not fit.
    """
    try:
        y_hat, y = torch.as_tensor(y_hat), torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CnnlabError(f"accuracy: pass tensors or arrays of numbers ({reason(error, 80)})") from error
    return float(count_correct(y_hat, y.to(y_hat.device)))


def count_correct(y_hat: Tensor, y: Tensor) -> Tensor:
    """Return the number of correct predictions as a scalar tensor on its device."""
    y = as_labels(y)
    if y.ndim == 2 and y.shape == y_hat.shape and not y.is_floating_point():
        raise CnnlabError(ONE_HOT)
    if y_hat.ndim > 1 and y_hat.shape[1] > 1:
        y_hat = y_hat.argmax(1)
    if y_hat.shape != y.shape:  # (B, 1) == (B,) would broadcast to (B, B)
        if y_hat.numel() != y.numel():
            raise CnnlabError(f"predictions of shape {tuple(y_hat.shape)} for labels of shape {tuple(y.shape)}")
        y_hat = y_hat.reshape(y.shape)
    return (y_hat.type(y.dtype) == y).sum()


def evaluate_accuracy(net: Any, data_iter: Iterable[Any]) -> float:
    """Return the accuracy, from 0 to 1, of `net`, a module or function, on `data_iter`.

    Calls `evaluate_accuracy_gpu`: batches for a module are moved to the device of its weights.
    """
    return evaluate_accuracy_gpu(net, data_iter)


def evaluate_accuracy_gpu(net: Any, data_iter: Iterable[Any], device: torch.device | str | None = None) -> float:
    """Return the accuracy, from 0 to 1, of `net` on `data_iter`, computed on `device`.

    net: a module, which is left in eval mode, or a function. data_iter: batches (X, y). device: Default: that of the
    module's weights; a function gets the batches unmoved. Raise CnnlabError if `data_iter` yields anything but pairs,
    or nothing.
    """
    check_object("net", net, None, "a network, such as nn.Sequential(...)")
    if isinstance(net, nn.Module):
        net.eval()
        if device is None:
            first = next(net.parameters(), None)
            device = None if first is None else first.device
    where = None if device is None else as_device(device)
    correct: Tensor | None = None
    count, outputs = 0, 0
    pixel_sums: list[Tensor] = []
    bounds: list[Tensor] = []
    with torch.no_grad():
        for number, (x, y) in enumerate(pairs(data_iter, where), 1):
            with explained(net, x, y, f"batch {number} of data_iter"):
                x, y = moved(x, where), moved(y, where)
                predicted = net(x)
                batch_correct = count_correct(predicted, y)
            correct = batch_correct if correct is None else correct + batch_correct  # a tensor: synchronized once
            count += y.numel()
            if not isinstance(data_iter, Batches):
                pixel_sums += [total for total in [pixel_sum(x)] if total is not None]
                outputs = predicted.shape[1] if predicted.ndim > 1 else 0
                bounds += [torch.stack(y.aminmax())] if outputs > 1 and y.numel() and not y.is_floating_point() else []
    check_finite(pixel_sums, "data_iter")
    check_labels(bounds, outputs, "data_iter")
    if correct is None or not count:
        raise CnnlabError(
            "data_iter yielded no images; create it again if it can be iterated only once, and remove drop_last=True "
            "if the DataLoader has fewer images than one batch"
        )
    return int(correct) / count


def pairs(data_iter: Iterable[Any], device: torch.device | None) -> Iterator[tuple[Any, Tensor]]:
    """Yield the batches (X, y) of `data_iter`. A `Batches` builds them on `device`; others are not moved.

    Raise CnnlabError for a batch that is not such a pair.
    """
    if isinstance(data_iter, Batches):
        yield from data_iter.on(device or torch.device("cpu"))
        return
    if not isinstance(data_iter, Iterable):
        raise CnnlabError(f"a {type(data_iter).__name__} has no batches; pass a DataLoader or a list of pairs (X, y)")
    for number, batch in enumerate(data_iter, 1):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            kind = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
            raise CnnlabError(f"batch {number} is a {kind}; yield pairs (X, y) of images and classes")
        for what, part in (("images", batch[0]), ("labels", batch[1])):
            fits = isinstance(part, Tensor) or (
                what == "images" and (device is None or (isinstance(part, list) and len(part) > 0))
            )
            if not fits:
                kind = type(part).__name__
                raise CnnlabError(f"batch {number}: its {what} are a {kind}; yield pairs (X, y) of tensors")
        yield batch[0], as_labels(batch[1], f"batch {number}")


def moved(x: Any, device: torch.device | None) -> Any:
    """Return a tensor, or a list of tensors, moved to `device`; None: not moved."""
    if device is None:
        return x
    return [part.to(device) for part in x] if isinstance(x, list) else x.to(device)
