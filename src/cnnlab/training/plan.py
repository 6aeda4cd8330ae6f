"""How a step is computed on this machine: a `Plan`, and which plans a recipe allows. autotune.py measures them.

A plan may choose the memory format, the precision, compilation and the number of threads: each only where the recipe
says `auto` and the caller has not set it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.device import hardware
from cnnlab.device.fast_layers import with_fast_layers
from cnnlab.device.precision import PRECISIONS
from cnnlab.io.errors import CnnlabError
from cnnlab.models.own import is_own
from cnnlab.recipe import COMPILE, COMPILE_MODES, Recipe
from cnnlab.training.step import Compiled

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a step is computed: what may be chosen for speed because it changes only rounding.

    compile: `off`, `record` (see cuda_graph.py), or a mode of torch.compile. why: the reason, as text. seconds:
    the time of a step; 0 if it was not measured.
    """

    threads: int
    precision: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    compile: str = "off"
    why: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def values(self) -> dict[str, str | int]:
        """The plan as plain values, for a run's folder."""
        return {
            "threads": self.threads,
            "dtype": str(self.precision).removeprefix("torch."),
            "memory_format": str(self.memory_format).removeprefix("torch.").removesuffix("_format"),
            "compile": self.compile,
        }

    def with_values(self, values: dict[str, Any]) -> Plan:
        """Return the plan changed to `values` (see the property); missing and invalid ones are ignored."""
        threads, mode = values.get("threads"), values.get("compile")
        return replace(
            self,
            threads=threads if isinstance(threads, int) and threads >= 1 else self.threads,
            precision=PRECISIONS.get(str(values.get("dtype")), self.precision),
            memory_format=FORMATS.get(str(values.get("memory_format")), self.memory_format),
            compile=mode if mode in COMPILE else self.compile,
        )

    def possible(self) -> Plan:
        """Return the plan without incompatible settings: float16 steps cannot be recorded."""
        return replace(self, compile="off") if self.compile == "record" and self.precision == torch.float16 else self

    def environment(self, device: torch.device) -> dict[str, Any]:
        """Return `hardware.environment` with the plan's values, its reason and its precision in words."""
        precision = "float32"
        if device.type != "cpu":
            precision = "float32 with torch's defaults (tf32 in convolutions on CUDA)"
        if self.precision != torch.float32:
            precision = f"{self.values['dtype']} in convolutions and matrix products, else float32"
        return {
            **hardware.environment(device),
            **self.values,
            "plan": self.why,
            "precision": precision,
            "deterministic": True,
        }

    def __str__(self) -> str:
        mode = {"off": "", "record": ", recorded"}.get(self.compile, f", compiled ({self.compile})")
        return f"{self.values['dtype']}, {self.values['memory_format']}{mode}"


@dataclass(frozen=True)
class Workload:
    """The training to be planned.

    build: returns a new network on the host; shape: (C, H, W) of an image; count: training images; threads: set by
    the caller. Default: to be chosen.
    """

    recipe: Recipe
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    num_classes: int
    device: torch.device
    count: int = 0
    threads: int | None = None

    @property
    def steps(self) -> int:
        """The number of updates in the whole training, with one pass over the images per epoch."""
        return self.recipe.epochs * -(-self.count // self.recipe.batch_size)


def default_plan(work: Workload) -> Plan:
    """Return the plan that the recipe and the caller have set, with defaults that need no measurement for the rest."""
    recipe = work.recipe
    # Recording takes no longer than a few steps. The Python code of a custom network would run only while recording.
    records = work.device.type == "cuda" and recipe.on_nan != "skip" and not is_own(recipe.model)
    return Plan(
        threads=work.threads or hardware.available_cores(),
        precision=PRECISIONS.get(recipe.precision, torch.float32),
        memory_format=FORMATS.get(recipe.memory_format, torch.contiguous_format),
        compile=recipe.compile if recipe.compile != "auto" else "record" if records else "off",
        why="as the recipe says",
    ).possible()


def first_guess(work: Workload) -> Plan:
    """Return the plan that is probably the fastest, unmeasured: 16 bits only on a device with units for them.

    Such units read the channels of a pixel side by side, so channels_last comes with them.
    """
    default, recipe, bfloat16 = default_plan(work), work.recipe, hardware.has_bfloat16(work.device)
    if recipe.precision != "auto" or not (bfloat16 or hardware.has_float16(work.device)):
        return default
    memory_format = torch.channels_last if recipe.memory_format == "auto" else default.memory_format
    precision = torch.bfloat16 if bfloat16 else torch.float16
    return replace(default, precision=precision, memory_format=memory_format).possible()


def resumed_plan(work: Workload, earlier: dict[str, Any]) -> Plan:
    """Return the plan that a run started with (`Plan.values`), as far as this machine supports it."""
    plan, device = default_plan(work).with_values(earlier), work.device
    possible = {"record": device.type == "cuda", **dict.fromkeys(COMPILE_MODES, has_compiler(device))}
    # The recipe's "off" may be newer than the run: several processes do not compile.
    if work.recipe.compile == "off" or not possible.get(plan.compile, True):
        plan = replace(plan, compile="off")
    threads = work.threads or min(plan.threads, hardware.available_cores())
    return replace(plan, threads=threads, why="as the run started")


def candidates(work: Workload) -> list[Plan]:
    """Return all plans that may be chosen, apart from compilation. The first one wins unless another is faster."""
    first, recipe = first_guess(work), work.recipe
    precisions = {first.precision: None, **({torch.float32: None} if recipe.precision == "auto" else {})}
    formats = {first.memory_format: None, **(dict.fromkeys(FORMATS.values()) if recipe.memory_format == "auto" else {})}
    threads = {first.threads: None}
    if work.threads is None and work.device.type == "cpu":
        threads[hardware.physical_cores()] = None
    default = default_plan(work)
    return [
        replace(default, precision=p, memory_format=f, threads=n).possible()
        for p in precisions
        for f in formats
        for n in threads
    ]


_compiled_before = ""  # key of what this process compiled last; empty if it cannot be reused


def prepare_model(model: nn.Module, mode: str, steps: str = "") -> nn.Module:
    """Return `model` with fast layers, in a `step.Compiled` if `mode` is one of torch.compile's. Weights are shared.

    Call `train()` on both: the result's containers may be copies. Earlier compiled code of this process is dropped:
    PyTorch keeps few variants of one function, all networks share `step.forward_loss`, and beyond the limit PyTorch
    would silently not compile. steps: what else the code depends on. The next call with the same `steps` and layers,
    such as for the next seed, reuses the code.
    """
    global _compiled_before
    model = with_fast_layers(model, next((p.device for p in model.parameters()), torch.device("cpu")))
    if mode not in COMPILE_MODES:
        return model
    key = f"{steps}, {mode}: {model}" if steps else ""
    if not key or key != _compiled_before:
        torch._dynamo.reset()
    _compiled_before = key
    return Compiled(model, mode)


def is_compile_error(error: BaseException) -> bool:
    """Return whether torch.compile failed, not the network."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def has_compiler(device: torch.device) -> bool:
    """Return whether torch.compile can work: it needs a C++ compiler on the CPU."""
    return device.type == "cuda" or any(map(shutil.which, ("g++", "c++", "clang++", "cl")))


def check_compile(recipe: Recipe, device: torch.device) -> None:
    """Check the recipe's `compile`. Raise CnnlabError if there is no compiler, or no CUDA device for `record`."""
    if recipe.compile == "record" and device.type != "cuda":
        raise CnnlabError(f"compile=record needs a CUDA device, and this is {device}; set compile=off")
    if recipe.compile in COMPILE_MODES and not has_compiler(device):
        raise CnnlabError("compile needs a C++ compiler, and there is none here; install g++, or set compile=off")


def operations(build: Callable[[], nn.Module], shape: tuple[int, int, int], device: str = "meta") -> float:
    """Return the floating-point operations per image of a training step: three times the forward pass's.

    device: `cpu` for a network that may read the values of its tensors.
    """
    with torch.device(device):
        model = build().to(device).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.zeros(1, *shape))
    return 3.0 * counter.get_total_flops()
