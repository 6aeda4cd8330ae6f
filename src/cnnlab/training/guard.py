"""Numbers that are none, and memory that is not there: noticed without making the host wait, told in one line."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.device.hardware import marked
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.recipe import Recipe
from cnnlab.training.optim import learning_rate

# Seconds between two looks at a device that is not the host. MPS has no copy that does not wait.
_INTERVAL = {"cuda": 0.02, "mps": 1.0}
# So many updates left out, one after the other: the next would be, too.
_HOPELESS = 20


class NotFinite(Exception):
    """`what` became no finite number at update number `step` (from 0), with `each` of them an epoch.

    skippable: would leaving such updates out help?
    """

    def __init__(self, what: str, step: int, each: int, *, skippable: bool = False) -> None:
        super().__init__(what)
        self.what, self.step, self.each, self.skippable = what, step, each, skippable


class NonFiniteMonitor:
    """Looks out for losses and weights that are no finite numbers.

    On the CPU each loss is looked at as it comes. On a GPU those since the last look are copied beside its work, some
    times a second, and looked at once they have arrived: the host waits for nothing, and what it learns is a moment
    old. Which step it was is known all the same. skips: steps are careful (see `train_step`), and those that were left
    out do not count.
    """

    def __init__(self, device: torch.device, each: int, skips: bool) -> None:
        self._device, self._each, self._skips = device, each, skips
        self._due, self._left_out = 0.0, 0
        self._steps: list[int] = []  # those that have not been looked at, nor sent for
        self._losses: list[Tensor] = []
        self._sent: tuple[list[int], Tensor, Any] | None = None  # their copy on the host, and when it is there

    def counts(self, step: int, loss: Tensor) -> bool:
        """Was update number `step`, with that loss, made? Raises: NotFinite, here or at a later step."""
        if self._skips:
            made = math.isfinite(loss.item())  # a careful step has waited for it already
            self._left_out = 0 if made else self._left_out + 1
            if self._left_out == _HOPELESS:
                raise NotFinite(f"the loss was no finite number {_HOPELESS} times in a row, again", step, self._each)
            return made
        if self._device.type == "cpu":
            self._look([step], [loss.item()])  # nothing to wait for
            return True
        self._steps.append(step)
        self._losses.append(loss)
        if self._sent is not None and self._sent[2].query():
            self._receive()
        now = time.perf_counter()
        if self._sent is None and now >= self._due:
            self._due = now + _INTERVAL[self._device.type]
            self._send()
        return True

    def check(self, step: int, model: nn.Module) -> None:
        """Look at all losses so far, and at the weights after update number `step`; waits for the device.

        Raises: NotFinite.
        """
        if self._sent is not None:
            self._sent[2].synchronize()
            self._receive()
        if self._losses:
            steps, losses = self._steps, torch.stack(self._losses)
            self._steps, self._losses = [], []
            self._look(steps, losses.tolist())
        tensors = [t for t in model.state_dict().values() if t.is_floating_point()]  # running statistics, too
        if not bool(torch.stack([t.isfinite().all() for t in tensors]).all()):
            raise NotFinite("a weight became no finite number", step, self._each)

    def _send(self) -> None:
        losses = torch.stack(self._losses)
        if self._device.type == "mps":
            self._look(self._steps, losses.tolist())
        else:
            copy = torch.empty(len(losses), pin_memory=True)
            copy.copy_(losses, non_blocking=True)
            self._sent = (self._steps, copy, marked(self._device))
        self._steps, self._losses = [], []

    def _receive(self) -> None:
        assert self._sent is not None
        steps, copy, _ = self._sent
        self._sent = None
        self._look(steps, copy.tolist())

    def _look(self, steps: list[int], losses: list[float]) -> None:
        for step, loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                raise NotFinite(f"the loss became {loss:g}", step, self._each, skippable=True)


def diverged(found: NotFinite, path: Path, recipe: Recipe, kept: str) -> CnnlabError:
    """What a person is told. path: of the run; kept: what of it is."""
    steps = recipe.epochs * found.each
    rate = learning_rate(recipe, found.step, steps)
    remedies = [f"--set learning_rate={recipe.learning_rate / 3:.3g}"]
    if recipe.schedule in ("constant", "step"):
        remedies.append("--set schedule=one-cycle")  # which begins low
    if recipe.precision != "float32":
        remedies.append("--set precision=float32")
    skip = f"; or leave such updates out: cnnlab train --resume {path} --on-nan skip" if found.skippable else ""
    return CnnlabError(
        f"{found.what} at step {found.step + 1} of {steps} (epoch {found.step // found.each + 1} of {recipe.epochs}) "
        f"at a learning rate of {rate:g}; {kept} in {path}. Try {' or '.join(remedies)}{skip}"
    )


def not_repeatable(error: BaseException) -> bool:
    """Did torch refuse an operation that has no repeatable form on the device?"""
    return isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(error)


def unrepeatable(error: BaseException, recipe: Recipe, device: torch.device) -> CnnlabError:
    """What a person is told then."""
    return CnnlabError(
        f"{recipe.model} cannot be trained to the same weights each time on {device}: {reason(error)[:100]}; take "
        "another network, or --device cpu"
    )


def no_memory(recipe: Recipe, image_size: int) -> CnnlabError:
    """A step of the recipe, with images of `image_size` pixels, needs more memory than there is."""
    size = recipe.batch_size
    remedy = "a smaller image_size"
    if size > 1:
        remedy = f"--set batch_size={size // 2} or a smaller image_size; --auto-batch finds a batch that fits"
    return CnnlabError(f"out of memory with batch_size={size} and images of {image_size} pixels; try {remedy}")
