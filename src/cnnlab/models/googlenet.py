"""GoogLeNet: parallel paths of different kernel sizes.

Source: C. Szegedy et al., Going deeper with convolutions, CVPR 2015, table 1 and figure 2b. The manual names it in
its summary.

Deviations from the paper, as in the manual's source: no local response normalisation, no auxiliary classifiers, no
dropout, poolings padded by 1, 10 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlab.models.layers import final_side


class Inception(nn.Module):
    """Four parallel paths, concatenated along the channels: (B, C, H, W) -> (B, c1 + c2[1] + c3[1] + c4, H, W).

    1: conv 1x1 (c1). 2: conv 1x1 (c2[0]), conv 3x3 (c2[1]). 3: conv 1x1 (c3[0]), conv 5x5 (c3[1]). 4: max-pool 3/1,
    conv 1x1 (c4). ReLU after each conv; with batch_norm, BN in between.
    """

    def __init__(
        self,
        in_channels: int,
        c1: int,
        c2: tuple[int, int],
        c3: tuple[int, int],
        c4: int,
        *,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        bn = batch_norm
        self.path1 = nn.Sequential(*_conv(in_channels, c1, 1, bn))
        self.path2 = nn.Sequential(*_conv(in_channels, c2[0], 1, bn), *_conv(c2[0], c2[1], 3, bn))
        self.path3 = nn.Sequential(*_conv(in_channels, c3[0], 1, bn), *_conv(c3[0], c3[1], 5, bn))
        self.path4 = nn.Sequential(nn.MaxPool2d(kernel_size=3, stride=1, padding=1), *_conv(in_channels, c4, 1, bn))

    def forward(self, x: Tensor) -> Tensor:
        """Return the four paths' outputs, concatenated along the channels."""
        return torch.cat((self.path1(x), self.path2(x), self.path3(x), self.path4(x)), dim=1)


def _conv(in_channels: int, out_channels: int, kernel_size: int, batch_norm: bool, stride: int = 1) -> list[nn.Module]:
    """Return conv and ReLU, with BN between them if `batch_norm`. Stride 1 keeps the side, stride 2 halves it."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=not batch_norm)
    return [conv, *([nn.BatchNorm2d(out_channels)] if batch_norm else []), nn.ReLU()]


def googlenet(
    *, ratio: int = 1, batch_norm: bool = False, num_classes: int = 10, in_channels: int = 1, image_size: int = 96
) -> nn.Sequential:
    """Return GoogLeNet: a stem, nine Inception blocks in three modules, global average pooling.

    (B, C, H, W) -> (B, K). 5,977,530 parameters for one channel, ten classes, at any size. The side is halved five
    times, so images of at most 32 pixels leave the last blocks a single pixel. ratio: divides the number of channels.
    batch_norm: add BN after each convolution (S. Ioffe, C. Szegedy, Batch normalization, ICML 2015, section 4.2.1,
    whose blocks also differ in other ways). Raise CnnlabError below 1 pixel.
    """

    def block(in_channels: int, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int) -> Inception:
        twos = [(a // ratio, b // ratio) for a, b in (c2, c3)]
        return Inception(in_channels // ratio, c1 // ratio, twos[0], twos[1], c4 // ratio, batch_norm=batch_norm)

    first, second = 64 // ratio, 192 // ratio
    stem = nn.Sequential(
        *_conv(in_channels, first, 7, batch_norm, stride=2), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    )
    final_side(stem, image_size, usual=96)  # all later layers are padded: a single pixel stays one
    return nn.Sequential(
        stem,  # (B, 64, 24, 24) at 96 pixels
        nn.Sequential(
            *_conv(first, first, 1, batch_norm),
            *_conv(first, second, 3, batch_norm),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ),  # (B, 192, 12, 12)
        nn.Sequential(
            block(192, 64, (96, 128), (16, 32), 32),  # (B, 256, 12, 12)
            block(256, 128, (128, 192), (32, 96), 64),  # (B, 480, 12, 12)
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ),  # (B, 480, 6, 6)
        nn.Sequential(
            block(480, 192, (96, 208), (16, 48), 64),  # (B, 512, 6, 6)
            block(512, 160, (112, 224), (24, 64), 64),
            block(512, 128, (128, 256), (24, 64), 64),
            block(512, 112, (144, 288), (32, 64), 64),  # (B, 528, 6, 6)
            block(528, 256, (160, 320), (32, 128), 128),  # (B, 832, 6, 6)
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ),  # (B, 832, 3, 3)
        nn.Sequential(
            block(832, 256, (160, 320), (32, 128), 128),
            block(832, 384, (192, 384), (48, 128), 128),  # (B, 1024, 3, 3)
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
        ),  # (B, 1024)
        nn.Linear(1024 // ratio, num_classes),
    )
