"""DenseNet: every layer sees what all layers before it in its block made.

Source: G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, Densely connected convolutional networks, CVPR 2017,
table 1. The manual names it in its summary.

The manual's source has a small one (`densenet`): layers of one 3x3 convolution, with biases. The paper's 121, 169 and
201 (its DenseNet-BC) put a 1x1 bottleneck of 4 times the growth before it; like torchvision's they have no biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlab.models.layers import last_side


class DenseBlock(nn.Module):
    """`num_layers` layers, each joined to its own input: (B, C, H, W) -> (B, C + num_layers * growth, H, W).

    A layer is BN, ReLU, conv 3x3; with `bottleneck` BN, ReLU, conv 1x1, BN, ReLU, conv 3x3, without biases.
    """

    def __init__(self, num_layers: int, in_channels: int, growth: int, *, bottleneck: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _layer(in_channels + i * growth, growth, bottleneck=bottleneck) for i in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x, and beside it along the channels what each layer makes of all before it."""
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
    """BN, ReLU, conv 1x1, avg-pool 2: (B, C, H, W) -> (B, out, H / 2, W / 2)."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=bias),
        nn.AvgPool2d(kernel_size=2, stride=2),
    )  # fmt: skip


def dense_net(
    layers: tuple[int, ...],
    *,
    growth: int = 32,
    bottleneck: bool = False,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 96,
) -> nn.Sequential:
    """ResNet's stem; dense blocks of `layers` layers, a transition to half the channels between them; BN, ReLU; K.

    (B, C, H, W) -> (B, K). Raises: CnnlabError for images that the transitions halve away, for four blocks below 29
    pixels.
    """
    biases = not bottleneck  # the manual's source has them, torchvision has not
    channels = 64
    parts: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3, bias=biases),
            nn.BatchNorm2d(channels), nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
    ]  # fmt: skip
    for i, num_layers in enumerate(layers):
        parts.append(DenseBlock(num_layers, channels, growth, bottleneck=bottleneck))
        channels += num_layers * growth
        if i < len(layers) - 1:
            parts.append(transition(channels, channels // 2, bias=biases))
            channels //= 2
    last_side(nn.Sequential(*parts), image_size, usual=96)
    return nn.Sequential(
        *parts,
        nn.BatchNorm2d(channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )  # fmt: skip


def densenet(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 96) -> nn.Sequential:
    """DenseNet, the small one of the manual's source: four blocks of four layers, growth 32.

    Channels 64-192-96-224-112-240-120-248. 758,226 parameters for one channel and ten classes.
    """
    return dense_net((4, 4, 4, 4), num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def densenet121(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> nn.Sequential:
    """DenseNet-121, with bottlenecks."""
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return dense_net((6, 12, 24, 16), bottleneck=True, **sizes)


def densenet169(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> nn.Sequential:
    """DenseNet-169, with bottlenecks."""
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return dense_net((6, 12, 32, 32), bottleneck=True, **sizes)


def densenet201(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> nn.Sequential:
    """DenseNet-201, with bottlenecks."""
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return dense_net((6, 12, 48, 32), bottleneck=True, **sizes)
