"""ResNet: blocks that learn what to add to their input.

Source: K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, CVPR 2016, figures 2, 3, 5 and
table 1; section 4.2 for the small stem. The manual: section 1.5, figures 1.5 to 1.7.

Two variants. The paper's, as the field builds it: batch norm on the projection too, and no biases before a batch norm,
which would take them away again. The manual's (`manual=True`): the projection is a bare 1x1 convolution and every
convolution has a bias. In both, unlike the paper's table, the bottleneck's stride is in its 3x3 convolution rather than
its first 1x1, as in torchvision: a 1x1 of stride 2 would not look at three quarters of its input. With `cifar=True` the
stem is that of the paper's networks for CIFAR-10; the four modules are still those for large images.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.models.layers import any_side


def projection(in_channels: int, out_channels: int, stride: int, *, manual: bool) -> nn.Module:
    """The shortcut: the input itself where the shape stays, else conv 1x1 of that stride (and BN, in the paper's)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if manual:
        return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class Residual(nn.Module):
    """conv 3x3 stride s, BN, ReLU, conv 3x3, BN, plus the shortcut, ReLU: (B, C, H, W) -> (B, out, H / s, W / s)."""

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, manual: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=manual)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=manual)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride, manual=manual)

    def forward(self, x: Tensor) -> Tensor:
        """What the block adds to its input, and the input."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """conv 1x1, BN, ReLU, conv 3x3 stride s, BN, ReLU, conv 1x1 to 4 times the channels, BN, plus the shortcut, ReLU.

    (B, C, H, W) -> (B, 4 * channels, H / s, W / s).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1, *, manual: bool = False) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=manual)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=manual)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=manual)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride, manual=manual)

    def forward(self, x: Tensor) -> Tensor:
        """What the block adds to its input, and the input."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


def resnet(
    blocks: tuple[int, int, int, int],
    block: type[Residual] | type[Bottleneck] = Residual,
    *,
    manual: bool = False,
    cifar: bool = False,
    ratio: int = 1,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 224,
) -> nn.Sequential:
    """Stem; `blocks` blocks in each of four modules of 64, 128, 256, 512 channels; global average pool; K.

    (B, C, H, W) -> (B, K). Every module but the first halves the side. manual: the manual's variant. cifar: a stem of
    one 3x3 convolution without stride or pooling, for images of about 32 pixels. ratio: what all channels are divided
    by. Raises: CnnlabError below 1 pixel.
    """
    any_side(image_size, usual=224)
    first = 64 // ratio
    stem = nn.Sequential(
        nn.Conv2d(in_channels, first, kernel_size=7, stride=2, padding=3, bias=manual),
        nn.BatchNorm2d(first), nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )  # fmt: skip
    if cifar:
        stem = nn.Sequential(
            nn.Conv2d(in_channels, first, kernel_size=3, padding=1, bias=manual), nn.BatchNorm2d(first), nn.ReLU()
        )
    modules, channels_in = [], first
    for i, (count, channels) in enumerate(zip(blocks, (first, 2 * first, 4 * first, 8 * first), strict=True)):
        layers = []
        for j in range(count):
            stride = 2 if i > 0 and j == 0 else 1
            layers.append(block(channels_in, channels, stride, manual=manual))
            channels_in = channels * block.expansion
        modules.append(nn.Sequential(*layers))
    return nn.Sequential(
        stem,  # (B, 64, 56, 56) at 224 pixels
        *modules,  # (B, 64, 56, 56), (B, 128, 28, 28), (B, 256, 14, 14), (B, 512, 7, 7); bottlenecks: 4 times as many
        nn.AdaptiveAvgPool2d((1, 1)),  # (B, 512, 1, 1)
        nn.Flatten(),
        nn.Linear(channels_in, num_classes),
    )


def resnet18(
    *,
    manual: bool = False,
    cifar: bool = False,
    ratio: int = 1,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 224,
) -> nn.Sequential:
    """ResNet-18: (B, C, H, W) -> (B, K).

    The manual's variant has 11,178,378 parameters for one channel and ten classes.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return resnet((2, 2, 2, 2), Residual, manual=manual, cifar=cifar, ratio=ratio, **sizes)


def resnet34(
    *, manual: bool = False, cifar: bool = False, num_classes: int = 10, in_channels: int = 1, image_size: int = 224
) -> nn.Sequential:
    """ResNet-34."""
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return resnet((3, 4, 6, 3), Residual, manual=manual, cifar=cifar, **sizes)


def resnet50(
    *, manual: bool = False, cifar: bool = False, num_classes: int = 10, in_channels: int = 1, image_size: int = 224
) -> nn.Sequential:
    """ResNet-50, of bottlenecks."""
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return resnet((3, 4, 6, 3), Bottleneck, manual=manual, cifar=cifar, **sizes)


def resnet101(
    *, manual: bool = False, cifar: bool = False, num_classes: int = 10, in_channels: int = 1, image_size: int = 224
) -> nn.Sequential:
    """ResNet-101, of bottlenecks."""
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return resnet((3, 4, 23, 3), Bottleneck, manual=manual, cifar=cifar, **sizes)


def resnet152(
    *, manual: bool = False, cifar: bool = False, num_classes: int = 10, in_channels: int = 1, image_size: int = 224
) -> nn.Sequential:
    """ResNet-152, of bottlenecks."""
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return resnet((3, 8, 36, 3), Bottleneck, manual=manual, cifar=cifar, **sizes)
