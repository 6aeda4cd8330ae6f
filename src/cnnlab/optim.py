"""The optimisers, and the learning rate as a plain function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from cnnlab.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's parameters. Biases and norms' scales do not decay."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of update number `step` (from 0) of `steps`.

    constant: the peak throughout. cosine: from the peak to 0 along half a wave. one-cycle: straight up to the peak
    during the first `warmup` of the steps, straight down to 0 during the rest (Smith and Topin, 2018).
    """
    done = step / steps
    if recipe.schedule == "constant":
        share = 1.0
    elif recipe.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * done))
    elif done < recipe.warmup:
        # The first step moves too, and the last of the way up reaches the peak.
        share = (step + 1) / max(1, math.ceil(recipe.warmup * steps))
    else:
        share = (1 - done) / (1 - recipe.warmup)
    return recipe.learning_rate * share


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
