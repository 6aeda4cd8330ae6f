"""The residual block and the ResNet-18 of the manual's competition, with the original's layer names.

Source: K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, CVPR 2016. `cnnlab train` builds
`cnnlab.models.resnet`; these two are for code that uses d2l's argument names or loads its weights.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.io.errors import CnnlabError


class Residual(nn.Module):
    """conv 3x3 of stride s, BN, ReLU, conv 3x3, BN, plus the input, ReLU: (B, C, H, W) -> (B, N, H / s, W / s).

    The input is added unchanged, or through a 1x1 convolution of stride s. Both of the book's signatures work; the
    second argument tells them apart:

    Residual(input_channels, num_channels, use_1x1conv=False, strides=1)    editions 0.x, and the manual
    Residual(num_channels, use_1x1conv=False, strides=1)                    edition 1.0; lazy: the first batch sets
                                                                            the input channels
    Raise CnnlabError for arguments that fit neither; `forward` raises it if the two shapes to add differ.
    """

    def __init__(
        self,
        input_channels: int | None = None,
        num_channels: int | bool | None = None,
        use_1x1conv: bool | int = False,
        strides: int = 1,
    ) -> None:
        super().__init__()
        inputs, outputs, projection, stride = _parse(input_channels, num_channels, use_1x1conv, strides)
        # In the original's order, so that the same seed gives the same initial weights.
        self.conv1 = _conv(inputs, outputs, kernel_size=3, padding=1, stride=stride)
        self.conv2 = _conv(inputs and outputs, outputs, kernel_size=3, padding=1)
        self.conv3 = _conv(inputs, outputs, kernel_size=1, stride=stride) if projection else None
        self.bn1 = nn.LazyBatchNorm2d() if inputs is None else nn.BatchNorm2d(outputs)
        self.bn2 = nn.LazyBatchNorm2d() if inputs is None else nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.conv3 is not None:
            x = self.conv3(x)
        if x.shape != y.shape:
            raise CnnlabError(
                f"Residual: {tuple(x.shape)} cannot be added to {tuple(y.shape)}; pass use_1x1conv=True where channels "
                "or size change"
            )
        y += x
        return F.relu(y)


def _parse(first: Any, second: Any, third: Any, strides: Any) -> tuple[int | None, int, bool, int]:
    """Return the input channels (None: lazy), the output channels, whether to use a 1x1 convolution, and the stride."""
    call = f"Residual({first!r}, {second!r}, {third!r}, {strides!r})"
    if second is None:  # edition 1.0 with the other arguments by name
        inputs, outputs, projection, stride = None, first, third, strides
    elif isinstance(second, bool):  # edition 1.0: use_1x1conv, then perhaps the stride
        inputs, outputs, projection, stride = None, first, second, strides if third is False else third
    else:
        inputs, outputs, projection, stride = first, second, third, strides
    counts = [outputs, stride] + ([] if inputs is None else [inputs])
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in counts) or projection not in (0, 1):
        raise CnnlabError(
            f"{call} fits neither Residual(input_channels, num_channels, use_1x1conv, strides) nor "
            "Residual(num_channels, use_1x1conv, strides); use integers of at least 1 for channels and strides"
        )
    return inputs, outputs, bool(projection), stride


def _conv(in_channels: int | None, out_channels: int, kernel_size: int, padding: int = 0, stride: int = 1) -> nn.Conv2d:
    if in_channels is None:
        return nn.LazyConv2d(out_channels, kernel_size, padding=padding, stride=stride)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, stride=stride)


def resnet18(num_classes: int, in_channels: int = 1) -> nn.Sequential:
    """Build the competition's ResNet-18, with a stem for small images: (B, C, H, W) -> (B, K).

    conv 3x3x64, BN, ReLU; four modules of two blocks with 64, 128, 256, 512 channels, all but the first module
    halving the side; global average pool; linear K. `in_channels` is 3 for the competition's images.
    """
    net = nn.Sequential(nn.Conv2d(in_channels, 64, kernel_size=3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    channels = 64
    for i, width in enumerate((64, 128, 256, 512), 1):
        first = Residual(channels, width, use_1x1conv=i > 1, strides=1 if i == 1 else 2)
        net.add_module(f"resnet_block{i}", nn.Sequential(first, Residual(width, width)))
        channels = width
    net.add_module("global_avg_pool", nn.AdaptiveAvgPool2d((1, 1)))
    net.add_module("fc", nn.Sequential(nn.Flatten(), nn.Linear(channels, num_classes)))
    return net
