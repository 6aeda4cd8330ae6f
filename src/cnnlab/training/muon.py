"""Muon: an optimizer that orthogonalizes the updates of convolution filters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BETAS = 0.9, 0.95  # of Muon's Adam


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
        turns = orthogonalize(torch.stack([x.reshape(len(x), -1) for x in ahead]), precision=self._precision)
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


def orthogonalize(matrix: Tensor, rounds: int = 3, precision: torch.dtype | None = None) -> Tensor:
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
