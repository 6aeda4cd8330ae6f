"""A training step recorded on a CUDA device and played again: the host asks for one thing in place of hundreds.

A step of a small network is a hundred kernels of some microseconds each, and asking for one takes the host as long.
Played from a CUDA graph the same kernels follow each other without the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.io.errors import reason
from cnnlab.training.muon import Muon
from cnnlab.training.plan import Plan

# What of Plan.compile is recorded; `reduce-overhead` makes graphs of its own, of parts of a step.
MODES = ("record", "default", "max-autotune-no-cudagraphs")
# Steps of one kind that are computed before it is recorded: libraries are loaded, and code compiled, by the first.
WARM_UP = 3
# Kinds of steps whose recordings are kept: an epoch's last batch is smaller, and images that grow do not shrink again.
_MOST = 4
# A step is recorded where it takes no more of the memory that could be had: what is computed beside it needs some, too,
# and of a step so large the host's share is small.
_SHARE = 0.4

Step = Callable[..., tuple[Tensor, Tensor]]


def uses_cuda_graph(plan: Plan, device: torch.device, careful: bool = False) -> bool:
    """Are that plan's steps recorded? Only on CUDA, and none for which the host waits for the device.

    Such are the scaled ones of float16, and careful ones (see `train_step`).
    """
    return device.type == "cuda" and plan.compile in MODES and plan.precision != torch.float16 and not careful


def make_step(
    train_step: Step,
    plan: Plan,
    device: torch.device,
    careful: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> Step:
    """`train_step` as that plan computes it: itself or, where it is recorded, a `RecordedStep`."""
    return RecordedStep(train_step, device, told) if uses_cuda_graph(plan, device, careful) else train_step


def warmup_steps(plan: Plan, device: torch.device) -> int:
    """The number, from 0, of the first step that takes no longer than the next: for whoever measures it."""
    return WARM_UP + 1 if uses_cuda_graph(plan, device) else 1


class RecordedStep:
    """Called as `train_step`, and the same update: the first of a kind are computed, then one is recorded, the others
    are played. A kind is the network and the shapes of its batch.

    What the host gives the optimiser in each step (a learning rate, Adam's corrections) lies in tensors on the device
    meanwhile, in float32, for steps that are not played, too: so a run that was stopped and goes on, recording anew,
    comes to the same bits. Where a step cannot be recorded, all that are not yet are computed, and `told` gets a line.
    The first call begins the device's peak of memory anew.
    """

    def __init__(self, train_step: Step, device: torch.device, told: Callable[[str], None] = lambda _: None) -> None:
        self._train_step, self._device, self._told = train_step, device, told
        self._numbers: Tensor | None = None
        self._sent: list[float] = []  # what they are
        self._kinds: dict[Any, int | _Played | None] = {}  # so often computed; its recording; None: it has none
        self._refused = False
        self._begun = False
        # One memory and one queue for all recordings: no two are played at once, so each may use what the others do.
        self._pool: Any = None
        self._stream: Any = None

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
        """As `train_step`: mean loss and number of hits, on the device. The hits are good until the next step."""
        assert scaler is None
        assert not careful
        if not self._begun:  # what a step takes at most is counted from here
            torch.cuda.reset_peak_memory_stats(self._device)
            self._begun = True
        self._send(_numbers(optimizer))
        kind = (id(model), x.shape, x.stride(), y.shape, label_smoothing, precision)
        known = self._kinds.setdefault(kind, None if self._refused else 0)
        if known == WARM_UP and not self._refused:
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
        assert self._numbers is not None
        taken, free = torch.cuda.max_memory_allocated(self._device), torch.cuda.mem_get_info(self._device)[0]
        if taken > _SHARE * (free + torch.cuda.memory_reserved(self._device)):
            self._refuse("they need too much of the memory")
            return None
        played = [kind for kind, known in self._kinds.items() if isinstance(known, _Played)]
        if len(played) == _MOST:
            self._kinds[played[0]] = None
        if taken > free:
            torch.cuda.empty_cache()  # while recording nothing can be given back
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(self._device), torch.cuda.graph_pool_handle()
        random = torch.cuda.get_rng_state(self._device)
        try:
            with _from_device(optimizer, self._numbers):
                return _Played(self._train_step, model, optimizer, batch, self._stream, self._pool)
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            with suppress(RuntimeError, AttributeError):  # in older torch memory is asked for as if it still recorded
                torch._C._cuda_endAllocateToPool(self._device.index or 0, self._pool)
            # Those recorded before would go on with the generator that is put away.
            self._kinds = dict.fromkeys(self._kinds)
            _fresh_generator(self._device, random)
            self._refuse(reason(error)[:200])
            return None

    def _refuse(self, why: str) -> None:
        self._refused = True
        self._told(f"note: steps are computed one by one: {why}")


def _fresh_generator(device: torch.device, state: Tensor) -> None:
    """After a recording that failed the device's generator may believe for good, in torch 2.11, to be in one."""
    fresh = torch.Generator(device)
    fresh.set_state(state)
    with suppress(AttributeError):  # older than that
        torch.cuda.default_generators[device.index or 0].graphsafe_set_state(fresh.graphsafe_get_state())


class _Played:
    """One recording: a batch is copied to where it reads, and its kernels run."""

    def __init__(
        self,
        train_step: Step,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: tuple[Any, ...],
        stream: Any,
        pool: Any,
    ) -> None:
        x, y, *how = batch
        self._model = model  # whose number is its kind's: no other may get it
        self._x, self._y = x.clone(), y.clone()
        self._graph = torch.cuda.CUDAGraph()
        buffers = [(m, name, buffer) for m in model.modules() for name, buffer in m._buffers.items()]
        main = torch.cuda.current_stream(x.device)
        # As torch.cuda.graph, which would give all spare memory back first, to ask for it again.
        torch.cuda.synchronize(x.device)
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            # thread_local: a checkpoint may be on its way to the disk, in another thread.
            self._graph.capture_begin(pool, "thread_local")
            try:
                self._answer = train_step(model, optimizer, self._x, self._y, *how)
            except BaseException:
                with suppress(RuntimeError):  # what went wrong first is what is told
                    self._graph.capture_end()
                raise
            else:
                self._graph.capture_end()
            finally:  # what was recorded was not computed, so no tensor of it may stay in the network
                moved = [(m, name, buffer) for m, name, buffer in buffers if m._buffers[name] is not buffer]
                for m, name, buffer in moved:
                    m._buffers[name] = buffer
        main.wait_stream(stream)
        if moved:  # played, it would always read the one and write to the other
            raise RuntimeError(f"the network puts another tensor in the place of its buffer {moved[0][1]}")

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        loss, hits = self._answer
        return loss.clone(), hits  # the next step writes over both, and losses are looked at later


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
