"""Running averages of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cnnlab.recipe import Recipe


class Average:
    """An exponential moving average of the model's parameters and buffers.

    ema: the average is evaluated and saved; the training does not see it. lookahead: the model also continues from each
    new average (M. Zhang, J. Lucas, G. Hinton, J. Ba, Lookahead optimizer, NeurIPS 2019). The running statistics
    of batch norm are averaged as well, because they belong to the weights. The decay after n updates is at most
    n / (n + 9), so that an early average forgets the initial weights.
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
        """Update the average, if it is due after update number `step` (from 0)."""
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
        """Swap the model's tensors with the averaged ones. A second call restores both."""
        for name, own in self._floats().items():
            copy = own.clone()
            own.copy_(self.tensors[name])
            self.tensors[name].copy_(copy)


@contextmanager
def averaged_weights(average: Average | None) -> Iterator[None]:
    """Give the model the averaged weights, if there are any, inside the `with` block."""
    if average is not None:
        average.exchange()
    try:
        yield
    finally:
        if average is not None:
            average.exchange()
