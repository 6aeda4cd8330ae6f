"""Measuring a model: loss, accuracy and confusion matrix over every image, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.data.loader import Loader
from cnnlab.device import full_precision, low_precision


@dataclass(frozen=True)
class Evaluation:
    """loss: mean cross-entropy per image; confusion: (K, K) int64, row = true class, column = predicted class."""

    loss: float
    confusion: Tensor

    @property
    def count(self) -> int:
        """Images measured."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Images whose class was predicted."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Share of the images whose class was predicted (micro average: each image counts the same)."""
        return self.correct / self.count

    @property
    def class_accuracy(self) -> list[float | None]:
        """Of each class, the share of its images that were predicted as it (recall); None for a class without any."""
        totals = self.confusion.sum(1).tolist()
        hits = self.confusion.diagonal().tolist()
        return [h / n if n else None for h, n in zip(hits, totals, strict=True)]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    num_classes: int,
    between: Callable[[], None] = lambda: None,
    precision: torch.dtype = torch.float32,
) -> Evaluation:
    """Measure `model` on every image of `loader`, in eval mode; the model's mode is put back after.

    between: called after each batch, so that a person who wants to stop need not wait for the last.
    """
    was_training = model.training
    model.eval()
    loss_sum = torch.zeros((), device=loader.device)
    cells: list[Tensor] = []  # (B,) each: true class * K + predicted class
    for x, y in loader:
        with low_precision(loader.device, precision):
            logits = full_precision(model(x))  # (B, K)
        loss_sum += F.cross_entropy(logits, y, reduction="sum")
        cells.append(y * num_classes + logits.argmax(1))
        between()
    model.train(was_training)
    # Counted once, here: counting each batch would make the host wait for a GPU each time.
    confusion = torch.bincount(torch.cat(cells), minlength=num_classes * num_classes)
    return Evaluation(loss_sum.item() / loader.count, confusion.view(num_classes, num_classes).cpu())
