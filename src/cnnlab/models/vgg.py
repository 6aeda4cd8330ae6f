"""VGG: blocks of 3x3 convolutions.

Source: K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition, ICLR 2015,
table 1, configurations A, B, D and E. The manual: section 1.2.

The networks are the paper's; for other image sizes than 224 the first linear layer has other inputs, where
torchvision pools to 7x7 instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cnnlab.models.layers import last_side

ConvArch = Sequence[tuple[int, int]]
"""Of each block: number of convolutions, channels."""

VGG11: ConvArch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
VGG13: ConvArch = ((2, 64), (2, 128), (2, 256), (2, 512), (2, 512))
VGG16: ConvArch = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
VGG19: ConvArch = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))


def vgg_block(num_convs: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """`num_convs` times (conv 3x3 pad 1, ReLU), max-pool 2/2: (B, C, H, W) -> (B, out, H / 2, W / 2)."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), nn.ReLU()]
        in_channels = out_channels
    return nn.Sequential(*layers, nn.MaxPool2d(kernel_size=2, stride=2))


def vgg(
    conv_arch: ConvArch,
    *,
    ratio: int = 1,
    hidden: int = 4096,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 224,
) -> nn.Sequential:
    """A block for each (convolutions, channels) of `conv_arch`; `hidden` units, ReLU, dropout, twice; K.

    (B, C, H, W) -> (B, K). ratio: what the channels of every block are divided by; the head stays as it is. Raises:
    CnnlabError for images that the blocks halve away, for five blocks below 32 pixels.
    """
    blocks = []
    channels = in_channels
    for num_convs, wide in conv_arch:
        blocks.append(vgg_block(num_convs, channels, wide // ratio))
        channels = wide // ratio
    side = last_side(nn.Sequential(*blocks), image_size, usual=224)
    return nn.Sequential(
        *blocks,  # (B, 512, 7, 7) after five blocks, at 224 pixels
        nn.Flatten(),
        nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip


def vgg11(
    *, ratio: int = 1, hidden: int = 4096, num_classes: int = 10, in_channels: int = 1, image_size: int = 224
) -> nn.Sequential:
    """VGG-11, the paper's A.

    128,806,154 parameters for one channel, ten classes, 224 pixels; with ratio 4, the manual's, 43,093,322.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return vgg(VGG11, ratio=ratio, hidden=hidden, **sizes)


def vgg13(*, ratio: int = 1, num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> nn.Sequential:
    """VGG-13, the paper's B."""
    return vgg(VGG13, ratio=ratio, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def vgg16(*, ratio: int = 1, num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> nn.Sequential:
    """VGG-16, the paper's D."""
    return vgg(VGG16, ratio=ratio, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def vgg19(*, ratio: int = 1, num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> nn.Sequential:
    """VGG-19, the paper's E."""
    return vgg(VGG19, ratio=ratio, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
