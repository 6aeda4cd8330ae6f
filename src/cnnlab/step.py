"""The update: one forward pass, one backward pass, one step of the optimiser."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.device import full_precision, low_precision


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    label_smoothing: float = 0.0,
    precision: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """One update: forward, mean cross-entropy, backward, step.

    x (B, C, H, W) float; y (B,) int64, or (B, K) shares of the classes where images were mixed -> (mean loss, number
    of hits), both scalars that stay on the device. A mixed image is hit by the class of its larger share. scaler: for
    float16, whose small gradients would vanish; a step whose scaled gradients overflow is left out.
    """
    with low_precision(x.device, precision):
        logits = full_precision(model(x))  # (B, K)
    loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return loss.detach(), (logits.detach().argmax(1) == (y if y.ndim == 1 else y.argmax(1))).sum()
