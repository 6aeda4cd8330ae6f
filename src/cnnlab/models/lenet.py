"""LeNet, and LeNet with batch normalisation.

Sources: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, Proc.
IEEE 86(11), 1998, figure 2 (LeNet-5); S. Ioffe, C. Szegedy, Batch normalization, ICML 2015. The manual: figure 1.2,
left, and section 1.4.

Deviations from the paper, as in the manual: a linear output layer instead of Gaussian connections, a second convolution
that sees all six maps of the first, pooling without weights, sigmoid instead of a scaled tanh.
"""

from __future__ import annotations

from torch import nn

from cnnlab.models.batch_norm import BatchNorm
from cnnlab.models.layers import final_side


def lenet(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """Return LeNet: two convolutions with sigmoid and average pooling, three linear layers.

    conv 5x5x6 pad 2, sigmoid, avg-pool 2; conv 5x5x16, sigmoid, avg-pool 2; 120, sigmoid, 84, sigmoid, K.
    (B, C, H, W) -> (B, K). 61,706 parameters for one channel, ten classes, 28 pixels. Other image sizes change the
    number of inputs of the first linear layer (400 at 28 pixels). Raise CnnlabError below 12 pixels.
    """
    features = nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5, padding=2), nn.Sigmoid(),  # (B, 6, 28, 28)
        nn.AvgPool2d(kernel_size=2, stride=2),  # (B, 6, 14, 14)
        nn.Conv2d(6, 16, kernel_size=5), nn.Sigmoid(),  # (B, 16, 10, 10)
        nn.AvgPool2d(kernel_size=2, stride=2),  # (B, 16, 5, 5)
    )  # fmt: skip
    side = final_side(features, image_size, usual=28)
    return nn.Sequential(
        *features,
        nn.Flatten(),  # (B, 400)
        nn.Linear(16 * side * side, 120), nn.Sigmoid(),
        nn.Linear(120, 84), nn.Sigmoid(),
        nn.Linear(84, num_classes),
    )  # fmt: skip


def lenet_bn(
    *, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, from_scratch: bool = False
) -> nn.Sequential:
    """Return LeNet with batch norm after each conv and hidden linear layer, before the sigmoid.

    (B, C, H, W) -> (B, K). 44,878 parameters for one channel, ten classes, 28 pixels. from_scratch: use the batch norm
    of `models.batch_norm` instead of PyTorch's. As in the manual there is no padding, so the first linear layer has 256
    inputs where LeNet's has 400: the two networks differ in more than batch norm. Raise CnnlabError below 16 pixels.
    """
    norm_2d, norm_1d = (BatchNorm, BatchNorm) if from_scratch else (nn.BatchNorm2d, nn.BatchNorm1d)
    features = nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5), norm_2d(6), nn.Sigmoid(),  # (B, 6, 24, 24)
        nn.AvgPool2d(kernel_size=2, stride=2),  # (B, 6, 12, 12)
        nn.Conv2d(6, 16, kernel_size=5), norm_2d(16), nn.Sigmoid(),  # (B, 16, 8, 8)
        nn.AvgPool2d(kernel_size=2, stride=2),  # (B, 16, 4, 4)
    )  # fmt: skip
    side = final_side(features, image_size, usual=28)
    return nn.Sequential(
        *features,
        nn.Flatten(),  # (B, 256)
        nn.Linear(16 * side * side, 120), norm_1d(120), nn.Sigmoid(),
        nn.Linear(120, 84), norm_1d(84), nn.Sigmoid(),
        nn.Linear(84, num_classes),
    )  # fmt: skip
