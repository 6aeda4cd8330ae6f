"""One-line errors for a failing training, and detection of NaN and Inf without making the host wait for a GPU."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.device.timing import record_event
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.recipe import Recipe
from cnnlab.training.optim import learning_rate
from cnnlab.training.own import resume_call
from cnnlab.training.runs import Run

# Seconds between two reads of the losses on a GPU. MPS has no asynchronous copy.
_INTERVAL = {"cuda": 0.02, "mps": 1.0}
# After this many consecutive skipped updates the training ends: the next would be skipped too.
_MAX_SKIPPED = 20


class NonFinite(Exception):
    """A loss or weight became NaN or Inf at update number `step` (from 0), with `per_epoch` updates in an epoch.

    skippable: skipping such updates would help.
    """

    def __init__(self, problem: str, step: int, per_epoch: int, *, skippable: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.step, self.per_epoch, self.skippable = problem, step, per_epoch, skippable


class NonFiniteMonitor:
    """A monitor of losses and weights for NaN and Inf.

    On the CPU each loss is checked at once. With CUDA the losses since the last check are copied asynchronously, many
    times a second, and checked once they have arrived: the host never waits, yet learns which step it was. With MPS
    they are read once a second. skips: the steps skip such updates themselves (see `GuardedStep`).
    """

    def __init__(self, device: torch.device, per_epoch: int, skips: bool) -> None:
        self._device, self._per_epoch, self._skips = device, per_epoch, skips
        self._next_read, self._skipped_in_a_row = 0.0, 0
        self._steps: list[int] = []  # not yet copied
        self._losses: list[Tensor] = []
        self._copy: tuple[list[int], Tensor, Any] | None = None  # steps; losses, on the host after the event

    def check_loss(self, step: int, loss: Tensor) -> bool:
        """Return whether update number `step`, with that loss, was made. Raise NonFinite, now or at a later step."""
        if self._skips:
            updated = math.isfinite(loss.item())  # the step has waited for the device already
            self._skipped_in_a_row = 0 if updated else self._skipped_in_a_row + 1
            if self._skipped_in_a_row == _MAX_SKIPPED:
                raise NonFinite(f"the loss was NaN or Inf {_MAX_SKIPPED} times in a row", step, self._per_epoch)
            return updated
        if self._device.type == "cpu":
            self._check([step], [loss.item()])  # nothing to wait for
            return True
        self._steps.append(step)
        self._losses.append(loss)
        if self._copy is not None and self._copy[2].query():
            self._receive()
        now = time.perf_counter()
        if self._copy is None and now >= self._next_read:
            self._next_read = now + _INTERVAL[self._device.type]
            self._send()
        return True

    def check(self, step: int, model: nn.Module) -> None:
        """Check all losses so far, and the weights after update number `step`. Wait for the device. Raise NonFinite."""
        if self._copy is not None:
            self._copy[2].synchronize()
            self._receive()
        if self._losses:
            steps, losses = self._steps, torch.stack(self._losses)
            self._steps, self._losses = [], []
            self._check(steps, losses.tolist())
        tensors = [t for t in model.state_dict().values() if t.is_floating_point()]  # running statistics, too
        if not bool(torch.stack([t.isfinite().all() for t in tensors]).all()):
            raise NonFinite("a weight became NaN or Inf", step, self._per_epoch)

    def _send(self) -> None:
        losses = torch.stack(self._losses)
        if self._device.type == "mps":
            self._check(self._steps, losses.tolist())
        else:
            copy = torch.empty(len(losses), pin_memory=True)
            copy.copy_(losses, non_blocking=True)
            self._copy = (self._steps, copy, record_event(self._device))
        self._steps, self._losses = [], []

    def _receive(self) -> None:
        assert self._copy is not None
        steps, copy, _ = self._copy
        self._copy = None
        self._check(steps, copy.tolist())

    def _check(self, steps: list[int], losses: list[float]) -> None:
        for step, loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                raise NonFinite(f"the loss became {loss:g}", step, self._per_epoch, skippable=True)


def divergence_error(error: NonFinite, run: Run, saved: str) -> CnnlabError:
    """Return the error, with remedies. saved: what is saved, in words."""
    recipe = run.recipe
    steps = recipe.epochs * error.per_epoch
    rate = learning_rate(recipe, error.step, steps)
    remedies = [f"--set learning_rate={recipe.learning_rate / 3:.3g}"]
    if recipe.schedule in ("constant", "step"):
        remedies.append("--set schedule=one-cycle")  # it starts low
    if recipe.precision != "float32":
        remedies.append("--set precision=float32")
    call = resume_call(run.path, recipe, run.builder, run.augment, on_nan="skip")
    skip = f"; or skip such updates: {call}" if error.skippable else ""
    return CnnlabError(
        f"{error.problem} at step {error.step + 1} of {steps} (epoch {error.step // error.per_epoch + 1} of "
        f"{recipe.epochs}) at a learning rate of {rate:g}; {saved} in {run.path}. Try {' or '.join(remedies)}{skip}"
    )


def is_nondeterministic(error: BaseException) -> bool:
    """Return whether PyTorch refused an operation that has no deterministic implementation on the device."""
    return isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(error)


def nondeterminism_error(error: BaseException, recipe: Recipe, device: torch.device) -> CnnlabError:
    """Return the error to raise where `is_nondeterministic` holds."""
    return CnnlabError(
        f"{recipe.model} cannot be trained deterministically on {device}: {reason(error, 100)}; choose "
        "another network, or --device cpu"
    )


def memory_error(recipe: Recipe, image_size: int) -> CnnlabError:
    """Return the error for a step that needs more memory than is available."""
    size = recipe.batch_size
    remedy = "a smaller image_size"
    if size > 1:
        remedy = (
            f"--set batch_size={size // 2} or a smaller image_size; cnnlab train --auto-batch finds a batch that fits"
        )
    return CnnlabError(f"out of memory with batch_size={size} and images of {image_size} pixels; try {remedy}")
