"""The update: one forward pass, one backward pass, one step of the optimiser."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.device.hardware import full_precision, low_precision


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    label_smoothing: float = 0.0,
    precision: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
    careful: bool = False,
) -> tuple[Tensor, Tensor]:
    """One update: forward, mean cross-entropy, backward, step.

    x (B, C, H, W) float; y (B,) int64, or (B, K) shares of the classes where images were mixed -> (mean loss, number
    of hits), both scalars that stay on the device. A mixed image is hit by the class of its larger share. scaler: for
    float16, whose small gradients would vanish; a step whose scaled gradients overflow is left out. careful: where the
    loss or a gradient is no finite number, leave the model as it was and return a loss of nan; to know that, the host
    waits for the device.
    """
    kept = [buffer.clone() for buffer in model.buffers()] if careful else []  # running statistics of batch norm
    forward = model.outcome if isinstance(model, Compiled) else partial(outcome, model)
    loss, hits = forward(x, y, label_smoothing, precision)
    optimizer.zero_grad()
    good = not careful or math.isfinite(loss.item())
    if good and scaler is None:
        loss.backward()
        good = not careful or _finite_gradients(model)
        if good:
            optimizer.step()
    elif good and scaler is not None:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    if not good:
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)
        loss = torch.full_like(loss, math.nan)
    return loss.detach(), hits


def outcome(
    model: nn.Module, x: Tensor, y: Tensor, label_smoothing: float, precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The forward pass of `train_step`, with its arguments: mean loss, which has a gradient, and number of hits."""
    with low_precision(x.device, precision):
        logits = full_precision(model(x))  # (B, K)
    loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    return loss, (logits.detach().argmax(1) == (y if y.ndim == 1 else y.argmax(1))).sum()


class Compiled(nn.Module):
    """What `train_step` takes in place of a network: forward pass and loss compiled as one, the weights shared.

    mode: of torch.compile. Of a small network the loss and the hits, one by one, are a dozen kernels of a hundred.
    """

    def __init__(self, model: nn.Module, mode: str) -> None:
        super().__init__()
        self.model = model
        self._outcome: Any = torch.compile(outcome, dynamic=False, mode=None if mode == "default" else mode)
        self._lends = mode == "reduce-overhead"

    def forward(self, x: Tensor) -> Tensor:
        """As the network, uncompiled."""
        logits: Tensor = self.model(x)
        return logits

    def outcome(self, x: Tensor, y: Tensor, label_smoothing: float, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """As the function of that name."""
        loss, hits = self._outcome(self.model, x, y, label_smoothing, precision)
        # What torch's own graphs answer is theirs: the next step writes over it.
        return (loss.clone(), hits.clone()) if self._lends else (loss, hits)


def _finite_gradients(model: nn.Module) -> bool:
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return math.isfinite(torch.stack(norms).sum().item())
