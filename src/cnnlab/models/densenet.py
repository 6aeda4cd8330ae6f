"""DenseNet: each layer sees the outputs of all layers before it in its block.

Source: G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, Densely connected convolutional networks, CVPR 2017,
table 1. The manual names it in its summary.

The manual's source has a small one: four blocks of four layers, each one 3x3 convolution with a bias. The paper's 121,
169 and 201 (DenseNet-BC) put a 1x1 bottleneck of 4 times the growth before it and have no biases, like torchvision's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlab.models.layers import final_side

# Layers in each block: the manual's, and the columns of the paper's table 1.
DENSENET = (4, 4, 4, 4)
DENSENET121 = (6, 12, 24, 16)
DENSENET169 = (6, 12, 32, 32)
DENSENET201 = (6, 12, 48, 32)


class DenseBlock(nn.Module):
    """`num_layers` layers, each concatenated to its input: (B, C, H, W) -> (B, C + num_layers * growth, H, W).

    A layer is BN, ReLU, conv 3x3; with `bottleneck` BN, ReLU, conv 1x1, BN, ReLU, conv 3x3, without biases.
    """

    def __init__(self, num_layers: int, in_channels: int, growth: int, *, bottleneck: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _layer(in_channels + i * growth, growth, bottleneck=bottleneck) for i in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x and the outputs of all layers, concatenated along the channels."""
        for layer in self.layers:
            x = torch.cat((x, layer(x)), dim=1)
        return x


def _layer(in_channels: int, growth: int, *, bottleneck: bool) -> nn.Sequential:
    if not bottleneck:
        return nn.Sequential(
            nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, growth, kernel_size=3, padding=1)
        )
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(),
        nn.Conv2d(in_channels, 4 * growth, kernel_size=1, bias=False),
        nn.BatchNorm2d(4 * growth), nn.ReLU(),
        nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False),
    )  # fmt: skip


def transition(in_channels: int, out_channels: int, *, bias: bool) -> nn.Sequential:
    """Return BN, ReLU, conv 1x1, avg-pool 2: (B, C, H, W) -> (B, out, H / 2, W / 2)."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=bias),
        nn.AvgPool2d(kernel_size=2, stride=2),
    )  # fmt: skip


def densenet(
    layers: tuple[int, ...],
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 96,
    *,
    growth: int = 32,
    bottleneck: bool = False,
) -> nn.Sequential:
    """Return a DenseNet: (B, C, H, W) -> (B, K).

    It is ResNet's stem, a dense block for each entry of `layers` with transitions that halve the channels between them,
    then BN, ReLU, global average pooling, K. The manual's is (4, 4, 4, 4): channels 64-192-96-224-112-240-120-248,
    758,226 parameters for one channel, ten classes. Raise CnnlabError for images that the transitions halve to nothing;
    four blocks need 29 pixels.
    """
    bias = not bottleneck  # the manual's source has biases, torchvision has none
    channels = 64
    parts: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3, bias=bias),
            nn.BatchNorm2d(channels), nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
    ]  # fmt: skip
    for i, num_layers in enumerate(layers):
        parts.append(DenseBlock(num_layers, channels, growth, bottleneck=bottleneck))
        channels += num_layers * growth
        if i < len(layers) - 1:
            parts.append(transition(channels, channels // 2, bias=bias))
            channels //= 2
    final_side(nn.Sequential(*parts), image_size, usual=96)
    return nn.Sequential(
        *parts,
        nn.BatchNorm2d(channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )  # fmt: skip
