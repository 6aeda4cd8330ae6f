"""Evaluation: loss, accuracy and confusion matrix over every image, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.data.loader import Loader
from cnnlab.device.precision import autocast, upcast
from cnnlab.device.world import World
from cnnlab.training.scores import ClassFigures, Scores


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    loss: mean cross-entropy per image. confusion: (K, K) int64, row = true class, column = predicted class. The
    others follow the order of the images, and are None unless kept: predicted: (N,) int64; probability: (N,) float32,
    of the predicted class; logits: (N, K) float32.
    """

    loss: float
    confusion: Tensor
    predicted: Tensor | None = None
    probability: Tensor | None = None
    logits: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of correct predictions."""
        return int(self.confusion.trace())

    @property
    def scores(self) -> Scores:
        """Accuracy, precision, recall and F1, with intervals."""
        correct, support, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        return Scores(correct.tolist(), support.tolist(), predicted.tolist())

    @property
    def accuracy(self) -> float:
        """The fraction of images predicted correctly (micro average)."""
        return self.correct / self.count

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images."""
        return self.scores.balanced_accuracy

    @property
    def per_class(self) -> list[ClassFigures]:
        """Precision, recall, F1 and number of images of each of the K classes."""
        return self.scores.per_class

    @property
    def never_predicted(self) -> list[int]:
        """The classes that have images, but are predicted for none."""
        return ((self.confusion.sum(0) == 0) & (self.confusion.sum(1) > 0)).nonzero().flatten().tolist()


BINS = 15  # of the expected calibration error


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return the probabilities of logits (N, K). temperature: see calibration.py; 1: not calibrated."""
    return (logits / temperature).softmax(1)


def confidence_bins(p: Tensor) -> Tensor:
    """Return the bin of each probability, (N,) float64 -> (N,) int64: (0, 1/15], (1/15, 2/15], ..."""
    return ((p * BINS).ceil().long() - 1).clamp(0, BINS - 1)


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return the expected calibration error: how far accuracy and mean probability differ, over 15 equal bins.

    confidence: (N,) probability of the predicted class; correct: (N,) bool.
    """
    p = confidence.double()
    gap = torch.bincount(confidence_bins(p), weights=correct.double() - p, minlength=BINS)
    return gap.abs().sum().item() / len(p)


# Test-time augmentation, views per image. flip: the image and its mirror image. shift: also both of these shifted
# diagonally by a pixel, in two opposite directions.
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
    after_batch: Callable[[], None] = lambda: None,
    precision: torch.dtype = torch.float32,
    views: str = "none",
    keep: bool = False,
    temperature: float = 1.0,
    keep_logits: bool = False,
    world: World | None = None,
) -> Evaluation:
    """Evaluate `model` on every image of `loader` in eval mode, then restore its mode.

    after_batch: called after each batch; may raise to stop early. views: see `logits`. keep: also return each image's
    prediction and its probability, computed with `temperature`; the loss ignores it, as in training. keep_logits: with
    `keep`, also return the logits. world: the processes that share the batches; the result is the same for any number
    of them.
    """
    world = world or World()
    was_training = model.training
    model.eval()
    losses: list[Tensor] = []  # of each batch, summed
    cells: list[Tensor] = []  # (B,) each: true class * K + predicted class
    kept: list[Tensor] = []  # (B,) each: probability of the predicted class
    outputs: list[Tensor] = []  # (B, K) each
    try:
        for x, y in loader.for_rank(world):
            with autocast(loader.device, precision):
                output = upcast(logits(model, x, views))  # (B, K)
            losses.append(F.cross_entropy(output, y, reduction="sum"))
            cells.append(y * num_classes + output.argmax(1))
            if keep:
                kept.append(probabilities(output, temperature).amax(1))
            if keep_logits:
                outputs.append(output)
            after_batch()
    finally:
        model.train(was_training)
    losses, cells, kept, outputs = (_of_all(parts, world) for parts in (losses, cells, kept, outputs))
    # Once for all batches: doing it after each would make the host wait for the GPU.
    cell = torch.cat(cells)
    confusion = torch.bincount(cell, minlength=num_classes * num_classes).view(num_classes, num_classes).cpu()
    loss_sum = torch.zeros_like(losses[0])
    for part in losses:
        loss_sum += part
    loss = loss_sum.item() / loader.count
    if not keep:
        return Evaluation(loss, confusion)
    found = torch.cat(outputs).cpu() if keep_logits else None
    return Evaluation(loss, confusion, (cell % num_classes).cpu(), torch.cat(kept).cpu(), found)


def _of_all(parts: list[Tensor], world: World) -> list[Tensor]:
    """Return the values of all batches in order. parts: the values of this process's batches."""
    if world.size == 1:
        return parts
    found = world.gather([part.cpu() for part in parts])
    return [found[number % world.size][number // world.size] for number in range(sum(map(len, found)))]
