"""Optimizers, starting weights, and the learning rate and image size as functions of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from cnnlab.device.hardware import has_bfloat16
from cnnlab.recipe import Recipe
from cnnlab.training.muon import Muon

# What each optimiser keeps for a parameter, by its name; Muon's other half keeps what is called so here.
STATE = {
    "SGD": {"momentum_buffer"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "Muon": {"momentum_buffer"},
    "Muon.adam": {"step", "mean", "square"},
}


def make_optimizer(model: nn.Module, recipe: Recipe, precision: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's parameters. Biases and norms' scales do not decay.

    muon: turns the filters of the convolutions; all else goes by AdamW, at `other_learning_rate`. precision: that of
    the steps; weights and what is kept beside them stay in theirs.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    if recipe.optimizer == "muon":
        turned = [p for p in decayed if p.ndim == 4]
        adam = {"adam": True, "share": recipe.other_learning_rate / recipe.learning_rate}
        groups: list[dict[str, Any]] = [
            {"params": turned},
            {"params": [p for p in decayed if p.ndim != 4], **adam, "weight_decay": recipe.weight_decay},
            {"params": others, **adam},
        ]
        # Where the steps are in bfloat16, and on a GPU with units for it anyway. Not in float16: its range is small.
        on_gpu = any(p.device.type == "cuda" and has_bfloat16(p.device) for p in turned)
        products = torch.bfloat16 if on_gpu or precision == torch.bfloat16 else None
        return Muon(groups, recipe.learning_rate, recipe.momentum, products)
    # One kernel for all weights; not on MPS in every torch.
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused
    )


def initialize(model: nn.Module, scheme: str) -> None:
    """Set the starting weights of every Linear and Conv2d; biases are left as they are.

    framework: nothing is changed. xavier-uniform: the manual's (X. Glorot, Y. Bengio, Understanding the difficulty of
    training deep feedforward neural networks, AISTATS 2010). he-normal: for networks of ReLUs, by the outputs of each
    layer (K. He, X. Zhang, S. Ren, J. Sun, Delving deep into rectifiers, ICCV 2015).
    """
    if scheme == "framework":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if scheme == "xavier-uniform":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of update number `step` (from 0) of `steps`.

    constant: the peak throughout. cosine: from the peak to 0 along half a wave. one-cycle: straight up to the peak
    during the first `warmup` of the steps, straight down to 0 during the rest (Smith and Topin, 2018). trapezoid:
    straight up during the first `warmup` of the steps, straight down to 0 during the last `cooldown`, the peak in
    between. step: times `decay` after each `decay_every` epochs.
    """
    done = step / steps
    if recipe.schedule == "constant":
        share = 1.0
    elif recipe.schedule == "step":
        share = recipe.decay ** (step * recipe.epochs // steps // recipe.decay_every)
    elif recipe.schedule == "trapezoid":
        share = min(1.0, (step + 1) / max(1, math.ceil(recipe.warmup * steps)))
        if recipe.cooldown:
            share = min(share, (1 - done) / recipe.cooldown)
    elif recipe.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * done))
    elif done < recipe.warmup:
        # The first step moves too, and the last of the way up reaches the peak.
        share = (step + 1) / max(1, math.ceil(recipe.warmup * steps))
    else:
        share = (1 - done) / (1 - recipe.warmup)
    return recipe.learning_rate * share


def size_in_epoch(recipe: Recipe, image_size: int, epoch: int) -> int:
    """Pixels a side in epoch number `epoch` (from 0): from `start_size` evenly to `image_size`, in even numbers.

    The last quarter of the epochs, and always the last one, sees images as they are. J. Howard's progressive resizing,
    DAWNBench 2018.
    """
    if not recipe.start_size or recipe.start_size >= image_size:
        return image_size
    growing = min(round(0.75 * recipe.epochs), recipe.epochs - 1)
    if epoch >= growing:
        return image_size
    size = recipe.start_size + (image_size - recipe.start_size) * epoch / growing
    return min(image_size, 2 * math.ceil(size / 2))
