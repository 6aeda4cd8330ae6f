"""The optimisers, and the learning rate as a plain function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.recipe import Recipe


class Muon(torch.optim.Optimizer):
    """Muon for the filters of convolutions, AdamW for all else.

    Sources: K. Jordan and others, Muon: an optimizer for hidden layers in neural networks, 2024, for the update; I.
    Loshchilov, F. Hutter, Decoupled weight decay regularization, ICLR 2019, for the others. Each filter's length is
    put back to the root of its number of outputs before the update (the first source, for CIFAR-10), so that the
    learning rate is the angle by which it turns; so it needs no weight decay. `lr` is Muon's; a group with `adam`
    goes by `lr` times its `share`.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "adam": False, "share": 1.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there."""
        assert closure is None
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if group["adam"]:
                    self._adam(p, state, group)
                else:
                    self._muon(p, state, group)

    @staticmethod
    def _muon(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        assert p.grad is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        average = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
        ahead = p.grad.add(average, alpha=group["momentum"])  # Nesterov
        p.mul_(len(p) ** 0.5 / p.norm().clamp_min(1e-12))
        p.sub_(orthogonalized(ahead.reshape(len(p), -1)).view_as(p), alpha=group["lr"])

    @staticmethod
    def _adam(p: Tensor, state: dict[str, Any], group: dict[str, Any], b1: float = 0.9, b2: float = 0.95) -> None:
        assert p.grad is not None
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        mean = state["mean"].lerp_(p.grad, 1 - b1) / (1 - b1 ** state["step"])
        square = state["square"].lerp_(p.grad.square(), 1 - b2) / (1 - b2 ** state["step"])
        rate = group["lr"] * group["share"]
        p.mul_(1 - rate * group["weight_decay"])
        p.addcdiv_(mean, square.sqrt().add_(1e-8), value=-rate)


def orthogonalized(matrix: Tensor, rounds: int = 3) -> Tensor:
    """(M, N) -> (M, N): the same singular vectors, the singular values brought near to one another.

    A Newton-Schulz iteration with the coefficients of Muon's source, which trade exactness for speed. The matrix is
    first scaled to norm 1; after three rounds what was at least 0.02 lies between 0.68 and 1.21, and less stays behind.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix / matrix.norm().clamp_min(1e-7)
    if tall := len(x) > x.shape[1]:
        x = x.T
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's parameters. Biases and norms' scales do not decay.

    muon: turns the filters of the convolutions; all else goes by AdamW, at `other_learning_rate`.
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
        return Muon(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
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
    during the first `warmup` of the steps, straight down to 0 during the rest (Smith and Topin, 2018). step: times
    `decay` after each `decay_every` epochs.
    """
    done = step / steps
    if recipe.schedule == "constant":
        share = 1.0
    elif recipe.schedule == "step":
        share = recipe.decay ** (step * recipe.epochs // steps // recipe.decay_every)
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
