"""The optimisers, what is averaged beside them, and the learning rate and image size as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.device.hardware import has_bfloat16
from cnnlab.recipe import Recipe


class Muon(torch.optim.Optimizer):
    """Muon for the filters of convolutions, AdamW for all else.

    Sources: K. Jordan and others, Muon: an optimizer for hidden layers in neural networks, 2024, for the update; I.
    Loshchilov, F. Hutter, Decoupled weight decay regularization, ICLR 2019, for the others. Each filter's length is
    put back to the root of its number of outputs before the update (the first source, for CIFAR-10), so that the
    learning rate is the angle by which it turns; so it needs no weight decay. `lr` is Muon's; a group with `adam`
    goes by `lr` times its `share`. precision: of the products that turn filters, in place of the filters'; three
    digits are enough for a direction (the first source takes bfloat16).
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, precision: torch.dtype | None = None
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "adam": False, "share": 1.0, "weight_decay": 0.0})
        self._precision = precision

    given: list[Tensor] | None = None
    """What `numbers` gave, on the device, for the next `step` to read there; None: it asks `numbers` itself."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there."""
        assert closure is None
        numbers: Iterator[float | Tensor] = iter(self.given or self.numbers(ready=True))
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if group["adam"]:
                rate, kept = next(numbers), next(numbers)
                corrections = {p: (next(numbers), next(numbers)) for p in group["params"]}
                if moving:
                    self._adam(moving, rate, kept, [corrections[p] for p in moving])
                continue
            rate = next(numbers)
            alike: dict[torch.Size, list[Tensor]] = {}  # filters of one shape are turned together
            for p in moving:
                alike.setdefault(p.shape, []).append(p)
            for ps in alike.values():
                self._muon(ps, group["momentum"], rate)

    def numbers(self, ready: bool = False) -> list[float]:
        """What the host gives the next update, which counts as begun: of each group what its weights go by.

        ready: the gradients are there, and a weight that has none is not updated; else each that ever was is.
        """
        found: list[float] = []
        b1, b2 = BETAS
        for group in self.param_groups:
            if not group["adam"]:
                found.append(group["lr"])
                continue
            rate = group["lr"] * group["share"]
            found += [rate, 1 - rate * group["weight_decay"]]
            for p in group["params"]:
                count = 1
                if state := self.state.get(p):
                    count = state["step"] = state["step"] + (p.grad is not None or not ready)
                # Both averages begin at 0: divided by what they would be had every gradient been 1.
                found += [1 - b1**count, 1 - b2**count]
        return found

    # What is done to each weight alike is asked of torch once for all of them: few kernels on a GPU.

    def _muon(self, ps: list[Tensor], momentum: float, rate: float | Tensor) -> None:
        gradients = [p.grad for p in ps if p.grad is not None]
        for p in ps:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        averages = [self.state[p]["momentum_buffer"] for p in ps]
        torch._foreach_mul_(averages, momentum)
        torch._foreach_add_(averages, gradients)
        ahead = torch._foreach_add(gradients, averages, alpha=momentum)  # Nesterov
        turns = orthogonalized(torch.stack([x.reshape(len(x), -1) for x in ahead]), precision=self._precision)
        lengths = torch._foreach_norm(ps)
        torch._foreach_clamp_min_(lengths, 1e-12)
        torch._foreach_mul_(lengths, len(ps[0]) ** -0.5)
        torch._foreach_div_(ps, lengths)
        if isinstance(rate, Tensor):
            turns, rate = turns * rate, 1.0
        torch._foreach_add_(ps, [turn.view_as(p) for p, turn in zip(ps, turns, strict=True)], alpha=-rate)

    def _adam(self, ps: list[Tensor], rate: Any, kept: Any, corrections: list[Any]) -> None:
        gradients = [p.grad for p in ps if p.grad is not None]
        for p in ps:
            if not self.state[p]:
                self.state[p].update(step=1, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        states = [self.state[p] for p in ps]
        means, squares = [s["mean"] for s in states], [s["square"] for s in states]
        b1, b2 = BETAS
        torch._foreach_lerp_(means, gradients, 1 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - b2)
        of_means: Any
        of_squares: Any
        of_means, of_squares = zip(*corrections, strict=True)
        if isinstance(of_means[0], Tensor) and len({s["step"] for s in states}) == 1:
            # All are the same: one kernel, where a list of tensors takes one for each.
            of_means, of_squares = of_means[0], of_squares[0]
        mean = torch._foreach_div(means, of_means)
        root = torch._foreach_sqrt(torch._foreach_div(squares, of_squares))
        torch._foreach_add_(root, 1e-8)
        torch._foreach_mul_(ps, kept)
        if isinstance(rate, Tensor):
            torch._foreach_mul_(mean, rate)
            rate = 1.0
        torch._foreach_addcdiv_(ps, mean, root, value=-rate)


BETAS = 0.9, 0.95  # of Muon's Adam


# What each optimiser keeps for a parameter, by its name; Muon's other half keeps what is called so here.
STATE = {
    "SGD": {"momentum_buffer"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "Muon": {"momentum_buffer"},
    "Muon.adam": {"step", "mean", "square"},
}


def orthogonalized(matrix: Tensor, rounds: int = 3, precision: torch.dtype | None = None) -> Tensor:
    """(M, N), or many at once (G, M, N), same shape and type out: the singular vectors stay, their values draw level.

    A Newton-Schulz iteration with the coefficients of Muon's source, which trade exactness for speed. The matrix is
    first scaled to norm 1; after three rounds what was at least 0.02 lies between 0.68 and 1.21, and less stays behind.
    precision: of the products, in place of the matrix's.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = (matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)).to(precision or matrix.dtype)
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    plus_product = torch.addmm if x.ndim == 2 else torch.baddbmm  # few kernels on a GPU
    for _ in range(rounds):
        square = x @ x.mT
        x = plus_product(x, plus_product(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype)


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


class Average:
    """Weights kept beside the model's own: their running mean, buffers included.

    ema: the mean is what is measured and saved, the model trains on as it is. lookahead: the model, too, goes on from
    the mean each time (M. Zhang, J. Lucas, G. Hinton, J. Ba, Lookahead optimizer, NeurIPS 2019). The running statistics
    of batch norm are averaged as well, else they would belong to other weights. An early mean forgets faster: after
    n updates at most n / (n + 9) of it stays.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._model = model
        self._decay, self._every = recipe.average_decay, recipe.average_every
        self._lookahead = recipe.average == "lookahead"
        self.tensors = {k: v.detach().clone() for k, v in self._floats().items()}

    def _floats(self) -> dict[str, Tensor]:
        return {k: v for k, v in self._model.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """What is due after update number `step` (from 0)."""
        if (step + 1) % self._every:
            return
        updates = (step + 1) // self._every
        decay = min(self._decay, updates / (updates + 9))
        own = list(self._floats().values())
        torch._foreach_lerp_(list(self.tensors.values()), own, 1 - decay)
        if self._lookahead:
            torch._foreach_copy_(own, list(self.tensors.values()))

    @torch.no_grad()
    def exchange(self) -> None:
        """The model gets the mean, the mean's place the model's own: twice is as before."""
        for name, own in self._floats().items():
            mean = self.tensors[name]
            kept = own.clone()
            own.copy_(mean)
            mean.copy_(kept)


@contextmanager
def shown(average: Average | None) -> Iterator[None]:
    """While this holds, the model has the averaged weights, where there are such."""
    if average is not None:
        average.exchange()
    try:
        yield
    finally:
        if average is not None:
            average.exchange()


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
