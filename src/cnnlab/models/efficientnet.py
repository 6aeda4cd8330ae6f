"""EfficientNet-Lite0: inverted residual blocks of depthwise convolutions, for CPUs and phones.

Source: M. Tan, Q. V. Le, EfficientNet: rethinking model scaling for convolutional neural networks, ICML 2019, table 1,
in the variant of R. Liu, Higher accuracy on vision models with EfficientNet-Lite, 2020: without squeeze-and-excitation,
and with ReLU6 instead of swish, so that activations fit in eight bits. The blocks are those of M. Sandler and others,
MobileNetV2, CVPR 2018. As in TensorFlow, a convolution of stride 2 pads one pixel more at the bottom and right, and the
epsilon of batch norm is 0.001: published weights depend on both. Deviation: no dropout and no stochastic depth.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.io.errors import CnnlabError

# channels, blocks, kernel size, stride of the first block, expansion factor
_STAGES = ((16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 3, 3, 2, 6), (112, 3, 5, 1, 6), (192, 4, 5, 2, 6),
           (320, 1, 3, 1, 6))  # fmt: skip


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's `same`: (B, C, H, W) -> (B, out, ceil(H / s), ceil(W / s))."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad, with the extra pixel of an odd total at the end, and convolve."""
        k, s = self.kernel_size[0], self.stride[0]
        sides = [max(-(-size // s) * s - s + k - size, 0) for size in (x.shape[3], x.shape[2])]
        return super().forward(F.pad(x, [part for side in sides for part in (side // 2, side - side // 2)]))


def conv_bn(in_channels: int, out_channels: int, k: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return conv k x k and BN: (B, C, H, W) -> (B, out, H / stride, W / stride)."""
    conv: nn.Module
    if stride == 1:
        conv = nn.Conv2d(in_channels, out_channels, k, padding=k // 2, groups=groups, bias=False)
    else:
        conv = SameConv2d(in_channels, out_channels, k, stride, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels, eps=1e-3)]


class InvertedResidual(nn.Module):
    """conv 1x1 to `widen` times the channels, depthwise conv k x k, conv 1x1, plus the input if shapes agree.

    BN after each convolution, ReLU6 after all but the last: (B, C, H, W) -> (B, out, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, k: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = in_channels * widen
        expand = [*conv_bn(in_channels, wide, 1), nn.ReLU6(inplace=True)] if widen > 1 else []
        self.residual = nn.Sequential(
            *expand,
            *conv_bn(wide, wide, k, stride, groups=wide),
            nn.ReLU6(inplace=True),
            *conv_bn(wide, out_channels, 1),
        )
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual, plus the input if it has the same shape."""
        y: Tensor = self.residual(x)
        return y + x if self.adds else y


def efficientnet_lite0(num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> nn.Sequential:
    """Return EfficientNet-Lite0: (B, C, H, W) -> (B, K). It takes any image size."""
    if image_size < 1:
        raise CnnlabError(f"it needs images of at least 1x1 pixels, not {image_size}x{image_size}; set image_size=224")
    layers: list[nn.Module] = [nn.Sequential(*conv_bn(in_channels, 32, 3, 2), nn.ReLU6(inplace=True))]
    channels = 32
    for out, blocks, k, stride, widen in _STAGES:
        parts = [InvertedResidual(out if i else channels, out, k, 1 if i else stride, widen) for i in range(blocks)]
        layers.append(nn.Sequential(*parts))
        channels = out
    layers.append(nn.Sequential(*conv_bn(channels, 1280, 1), nn.ReLU6(inplace=True)))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, num_classes))
