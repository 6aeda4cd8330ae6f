"""GoogLeNet: parallel paths of different windows, side by side.

Source: C. Szegedy et al., Going deeper with convolutions, CVPR 2015, table 1 and figure 2b. The manual names it in
its summary.

As in the manual's source and unlike the paper: no local response normalisation, no auxiliary classifiers, no
dropout, poolings padded by 1, 10 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnlab.models.layers import any_side


class Inception(nn.Module):
    """Four paths of one input, joined along the channels: (B, C, H, W) -> (B, c1 + c2[1] + c3[1] + c4, H, W).

    1: conv 1x1 (c1). 2: conv 1x1 (c2[0]), conv 3x3 (c2[1]). 3: conv 1x1 (c3[0]), conv 5x5 (c3[1]). 4: max-pool 3/1,
    conv 1x1 (c4). ReLU after each conv.
    """

    def __init__(self, in_channels: int, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int) -> None:
        super().__init__()
        self.path1 = nn.Sequential(nn.Conv2d(in_channels, c1, kernel_size=1), nn.ReLU())
        self.path2 = nn.Sequential(
            nn.Conv2d(in_channels, c2[0], kernel_size=1), nn.ReLU(),
            nn.Conv2d(c2[0], c2[1], kernel_size=3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.path3 = nn.Sequential(
            nn.Conv2d(in_channels, c3[0], kernel_size=1), nn.ReLU(),
            nn.Conv2d(c3[0], c3[1], kernel_size=5, padding=2), nn.ReLU(),
        )  # fmt: skip
        self.path4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1),
            nn.Conv2d(in_channels, c4, kernel_size=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """All four paths of x, joined."""
        return torch.cat((self.path1(x), self.path2(x), self.path3(x), self.path4(x)), dim=1)


def googlenet(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 96) -> nn.Sequential:
    """GoogLeNet: a stem, nine Inception blocks in three modules, global average pooling.

    (B, C, H, W) -> (B, K). 5,977,530 parameters for one channel, ten classes, at any size. The side is halved five
    times, so that images of at most 32 pixels leave the last blocks a single pixel. Raises: CnnlabError below 1.
    """
    any_side(image_size, usual=96)
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3), nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ),  # (B, 64, 24, 24) at 96 pixels
        nn.Sequential(
            nn.Conv2d(64, 64, kernel_size=1), nn.ReLU(),
            nn.Conv2d(64, 192, kernel_size=3, padding=1), nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ),  # (B, 192, 12, 12)
        nn.Sequential(
            Inception(192, 64, (96, 128), (16, 32), 32),  # (B, 256, 12, 12)
            Inception(256, 128, (128, 192), (32, 96), 64),  # (B, 480, 12, 12)
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ),  # (B, 480, 6, 6)
        nn.Sequential(
            Inception(480, 192, (96, 208), (16, 48), 64),  # (B, 512, 6, 6)
            Inception(512, 160, (112, 224), (24, 64), 64),
            Inception(512, 128, (128, 256), (24, 64), 64),
            Inception(512, 112, (144, 288), (32, 64), 64),  # (B, 528, 6, 6)
            Inception(528, 256, (160, 320), (32, 128), 128),  # (B, 832, 6, 6)
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ),  # (B, 832, 3, 3)
        nn.Sequential(
            Inception(832, 256, (160, 320), (32, 128), 128),
            Inception(832, 384, (192, 384), (48, 128), 128),  # (B, 1024, 3, 3)
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
        ),  # (B, 1024)
        nn.Linear(1024, num_classes),
    )  # fmt: skip
