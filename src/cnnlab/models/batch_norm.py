"""Batch normalisation from scratch: the function and the layer.

Source: S. Ioffe, C. Szegedy, Batch normalization: accelerating deep network training by reducing internal covariate
shift, ICML 2015, algorithms 1 and 2. The manual: section 1.4.

Deviations from the manual's listing: train and eval mode choose the statistics, not whether gradients are recorded. The
running statistics are buffers, so they are saved, loaded and moved with the layer. The running variance is the unbiased
estimate, as in PyTorch's layer; the batch itself is normalised with the biased one in both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moving_mean: Tensor,
    moving_var: Tensor,
    *,
    eps: float = 1e-5,
    momentum: float = 0.9,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each feature over the batch, then scale by gamma and shift by beta.

    x: (B, C), or (B, C, H, W), where a feature is a channel. gamma, beta, moving_mean, moving_var: (C,). momentum:
    weight of the old running statistics (one minus PyTorch's momentum). Return the output, of x's shape, and the new
    running mean and variance. Raise ValueError for another number of dimensions, and in training for a single value
    per feature, which has no variance.
    """
    if x.ndim not in (2, 4):
        raise ValueError(f"batch_norm takes (B, C) or (B, C, H, W), not {tuple(x.shape)}")
    dims = (0,) if x.ndim == 2 else (0, 2, 3)
    shape = (1, -1) if x.ndim == 2 else (1, -1, 1, 1)
    mean, var = moving_mean, moving_var
    if training:
        n = x.numel() // x.shape[1]  # values per feature
        if n < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        mean = x.mean(dims, dtype=gamma.dtype)  # in the weights' precision: 16 bits are too few for sums
        var = (x - mean.view(shape)).square().mean(dims)
        moving_mean = momentum * moving_mean + (1 - momentum) * mean.detach()
        moving_var = momentum * moving_var + (1 - momentum) * var.detach() * n / (n - 1)
    y = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + eps)
    return gamma.view(shape) * y + beta.view(shape), moving_mean, moving_var


class BatchNorm(nn.Module):
    """A layer around `batch_norm`: (B, C) -> (B, C), or (B, C, H, W) -> (B, C, H, W).

    Learned: gamma, from 1, and beta, from 0. Buffers: moving_mean, from 0, and moving_var, from 1. All (C,).
    """

    moving_mean: Tensor
    moving_var: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.9) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("moving_mean", torch.zeros(num_features))
        self.register_buffer("moving_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the batch's statistics in training mode, with the running ones in eval mode."""
        y, mean, var = batch_norm(
            x, self.gamma, self.beta, self.moving_mean, self.moving_var,
            eps=self.eps, momentum=self.momentum, training=self.training,
        )  # fmt: skip
        if self.training:
            with torch.no_grad():  # in place: the tensors stay the same, as a recorded CUDA graph needs
                self.moving_mean.copy_(mean)
                self.moving_var.copy_(var)
        return y

    def extra_repr(self) -> str:
        """Return what print(layer) shows inside the brackets."""
        return f"{len(self.gamma)}, eps={self.eps}, momentum={self.momentum}"
