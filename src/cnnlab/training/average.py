"""Running averages of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cnnlab.recipe import Recipe


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
def averaged_weights(average: Average | None) -> Iterator[None]:
    """While this holds, the model has the averaged weights, where there are such."""
    if average is not None:
        average.exchange()
    try:
        yield
    finally:
        if average is not None:
            average.exchange()
