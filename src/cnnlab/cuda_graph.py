"""A training step recorded on a CUDA device and played again: the host asks for one thing in place of hundreds.

A step of a small network is a hundred kernels of some microseconds each, and asking for one takes the host as long.
Played from a CUDA graph the same kernels follow each other without the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.device import Plan
from cnnlab.errors import reason
from cnnlab.optim import Muon

# What of Plan.compile is recorded; `reduce-overhead` makes graphs of its own, of parts of a step.
MODES = ("record", "default", "max-autotune-no-cudagraphs")
# Steps of one kind that are computed before it is recorded: libraries are loaded, and code compiled, by the first.
WARM_UP = 3
# Kinds of steps that are recorded: images grow, and an epoch's last batch is smaller.
_MOST = 8

Step = Callable[..., tuple[Tensor, Tensor]]


def step_of(
    train_step: Step,
    plan: Plan,
    device: torch.device,
    scaler: torch.amp.GradScaler | None = None,
    careful: bool = False,
    told: Callable[[str], None] = print,
) -> Step:
    """`train_step` as that plan computes it: itself or, on a CUDA device, recorded.

    Not recorded are steps for which the host waits for the device: scaled ones, and careful ones (see `train_step`).
    """
    if device.type != "cuda" or plan.compile not in MODES or scaler is not None or careful:
        return train_step
    return RecordedStep(train_step, device, told)


def first_played(step: Step) -> int:
    """The number, from 0, of the first call that takes no longer than the next: for whoever measures it."""
    return WARM_UP + 1 if isinstance(step, RecordedStep) else 1


class RecordedStep:
    """Called as `train_step`, and the same update: the first of a kind are computed, then one is recorded, the others
    are played. A kind is the network and the shapes of its batch.

    What the host gives the optimiser in each step (a learning rate, Adam's corrections) lies in tensors on the device
    meanwhile, in float32, for steps that are not played, too: so a run that was stopped and goes on, recording anew,
    comes to the same bits. Where a step cannot be recorded all are computed, and `told` is given a line.
    """

    def __init__(self, train_step: Step, device: torch.device, told: Callable[[str], None] = print) -> None:
        self._train_step, self._device, self._told = train_step, device, told
        self._numbers: Tensor | None = None
        self._sent: list[float] = []  # what they are
        self._kinds: dict[Any, int | _Played | None] = {}  # so often computed; its recording; None: it has none
        self._refused = False
        self._pool: Any = None  # memory of all recordings: no two are played at once

    def __call__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        y: Tensor,
        label_smoothing: float = 0.0,
        precision: torch.dtype = torch.float32,
        scaler: torch.amp.GradScaler | None = None,
        careful: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """As `train_step`: mean loss and number of hits, on the device."""
        assert scaler is None
        assert not careful
        self._send(_numbers(optimizer))
        kind = (id(model), x.shape, x.stride(), y.shape, label_smoothing, precision)
        known = self._kinds.setdefault(kind, None if self._refused else 0)
        if known == WARM_UP:
            known = self._kinds[kind] = self._recorded(model, optimizer, x, y, label_smoothing, precision)
        if isinstance(known, _Played):
            return known(x, y)
        if known is not None:
            self._kinds[kind] = known + 1
        assert self._numbers is not None
        with _from_device(optimizer, self._numbers):
            return self._train_step(model, optimizer, x, y, label_smoothing, precision)

    def _send(self, numbers: list[float]) -> None:
        if numbers == self._sent:  # a constant rate
            return
        self._sent = numbers
        # From pinned memory the host does not wait; it is not given out again before the copy is made.
        host = torch.tensor(numbers, pin_memory=self._device.type == "cuda")
        if self._numbers is None:
            self._numbers = torch.empty_like(host, device=self._device)
        self._numbers.copy_(host, non_blocking=True)

    def _recorded(self, model: nn.Module, optimizer: torch.optim.Optimizer, *batch: Any) -> _Played | None:
        """The step's recording, not yet played; None where there can be none."""
        if sum(isinstance(k, _Played) for k in self._kinds.values()) == _MOST:
            return None
        assert self._numbers is not None
        try:
            with _from_device(optimizer, self._numbers):
                played = _Played(self._train_step, model, optimizer, batch, self._pool)
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            self._told(f"note: steps are computed one by one, as they cannot be recorded: {reason(error)[:200]}")
            self._refused = True
            return None
        self._pool = played.pool
        return played


class _Played:
    """One recording: a batch is copied to where it reads, and its kernels run."""

    def __init__(
        self,
        train_step: Step,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: tuple[Any, ...],
        pool: Any = None,
    ) -> None:
        x, y, *how = batch
        self._model = model  # whose number is its kind's: no other may get it
        self._x, self._y = x.clone(), y.clone()
        self._graph = torch.cuda.CUDAGraph()
        device = x.device
        # torch.cuda.graph would first give all spare memory back, and ask for it again: half of what this takes.
        if torch.cuda.memory_reserved(device) > torch.cuda.mem_get_info(device)[1] // 3:
            torch.cuda.empty_cache()
        torch.cuda.synchronize(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # thread_local: a checkpoint may be on its way to the disk, in another thread.
            self._graph.capture_begin(pool, "thread_local")
            try:
                self._answer = train_step(model, optimizer, self._x, self._y, *how)
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)
        self.pool = self._graph.pool()

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        loss, hits = self._answer
        return loss.clone(), hits.clone()  # the next step writes over them


def _numbers(optimizer: torch.optim.Optimizer) -> list[float]:
    """What the host gives the optimiser for the next update."""
    if isinstance(optimizer, Muon):
        return optimizer.numbers()
    return [float(group["lr"]) for group in optimizer.param_groups]


@contextmanager
def _from_device(optimizer: torch.optim.Optimizer, numbers: Tensor) -> Iterator[None]:
    """While this holds, the optimiser reads its numbers from the device."""
    if isinstance(optimizer, Muon):
        optimizer.given = list(numbers.unbind())
        try:
            yield
        finally:
            optimizer.given = None
        return
    before: list[dict[str, Any]] = [
        {k: group[k] for k in ("lr", "capturable") if k in group} for group in optimizer.param_groups
    ]
    for group, rate in zip(optimizer.param_groups, numbers.unbind(), strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)
