"""Random changes of a batch, as pure tensor -> tensor functions: a draw of its own for each image."""

from __future__ import annotations

import torch
from torch import Tensor


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left and right with probability 1/2: (B, C, H, W) -> (B, C, H, W)."""
    mirrored = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each image by -pixels..pixels in both directions, zeros (black) coming in: (B, C, H, W), same shape out."""
    b, c, h, w = images.shape
    device = images.device
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    offset = torch.randint(0, 2 * pixels + 1, (2, b, 1), generator=generator, device=device)
    rows = offset[0] + torch.arange(h, device=device)  # (B, H)
    columns = offset[1] + torch.arange(w, device=device)  # (B, W)
    return padded[
        torch.arange(b, device=device)[:, None, None, None],
        torch.arange(c, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
