"""Reproducible computation: seeds, deterministic algorithms, states of the random generators."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab.device.memory import keep_freed_memory


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed every generator, use deterministic algorithms and `threads` CPU threads; restore everything at the end.

    The same seed and number of threads on the same machine and versions give the same bits. The number of threads
    decides the order in which a sum over the batch is added. A GPU's generator that has not been initialized before
    stays seeded.
    """
    cudnn, determinism = torch.backends.cudnn, torch.utils.deterministic
    cublas = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    flags = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill, benchmark, threads_before = (
        determinism.fill_uninitialized_memory,  # type: ignore[attr-defined]
        cudnn.benchmark,
        torch.get_num_threads(),
    )
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        # cuBLAS reads this when its first handle is created; without it some matrix products are not repeatable.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        deterministic_algorithms(True)
        determinism.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a debugging aid
        cudnn.benchmark = False
        torch.set_num_threads(threads)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        with keep_freed_memory():
            yield
    finally:
        if cublas is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        deterministic_algorithms(flags[0], warn_only=flags[1])
        determinism.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        cudnn.benchmark = benchmark
        torch.set_num_threads(threads_before)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def deterministic_algorithms(wanted: bool, warn_only: bool = False) -> None:
    """Do what `torch.use_deterministic_algorithms` does, without importing the compiler for its flag.

    That import takes two seconds, and only a compiled step needs it: call `deterministic_compiler` before compiling.
    """
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(wanted, warn_only=warn_only)
    else:
        torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if wanted else "default")


def deterministic_compiler() -> None:
    """Import the compiler, and let it choose kernels without timing them if deterministic algorithms are in use."""
    flags = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of all random generators: (tensors, plain values)."""
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
    """Restore what `random_state` returned.

    Raise ValueError for anything else, or what the generators raise.
    """
    kind, position, has_gauss, gauss = values["numpy"]
    keys = tensors["numpy"]
    # NumPy does not check the position and would read outside its array.
    if type(position) is not int or not 0 <= position <= 624 or keys.shape != (624,) or keys.dtype != torch.int64:
        raise ValueError("NumPy's random state is invalid")
    torch.set_rng_state(tensors["torch"])
    if "device" in tensors:  # absent if the run was started on another kind of device
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors["device"], device)
        elif device.type == "mps":
            torch.mps.set_rng_state(tensors["device"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    name, internal, gauss_next = values["python"]
    random.setstate((name, tuple(internal), gauss_next))
