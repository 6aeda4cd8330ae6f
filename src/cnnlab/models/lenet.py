"""LeNet, and LeNet with batch normalisation.

Sources: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, Proc.
IEEE 86(11), 1998, figure 2 (LeNet-5); S. Ioffe, C. Szegedy, Batch normalization, ICML 2015. The manual: figure 1.2,
left, and section 1.4.

As in the manual and unlike the paper: a plain linear layer in place of the Gaussian connections, every feature map
of the second convolution sees all six maps of the first, pooling has no weights, sigmoid in place of a scaled tanh.
"""

from __future__ import annotations

from torch import nn

from cnnlab.errors import CnnlabError


def lenet(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """conv 5x5x6 pad 2, sigmoid, avg-pool 2; conv 5x5x16, sigmoid, avg-pool 2; 120, sigmoid, 84, sigmoid, K.

    (B, C, H, W) -> (B, K). 61,706 parameters for one channel, ten classes, 28 pixels. Other image sizes change the
    number of inputs of the first linear layer (400 at 28 pixels). Raises: CnnlabError below 12 pixels.
    """
    side = _side_after("lenet", image_size, padding=2)
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5, padding=2), nn.Sigmoid(),  # (B, 6, 28, 28)
        nn.AvgPool2d(kernel_size=2, stride=2),  # (B, 6, 14, 14)
        nn.Conv2d(6, 16, kernel_size=5), nn.Sigmoid(),  # (B, 16, 10, 10)
        nn.AvgPool2d(kernel_size=2, stride=2),  # (B, 16, 5, 5)
        nn.Flatten(),  # (B, 400)
        nn.Linear(16 * side * side, 120), nn.Sigmoid(),
        nn.Linear(120, 84), nn.Sigmoid(),
        nn.Linear(84, num_classes),
    )  # fmt: skip


def lenet_bn(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """LeNet with the framework's batch norm after each conv and hidden linear layer, before the sigmoid.

    (B, C, H, W) -> (B, K). 44,878 parameters for one channel, ten classes, 28 pixels. As in the manual it has no
    padding, so 256 features reach the first linear layer where LeNet has 400: the two are not compared like for
    like. Raises: CnnlabError below 16 pixels.
    """
    side = _side_after("lenet-bn", image_size, padding=0)
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5), nn.BatchNorm2d(6), nn.Sigmoid(),  # (B, 6, 24, 24)
        nn.AvgPool2d(kernel_size=2, stride=2),  # (B, 6, 12, 12)
        nn.Conv2d(6, 16, kernel_size=5), nn.BatchNorm2d(16), nn.Sigmoid(),  # (B, 16, 8, 8)
        nn.AvgPool2d(kernel_size=2, stride=2),  # (B, 16, 4, 4)
        nn.Flatten(),  # (B, 256)
        nn.Linear(16 * side * side, 120), nn.BatchNorm1d(120), nn.Sigmoid(),
        nn.Linear(120, 84), nn.BatchNorm1d(84), nn.Sigmoid(),
        nn.Linear(84, num_classes),
    )  # fmt: skip


def _side_after(name: str, image_size: int, *, padding: int) -> int:
    """Side of the second pooling's output: conv 5x5 with `padding`, halve, conv 5x5, halve."""
    side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
    if side < 1:
        smallest = 16 - 2 * padding
        raise CnnlabError(
            f"{name} needs images of at least {smallest}x{smallest} pixels, not {image_size}x{image_size}; "
            f"enlarge them with image_size={max(smallest, 28)}"
        )
    return side
