"""Batch normalisation from scratch: the function and the layer.

Source: S. Ioffe, C. Szegedy, Batch normalization: accelerating deep network training by reducing internal covariate
shift, ICML 2015, algorithms 1 and 2. The manual: section 1.4.

Unlike the manual's listing: train or eval mode decides which statistics are used, not whether gradients are being
recorded; the running statistics are buffers, so that they are saved, loaded and moved with the layer; the running
variance is the unbiased one, as in the framework's layer (the batch itself is divided by the biased one in both); the
gradients in training are written out, too, so that they cannot be differentiated a second time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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

    x: (B, C), or (B, C, H, W), where a feature is a whole channel; the others: (C,). momentum: share of the old
    running statistics that is kept (the framework's momentum is one minus ours). Returns: what the layer gives, of
    x's shape, and the running mean and variance after it. Raises: ValueError for another number of dimensions, and
    in training for a single value per feature, which has no variance.
    """
    if not training:
        _check(x)
        centered = x - _beside(moving_mean, x)
        scale = gamma / torch.sqrt(moving_var + eps)
        return centered * _beside(scale, x) + _beside(beta, x), moving_mean, moving_var
    y, mean, var = _normalized(x, gamma, beta, eps)
    with torch.no_grad():
        # momentum * old + (1 - momentum) * new, in one call; each costs as much as the arithmetic of a few channels.
        moving_mean = torch.lerp(moving_mean, mean.to(moving_mean.dtype), 1 - momentum)
        moving_var = torch.lerp(moving_var, var.to(moving_var.dtype), 1 - momentum)
    return y, moving_mean, moving_var


def _check(x: Tensor) -> None:
    if x.ndim not in (2, 4):
        raise ValueError(f"batch_norm takes (B, C) or (B, C, H, W), not {tuple(x.shape)}")


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """(C,), one for each channel, so that it can stand beside x: (B, C) or (B, C, H, W)."""
    return values if x.ndim == 2 else values.view(-1, 1, 1)


def _normalized(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x normalised by its own statistics, scaled and shifted; the mean and the unbiased variance, without gradients."""
    _check(x)
    if x.numel() // x.shape[1] < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    answer: tuple[Tensor, Tensor, Tensor] = _Normalized.apply(x, gamma, beta, eps)
    return answer


class _Normalized(torch.autograd.Function):
    """x normalised by its own statistics, scaled and shifted; the gradients by the chain rule (paper, section 3).

    What autograd would make of the same lines passes over x twice as often, and such passes are what takes the time;
    of (C,) values each call does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        count = x.numel() // len(gamma)  # values per feature
        mean = channel_sum(x, gamma.dtype) / count  # of 16 bits a sum would have too few
        centered = x - _beside(mean, x)
        y, scale, deviation, unbiased = scaled(centered, gamma, beta, eps)
        ctx.save_for_backward(centered, scale, deviation)
        ctx.of_x = x.dtype
        ctx.mark_non_differentiable(mean, unbiased)
        ctx.set_materialize_grads(False)  # zeros for those two
        return y, mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_gamma, of_beta = gradients(of_y, *ctx.saved_tensors)
        return of_x.to(ctx.of_x), of_gamma, of_beta, None


def scaled(centered: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What batch norm makes of `centered` x; gamma over the deviation, the deviation, the unbiased variance."""
    count, squares = centered.numel() // len(gamma), _sum_of_squares(centered)
    deviation = torch.sqrt(squares / count + eps)
    scale = gamma / deviation  # divided by the deviation and multiplied by gamma at once
    y = (centered * _beside(scale, centered)).add_(_beside(beta, centered))
    return y, scale, deviation, squares / (count - 1)


def gradients(
    of_y: Tensor, centered: Tensor, scale: Tensor, deviation: Tensor, in_place: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, gamma and beta. in_place: that of x takes the place of `of_y`."""
    of_beta = channel_sum(of_y)
    of_gamma = channel_sum(of_y * centered) / deviation  # of_y * normalised x
    # Of x: gamma / deviation * (of_y - mean(of_y) - normalised x * mean(of_y * normalised x)), multiplied out.
    share = scale / -(centered.numel() // len(scale))
    along, shift = (_beside(t, centered) for t in (of_gamma * (share / deviation), of_beta * share))
    scale = _beside(scale, centered)
    of_x = of_y.mul_(scale) if in_place else of_y * scale
    return of_x.addcmul_(centered, along).add_(shift), of_gamma, of_beta


def channel_sum(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(C,): each channel's sum, on a processor that of each map first: in one go two cores take three times as long."""
    if x.ndim == 2:
        return x.sum(0, dtype=dtype)
    return x.sum((2, 3), dtype=dtype).sum(0) if x.device.type == "cpu" else x.sum((0, 2, 3), dtype=dtype)


def _sum_of_squares(x: Tensor) -> Tensor:
    """(C,), in the same way; of maps by their lengths, so that the squares themselves are written nowhere."""
    if x.ndim == 4 and x.device.type == "cpu" and x.is_contiguous():
        lengths: Tensor = torch.linalg.vector_norm(x, dim=(2, 3))
        return lengths.square().sum(0)
    return x.square().sum(0 if x.ndim == 2 else (0, 2, 3))


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
        """Normalise by the batch's own statistics in training, by the running ones in eval mode."""
        if not self.training:
            statistics = self.moving_mean, self.moving_var
            return batch_norm(x, self.gamma, self.beta, *statistics, eps=self.eps, training=False)[0]
        y, mean, var = _normalized(x, self.gamma, self.beta, self.eps)
        self.note(mean, var)
        return y

    @torch.no_grad()
    def note(self, mean: Tensor, var: Tensor) -> None:
        """Let the running statistics follow a batch's."""
        self.moving_mean.lerp_(mean.to(self.moving_mean.dtype), 1 - self.momentum)
        self.moving_var.lerp_(var.to(self.moving_var.dtype), 1 - self.momentum)

    def extra_repr(self) -> str:
        """What print(layer) shows inside the brackets."""
        return f"{len(self.gamma)}, eps={self.eps}, momentum={self.momentum}"
