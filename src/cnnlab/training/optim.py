"""Optimizers, initial weights, and the schedules of learning rate and image size."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from cnnlab.device.hardware import has_bfloat16
from cnnlab.recipe import Recipe
from cnnlab.training.finetune import layer_scales
from cnnlab.training.muon import Muon

# The state kept for a parameter, by optimizer. "Muon.adam": a parameter that Muon updates with AdamW.
STATE = {
    "SGD": {"momentum_buffer"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "Muon": {"momentum_buffer"},
    "Muon.adam": {"step", "mean", "square"},
}


def make_optimizer(model: nn.Module, recipe: Recipe, precision: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """Return the recipe's optimizer. Biases and the parameters of norms get no weight decay.

    muon: updates the filters of convolutions; AdamW updates all others, at `other_learning_rate`. clip_norm: `step`
    first scales the gradients down to that norm. precision: dtype of the training steps; parameters and optimizer
    state keep their own. The `layer_scale` of each group takes effect in `set_learning_rate`.
    """
    optimizer = _make_optimizer(model, recipe, precision)
    if recipe.clip_norm:
        optimizer.register_step_pre_hook(partial(_clip_gradients, recipe.clip_norm))
    return optimizer


def _clip_gradients(norm: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Scale all gradients so that their norm, over all parameters together, is at most `norm`."""
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)


def _make_optimizer(model: nn.Module, recipe: Recipe, precision: torch.dtype) -> torch.optim.Optimizer:
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}  # the caller's own may have frozen layers
    scales = layer_scales(model, recipe.layer_decay)
    groups: list[dict[str, Any]] = []
    for scale in sorted({scales.get(name, 1.0) for name in trained}, reverse=True) or [1.0]:
        stage = [p for name, p in trained.items() if scales.get(name, 1.0) == scale]
        groups += [{**group, "layer_scale": scale} for group in _groups(stage, recipe)]
    if recipe.optimizer == "muon":
        filters = [p for p in trained.values() if p.ndim == 4]
        # bfloat16 if the steps use it, or if the GPU has units for it. Not float16: its range is too small.
        on_gpu = any(p.device.type == "cuda" and has_bfloat16(p.device) for p in filters)
        products = torch.bfloat16 if on_gpu or precision == torch.bfloat16 else None
        return Muon(groups, recipe.learning_rate, recipe.momentum, products)
    # One kernel for all parameters. Not every PyTorch has it on MPS.
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused
    )


def _groups(parameters: list[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Return the optimizer's groups for the parameters of stages that share a learning rate."""
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    if recipe.optimizer != "muon":
        return [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
    adam = {"adam": True, "lr_scale": recipe.other_learning_rate / recipe.learning_rate}
    return [
        {"params": [p for p in decayed if p.ndim == 4]},
        {"params": [p for p in decayed if p.ndim != 4], **adam, "weight_decay": recipe.weight_decay},
        {"params": others, **adam},
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group to `rate` times its `layer_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["layer_scale"]


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set missing momentum buffers to 0: a fused update fails if some parameters have it and others do not."""
    state = optimizer.state
    if isinstance(optimizer, torch.optim.SGD) and any(v.get("momentum_buffer") is not None for v in state.values()):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if state[parameter].get("momentum_buffer") is None:
                state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def initialize(model: nn.Module, scheme: str) -> None:
    """Initialize the weights, not the biases, of every Linear and Conv2d.

    pytorch: keep PyTorch's own. xavier-uniform: as in the manual (X. Glorot, Y. Bengio, Understanding the difficulty of
    training deep feedforward neural networks, AISTATS 2010). he-normal: for networks with ReLUs, by fan-out
    (K. He, X. Zhang, S. Ren, J. Sun, Delving deep into rectifiers, ICCV 2015).
    """
    if scheme == "pytorch":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if scheme == "xavier-uniform":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of update number `step` (from 0) of `steps`.

    constant: the peak. cosine: from the peak to 0 along half a cosine wave. one-cycle: linear warm-up to the peak
    during the first `warmup` of the steps, then linear decay to 0 (L. Smith, N. Topin, 2018). trapezoid: linear
    warm-up, then the peak, then linear decay to 0 during the last `cooldown` of the steps. step: multiplied by `decay`
    every `decay_every` epochs. `warmup` and `cooldown` are fractions of the training. The schedule runs
    once over the `freeze_epochs` and once over the epochs after them.
    """
    epochs, frozen_epochs = recipe.epochs, min(recipe.freeze_epochs, recipe.epochs)
    frozen = steps * frozen_epochs // epochs
    if step < frozen:
        steps, epochs = frozen, frozen_epochs
    else:
        step, steps, epochs = step - frozen, steps - frozen, epochs - frozen_epochs
    done = step / steps
    if recipe.schedule == "constant":
        factor = 1.0
    elif recipe.schedule == "step":
        factor = recipe.decay ** (step * epochs // steps // recipe.decay_every)
    elif recipe.schedule == "trapezoid":
        factor = min(1.0, (step + 1) / max(1, math.ceil(recipe.warmup * steps)))
        if recipe.cooldown:
            factor = min(factor, (1 - done) / recipe.cooldown)
    elif recipe.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    elif done < recipe.warmup:
        # Not 0 in the first step, and the peak in the last step of the warm-up.
        factor = (step + 1) / max(1, math.ceil(recipe.warmup * steps))
    else:
        factor = (1 - done) / (1 - recipe.warmup)
    return recipe.learning_rate * factor


def size_in_epoch(recipe: Recipe, image_size: int, epoch: int) -> int:
    """Return the side in pixels of the images in epoch number `epoch` (from 0).

    It grows linearly from `start_size` to `image_size`, in even numbers. The last quarter of the epochs, and always the
    last one, uses `image_size`. So do the `freeze_epochs`, after which the count begins. This is J. Howard's
    progressive resizing (DAWNBench, 2018).
    """
    epoch, epochs = epoch - recipe.freeze_epochs, recipe.epochs - recipe.freeze_epochs
    if not recipe.start_size or recipe.start_size >= image_size or epoch < 0:
        return image_size
    growing = min(round(0.75 * epochs), epochs - 1)
    if epoch >= growing:
        return image_size
    size = recipe.start_size + (image_size - recipe.start_size) * epoch / growing
    return min(image_size, 2 * math.ceil(size / 2))
