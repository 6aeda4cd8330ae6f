"""A training step recorded as a CUDA graph and replayed: the host launches one graph instead of hundreds of kernels.

A step of a small network is a hundred kernels of a few microseconds each, and launching one takes the host as long.
Replayed from a CUDA graph, the kernels run back to back without the host.
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

# Values of Plan.compile for which steps are recorded; `reduce-overhead` makes CUDA graphs of its own.
MODES = ("record", "default", "max-autotune-no-cudagraphs")
# Steps of one kind that run before one is recorded: the first loads libraries and compiles code.
WARM_UP = 3
# Number of recordings that are kept, one per kind of step. The last batch of an epoch is smaller; growing images never
# shrink again.
_MAX_RECORDINGS = 4
# A step that uses a larger fraction of the available memory is not recorded: everything else needs memory as well,
# and launch overhead is a small fraction of such a large step.
_MAX_MEMORY_FRACTION = 0.4

Step = Callable[..., tuple[Tensor, Tensor]]


def uses_cuda_graph(plan: Plan, device: torch.device) -> bool:
    """Return whether the plan's steps are recorded: on CUDA, except for float16, whose scaler makes the host wait."""
    return device.type == "cuda" and plan.compile in MODES and plan.precision != torch.float16


def make_step(train_step: Step, plan: Plan, device: torch.device, log: Callable[[str], None] = lambda _: None) -> Step:
    """Return `train_step`, or a `RecordedStep` of it if the plan's steps are recorded. log: receives notes."""
    return RecordedStep(train_step, device, log) if uses_cuda_graph(plan, device) else train_step


def warmup_steps(plan: Plan, device: torch.device) -> int:
    """Return how many steps to run before timing the plan's steps."""
    return WARM_UP + 1 if uses_cuda_graph(plan, device) else 1


class RecordedStep:
    """A `train_step` that runs the first steps of a kind, records one, and replays it from then on.

    A kind is a network and the shapes of its batch. The numbers that the host computes for each update (the learning
    rate, Adam's bias corrections) are float32 tensors on the device, even for steps that are not replayed: a resumed
    run, which records anew, must end with the same bits. After the first failure no more steps are recorded: `log` gets
    a line, and steps without a recording run normally. The first call resets the device's peak memory statistics.
    """

    def __init__(self, train_step: Step, device: torch.device, log: Callable[[str], None] = lambda _: None) -> None:
        self._train_step, self._device, self._log = train_step, device, log
        self._scalars: Tensor | None = None
        self._sent: list[float] = []  # the values of _scalars
        self._kinds: dict[Any, int | _Recording | None] = {}  # steps run so far; the recording; None: not recorded
        self._disabled = False
        self._started = False
        # One memory pool and one stream for all recordings: no two are replayed at once.
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
    ) -> tuple[Tensor, Tensor]:
        """Update the model once; arguments and result: see `train_step`. The next call overwrites the correct count."""
        if not self._started:
            torch.cuda.reset_peak_memory_stats(self._device)  # _record reads the peak of a step
            self._started = True
        scalars = self._send(_host_scalars(optimizer))
        kind = (id(model), x.shape, x.stride(), y.shape, label_smoothing, precision)
        state = self._kinds.setdefault(kind, None if self._disabled else 0)
        if state == WARM_UP and not self._disabled:
            state = self._kinds[kind] = self._record(model, optimizer, x, y, label_smoothing, precision)
        if isinstance(state, _Recording):
            return state.replay(x, y)
        if state is not None:
            self._kinds[kind] = state + 1
        with _scalars_on_device(optimizer, scalars):
            return self._train_step(model, optimizer, x, y, label_smoothing, precision)

    def _send(self, values: list[float]) -> Tensor:
        if self._scalars is not None and values == self._sent:  # a constant learning rate
            return self._scalars
        self._sent = values
        # Pinned memory: the host does not wait, and PyTorch does not reuse the memory before the copy is done.
        host = torch.tensor(values, pin_memory=self._device.type == "cuda")
        if self._scalars is None:
            self._scalars = torch.empty_like(host, device=self._device)
        self._scalars.copy_(host, non_blocking=True)
        return self._scalars

    def _record(self, model: nn.Module, optimizer: torch.optim.Optimizer, *batch: Any) -> _Recording | None:
        """Return a recording of the step, not yet replayed, or None if it cannot be recorded."""
        assert self._scalars is not None
        used, free = torch.cuda.max_memory_allocated(self._device), torch.cuda.mem_get_info(self._device)[0]
        if used > _MAX_MEMORY_FRACTION * (free + torch.cuda.memory_reserved(self._device)):
            self._disable("they need too much of the memory")
            return None
        recorded = [kind for kind, state in self._kinds.items() if isinstance(state, _Recording)]
        if len(recorded) == _MAX_RECORDINGS:
            self._kinds[recorded[0]] = None
        if used > free:
            torch.cuda.empty_cache()  # impossible while recording
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(self._device), torch.cuda.graph_pool_handle()
        random = torch.cuda.get_rng_state(self._device)
        try:
            with _scalars_on_device(optimizer, self._scalars):
                return _Recording(self._train_step, model, optimizer, batch, self._stream, self._pool)
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            with suppress(RuntimeError, AttributeError):  # older PyTorch keeps allocating as if it still recorded
                torch._C._cuda_endAllocateToPool(self._device.index or 0, self._pool)
            # Earlier recordings hold the generator that is replaced here.
            self._kinds = dict.fromkeys(self._kinds)
            _replace_generator(self._device, random)
            self._disable(reason(error, 200))
            return None

    def _disable(self, why: str) -> None:
        self._disabled = True
        self._log(f"note: steps are not recorded as a CUDA graph: {why}")


def _replace_generator(device: torch.device, state: Tensor) -> None:
    """Replace the device's generator: after a failed recording, that of PyTorch 2.11 may stay in recording mode."""
    fresh = torch.Generator(device)
    fresh.set_state(state)
    with suppress(AttributeError):  # older PyTorch
        torch.cuda.default_generators[device.index or 0].graphsafe_set_state(fresh.graphsafe_get_state())


class _Recording:
    """One recorded step, with the tensors from which it reads its batch."""

    def __init__(
        self,
        train_step: Step,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: tuple[Any, ...],
        stream: Any,
        pool: Any,
    ) -> None:
        x, y, *options = batch
        self._model = model  # kept alive: its id() is part of the kind
        self._x, self._y = x.clone(), y.clone()
        self._graph = torch.cuda.CUDAGraph()
        buffers = [(m, name, buffer) for m in model.modules() for name, buffer in m._buffers.items()]
        main = torch.cuda.current_stream(x.device)
        # Like torch.cuda.graph, but without first freeing all cached memory, only to allocate it again.
        torch.cuda.synchronize(x.device)
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            # thread_local: another thread may be writing a checkpoint.
            self._graph.capture_begin(pool, "thread_local")
            try:
                self._outputs = train_step(model, optimizer, self._x, self._y, *options)
            except BaseException:
                with suppress(RuntimeError):  # the first error is the one to report
                    self._graph.capture_end()
                raise
            else:
                self._graph.capture_end()
            finally:  # recording computes nothing, so none of its tensors may stay in the network
                replaced = [(m, name, buffer) for m, name, buffer in buffers if m._buffers[name] is not buffer]
                for m, name, buffer in replaced:
                    m._buffers[name] = buffer
        main.wait_stream(stream)
        if replaced:  # a replay would always read the old tensor and write to the new one
            raise RuntimeError(f"the network replaces its buffer {replaced[0][1]} instead of changing it in place")

    def replay(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Copy the batch into the graph's input tensors and run the graph."""
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        loss, correct = self._outputs
        return loss.clone(), correct  # the next step overwrites both, and losses are read later


def _host_scalars(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the numbers that the host computes for the next update."""
    if isinstance(optimizer, Muon):
        return optimizer.scalars()
    return [float(group["lr"]) for group in optimizer.param_groups]


@contextmanager
def _scalars_on_device(optimizer: torch.optim.Optimizer, scalars: Tensor) -> Iterator[None]:
    """Let the optimizer read those numbers from `scalars`, on the device."""
    if isinstance(optimizer, Muon):
        optimizer.device_scalars = list(scalars.unbind())
        try:
            yield
        finally:
            optimizer.device_scalars = None
        return
    before: list[dict[str, Any]] = [
        {k: group[k] for k in ("lr", "capturable") if k in group} for group in optimizer.param_groups
    ]
    for group, rate in zip(optimizer.param_groups, scalars.unbind(), strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)
