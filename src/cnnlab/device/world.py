"""The processes that train one network together, started by torchrun and connected by torch.distributed.

Each batch is divided among them. Every process draws the random numbers for the whole batch, so the batches do not
depend on the number of processes.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from cnnlab.io.errors import CnnlabError, ReportedElsewhere, reason

T = TypeVar("T")
TIMEOUT = "CNNLAB_TIMEOUT"
"""Environment variable: seconds that a process waits for the others before it gives up. Default: 1800."""

connected = False  # whether this process has been connected to others


class World:
    """The processes of a training: this one is number `rank` of `size`. Without arguments: this one alone.

    local_size: processes on this machine. job: identifies the job across restarts of its processes; empty if
    nothing restarts them. restarted: whether torchrun has started the job again.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_size: int = 1, job: str = "", *, restarted: bool = False
    ) -> None:
        self.rank, self.size, self.local_size, self.job, self.restarted = rank, size, local_size, job, restarted

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def _parts(self, batch: int) -> list[slice]:
        """Return the rows of a batch that each process takes.

        Parts start at even rows, since mixup and CutMix mix neighbours. A batch too small for two images each is
        computed in full by every process: batch norm cannot train on one image.
        """
        pairs = batch // 2
        if self.size == 1 or pairs < self.size:
            return [slice(0, batch)] * self.size
        starts = [2 * (rank * pairs // self.size) for rank in range(self.size)]
        return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], batch], strict=True)]

    def rows(self, batch: int) -> slice:
        """Return this process's rows of a batch of `batch` images."""
        return self._parts(batch)[self.rank]

    def weight(self, batch: int) -> float:
        """Return the weight of this process's mean over its rows: the weighted means average to the batch's mean."""
        lengths = self.lengths(batch)
        return lengths[self.rank] * self.size / sum(lengths)

    def lengths(self, batch: int) -> list[int]:
        """Return how many images of a batch each process takes."""
        return [len(range(batch)[part]) for part in self._parts(batch)]

    def copies(self, batch: int) -> int:
        """Return how many processes compute each image of a batch."""
        return 1 if batch // 2 >= self.size else self.size

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes. Raise CnnlabError if one has ended."""
        if self.size > 1:
            tensor = tensor.clone()
            with _lost():
                dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether any process's flag is set."""
        return bool(self.sum(torch.tensor(int(flag))).item()) if self.size > 1 else flag

    def seed_step(self, seed: int, step: int) -> None:
        """Seed PyTorch's generators for a step, so that dropout differs between processes. The first keeps its seed."""
        if self.rank:
            torch.manual_seed((seed * 1_000_003 + step) * self.size + self.rank)

    def broadcast_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the first process."""
        if self.size > 1:
            with _lost():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, in their order: plain values or tensors on the CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _lost():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, call: Callable[[], T]) -> T:
        """Return what `call` returns in the first process, while the others wait.

        Raise its CnnlabError or KeyboardInterrupt in the first process, and ReportedElsewhere in the others.
        """
        if self.size == 1:
            return call()
        answer: list[Any] = [None, None]
        caught: BaseException | None = None
        if self.first:
            try:
                answer[0] = call()
            except (CnnlabError, KeyboardInterrupt) as error:
                caught, answer[1] = error, str(error) or "stopped"
        with _lost():
            dist.broadcast_object_list(answer, 0)
        if caught is not None:
            raise caught
        if answer[1] is not None:
            raise ReportedElsewhere(answer[1])
        value: T = answer[0]
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise a CnnlabError of any process in all of them, at the end of the `with` block."""
        caught: CnnlabError | None = None
        try:
            yield
        except CnnlabError as error:
            if self.size == 1 or isinstance(error, ReportedElsewhere):
                raise
            caught = error
        errors = self.gather((platform.node(), str(caught)) if caught is not None else None)
        for rank, found in enumerate(errors):
            if found is not None:
                if not self.first:
                    raise ReportedElsewhere(found[1]) from caught
                if rank == 0 and caught is not None:
                    raise caught
                raise CnnlabError(f"process {rank} of {self.size}, on {found[0]}: {found[1]}") from caught


@contextmanager
def _lost() -> Iterator[None]:
    """Turn the error of torch.distributed after another process has ended, or is cut off, into a CnnlabError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise lost_error(error) from error


def is_lost(error: BaseException) -> bool:
    """Return whether an error of a step means that another process has ended. DDP raises it outside `_lost`."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def lost_error(error: BaseException) -> CnnlabError:
    """Return the error for a process that has lost the others."""
    what = "another process of the training has ended or cannot be reached"
    return CnnlabError(f"{what}: {reason(error, 120)}")


def launched() -> bool:
    """Return whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def processes() -> int:
    """Return how many processes torchrun has started; 1 for one alone."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank_here() -> int:
    """Return the rank of this process among those that torchrun has started, from 0; 0 for one alone."""
    return int(os.environ["RANK"]) if launched() else 0


def device_of_rank(device: torch.device) -> torch.device:
    """Return the GPU of this rank, if torchrun has started several processes and `device` is a GPU; else `device`.

    Raise CnnlabError if there is no GPU for this process.
    """
    if device.type != "cuda" or not launched():
        return device
    if local_rank() >= torch.cuda.device_count():
        raise CnnlabError(
            f"process {local_rank() + 1} on {platform.node()} has no GPU of its own: there are "
            f"{torch.cuda.device_count()}; start that many processes"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """Connect the processes that torchrun has started for the `with` block: NCCL between GPUs, gloo between CPUs.

    Raise CnnlabError for a device whose tensors cannot be exchanged, or if the others do not join.
    """
    if not launched():
        yield World()
        return
    if device.type not in ("cpu", "cuda"):
        raise CnnlabError(f"several processes cannot train on {device.type}; choose --device cpu or cuda")
    mine = not dist.is_initialized()
    if mine:
        seconds = _seconds(os.environ.get(TIMEOUT, "1800"))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _lost():
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
            store = fresh_store(store, rank, size, seconds)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=seconds)
            )
    global connected
    connected = True
    try:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        yield World(dist.get_rank(), dist.get_world_size(), local_size, _job(), restarted=restarted)
    finally:
        if mine:
            dist.destroy_process_group()


def fresh_store(store: Any, rank: int, size: int, seconds: float) -> Any:
    """Return a prefix of the store that no earlier start of the job has used, the same for all processes.

    torchrun keeps one store across restarts (PyTorch 2.14), with the addresses of processes that are gone, and a
    process that reads an old address waits for it. So each process writes a new id, and the first process publishes a
    list of them, beginning with its own, which is the prefix. It returns once all have found themselves in the list.
    Raise RuntimeError after `seconds`.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + seconds
    if rank:
        store.set(f"cnnlab/here/{rank}", own)
    while time.monotonic() < end:
        if rank == 0:
            here = [store.get(f"cnnlab/here/{other}").decode() for other in range(1, size)]
            store.set("cnnlab/all", " ".join([own, *here]))
            if store.check([f"cnnlab/{own}/{other}" for other in range(1, size)]):
                return PrefixStore(own, store)
        elif own in (found := store.get("cnnlab/all").decode().split()):
            store.set(f"cnnlab/{found[0]}/{rank}", "")
            return PrefixStore(found[0], store)
        time.sleep(0.05)
    raise RuntimeError(f"the {size} processes did not find each other within {seconds:g} s")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e6:
        raise CnnlabError(f"{TIMEOUT}={text[:40]!r}: expected a number of seconds, from 1 to 1,000,000")
    return seconds


def _job() -> str:
    """Return the name of the job, which stays the same when torchrun restarts it; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    # Without an id of its own, the job is identified by the agent's process, which outlives its workers.
    return f"{platform.node()}-{os.getppid()}" if name == "none" else name
