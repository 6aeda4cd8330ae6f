"""AlexNet.

Source: A. Krizhevsky, I. Sutskever, G. Hinton, ImageNet classification with deep convolutional neural networks,
NIPS 2012, figure 2. The manual: section 1.1.

Deviations from the paper, as in the manual: one stream of channels instead of two on two GPUs, so that the second,
fourth and fifth convolutions see all channels; no local response normalisation; padding 1 in the first layer; 10
classes.
`small` is ours, for images of about 28 pixels: a first 5x5 convolution of stride 1, and fewer channels.
"""

from __future__ import annotations

from torch import nn

from cnnlab.models.layers import final_side


def alexnet(
    *, small: bool = False, num_classes: int = 10, in_channels: int = 1, image_size: int = 224
) -> nn.Sequential:
    """Return AlexNet: five convolutions with ReLU, three max-poolings, two hidden linear layers with dropout.

    (B, C, H, W) -> (B, K). 46,764,746 parameters for one channel, ten classes, 224 pixels. Other image sizes change
    the number of inputs of the first linear layer (6400 at 224 pixels). small: a quarter of the channels and an eighth
    of the hidden units, for images from 15 pixels. Raise CnnlabError below 65 pixels.
    """
    c1, c2, c3, hidden = (24, 64, 96, 512) if small else (96, 256, 384, 4096)
    kernel, stride, padding = (5, 1, 2) if small else (11, 4, 1)
    features = nn.Sequential(
        nn.Conv2d(in_channels, c1, kernel_size=kernel, stride=stride, padding=padding), nn.ReLU(),  # (B, 96, 54, 54)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 96, 26, 26)
        nn.Conv2d(c1, c2, kernel_size=5, padding=2), nn.ReLU(),  # (B, 256, 26, 26)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 256, 12, 12)
        nn.Conv2d(c2, c3, kernel_size=3, padding=1), nn.ReLU(),  # (B, 384, 12, 12)
        nn.Conv2d(c3, c3, kernel_size=3, padding=1), nn.ReLU(),
        nn.Conv2d(c3, c2, kernel_size=3, padding=1), nn.ReLU(),  # (B, 256, 12, 12)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 256, 5, 5)
    )  # fmt: skip
    side = final_side(features, image_size, usual=224)
    return nn.Sequential(
        *features,
        nn.Flatten(),  # (B, 6400)
        nn.Linear(c2 * side * side, hidden), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip
