"""The training step: forward, loss, backward, step."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.device.determinism import deterministic_compiler
from cnnlab.device.precision import autocast, upcast
from cnnlab.training.replica import Replica


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    label_smoothing: float = 0.0,
    precision: torch.dtype = torch.float32,
    micro_batch: int = 0,
) -> tuple[Tensor, Tensor]:
    """Update the model once on the mean cross-entropy of a batch.

    x: (B, C, H, W) float. y: (B,) int64 classes or (B, K) probabilities, for mixed images. A row of probabilities may
    be scaled by the weight of its image; with weights of mean 1 the loss is the weighted mean. precision: dtype of
    convolutions and matrix products. micro_batch: see `add_gradients`. Return the mean loss and the number of correct
    predictions, both scalars on the device. A prediction for a mixed image is correct if it is the class with the
    larger probability.
    """
    optimizer.zero_grad()
    loss, correct = add_gradients(model, x, y, label_smoothing, precision, micro_batch)
    optimizer.step()
    return loss, correct


def add_gradients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    label_smoothing: float,
    precision: torch.dtype,
    micro_batch: int = 0,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of the mean loss of a batch to the parameters' `grad`. Arguments, result: see `train_step`.

    micro_batch: largest number of images that pass through the network at once, which limits the memory that a large
    batch needs; batch norm then normalises over these. 0: all. scaler: scales the loss.
    """
    count = 1
    if micro_batch:
        parts = (model.parts if isinstance(model, Replica) else []) or [len(y)]
        count = min(-(-max(parts) // micro_batch), min(parts))
    losses, corrects = [], []
    for number, (images, labels) in enumerate(zip(x.tensor_split(count), y.tensor_split(count), strict=True), 1):
        with model.no_sync(number < count) if isinstance(model, Replica) else nullcontext():
            loss, correct = forward_loss(model, images, labels, label_smoothing, precision)
            if count > 1:
                loss = loss * (len(labels) / len(y))
            (loss if scaler is None else scaler.scale(loss)).backward()
        losses.append(loss.detach())
        corrects.append(correct)
    if count > 1:
        loss, correct = torch.stack(losses).sum(), torch.stack(corrects).sum()
    else:
        loss, correct = losses[0], corrects[0]
    return model.reduce(loss, correct) if isinstance(model, Replica) else (loss, correct)


def forward_loss(
    model: nn.Module, x: Tensor, y: Tensor, label_smoothing: float, precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the mean loss, with its graph, and the number of correct predictions. Arguments: see `train_step`."""
    if isinstance(model, Compiled):
        return model.forward_loss(x, y, label_smoothing, precision)
    loss, correct = _forward_loss(model, x, y, label_smoothing, precision)
    return (loss * model.weight if isinstance(model, Replica) and model.weight != 1 else loss), correct


def _forward_loss(
    model: nn.Module, x: Tensor, y: Tensor, label_smoothing: float, precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    with autocast(x.device, precision):
        logits = upcast(model(x))  # (B, K)
    if y.ndim == 2 and label_smoothing:
        # An image of weight w counts like w copies of it: a row keeps its sum. PyTorch's class weights would give most
        # of the smoothed probability to the rare classes.
        y = y * (1 - label_smoothing) + y.sum(1, keepdim=True) * (label_smoothing / y.shape[1])
        label_smoothing = 0.0
    loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    return loss, (logits.detach().argmax(1) == (y if y.ndim == 1 else y.argmax(1))).sum()


class Compiled(nn.Module):
    """A network whose forward pass and loss are compiled together; it shares the weights of `model`.

    Compiling them as one saves about a dozen of a small network's hundred kernels. mode: see torch.compile.
    """

    def __init__(self, model: nn.Module, mode: str) -> None:
        super().__init__()
        self.model = model
        deterministic_compiler()
        self._forward_loss: Any = torch.compile(_forward_loss, dynamic=False, mode=None if mode == "default" else mode)
        self._reuses_outputs = mode == "reduce-overhead"

    def forward(self, x: Tensor) -> Tensor:
        """Run the network, uncompiled."""
        logits: Tensor = self.model(x)
        return logits

    def forward_loss(
        self, x: Tensor, y: Tensor, label_smoothing: float, precision: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Run the compiled forward pass and loss."""
        loss, correct = self._forward_loss(self.model, x, y, label_smoothing, precision)
        # PyTorch's own CUDA graphs overwrite their outputs in the next step.
        return (loss.clone(), correct.clone()) if self._reuses_outputs else (loss, correct)


class GuardedStep:
    """A `train_step` with loss scaling, or one that skips updates with NaN or Inf. The host waits for the device.

    scaler: for float16, whose small gradients would underflow; a step whose scaled gradients overflow is skipped.
    skip_nonfinite: if the loss, or without a scaler a gradient, is NaN or Inf, leave the model as it was and return a
    loss of NaN.
    `updated` says whether the last call changed the weights.
    """

    def __init__(
        self, scaler: torch.amp.GradScaler | None = None, *, skip_nonfinite: bool = False, micro_batch: int = 0
    ) -> None:
        self.scaler, self.skip_nonfinite, self._micro_batch = scaler, skip_nonfinite, micro_batch
        self.updated = True

    def __call__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        y: Tensor,
        label_smoothing: float = 0.0,
        precision: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Update the model once, or skip the update. Arguments and result: see `train_step`."""
        # To be restored: the forward pass changes the running statistics of batch norm.
        buffers = [buffer.clone() for buffer in model.buffers()] if self.skip_nonfinite else []
        optimizer.zero_grad()
        if self.scaler is not None:
            _start_momentum(optimizer)
        loss, correct = add_gradients(model, x, y, label_smoothing, precision, self._micro_batch, self.scaler)
        finite = not self.skip_nonfinite or math.isfinite(loss.item())
        if finite and self.scaler is not None:
            self.updated = self._scaled_update(self.scaler, optimizer)
        elif finite:
            finite = not self.skip_nonfinite or _finite_gradients(model)
            if finite:
                optimizer.step()
            self.updated = finite
        if not finite:
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)
            loss, self.updated = torch.full_like(loss, math.nan), False
        return loss, correct

    @staticmethod
    def _scaled_update(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> bool:
        scaler.unscale_(optimizer)  # a fused optimizer would only do so inside its step, after clipping
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        return scaler.get_scale() >= scale  # it falls only after an overflow


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Zero the momentum: if the very first scaled step overflows, PyTorch's fused SGD leaves it uninitialized."""
    if isinstance(optimizer, torch.optim.SGD) and not optimizer.state:
        for group in optimizer.param_groups:
            for p in group["params"] if group["momentum"] else ():
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _finite_gradients(model: nn.Module) -> bool:
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return math.isfinite(torch.stack(norms).sum().item())
