"""Compensate for unequal classes and weight images, in the training loss or in the order of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnlab.data.imageset import ImageSet


def loss_weights(images: ImageSet, balance: str) -> Tensor | None:
    """Return the weight of each image in the training loss, (N,) float32 with mean 1; None if all are equal.

    balance=weights multiplies an image's own weight by that of its class, which is inversely proportional to the number
    of images in the class.
    """
    weights = torch.ones(len(images), dtype=torch.float64) if images.weights is None else images.weights.double()
    if balance == "weights":
        weights = weights / torch.bincount(images.labels)[images.labels]
    if bool((weights == weights[:1]).all()):
        return None
    return (weights / weights.mean()).clamp(min=1e-12).float()  # above 0: a batch divides by their sum


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return N indices into `labels` (N,), equally many for each class, up to a difference of one.

    Within a class, no image repeats before all have been drawn. Some images of a large class are not drawn at all.
    """
    classes, n = labels.unique(), len(labels)
    more = torch.zeros(len(classes), dtype=torch.int64)
    more[torch.randperm(len(classes), generator=generator)[: n % len(classes)]] = 1
    drawn = []
    for k, count in zip(classes.tolist(), (n // len(classes) + more).tolist(), strict=True):
        members = (labels == k).nonzero().flatten()
        rounds = torch.rand(-(-count // len(members)), len(members), generator=generator).argsort(dim=1, stable=True)
        drawn.append(members[rounds.flatten()[:count]])
    return torch.cat(drawn)[torch.randperm(n, generator=generator)]
