"""From fitted images to probabilities in one torch module: preprocessing, network, temperature, threshold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlab.data.loader import Preprocessing
from cnnlab.inference import Classifier
from cnnlab.training.evaluate import probabilities


class Answer(nn.Module):
    """Fitted images (B, C, size, size) uint8 -> the outputs of an exported file.

    Returns probabilities (B, K) float32, the index of the most probable class (B,) int64, and whether the image is
    none of the classes (B,) bool. half: compute in float16; this converts the classifier's network in place.
    """

    def __init__(self, classifier: Classifier, *, half: bool = False) -> None:
        super().__init__()
        self.resize = Resize(classifier.preprocessing)
        self.network = classifier.network.half() if half else classifier.network
        self.temperature, self.threshold = classifier.temperature, classifier.threshold
        self.in_half = half

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the answers for a batch."""
        x = self.resize(images)
        logits = self.network(x.half() if self.in_half else x).float()
        p = probabilities(logits, self.temperature)
        # Compared in float64, as `Predictions` does with Python's numbers.
        return p, logits.argmax(1), p.amax(1).double() < self.threshold


class Resize(nn.Module):
    """`Preprocessing` with interpolation as two matrix products, since exporters differ in how they interpolate.

    (B, C, size, size) uint8 -> (B, C, image_size, image_size) float32, equal up to rounding.
    """

    matrix: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.resizes = preprocessing.image_size != preprocessing.native_size
        self.clamps = self.resizes and preprocessing.interpolation == "bicubic"
        self.normalizes = any(preprocessing.mean) or any(s != 1 for s in preprocessing.std)
        self.register_buffer("matrix", _matrix(preprocessing))
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's input."""
        x = images.float() / 255
        if self.resizes:
            x = self.matrix @ (x @ self.matrix.T)
        if self.clamps:
            x = x.clamp(0, 1)
        return (x - self.mean) / self.std if self.normalizes else x


def _matrix(p: Preprocessing) -> Tensor:
    """Return PyTorch's weights (image_size, native_size) of the interpolation.

    They are an identity matrix, resized in width only and transposed.
    """
    native, size = p.native_size, p.image_size
    if native == size:
        return torch.eye(native)
    bicubic = p.interpolation == "bicubic"
    found = nn.functional.interpolate(
        torch.eye(native)[None, None],
        size=(native, size),
        mode="bicubic" if bicubic else "bilinear",
        antialias=size < native,
    )
    return found[0, 0].T.contiguous()
