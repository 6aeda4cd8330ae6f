"""The networks. A new one is a file with a builder and one line in MODELS; the tests pick it up from there."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cnnlab.errors import unknown
from cnnlab.models.lenet import lenet, lenet_bn

Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {
    "lenet": lenet,
    "lenet-bn": lenet_bn,
}


def build_model(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The network called `name`, with the framework's own starting weights: (B, C, H, W) float -> (B, K) logits.

    Raises: CnnlabError for an unknown name, and for an image that is too small, with the smallest size that works.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name](num_classes=num_classes, in_channels=in_channels, image_size=image_size)
