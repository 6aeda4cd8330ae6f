"""VGG: blocks of 3x3 convolutions.

Source: K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition, ICLR 2015,
table 1, configurations A, B, D and E. The manual: section 1.2.

Deviation from torchvision: at image sizes other than 224 the first linear layer has another number of inputs;
torchvision pools to 7x7.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cnnlab.models.layers import final_side

ConvArch = Sequence[tuple[int, int]]
"""(convolutions, channels) of each block."""

VGG11: ConvArch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))  # A
VGG13: ConvArch = ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512))  # B
VGG16: ConvArch = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # D
VGG19: ConvArch = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))  # E
VGG11_QUARTER: ConvArch = tuple((n, channels // 4) for n, channels in VGG11)  # the manual's, for a small GPU


def vgg_block(num_convs: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Return `num_convs` times (conv 3x3 pad 1, ReLU), max-pool 2/2: (B, C, H, W) -> (B, out, H / 2, W / 2)."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), nn.ReLU()]
        in_channels = out_channels
    return nn.Sequential(*layers, nn.MaxPool2d(kernel_size=2, stride=2))


def vgg(
    conv_arch: ConvArch, num_classes: int = 10, in_channels: int = 1, image_size: int = 224, *, hidden: int = 4096
) -> nn.Sequential:
    """Return VGG: a block for each entry of `conv_arch`, then twice (`hidden` units, ReLU, dropout), K.

    (B, C, H, W) -> (B, K). VGG-11 has 128,806,154 parameters for one channel, ten classes, 224 pixels, and 43,093,322
    with a quarter of the channels. Raise CnnlabError for images that the blocks halve to nothing; five blocks need 32
    pixels.
    """
    blocks, channels = [], in_channels
    for num_convs, out_channels in conv_arch:
        blocks.append(vgg_block(num_convs, channels, out_channels))
        channels = out_channels
    side = final_side(nn.Sequential(*blocks), image_size, usual=224)
    return nn.Sequential(
        *blocks,  # (B, 512, 7, 7) after five blocks, at 224 pixels
        nn.Flatten(),  # (B, 25088)
        nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip
