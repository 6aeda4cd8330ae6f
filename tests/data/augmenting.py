"""Random generators and images for the tests of the augmentation."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnlab.data.draws import Draws


def seeded_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded_draws(seed: int = 0) -> Draws:
    return Draws(seeded_generator(seed))


def pictures(b: int, c: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Return random smooth images in [0, 1] with 256 levels, like those that the loader converts from uint8."""
    coarse = torch.rand(b, c, 4, 4, generator=seeded_generator(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")
    noise = torch.rand(b, c, h, w, generator=seeded_generator(seed + 1)) * 0.2
    return ((smooth * 0.8 + noise) * 255).round() / 255
