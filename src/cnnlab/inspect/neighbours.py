"""Features of a network: the training images nearest to an image, and the prototype of each class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.data.imageset import ImageSet
from cnnlab.inspect.layers import eval_mode
from cnnlab.io.errors import CnnlabError


@dataclass(frozen=True)
class Neighbour:
    """A training image. index: its place in the searched images; distance: cosine distance of the features, 0 to 2.

    The mean over the searched images is subtracted from the features first.
    """

    id: str
    label: str
    distance: float
    index: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@torch.no_grad()
def features(model: nn.Module, x: Tensor) -> Tensor:
    """Return the input of the last layer with a weight matrix or filters, averaged over positions: (B, D) float32.

    x: preprocessed images (B, C, H, W). Raise CnnlabError for a network without such a layer.
    """
    last: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor) and len(args[0]) == len(x):
            last[:] = [(module, args[0])]

    layers = [m for m in model.modules() if any(p.ndim >= 2 for p in m.parameters(recurse=False))]
    hooks = [m.register_forward_pre_hook(record) for m in layers]
    try:
        with eval_mode(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise CnnlabError(f"{type(model).__name__} has no layer with a weight matrix, so no features to compare")
    module, found = last[0]
    if found.ndim > 2:
        found = found.flatten(2).mean(2) if isinstance(module, nn.Conv2d) else found.flatten(1, -2).mean(1)
    return found.float()


@dataclass(frozen=True)
class Gallery:
    """Images with their features. mean: (D,), of the features; features: (N, D) float32, centred and of length 1.

    Uncentred, features behind a sigmoid would all point the same way.
    """

    images: ImageSet
    mean: Tensor
    features: Tensor

    @classmethod
    def of(cls, images: ImageSet, parts: Iterable[Tensor]) -> Gallery:
        """Return the gallery of images whose features come in `parts` (B, D), in the same order."""
        found = torch.cat([part.cpu() for part in parts])
        mean = found.mean(0)
        return cls(images, mean, F.normalize(found - mean, dim=1))

    def nearest(self, found: Tensor, count: int = 5) -> list[list[Neighbour]]:
        """Return the images nearest to each of the features (B, D), the nearest first."""
        similarity = F.normalize(found.cpu() - self.mean, dim=1) @ self.features.T  # (B, N)
        best = similarity.topk(min(count, len(self.features)))
        return [
            [self._neighbour(i, 1 - s) for i, s in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def prototypes(self) -> list[Neighbour | None]:
        """Return for each class the image nearest to the mean of its features; None for a class without images."""
        found: list[Neighbour | None] = []
        for k in range(len(self.images.classes)):
            members = (self.images.labels == k).nonzero().flatten()
            if len(members) == 0:
                found.append(None)
                continue
            own = self.features[members]
            similarity = own @ F.normalize(own.mean(0), dim=0)
            at = int(similarity.argmax())
            found.append(self._neighbour(int(members[at]), 1 - similarity[at].item()))
        return found

    def _neighbour(self, index: int, distance: float) -> Neighbour:
        images = self.images
        return Neighbour(images.ids[index], images.classes[int(images.labels[index])], max(distance, 0.0), index)
