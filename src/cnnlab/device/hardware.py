"""Everything that depends on the hardware: the device, threads, timers, determinism, what a report should name."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab.io.errors import CnnlabError, unknown

KINDS = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises: CnnlabError where that device is unknown or absent.
    """
    kind, _, index = name.partition(":")
    if kind not in KINDS or (index and not (index.isdigit() and kind == "cuda")):
        raise unknown("device", name, KINDS)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        kind = next(k for k in ("cuda", "mps", "cpu") if present[k])
    if not present[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise CnnlabError(
            f"device {name!r} is not available to torch {torch.__version__} here; use --device auto or cpu"
        )
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device(kind)


def available_cores() -> int:
    """Processor cores that this process may use: its affinity and its container's quota, not what is in the box."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file outside Linux containers; "max" where there is no quota
        pass
    return cores


def physical_cores() -> int:
    """Of the cores that are ours, those with arithmetic of their own: two threads of one core count once."""
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for core in ours:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text())
        except OSError:  # another system: no telling
            return available_cores()
    return min(len(siblings), available_cores())


def check_threads(threads: int | None) -> None:
    """Raises: CnnlabError where that number of threads is not one of ours; None is."""
    if threads is not None and not 1 <= threads <= available_cores():
        raise CnnlabError(f"threads={threads}: choose 1 to {available_cores()}, the cores that this process may use")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a step is computed here: what a machine may choose for its speed, which changes no more than rounding.

    compile: `off`, `record` (see cuda_graph.py), or a mode of torch.compile; why: how that came about, for a reader.
    """

    threads: int
    precision: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    compile: str = "off"
    why: str = ""

    @property
    def values(self) -> dict[str, str | int]:
        """As plain values, for a run's folder."""
        return {
            "threads": self.threads,
            "dtype": str(self.precision).removeprefix("torch."),
            "memory_format": str(self.memory_format).removeprefix("torch.").removesuffix("_format"),
            "compile": self.compile,
        }

    def __str__(self) -> str:
        dtype, layout = self.values["dtype"], self.values["memory_format"]
        how = {"off": "", "record": ", recorded"}.get(self.compile, f", compiled ({self.compile})")
        return f"{dtype}, {layout}{how}"


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@contextmanager
def memory_kept() -> Iterator[None]:
    """While this holds, memory that is let go of stays with the process, where the C library is glibc.

    Each step of a training asks for the same buffers again. By default glibc hands large ones back to the system each
    time, which must then clear every page anew: up to two thirds of a step on a processor (docs/log.md).
    """
    libc: Any = None
    if platform.system() == "Linux":
        with suppress(OSError):
            libc = ctypes.CDLL(None)
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # names of malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)  # never
    try:
        yield
    finally:
        # glibc's own defaults; the thresholds it would have adapted to large buffers by now, and no longer does.
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, 32 * 2**20)
        libc.mallopt(trim_threshold, 64 * 2**20)
        libc.malloc_trim(0)


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed every generator and make torch choose the same arithmetic each time, then put all that back.

    The same seed and thread count on the same machine and versions then give the same bits. The number of threads
    is part of it: it decides the order in which a sum over the batch is made.
    """
    # cuBLAS reads this when the first handle is made; without it some products are not repeatable.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a debugging aid
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        with memory_kept():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = before[2]
        torch.set_num_threads(before[3])
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if of_gpus:
            torch.cuda.set_rng_state_all(of_gpus)


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every generator: (tensors, plain values)."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        tensors["device"] = torch.mps.get_rng_state()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    name, internal, gauss_next = random.getstate()
    return tensors, {
        "numpy": [str(kind), int(position), int(has_gauss), float(gauss)],
        "python": [name, list(internal), gauss_next],
    }


def set_random_state(device: torch.device, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `random_state` gave. Raises: ValueError where it is not that, and as the generators do."""
    kind, position, has_gauss, gauss = values["numpy"]
    keys = tensors["numpy"]
    # NumPy believes a position, and would read beside its numbers.
    if type(position) is not int or not 0 <= position <= 624 or keys.shape != (624,) or keys.dtype != torch.int64:
        raise ValueError("NumPy's random state")
    torch.set_rng_state(tensors["torch"])
    if "device" in tensors:  # not where the run was begun on another kind of device
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors["device"], device)
        elif device.type == "mps":
            torch.mps.set_rng_state(tensors["device"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    name, internal, gauss_next = values["python"]
    random.setstate((name, tuple(internal), gauss_next))


def has_bfloat16(device: torch.device) -> bool:
    """Has the device units for bfloat16? Without them it is up to hundreds of times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not there in every torch
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in asked)


@contextmanager
def exact_float32() -> Iterator[None]:
    """While this holds, float32 is float32 on CUDA too, where convolutions else keep ten bits of each factor (tf32)."""
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def low_precision(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """While this holds, convolutions and matrix products compute in `precision`, all else in float32."""
    enabled = precision != torch.float32
    return torch.autocast(device.type, dtype=precision if enabled else torch.bfloat16, enabled=enabled)


def full_precision(x: Tensor) -> Tensor:
    """What came out of `low_precision`, ready for a loss: float32 in place of 16 bits; all else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def has_float16(device: torch.device) -> bool:
    """Is float16 what the device has units for, and not bfloat16? CUDA cards from 2017 to 2020."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 7


def loss_scaler(
    device: torch.device, precision: torch.dtype, state: dict[str, Any] | None = None
) -> torch.amp.GradScaler | None:
    """What float16 needs to keep small gradients, in the `state` that its `state_dict` gave; None for the others."""
    if precision != torch.float16:
        return None
    scaler = torch.amp.GradScaler(device.type)
    if state:
        scaler.load_state_dict(state)
    return scaler


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Stopwatch:
    """Seconds between `start` and `stop`, added to `seconds`, without making the host wait for a GPU.

    On a GPU the two marks are events in its queue, read when the epoch is over or saved; on the CPU they are the clock.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._marks: list[Any] = []
        self._seconds = seconds

    def start(self) -> None:
        """Begin a span."""
        self._marks.append(self._mark())

    def stop(self) -> None:
        """End the span that `start` began."""
        self._marks.append(self._mark())

    def seconds(self) -> float:
        """The sum so far. Call it after `synchronize`."""
        for begin, end in zip(self._marks[::2], self._marks[1::2], strict=True):
            self._seconds += end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000
        self._marks.clear()
        return self._seconds

    def _mark(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        return marked(self._device, timed=True)


def marked(device: torch.device, timed: bool = False) -> Any:
    """An event behind all that the device, a GPU, has been asked for."""
    event: Any
    if device.type == "mps":
        event = torch.mps.event.Event(enable_timing=timed)
        event.record()
    else:
        event = torch.cuda.Event(enable_timing=timed)
        event.record(torch.cuda.current_stream(device))  # unsaid: that of the first card
    return event


class PeakMemory:
    """The most memory that was held since this was made: on CUDA by tensors, else by the whole process."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._reset = device, False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with memory_kept():  # whose end gives back to the system what earlier calls have let go of
            gc.collect()
        with suppress(OSError):  # Linux sets the system's mark back to what is held now; others cannot
            self._reset = bool(Path("/proc/self/clear_refs").write_text("5"))
        self._before = _high_water()

    def bytes(self) -> int | None:
        """So many; None where the system does not tell, because the process had held more before."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        now = _high_water()
        return now if now is not None and (self._reset or now != self._before) else None


def _high_water() -> int | None:
    """Bytes: the system's mark of the most that this process held; None where it keeps none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):  # not on Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return None


class AsyncScalarReader:
    """Reads a small tensor of statistics for the display without stopping a GPU: what it tells may be a moment old."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copy: Tensor | None = None
        self._images = 0
        self._ready: torch.cuda.Event | None = None

    def __call__(self, statistics: Tensor, images: int) -> list[float] | None:
        """Each value divided by the images that it sums over, as of this call or an earlier one; None if not yet."""
        if self._device.type == "cpu":
            return [value / images for value in statistics.tolist()]
        if self._device.type != "cuda":  # MPS has no copy that does not wait: the display shows whole epochs there
            return None
        values = None
        if self._copy is not None and self._ready is not None and self._ready.query():
            values = [value / self._images for value in self._copy.tolist()]
            self._copy = None
        if self._copy is None:
            self._copy = torch.empty(statistics.shape, dtype=statistics.dtype, pin_memory=True)
            self._copy.copy_(statistics, non_blocking=True)
            self._images = images
            self._ready = marked(self._device)
        return values


def fits(images: Tensor, device: torch.device) -> bool:
    """May the whole set lie on the device? On CUDA: in half of the memory that is free, or kept but not in use, now."""
    if device.type != "cuda":
        return True
    free, kept = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
    if images.nbytes <= free // 2:
        return True
    if images.nbytes > (free + kept - torch.cuda.memory_allocated(device)) // 2:
        return False
    torch.cuda.empty_cache()
    return images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


class Feeder:
    """Batches of a uint8 set on the device: out of a copy of the set there or, where that does not fit, from the host.

    From the host, a batch is gathered into one of two pinned buffers and copied beside the device's work, while the
    device still computes on the batch before. What is given then is good until the next batch is asked for.
    """

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device, resident: bool | None = None) -> None:
        self.resident = fits(images, device) if resident is None else resident
        self._images = images.to(device) if self.resident else images  # (N, C, H, W) uint8
        self._labels = labels.to(device)  # (N,)
        self._device = device

    def __call__(self, order: Tensor, sizes: list[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """order: (N,) int64 on the host -> each batch: images (B, C, H, W) uint8, labels (B,), numbers (B,)."""
        # From pinned memory the host does not wait until all that was asked for is done.
        cuda = self._device.type == "cuda"
        there = order.pin_memory() if cuda else order
        numbers = there.to(self._device, non_blocking=cuda).split(sizes)
        if self.resident:
            for index in numbers:
                # Five times as fast on a processor as indexing, which does not see that whole images are copied.
                yield torch.index_select(self._images, 0, index), self._labels[index], index
        else:
            for x, index in zip(self._from_host(order.split(sizes)), numbers, strict=True):
                yield x, self._labels[index], index

    def _from_host(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        cuda = self._device.type == "cuda"
        shape = (2, max(map(len, parts), default=0), *self._images.shape[1:])
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
        here = torch.empty(shape, dtype=torch.uint8, device=self._device) if self._device.type != "cpu" else host
        side = torch.cuda.Stream(self._device) if cuda else None  # copies, while the other stream computes
        main = torch.cuda.current_stream(self._device) if cuda else None
        copied, used = ([torch.cuda.Event() for _ in range(2)] if cuda else [] for _ in range(2))
        if side and main:
            side.wait_stream(main)  # what lay in `here` before may still be in use

        def send(number: int) -> None:
            turn, n = number % 2, len(parts[number])
            if cuda:
                copied[turn].synchronize()  # two batches ago: the host may overwrite its buffer
            torch.index_select(self._images, 0, parts[number], out=host[turn, :n])
            if side:
                with torch.cuda.stream(side):
                    used[turn].wait()  # the device has read that batch
                    here[turn, :n].copy_(host[turn, :n], non_blocking=True)
                    copied[turn].record()
            elif here is not host:
                here[turn, :n].copy_(host[turn, :n])

        try:
            for number in range(len(parts)):
                if number == 0:
                    send(0)
                if number + 1 < len(parts):
                    send(number + 1)
                if main:
                    main.wait_event(copied[number % 2])
                yield here[number % 2, : len(parts[number])]
                if main:
                    used[number % 2].record(main)
        finally:
            if side and main:
                main.wait_stream(side)  # before anything else gets the memory of `here`


def device_name(device: torch.device) -> str:
    """The processor's or the card's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: torch.device, plan: Plan | int) -> dict[str, Any]:
    """What a figure depends on besides the recipe: versions, hardware, date, the plan (or only its threads)."""
    plan = Plan(threads=plan) if isinstance(plan, int) else plan
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "device_name": device_name(device),
        "cores": available_cores(),
        "processor": device_name(torch.device("cpu")),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: package_version(name) for name in ("cnnlab", "torch", "torchvision", "numpy", "pillow")},
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        **plan.values,
        "plan": plan.why,
        "precision": f"{plan.values['dtype']} in convolutions and matrix products, else float32"
        if plan.precision != torch.float32
        else "float32"
        if device.type == "cpu"
        else "float32 with torch's defaults (tf32 in convolutions on CUDA)",
        "deterministic": True,
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def package_version(package: str) -> str | None:
    """As its installer noted it; None where it was not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
