"""Muon: an optimizer that orthogonalizes the updates of convolution filters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cnnlab.device.world import World

BETAS = 0.9, 0.95  # of Muon's Adam


class Muon(torch.optim.Optimizer):
    """Muon for the filters of convolutions, AdamW for all other parameters.

    Muon: K. Jordan and others, Muon: an optimizer for hidden layers in neural networks, 2024. AdamW: I. Loshchilov,
    F. Hutter, Decoupled weight decay regularization, ICLR 2019. Before each update the norm of a weight tensor is set
    to the square root of its number of filters (as Jordan does for CIFAR-10), so the learning rate is the angle by
    which filters turn, and they need no weight decay. lr: Muon's learning rate; a group with `adam` uses `lr` times its
    `lr_scale`. precision: dtype of the products in `orthogonalize`; a direction needs only three digits (Jordan uses
    bfloat16). Default: the filters' dtype.
    """

    device_scalars: list[Tensor] | None = None
    """The values of `scalars` on the device, for the next `step`. None: `step` computes them on the host."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, precision: torch.dtype | None = None
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "adam": False, "lr_scale": 1.0, "weight_decay": 0.0})
        self._precision = precision
        self.world = World()  # the processes that divide the matrices among them

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters once from their gradients."""
        assert closure is None
        scalars: Iterator[float | Tensor] = iter(self.device_scalars or self.scalars(has_gradients=True))
        for group in self.param_groups:
            updated = [p for p in group["params"] if p.grad is not None]
            if group["adam"]:
                rate, decay = next(scalars), next(scalars)
                corrections = {p: (next(scalars), next(scalars)) for p in group["params"]}
                if updated:
                    self._adam(updated, rate, decay, [corrections[p] for p in updated])
                continue
            rate = next(scalars)
            by_shape: dict[torch.Size, list[Tensor]] = {}  # one batched product for all filters of a shape
            for p in updated:
                by_shape.setdefault(p.shape, []).append(p)
            for ps in by_shape.values():
                self._muon(ps, group["momentum"], rate)

    def scalars(self, has_gradients: bool = False) -> list[float]:
        """Return the numbers that the host computes for the next update, and count that update.

        Per Muon group: the learning rate. Per Adam group: learning rate, weight decay factor, and two bias corrections
        per parameter. has_gradients: the gradients have been computed, so a parameter without one is not updated;
        otherwise every parameter that has been updated before will be updated.
        """
        values: list[float] = []
        b1, b2 = BETAS
        for group in self.param_groups:
            if not group["adam"]:
                values.append(group["lr"])
                continue
            rate = group["lr"] * group["lr_scale"]
            values += [rate, 1 - rate * group["weight_decay"]]
            for p in group["params"]:
                count = 1
                if state := self.state.get(p):
                    count = state["step"] = state["step"] + (p.grad is not None or not has_gradients)
                values += [1 - b1**count, 1 - b2**count]
        return values

    # The _foreach functions update all parameters with few kernels on a GPU.

    def _muon(self, ps: list[Tensor], momentum: float, rate: float | Tensor) -> None:
        gradients = [p.grad for p in ps if p.grad is not None]
        for p in ps:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        averages = [self.state[p]["momentum_buffer"] for p in ps]
        torch._foreach_mul_(averages, momentum)
        torch._foreach_add_(averages, gradients)
        directions = torch._foreach_add(gradients, averages, alpha=momentum)  # Nesterov
        updates = self._orthogonalized(torch.stack([d.reshape(len(d), -1) for d in directions]))
        norms = torch._foreach_norm(ps)
        torch._foreach_clamp_min_(norms, 1e-12)
        torch._foreach_mul_(norms, len(ps[0]) ** -0.5)
        torch._foreach_div_(ps, norms)
        if isinstance(rate, Tensor):
            updates, rate = updates * rate, 1.0
        torch._foreach_add_(ps, [update.view_as(p) for p, update in zip(ps, updates, strict=True)], alpha=-rate)

    def _orthogonalized(self, matrices: Tensor) -> Tensor:
        """Orthogonalize matrices (G, M, N), each on one of the processes."""
        size, (g, *shape) = self.world.size, matrices.shape
        if size == 1:
            return orthogonalize(matrices, precision=self._precision)
        done = torch.zeros_like(matrices)
        # Without the offset, every shape with a single matrix would go to the first process.
        mine = [i for i in range(g) if (i + math.prod(shape)) % size == self.world.rank]
        if mine:
            done[mine] = orthogonalize(matrices[mine], precision=self._precision)
        return self.world.sum(done)  # each is zero in all processes but one

    def _adam(self, ps: list[Tensor], rate: Any, decay: Any, corrections: list[Any]) -> None:
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
        bias1: Any
        bias2: Any
        bias1, bias2 = zip(*corrections, strict=True)
        if isinstance(bias1[0], Tensor) and len({s["step"] for s in states}) == 1:
            # All are equal: one kernel; a list of tensors would take one each.
            bias1, bias2 = bias1[0], bias2[0]
        mean = torch._foreach_div(means, bias1)
        root = torch._foreach_sqrt(torch._foreach_div(squares, bias2))
        torch._foreach_add_(root, 1e-8)
        torch._foreach_mul_(ps, decay)
        if isinstance(rate, Tensor):
            torch._foreach_mul_(mean, rate)
            rate = 1.0
        torch._foreach_addcdiv_(ps, mean, root, value=-rate)


def orthogonalize(matrix: Tensor, rounds: int = 3, precision: torch.dtype | None = None) -> Tensor:
    """Return the nearest semi-orthogonal matrix, roughly: same singular vectors, singular values near 1.

    matrix: (M, N), or a batch (G, M, N); the result has the same shape and dtype. This is a Newton-Schulz iteration
    with the coefficients of Muon's source, which trade exactness for speed. The matrix is first scaled to norm 1; after
    three rounds, singular values that were at least 0.02 are between 0.68 and 1.21, and smaller ones are below that.
    precision: dtype of the products. Default: the matrix's.
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
