"""What several networks share: a faster pooling, and the arithmetic of an image's side, from the layers themselves."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cnnlab.io.errors import CnnlabError


class AvgPool2d(nn.AvgPool2d):
    """The framework's layer; windows of 2 x 2 side by side are added up by rows and columns on a processor.

    (B, C, H, W) -> (B, C, H // 2, W // 2) for those. The framework's own loop over contiguous images is not
    vectorised: it took a sixth of LeNet's training step, and this takes a third as long. Up to the order of the sum
    of four pixels the values are the same. In float32 only: in 16 bits the sum would be rounded on the way.
    """

    @property
    def halving(self) -> bool:
        """Are the windows 2 x 2, side by side?"""
        how = self.kernel_size, self.stride, self.padding, self.ceil_mode, self.divisor_override
        return how == (2, 2, 0, False, None)

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each window."""
        if not self.halving or not plain(x):
            return super().forward(x)
        answer: Tensor = _Halved.apply(x)
        return answer


class _Halved(torch.autograd.Function):
    """The mean of each 2 x 2 window, and its gradient: a quarter of the output's to each of the four pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return halved(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return spread(gradient, ctx.shape)


def halved(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., H // 2, W // 2): the mean of each 2 x 2 window."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    rows = x[..., 0:height:2, :width] + x[..., 1:height:2, :width]
    return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)


def spread(gradient: Tensor, shape: torch.Size) -> Tensor:
    """(..., H // 2, W // 2) -> `shape`: the gradient of `halved`."""
    *images, height, width = gradient.shape
    quarter = gradient * 0.25
    # Each pair of rows is written once and copied once: what autograd makes of slices fills all with zeros first.
    pairs = quarter.new_empty(*images, height, 2, width, 2)
    pairs[..., 0, :, 0] = quarter
    pairs[..., 0, :, 1] = quarter
    pairs[..., 1, :, :] = pairs[..., 0, :, :]
    answer = pairs.view(*images, 2 * height, 2 * width)
    odd = shape[-2] - 2 * height, shape[-1] - 2 * width  # a last row or column that no window reaches
    return F.pad(answer, (0, odd[1], 0, odd[0])) if any(odd) else answer


def plain(x: Tensor) -> bool:
    """Contiguous float32 images on the processor, in a step that is not being compiled."""
    on_host = x.device.type == "cpu" and x.dtype == torch.float32
    return on_host and x.is_contiguous() and not torch.compiler.is_compiling()


def side_after(features: nn.Module, side: int) -> int:
    """Side of what `features` makes of square images of `side` pixels; 0 where a window does not fit.

    Reads the windows of the convolutions and poolings in the order in which they stand, so it is right for a chain,
    and for branches whose windows keep the side.
    """
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kernel, stride, padding = (_first(v) for v in (layer.kernel_size, layer.stride, layer.padding))
            if side + 2 * padding < kernel:
                return 0
            side = (side + 2 * padding - kernel) // stride + 1
    return side


def last_side(features: nn.Module, image_size: int, usual: int) -> int:
    """The same, where it is at least 1.

    Raises: CnnlabError for too small an image, with the smallest size that works and `usual` as a remedy.
    """
    side = side_after(features, image_size)
    if side < 1:
        smallest = next(n for n in count(1) if side_after(features, n) >= 1)
        raise CnnlabError(
            f"it needs images of at least {smallest}x{smallest} pixels, not {image_size}x{image_size}; enlarge them "
            f"with image_size={smallest} or more, as printed {max(smallest, usual)}"
        )
    return side


def any_side(image_size: int, usual: int) -> None:
    """For networks that take every image. Raises: CnnlabError below one pixel."""
    if image_size < 1:
        raise CnnlabError(f"it needs images of at least 1x1 pixels, not {image_size}x{image_size}; try {usual}")


def _first(value: int | str | tuple[int, ...]) -> int:
    """Windows are square here, however torch notes them."""
    first = value[0] if isinstance(value, tuple) else value
    assert isinstance(first, int)
    return first
