"""The residual block and the ResNet-18 of the manual's competition, with the names of their layers.

Source: K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition, CVPR 2016. What `cnnlab train`
builds is in `cnnlab.models.resnet`; these two are for code that names their arguments or loads their weights.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.io.errors import CnnlabError


class Residual(nn.Module):
    """conv 3x3 of that stride, BN, ReLU, conv 3x3, BN, plus the input, ReLU: (B, C, H, W) -> (B, N, H / s, W / s).

    The input is added as it is, or through a 1x1 convolution of that stride. Both of the book's signatures are taken,
    told apart by the second argument:

    Residual(input_channels, num_channels, use_1x1conv=False, strides=1)    editions 0.x, and the manual
    Residual(num_channels, use_1x1conv=False, strides=1)                    edition 1.0: input channels are found out
                                                                            from the first batch
    Raises: CnnlabError for arguments that fit neither, and in use where what is to be added has another shape.
    """

    def __init__(
        self,
        input_channels: int | None = None,
        num_channels: int | bool | None = None,
        use_1x1conv: bool | int = False,
        strides: int = 1,
    ) -> None:
        super().__init__()
        inside, outside, projected, stride = _told_apart(input_channels, num_channels, use_1x1conv, strides)
        # In the original's order, so that the same seed gives the same starting weights.
        self.conv1 = _conv(inside, outside, kernel_size=3, padding=1, stride=stride)
        self.conv2 = _conv(inside and outside, outside, kernel_size=3, padding=1)
        self.conv3 = _conv(inside, outside, kernel_size=1, stride=stride) if projected else None
        self.bn1 = nn.LazyBatchNorm2d() if inside is None else nn.BatchNorm2d(outside)
        self.bn2 = nn.LazyBatchNorm2d() if inside is None else nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """What the block adds to its input, and the input."""
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


def _told_apart(first: Any, second: Any, third: Any, strides: Any) -> tuple[int | None, int, bool, int]:
    """Input channels (None: to be found out), channels, whether there is a 1x1 convolution, stride."""
    given = f"Residual({first!r}, {second!r}, {third!r}, {strides!r})"
    if second is None:  # edition 1.0, its other arguments by name
        inside, outside, projected, stride = None, first, third, strides
    elif isinstance(second, bool):  # edition 1.0: the second is use_1x1conv, and the stride may be the third
        inside, outside, projected, stride = None, first, second, strides if third is False else third
    else:
        inside, outside, projected, stride = first, second, third, strides
    counts = [outside, stride] + ([] if inside is None else [inside])
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in counts) or projected not in (0, 1):
        raise CnnlabError(
            f"{given} fits neither Residual(input_channels, num_channels, use_1x1conv, strides) nor "
            "Residual(num_channels, use_1x1conv, strides); channels and strides are whole numbers from 1 on"
        )
    return inside, outside, bool(projected), stride


def _conv(in_channels: int | None, out_channels: int, kernel_size: int, padding: int = 0, stride: int = 1) -> nn.Conv2d:
    if in_channels is None:
        return nn.LazyConv2d(out_channels, kernel_size, padding=padding, stride=stride)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, stride=stride)


def resnet18(num_classes: int, in_channels: int = 1) -> nn.Sequential:
    """The competition's ResNet-18, with a stem for small images: (B, C, H, W) -> (B, K).

    conv 3x3x64, BN, ReLU; four modules of two blocks with 64, 128, 256, 512 channels, all but the first halving the
    side; global average pool; K. `in_channels` is 3 for the competition's images.
    """
    net = nn.Sequential(nn.Conv2d(in_channels, 64, kernel_size=3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    channels = 64
    for i, wider in enumerate((64, 128, 256, 512), 1):
        first = Residual(channels, wider, use_1x1conv=i > 1, strides=1 if i == 1 else 2)
        net.add_module(f"resnet_block{i}", nn.Sequential(first, Residual(wider, wider)))
        channels = wider
    net.add_module("global_avg_pool", nn.AdaptiveAvgPool2d((1, 1)))
    net.add_module("fc", nn.Sequential(nn.Flatten(), nn.Linear(channels, num_classes)))
    return net
