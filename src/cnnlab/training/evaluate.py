"""Evaluation: loss, accuracy and confusion matrix over every image, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.data.loader import Loader
from cnnlab.device.precision import autocast, upcast


@dataclass(frozen=True)
class Evaluation:
    """loss: mean cross-entropy per image; confusion: (K, K) int64, row = true class, column = predicted class."""

    loss: float
    confusion: Tensor

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of correct predictions."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """The fraction of images predicted correctly (micro average)."""
        return self.correct / self.count

    @property
    def class_accuracy(self) -> list[float | None]:
        """The recall of each class; None for a class without images."""
        totals = self.confusion.sum(1).tolist()
        correct = self.confusion.diagonal().tolist()
        return [c / n if n else None for c, n in zip(correct, totals, strict=True)]


# Test-time augmentation, views per image: the image; also mirrored; both also shifted by a pixel each way.
VIEWS = {"none": 1, "flip": 2, "shift": 6}


def logits(model: nn.Module, x: Tensor, views: str = "none") -> Tensor:
    """Return logits (B, K) of images (B, C, H, W), averaged over `views`, a key of VIEWS.

    Unshifted views count half, shifted ones half.
    """
    layout = torch.channels_last if x.shape[1] > 1 and x.stride(1) == 1 else torch.contiguous_format

    def both(x: Tensor) -> Tensor:
        out: Tensor = model(x.contiguous(memory_format=layout))
        if views != "none":
            out = (out + model(x.flip(3).contiguous(memory_format=layout))) / 2
        return out

    centre = both(x)
    if views != "shift":
        return centre
    h, w = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return centre / 2 + both(padded[:, :, :h, :w]) / 4 + both(padded[:, :, 2:, 2:]) / 4


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    num_classes: int,
    between: Callable[[], None] = lambda: None,
    precision: torch.dtype = torch.float32,
    views: str = "none",
) -> Evaluation:
    """Evaluate `model` on every image of `loader` in eval mode, then restore its mode.

    between: called after each batch; may raise to stop early. views: see `logits`.
    """
    was_training = model.training
    model.eval()
    loss_sum = torch.zeros((), device=loader.device)
    cells: list[Tensor] = []  # (B,) each: true class * K + predicted class
    try:
        for x, y in loader:
            with autocast(loader.device, precision):
                output = upcast(logits(model, x, views))  # (B, K)
            loss_sum += F.cross_entropy(output, y, reduction="sum")
            cells.append(y * num_classes + output.argmax(1))
            between()
    finally:
        model.train(was_training)
    # Once for all batches: after each batch the host would wait for the GPU.
    confusion = torch.bincount(torch.cat(cells), minlength=num_classes * num_classes)
    return Evaluation(loss_sum.item() / loader.count, confusion.view(num_classes, num_classes).cpu())
