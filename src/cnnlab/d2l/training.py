"""The manual's training functions, over any iterable of batches (X, y)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cnnlab.d2l.animator import Animator
from cnnlab.d2l.checks import as_labels, check_finite, check_network, check_object, explained, is_count, pixel_sum
from cnnlab.d2l.data import Batches
from cnnlab.d2l.measuring import (
    as_device,
    count_correct,
    evaluate_accuracy_gpu,
    moved,
    pairs,
    try_all_gpus,
)
from cnnlab.device.memory import keep_freed_memory
from cnnlab.device.timing import Stopwatch, synchronize
from cnnlab.io.errors import CnnlabError
from cnnlab.training.step import train_step

_LEGEND = ("train loss", "train acc", "test acc")


@dataclass(repr=False)
class History:
    """The history of a training run. The original functions return None.

    rows: one dict for each epoch, with epoch (from 1), loss and train_acc (averages over the epoch), test_acc (after
    it), images, train_seconds and images_per_second (wall-clock, with data loading), compute_seconds and
    examples_per_second (without data loading, as printed). batch_losses: the mean loss of each batch, in order.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    batch_losses: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        if not self.rows:
            return "History of 0 epochs"
        last = self.rows[-1]
        speed = sum(row["images"] for row in self.rows) / sum(row["train_seconds"] for row in self.rows)
        return (
            f"History of {len(self.rows)} epochs: loss {last['loss']:.3f}, train acc {last['train_acc']:.3f}, test acc "
            f"{last['test_acc']:.3f}; {speed:,.0f} images/s with data"
        )


def train_ch6(
    net: nn.Module,
    train_iter: Iterable[Any],
    test_iter: Iterable[Any],
    num_epochs: int,
    lr: float,
    device: torch.device | str | None = None,
) -> History:
    """Train `net` with plain SGD on the mean cross-entropy; plot loss and accuracies during the training.

    Initialize the weights of every Linear and Conv2d (Xavier uniform), but not their biases or other layers.
    train_iter, test_iter: iterables of batches (X, y), X (B, C, H, W) float, y (B,) int64, iterated once per epoch.
    device: Default: `try_gpu()`. Test accuracy is measured after each epoch: do not use it to choose anything, or pass
    held-out images in place of the test set.

    Print the device, then `loss L, train acc A, test acc T` (loss and train acc: averages over the last epoch) and
    `S examples/sec on DEVICE`. As in the original, that speed excludes data loading; the history has both speeds. Leave
    `net` in eval mode.

    Unlike the original, accept fewer than five batches and iterables without a length, initialize lazy layers with the
    first batch, and synchronize a GPU about five times per epoch, not after each batch. Raise CnnlabError for an
    invalid number of epochs, learning rate, device or batch.
    """
    check_network(net)
    _check_epochs(num_epochs)
    _check_rate(lr)
    target = as_device(device)
    train_iter = _initialize_lazy(net, train_iter)
    net.apply(_xavier)
    print("training on", target)
    net.to(target)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)

    def step(x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = train_step(net, optimizer, x, y)
        return torch.stack((loss * len(y), correct)), loss

    animator = Animator(xlabel="epoch", xlim=[1, num_epochs], legend=_LEGEND)
    return _train(net, step, train_iter, test_iter, num_epochs, target, str(target), animator)


def train_batch_ch13(
    net: nn.Module,
    X: Any,  # noqa: N803 - the original's names of arguments
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    trainer: torch.optim.Optimizer,
    devices: Sequence[torch.device],
    *,
    mean: bool = False,
) -> tuple[Tensor, float]:
    """Update `net` on a batch; return the sum of its losses and the number of correct predictions.

    X: a tensor (B, ...), or a list of tensors. loss: returns one loss per image, such as
    `nn.CrossEntropyLoss(reduction="none")`. Set `net` to training mode and move the batch to the first of `devices`.

    The update minimizes the sum of the losses, as in the original, so its printed learning rates fit: a rate of 2e-4 on
    the sum of 128 losses equals 0.0256 on their mean. A rate of 0.1 would equal 12.8; SGD gets a warning then. mean:
    minimize the mean, so that the rate does not depend on the batch size. A loss that returns one number is taken for
    the mean, unless its `reduction` is "sum", and minimized as it is. The sum is returned even then, where the original
    returns the mean.
    """
    if not devices:
        raise CnnlabError("devices is empty; pass try_all_gpus()")
    check_network(net)
    _check_step(loss, trainer)
    y = as_labels(y, "the batch")
    with explained(net, X, y, "the batch"):
        total, correct = _batch(net, X, y, loss, trainer, torch.device(devices[0]), mean)
    return total, float(correct)


def _batch(
    net: nn.Module,
    x: Any,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    trainer: torch.optim.Optimizer,
    device: torch.device,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """Do the update of `train_batch_ch13`; return its two values on the device, without synchronizing."""
    x, y = moved(x, device), moved(y, device)
    net.train()
    trainer.zero_grad()
    predicted = net(x)
    losses = loss(predicted, y)  # (B,), or one number
    total = losses.sum()
    averaged = losses.ndim == 0 and getattr(loss, "reduction", "mean") != "sum"
    if not (mean or averaged):
        _warn_of_sum(trainer, len(y))
    (total / len(y) if mean and not averaged else total).backward()
    trainer.step()
    total = total.detach()
    return total * len(y) if averaged else total, count_correct(predicted.detach(), y)


def _warn_of_sum(trainer: torch.optim.Optimizer, count: int) -> None:
    rate = trainer.param_groups[0]["lr"]
    # The chapter's largest rate on the mean is 1. Adaptive optimizers are invariant to the factor.
    if isinstance(trainer, torch.optim.SGD) and rate * count > 2:
        warnings.warn(
            f"a learning rate of {rate:g} on the sum of {count} losses equals {rate * count:g} on their mean; pass "
            "mean=True to train_batch_ch13 to minimize the mean",
            stacklevel=4,
        )


def train_ch13(
    net: nn.Module,
    train_iter: Iterable[Any],
    test_iter: Iterable[Any],
    loss: Callable[[Tensor, Tensor], Tensor],
    trainer: torch.optim.Optimizer,
    num_epochs: int,
    devices: Sequence[torch.device] | torch.device | str | None = None,
    *,
    mean: bool = False,
) -> History:
    """Train `net` with your own optimizer and loss on all `devices`. Default: `try_all_gpus()`.

    Keep the initial weights. Each update is that of `train_batch_ch13`; see there for `loss` and `mean`. Plots, output,
    result and errors are those of `train_ch6`.
    """
    check_network(net)
    _check_epochs(num_epochs)
    _check_step(loss, trainer)
    chosen = [devices] if isinstance(devices, str | torch.device) else devices or try_all_gpus()
    targets = [as_device(device) for device in chosen]
    net.to(targets[0])
    parallel: nn.Module = nn.DataParallel(net, device_ids=targets) if len(targets) > 1 else net

    def step(x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        total, correct = _batch(parallel, x, y, loss, trainer, targets[0], mean)
        return torch.stack((total, correct)), total / len(y)

    animator = Animator(xlabel="epoch", xlim=[1, num_epochs], ylim=[0, 1], legend=_LEGEND)
    return _train(parallel, step, train_iter, test_iter, num_epochs, targets[0], str(targets), animator)


_Step = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""An update on (X, y). It returns (2,), the sum of losses and the number of correct predictions, and the mean loss."""


def _train(
    net: nn.Module,
    step: _Step,
    train_iter: Iterable[Any],
    test_iter: Iterable[Any],
    num_epochs: int,
    device: torch.device,
    name: str,
    animator: Animator,
) -> History:
    """Run the loop of `train_ch6` and `train_ch13`."""
    history = History()
    try:
        with keep_freed_memory():
            for epoch in range(num_epochs):
                net.train()
                row, losses = _train_epoch(net, step, train_iter, epoch, device, animator)
                history.batch_losses += losses
                row["test_acc"] = evaluate_accuracy_gpu(net, test_iter, device)
                history.rows.append(row)
                animator.add(epoch + 1, (row["loss"], row["train_acc"], row["test_acc"]))
    finally:
        animator.finish()
    rows, last = history.rows, history.rows[-1]
    print(f"loss {last['loss']:.3f}, train acc {last['train_acc']:.3f}, test acc {last['test_acc']:.3f}")
    speed = sum(row["images"] for row in rows) / sum(row["compute_seconds"] for row in rows)
    print(f"{speed:.1f} examples/sec on {name}")
    return history


def _train_epoch(
    net: nn.Module, step: _Step, train_iter: Iterable[Any], epoch: int, device: torch.device, animator: Animator
) -> tuple[dict[str, Any], list[float]]:
    """Return the epoch's row of the history, without test_acc, and the mean loss of each batch."""
    stopwatch, start = Stopwatch(device), time.perf_counter()
    batches = len(train_iter) if isinstance(train_iter, Sized) else 0  # 0: unknown, so no points within the epoch
    sums = torch.zeros(2, device=device)
    losses: list[Tensor] = []
    pixel_sums: list[Tensor] = []
    images, labels = 0, 0
    interval = max(1, batches // 5)
    for i, (x, y) in enumerate(pairs(train_iter, device), 1):
        stopwatch.start()
        with explained(net, x, y, f"batch {i} of train_iter"):
            x, y = moved(x, device), moved(y, device)
            step_sums, loss = step(x, y)
        sums += step_sums
        if not isinstance(train_iter, Batches) and (total_pixels := pixel_sum(x)) is not None:
            pixel_sums.append(total_pixels)
            if i == 1 and epoch == 0:
                check_finite(pixel_sums, "train_iter")
        stopwatch.stop()
        losses.append(loss)
        images, labels = images + len(y), labels + y.numel()
        if i % interval == 0 and i < batches:
            total, correct = sums.tolist()  # synchronizes about five times per epoch
            animator.add(epoch + i / batches, (total / images, correct / labels, None))
    if not losses:
        raise CnnlabError(
            f"train_iter yielded no batches in epoch {epoch + 1}; pass one that can be iterated in every epoch, "
            "such as a DataLoader or a list"
        )
    check_finite(pixel_sums, "train_iter")
    synchronize(device)
    train_seconds = time.perf_counter() - start
    total, correct = sums.tolist()
    compute_seconds = stopwatch.seconds()
    row = {
        "epoch": epoch + 1,
        "loss": total / images,
        "train_acc": correct / labels,
        "images": images,
        "train_seconds": train_seconds,
        "compute_seconds": compute_seconds,
        "images_per_second": images / train_seconds,
        "examples_per_second": images / compute_seconds,
    }
    return row, torch.stack(losses).tolist()


def _check_epochs(num_epochs: int) -> None:
    if not is_count(num_epochs):
        raise CnnlabError(f"num_epochs={num_epochs!r}: choose an integer of at least 1")


def _check_rate(lr: Any) -> None:
    if lr is None or isinstance(lr, str) or not 0 <= lr < float("inf"):
        raise CnnlabError(f"lr={lr!r}: choose a learning rate of at least 0, such as 0.1")


def _check_step(loss: Any, trainer: Any) -> None:
    check_object("loss", loss, None, 'a function, such as nn.CrossEntropyLoss(reduction="none")')
    check_object(
        "trainer", trainer, torch.optim.Optimizer, "an optimizer, such as torch.optim.SGD(net.parameters(), lr)"
    )


def _xavier(module: nn.Module) -> None:
    """Initialize as the manual does (X. Glorot, Y. Bengio, AISTATS 2010): exactly these classes, no subclasses."""
    if type(module) in (nn.Linear, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)  # type: ignore[arg-type]


def _initialize_lazy(net: nn.Module, train_iter: Iterable[Any]) -> Iterable[Any]:
    """Initialize lazy layers with the first batch; return an iterable of all batches."""
    if not any(is_lazy(p) for p in net.parameters()):
        return train_iter
    device = next(net.parameters()).device
    batches = pairs(train_iter, device)
    first = next(batches, None)
    if first is not None:
        net.eval()
        with torch.no_grad(), explained(net, *first, "the first batch of train_iter"):
            net(moved(first[0], device))
        if isinstance(train_iter, Iterator):  # an iterator yields each batch only once
            return chain([first], batches)
    return train_iter
