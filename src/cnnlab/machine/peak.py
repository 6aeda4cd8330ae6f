"""The peak speed of a device, the yardstick for the speed of a training step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cnnlab.device.determinism import reproducible
from cnnlab.device.timing import synchronize

SIZES = (512, 1024, 2048, 4096, 8192)


def peak(device: torch.device, precision: torch.dtype, threads: int) -> dict[str, Any]:
    """Return the highest operations per second of a product of two n x n matrices, for growing n, computed in two ways.

    `mm`: torch.mm; `conv`: the same product as a 1x1 convolution of 16 images, channels_last. On AMD CPUs torch.mm uses
    MKL in float32, at half the speed of oneDNN. Convolutions use oneDNN, but not always for fewer images. Keys of the
    result: `by`, the faster way; `size`, its n; `flops_per_second`, its speed.
    """
    best = {"mm": (0.0, 0), "conv": (0.0, 0)}
    with reproducible(0, threads), torch.no_grad():
        for n in SIZES:
            times = {name: _shortest_time(call, device) for name, call in products(n, device, precision).items()}
            best = {name: max(best[name], (2 * n**3 / took, n)) for name, took in times.items()}
            if min(times.values()) > 0.1:  # the next takes eight times as long
                break
    by = max(best, key=lambda name: best[name])
    speeds = {name: speed for name, (speed, _) in best.items()}
    return {"flops_per_second": speeds[by], "by": by, "size": best[by][1], "threads": threads, **speeds}


def products(n: int, device: torch.device, precision: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """Return two ways to compute one product: of (n, n), and of (16, n, h, w), a row per pixel. n: 64, 128, 256 ..."""
    a, b = (torch.rand(n, n, device=device).to(precision) for _ in range(2))
    height = 2 ** int(math.log2(n // 16) / 2)
    x = a.view(16, height, n // 16 // height, n).permute(0, 3, 1, 2)  # a view, channels_last
    filters = b.t().reshape(n, n, 1, 1).contiguous(memory_format=torch.channels_last)
    return {"mm": lambda: torch.mm(a, b), "conv": lambda: torch.conv2d(x, filters)}


def _shortest_time(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of at least three calls, after a warm-up."""
    times: list[float] = []
    while len(times) < 4 or sum(times[1:]) < 0.2:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
