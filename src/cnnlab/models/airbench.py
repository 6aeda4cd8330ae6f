"""Airbench: small networks designed to reach a given accuracy on CIFAR-10 with the least computation.

Source: K. Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, arXiv:2404.00498, 2024, section 3 and appendix A.
The whitened first layer is from D. Page, How to train your ResNet, 2018 to 2019.

Deviations: batch norm keeps its scale, and the first layer's bias is trained to the end (freezing it early costs more
accuracy than the time saved is worth, docs/log.md); the last pooling is global, so that images of other sizes work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.models.layers import final_side


class Whitening(nn.Conv2d):
    """conv k x k with filters that are not learned: principal components of image patches, scaled to unit variance.

    (B, C, H, W) -> (B, 2 n, H', W'): the first n components (0: all k k C), each with both signs. With the usual
    kernel of 2x2, (B, 8 C, H - 1, W - 1). Before `fit` the filters are random.
    """

    def __init__(self, in_channels: int, kernel_size: int = 2, stride: int = 1, components: int = 0) -> None:
        components = components or in_channels * kernel_size**2
        super().__init__(in_channels, 2 * components, kernel_size, stride)
        filters = self.weight.detach()
        del self.weight
        self.register_buffer("weight", filters)  # saved with the network, but no parameter

    @torch.no_grad()
    def fit(self, images: Tensor, least: float = 5e-4) -> None:
        """Compute the filters from `images` (B, C, H, W), preprocessed as for training.

        least: added to each variance, so directions of little variance are not amplified.
        """
        size = self.weight[0].numel()  # k k C
        products = torch.zeros(size, size, dtype=torch.float64, device=images.device)
        count = 0
        for some in images.split(100):  # all patches at once would be many times the images in float64
            # (100 H' W', k k C): patches at every position, whatever the stride
            patches = F.unfold(some.double(), self.weight.shape[2:]).transpose(1, 2).flatten(0, 1)
            products += patches.T @ patches
            count += len(patches)
        variance, directions = torch.linalg.eigh((products / count).cpu())  # ascending
        filters = (directions / (variance + least).sqrt()).T.flip(0)[: len(self.weight) // 2]
        filters = filters.reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat((filters, -filters)))


class ConvGroup(nn.Module):
    """conv 3x3, max-pool 2, BN, GELU, then conv 3x3, BN, GELU: (B, C, H, W) -> (B, out, H / 2, W / 2).

    deep: another conv 3x3, BN, GELU, and a shortcut over the two that follow the pooling (airbench96).
    """

    def __init__(self, in_channels: int, out_channels: int, deep: bool) -> None:
        super().__init__()
        self.conv1 = filters(in_channels, out_channels)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(out_channels, momentum=0.4)
        self.conv2 = filters(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels, momentum=0.4)
        self.conv3 = filters(out_channels, out_channels) if deep else None
        self.bn3 = nn.BatchNorm2d(out_channels, momentum=0.4) if deep else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the group's features."""
        x = F.gelu(self.bn1(self.pool(self.conv1(x))))
        y = F.gelu(self.bn2(self.conv2(x)))
        if self.conv3 is not None and self.bn3 is not None:
            y = F.gelu(self.bn3(self.conv3(y)) + x)
        return y


class Head(nn.Module):
    """Maximum over the positions, then a linear layer with logits scaled down by 9: (B, C, H, W) -> (B, K)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        # amax, since the gradient of a pooling layer has no deterministic implementation on CUDA.
        largest = _first_largest(x) if torch.compiler.is_compiling() else x.amax((2, 3))
        out: Tensor = self.linear(largest) / 9
        return out


def _first_largest(x: Tensor) -> Tensor:
    """Return the maximum over the positions, (B, C, H, W) -> (B, C); its gradient goes to the first maximum.

    amax shares its gradient among all values equal to the maximum. When compiled in 16 bits, one side of that
    comparison is rounded and the other is not: no value compares equal, and the gradient is divided by 0.
    """
    positions = x.flatten(2)  # (B, C, H W)
    first = positions.argmax(2, keepdim=True) == torch.arange(positions.shape[2], device=x.device)
    return torch.where(first, positions, 0).sum(2)


def filters(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a conv 3x3. Its first filters start as the identity of the inputs, the others at random."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:in_channels])
    return conv


def airbench(
    widths: tuple[int, ...] = (64, 256, 256),
    *,
    deep: bool = False,
    window: tuple[int, int, int] = (2, 1, 0),
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 32,
) -> nn.Sequential:
    """Return airbench: whitening, GELU, one group per entry of `widths`, head: (B, C, H, W) -> (B, K).

    widths: channels of each group: (64, 256, 256) for airbench94, (128, 384, 384) for airbench95, (128, 512, 512) with
    `deep` for airbench96. window: kernel size, stride and components of the whitening. Raise CnnlabError for images
    that the groups halve to nothing; the defaults need 9 pixels.
    """
    stem = Whitening(in_channels, *window)  # (B, 24, 31, 31) at 32 pixels in colour
    groups, channels = [], stem.out_channels
    for width in widths:
        groups.append(ConvGroup(channels, width, deep))  # (B, 64, 15, 15), (B, 256, 7, 7), (B, 256, 3, 3)
        channels = width
    layers = nn.Sequential(stem, nn.GELU(), *groups, Head(channels, num_classes))
    final_side(layers, image_size, usual=32)
    return layers
