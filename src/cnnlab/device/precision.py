"""Number formats of a step: float32, bfloat16, float16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 exactly on CUDA, without tf32, which rounds the factors in convolutions to ten bits."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Compute convolutions and matrix products in `precision`, everything else in float32."""
    enabled = precision != torch.float32
    return torch.autocast(device.type, dtype=precision if enabled else torch.bfloat16, enabled=enabled)


def upcast(x: Tensor) -> Tensor:
    """Return 16-bit tensors as float32 and others unchanged: for a loss after `autocast`."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def grad_scaler(
    device: torch.device, precision: torch.dtype, state: dict[str, Any] | None = None
) -> torch.amp.GradScaler | None:
    """Return the gradient scaler that float16 needs, restored from `state` if given; None for other precisions."""
    if precision != torch.float16:
        return None
    scaler = torch.amp.GradScaler(device.type)
    if state:
        scaler.load_state_dict(state)
    return scaler
