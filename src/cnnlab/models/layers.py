"""The side of a feature map, read from the layers themselves."""

from __future__ import annotations

from itertools import count

from torch import nn

from cnnlab.io.errors import CnnlabError


def side_after(features: nn.Module, side: int) -> int:
    """Return the side of the maps that `features` makes of square images of `side` pixels; 0 if a window does not fit.

    Convolutions and poolings are assumed to run in the order in which they are registered. That is right for a chain,
    and for branches whose windows keep the side.
    """
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kernel, stride, padding = (_side(v) for v in (layer.kernel_size, layer.stride, layer.padding))
            if side + 2 * padding < kernel:
                return 0
            side = (side + 2 * padding - kernel) // stride + 1
    return side


def final_side(features: nn.Module, image_size: int, usual: int) -> int:
    """Return `side_after(features, image_size)`, at least 1.

    Raise CnnlabError for images that are too small; the message gives the smallest size that works and the usual one.
    """
    side = side_after(features, image_size)
    if side < 1:
        smallest = next(n for n in count(1) if side_after(features, n) >= 1)
        raise CnnlabError(
            f"it needs images of at least {smallest}x{smallest} pixels, not {image_size}x{image_size}; set "
            f"image_size={smallest} or more (usual: {max(smallest, usual)})"
        )
    return side


def _side(value: int | str | tuple[int, ...]) -> int:
    """Return one side of a square window."""
    side = value[0] if isinstance(value, tuple) else value
    assert isinstance(side, int)
    return side
