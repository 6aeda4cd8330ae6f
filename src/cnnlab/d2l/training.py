"""The manual's training functions: the loops of its sections, over any iterable of batches (X, y)."""

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
from cnnlab.d2l.measuring import (
    as_device,
    evaluate_accuracy_gpu,
    hits,
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
    """What a training was like. The original's functions return nothing.

    rows: for each epoch its number, loss and train_acc (averages over the epoch), test_acc (at its end), images,
    train_seconds and images_per_second (wall-clock, with the data), compute_seconds and examples_per_second (without
    waiting for data, as printed); batch_losses: the mean loss of each batch, in order.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    batch_losses: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        if not self.rows:
            return "History of no epochs"
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
    """Train `net` by plain SGD on the mean cross-entropy, and draw loss and accuracies while it goes on.

    The weights of every Linear and Conv2d begin anew, Xavier-uniform; biases and all else stay as they are. train_iter,
    test_iter: anything that gives batches (X, y), X (B, C, H, W) float, y (B,) int64, once for each epoch. device:
    unsaid, `try_gpu()`. Test accuracy is measured after each epoch: choose nothing by it, or pass images that you held
    out in place of the test set. Prints the device, then `loss L, train acc A, test acc T` (loss and train acc are
    averages over the last epoch) and `S examples/sec on DEVICE`, in which, as in the original, waiting for data does
    not count: the history has both figures. `net` is left in eval mode.

    Unlike the original's: fewer than five batches will do, and so will batches whose number is not known beforehand; a
    network with lazy layers is first shown a batch; a GPU is waited for five times an epoch, not after each batch.
    Raises: CnnlabError for a number of epochs, learning rate, device or batch that is none.
    """
    _check(num_epochs, lr)
    where = as_device(device)
    train_iter = _settle(net, train_iter)
    net.apply(_xavier)
    print("training on", where)
    net.to(where)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)

    def step(x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, right = train_step(net, optimizer, x, y)
        return torch.stack((loss * len(y), right)), loss

    animator = Animator(xlabel="epoch", xlim=[1, num_epochs], legend=_LEGEND)
    return _train(net, step, train_iter, test_iter, num_epochs, where, str(where), animator)


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
    """One update on a batch; returns the sum of its losses and the number of right predictions.

    X: a tensor (B, ...), or a list of them; loss: one that gives each image's loss, as
    `nn.CrossEntropyLoss(reduction="none")`. `net` is put into training mode. The batch goes to the first of `devices`.

    The sum of the losses is what decreases, as in the original, so that its printed learning rates are right: a rate of
    2e-4 on the sum of 128 losses is 0.0256 on their mean, and one of 0.1 is 12.8, for which plain SGD gets a warning.
    mean: let the mean decrease, so that the rate does not depend on the size of the batch. With a loss that gives the
    mean, its own mean decreases; the sum is returned all the same, where the original returns the mean for a sum.
    """
    if not devices:
        raise CnnlabError("devices is empty; pass try_all_gpus(), which never is")
    total, right = _batch(net, X, y, loss, trainer, torch.device(devices[0]), mean)
    return total, float(right)


def _batch(
    net: nn.Module,
    x: Any,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    trainer: torch.optim.Optimizer,
    device: torch.device,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """The same, both on the device, so that a GPU need not be waited for."""
    x, y = moved(x, device), moved(y, device)
    net.train()
    trainer.zero_grad()
    predicted = net(x)
    losses = loss(predicted, y)  # (B,), or one number
    total = losses.sum()
    averaged = losses.ndim == 0 and getattr(loss, "reduction", "") == "mean"
    if not (mean or averaged):
        _warn_of_sum(trainer, len(y))
    (total / len(y) if mean and not averaged else total).backward()
    trainer.step()
    total = total.detach()
    return total * len(y) if averaged else total, hits(predicted.detach(), y)


def _warn_of_sum(trainer: torch.optim.Optimizer, count: int) -> None:
    rate = trainer.param_groups[0]["lr"]
    # The chapter's largest rate on the mean is 1. Adaptive optimisers divide the factor out.
    if isinstance(trainer, torch.optim.SGD) and rate * count > 2:
        warnings.warn(
            f"a learning rate of {rate:g} on the sum of {count} losses is {rate * count:g} on their mean; pass "
            "mean=True to train_batch_ch13 if the mean was meant",
            stacklevel=4,
        )


def train_ch13(
    net: nn.Module,
    train_iter: Iterable[Any],
    test_iter: Iterable[Any],
    loss: Callable[[Tensor, Tensor], Tensor],
    trainer: torch.optim.Optimizer,
    num_epochs: int,
    devices: Sequence[torch.device] | None = None,
    *,
    mean: bool = False,
) -> History:
    """Train `net` with an optimiser and a loss of one's own, on all `devices`; unsaid: `try_all_gpus()`.

    Weights stay as they are. Each update is that of `train_batch_ch13`, which see for `loss` and `mean`. Draws, prints
    and returns what `train_ch6` does. Raises: CnnlabError likewise.
    """
    _check(num_epochs, None)
    places = [as_device(device) for device in devices or try_all_gpus()]
    net.to(places[0])
    spread: nn.Module = nn.DataParallel(net, device_ids=places) if len(places) > 1 else net

    def step(x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        total, right = _batch(spread, x, y, loss, trainer, places[0], mean)
        return torch.stack((total, right)), total / len(y)

    animator = Animator(xlabel="epoch", xlim=[1, num_epochs], ylim=[0, 1], legend=_LEGEND)
    return _train(spread, step, train_iter, test_iter, num_epochs, places[0], str(places), animator)


def _train(
    net: nn.Module,
    step: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
    train_iter: Iterable[Any],
    test_iter: Iterable[Any],
    num_epochs: int,
    device: torch.device,
    name: str,
    animator: Animator,
) -> History:
    """The loop of both. step: an update -> ((2,): sum of losses, right predictions; mean loss), on the device."""
    history = History()
    batches = len(train_iter) if isinstance(train_iter, Sized) else 0  # 0: not known yet
    try:
        with keep_freed_memory():
            for epoch in range(num_epochs):
                net.train()
                watch, began = Stopwatch(device), time.perf_counter()
                sums = torch.zeros(2, device=device)
                losses: list[Tensor] = []
                images, labels = 0, 0
                every = max(1, batches // 5)
                for i, (x, y) in enumerate(pairs(train_iter, device), 1):
                    watch.start()
                    x, y = moved(x, device), moved(y, device)
                    now, loss = step(x, y)
                    sums += now
                    watch.stop()
                    losses.append(loss)
                    images, labels = images + len(y), labels + y.numel()
                    if i % every == 0 and i < batches:
                        total, right = sums.tolist()  # waits for the device, about five times an epoch
                        animator.add(epoch + i / batches, (total / images, right / labels, None))
                if not losses:
                    raise CnnlabError(
                        f"train_iter gave no batches in epoch {epoch + 1}; give something that can be gone through "
                        f"{num_epochs} times, as a DataLoader or a list"
                    )
                batches = len(losses)
                synchronize(device)
                trained = time.perf_counter() - began
                total, right = sums.tolist()
                history.batch_losses += torch.stack(losses).tolist()
                test_acc = evaluate_accuracy_gpu(net, test_iter, device)
                compute = watch.seconds()
                row = {
                    "epoch": epoch + 1,
                    "loss": total / images,
                    "train_acc": right / labels,
                    "test_acc": test_acc,
                    "images": images,
                    "train_seconds": trained,
                    "compute_seconds": compute,
                    "images_per_second": images / trained,
                    "examples_per_second": images / compute,
                }
                history.rows.append(row)
                animator.add(epoch + 1, (row["loss"], row["train_acc"], test_acc))
    finally:
        animator.finish()
    rows, last = history.rows, history.rows[-1]
    print(f"loss {last['loss']:.3f}, train acc {last['train_acc']:.3f}, test acc {last['test_acc']:.3f}")
    speed = sum(row["images"] for row in rows) / sum(row["compute_seconds"] for row in rows)
    print(f"{speed:.1f} examples/sec on {name}")
    return history


def _check(num_epochs: int, lr: float | None) -> None:
    if not isinstance(num_epochs, int) or num_epochs < 1:
        raise CnnlabError(f"num_epochs={num_epochs!r}: choose a whole number from 1 on")
    if lr is not None and not 0 <= lr < float("inf"):
        raise CnnlabError(f"lr={lr!r}: choose a learning rate from 0 on, as 0.1")


def _xavier(module: nn.Module) -> None:
    """The manual's starting weights (X. Glorot, Y. Bengio, AISTATS 2010); of these two layers, not of their kin."""
    if type(module) in (nn.Linear, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)  # type: ignore[arg-type]


def _settle(net: nn.Module, train_iter: Iterable[Any]) -> Iterable[Any]:
    """Show lazy layers a batch, from which they learn the number of their inputs; returns all batches."""
    if not any(is_lazy(p) for p in net.parameters()):
        return train_iter
    place = next(net.parameters()).device
    batches = pairs(train_iter, place)
    first = next(batches, None)
    if first is not None:
        net.eval()
        with torch.no_grad():
            net(moved(first[0], place))
        if isinstance(train_iter, Iterator):  # which gives each batch only once
            return chain([first], batches)
    return train_iter
