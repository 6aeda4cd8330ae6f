"""NiN, network in network.

Source: M. Lin, Q. Chen, S. Yan, Network in network, ICLR 2014. The manual: section 1.3. Its listing of the block
does not parse; its figures and shapes show what is meant.

As in the manual: AlexNet's kernels and strides in four blocks, one dropout, and a ReLU after the last block too (as in
the paper's equation 2), so that no logit is negative.
"""

from __future__ import annotations

from torch import nn

from cnnlab.models.layers import final_side


def nin_block(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int, *, last_relu: bool = True
) -> nn.Sequential:
    """Return conv k x k, ReLU, conv 1x1, ReLU, conv 1x1, ReLU: a small network over the channels of each pixel."""
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding), nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1), nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1), nn.ReLU(),
    ]  # fmt: skip
    return nn.Sequential(*layers if last_relu else layers[:-1])


def nin(
    *,
    small: bool = False,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 224,
    last_relu: bool = True,
) -> nn.Sequential:
    """Return NiN: four blocks of a convolution and two 1x1 convolutions; the last has a channel per class, averaged.

    (B, C, H, W) -> (B, K). 1,992,166 parameters for one channel, ten classes, at any size. last_relu: end the last
    block in ReLU, as the manual does. small, ours: a first 5x5 convolution of stride 1 and a third of the channels, for
    images from 15 pixels. Raise CnnlabError below 67 pixels.
    """
    c1, c2, c3 = (32, 86, 128) if small else (96, 256, 384)
    kernel, stride, padding = (5, 1, 2) if small else (11, 4, 0)
    net = nn.Sequential(
        nin_block(in_channels, c1, kernel, stride, padding),  # (B, 96, 54, 54)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 96, 26, 26)
        nin_block(c1, c2, kernel_size=5, stride=1, padding=2),  # (B, 256, 26, 26)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 256, 12, 12)
        nin_block(c2, c3, kernel_size=3, stride=1, padding=1),  # (B, 384, 12, 12)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 384, 5, 5)
        nn.Dropout(p=0.5),
        nin_block(c3, num_classes, kernel_size=3, stride=1, padding=1, last_relu=last_relu),  # (B, K, 5, 5)
        nn.AdaptiveAvgPool2d((1, 1)),  # (B, K, 1, 1)
        nn.Flatten(),  # (B, K)
    )
    final_side(net, image_size, usual=224)
    return net
