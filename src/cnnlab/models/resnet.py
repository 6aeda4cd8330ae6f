"""ResNet: blocks that learn a residual of their input.

Source: K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, CVPR 2016, figures 2, 3, 5 and
table 1; section 4.2 for the small stem. The manual: section 1.5, figures 1.5 to 1.7.

Two variants. The paper's, as it is usually built: batch norm on the projection too, and no biases before a batch norm,
which would subtract them again. The manual's (`manual=True`): the projection is a bare 1x1 convolution, and every
convolution has a bias. Deviation in both, as in torchvision: a bottleneck's stride is in its 3x3 convolution, not in
its first 1x1, since a 1x1 of stride 2 ignores three quarters of its input. With `cifar=True` the stem is that of the
paper's networks for CIFAR-10; the four stages are still those for large images.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.models.layers import final_side


def projection(in_channels: int, out_channels: int, stride: int, *, manual: bool) -> nn.Module:
    """Return the identity if the shape stays the same, else conv 1x1 with that stride, and BN unless `manual`."""
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
        """Return ReLU(residual + shortcut)."""
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
        """Return ReLU(residual + shortcut)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


BLOCKS: dict[int, tuple[type[Residual] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (Residual, (2, 2, 2, 2)),
    34: (Residual, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""The paper's table 1: depth -> kind of block, blocks in each of the four stages."""


def resnet(
    depth: int,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 224,
    *,
    manual: bool = False,
    cifar: bool = False,
    ratio: int = 1,
) -> nn.Sequential:
    """Return ResNet-`depth`: stem, four stages of 64, 128, 256, 512 channels, global average pooling, K.

    (B, C, H, W) -> (B, K). depth: a key of BLOCKS. Every stage but the first halves the side. manual: the manual's
    variant (depth 18: 11,178,378 parameters for one channel, ten classes). cifar: a stem of one 3x3 convolution without
    stride or pooling, for images of about 32 pixels. ratio: divides the number of channels. Raise CnnlabError below 1
    pixel.
    """
    block, blocks = BLOCKS[depth]
    width = 64 // ratio
    stem = nn.Sequential(
        nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=manual),
        nn.BatchNorm2d(width), nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )  # fmt: skip
    if cifar:
        stem = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=manual), nn.BatchNorm2d(width), nn.ReLU()
        )
    final_side(stem, image_size, usual=224)  # all later layers are padded: a single pixel stays one
    stages, channels_in = [], width
    for i, count in enumerate(blocks):
        channels, layers = width * 2**i, []
        for j in range(count):
            stride = 2 if i > 0 and j == 0 else 1
            layers.append(block(channels_in, channels, stride, manual=manual))
            channels_in = channels * block.expansion
        stages.append(nn.Sequential(*layers))
    return nn.Sequential(
        stem,  # (B, 64, 56, 56) at 224 pixels
        *stages,  # (B, 64, 56, 56), (B, 128, 28, 28), (B, 256, 14, 14), (B, 512, 7, 7); bottlenecks: channels x 4
        nn.AdaptiveAvgPool2d((1, 1)),  # (B, 512, 1, 1)
        nn.Flatten(),  # (B, 512)
        nn.Linear(channels_in, num_classes),
    )
