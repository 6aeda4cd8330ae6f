"""Devices, cores and their capabilities, and a description of the machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cnnlab.device.cgroups import available_cores as available_cores  # exported with the rest
from cnnlab.device.cgroups import read_text
from cnnlab.io.errors import CnnlabError, unknown

KINDS = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` prefers CUDA, then Apple's MPS, then the CPU.

    Raise CnnlabError for an unknown or absent device.
    """
    kind, _, index = name.partition(":")
    if kind not in KINDS or (index and not (index.isdecimal() and kind == "cuda")):
        raise unknown("device", name, KINDS)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        kind = next(k for k in ("cuda", "mps", "cpu") if present[k])
    if not present[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise CnnlabError(
            f"device {name!r} is not available to torch {torch.__version__} here; use --device auto or cpu"
        )
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device(kind)


def physical_cores() -> int:
    """Return the number of physical cores that this process may use: hyperthreads of one core count once."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    folder = Path("/sys/devices/system/cpu")
    siblings = {read_text(folder / f"cpu{core}/topology/thread_siblings_list") for core in usable}
    return available_cores() if "" in siblings else min(len(siblings), available_cores())  # "": not Linux


def check_threads(threads: int | None) -> None:
    """Check a number of threads; None is valid. Raise CnnlabError for more than the available cores."""
    if threads is not None and not 1 <= threads <= available_cores():
        raise CnnlabError(f"threads={threads}: choose 1 to {available_cores()}, the cores that this process may use")


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has hardware support for bfloat16, which is far slower than float32 without it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # missing in some versions of PyTorch
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def has_float16(device: torch.device) -> bool:
    """Return whether the device has hardware support for float16 but not bfloat16: CUDA GPUs of 2017 to 2020."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 7


def device_name(device: torch.device) -> str:
    """Return the name of the CPU or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in read_text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a measurement depends on besides the recipe and the plan: versions, hardware, date."""
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
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
