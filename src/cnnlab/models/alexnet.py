"""AlexNet.

Source: A. Krizhevsky, I. Sutskever, G. Hinton, ImageNet classification with deep convolutional neural networks,
NIPS 2012, figure 2. The manual: section 1.1.

As in the manual and unlike the paper: one stream of channels instead of two on two cards, which makes the second,
fourth and fifth convolutions full ones; no local response normalisation; padding 1 in the first layer; 10 classes.
"""

from __future__ import annotations

from torch import nn

from cnnlab.models.layers import last_side


def alexnet(*, num_classes: int = 10, in_channels: int = 1, image_size: int = 224) -> nn.Sequential:
    """AlexNet: five convolutions with ReLU, three max-poolings, two hidden linear layers with dropout.

    (B, C, H, W) -> (B, K). 46,764,746 parameters for one channel, ten classes, 224 pixels. Other image sizes change
    the number of inputs of the first linear layer (6400 at 224 pixels). Raises: CnnlabError below 65 pixels.
    """
    features = nn.Sequential(
        nn.Conv2d(in_channels, 96, kernel_size=11, stride=4, padding=1), nn.ReLU(),  # (B, 96, 54, 54)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 96, 26, 26)
        nn.Conv2d(96, 256, kernel_size=5, padding=2), nn.ReLU(),  # (B, 256, 26, 26)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 256, 12, 12)
        nn.Conv2d(256, 384, kernel_size=3, padding=1), nn.ReLU(),  # (B, 384, 12, 12)
        nn.Conv2d(384, 384, kernel_size=3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU(),  # (B, 256, 12, 12)
        nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 256, 5, 5)
    )  # fmt: skip
    side = last_side(features, image_size, usual=224)
    return nn.Sequential(
        *features,
        nn.Flatten(),  # (B, 6400)
        nn.Linear(256 * side * side, 4096), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(4096, num_classes),
    )  # fmt: skip
