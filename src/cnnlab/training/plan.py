"""How a step is computed on this machine, decided by measuring the real step where a run is long enough to gain.

What may be chosen (`device.Plan`): the memory format, the precision, compilation, the number of threads; each only
where the recipe says `auto` and nobody set it by hand. Whether to measure at all is decided by counting work, never by
the clock, and what was measured is kept in the user's cache for this machine, network and batch: so the same seed
gives the same bits again, though a trial's clock never shows the same time twice.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any

import torch
from platformdirs import user_cache_dir
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.device import memory
from cnnlab.device.fast_layers import with_fast_layers
from cnnlab.device.hardware import (
    FORMATS,
    PRECISIONS,
    Plan,
    available_cores,
    device_name,
    has_bfloat16,
    has_float16,
    loss_scaler,
    package_version,
    physical_cores,
    reproducible,
    synchronize,
)
from cnnlab.io.errors import CnnlabError, out_of_memory, reason
from cnnlab.io.files import read_json, write_json
from cnnlab.recipe import COMPILE, COMPILE_MODES, Recipe
from cnnlab.training.cuda_graph import first_played, step_of
from cnnlab.training.guard import not_repeatable, unrepeatable
from cnnlab.training.optim import make_optimizer
from cnnlab.training.step import Compiled, GuardedStep, train_step

# Below this many floating-point operations a run is over before a trial could pay: some seconds on two cores.
MEASURE_FROM = {"cpu": 1e12, "mps": 1e13, "cuda": 1e14}
# Compilation takes 10 to 60 seconds, and a trial of it as long again: about an hour's work of a processor, and some
# minutes of a large card (an H200 gains a quarter of airbench94's step for 18 seconds).
COMPILE_FROM = {"cpu": 1e15, "cuda": 3e16}
# A trial may take this share of the run's steps.
SHARE = 0.05
# What is not faster by this factor lies within a busy machine's noise; slower by that one, it is not tried again.
GAIN = 1.1
HOPELESS = 1.3


_compiled_before = ""  # what this process compiled last, where it may be used again


def compiled(model: nn.Module, mode: str, steps: str = "") -> nn.Module:
    """Return `model` with fast layers, as `step.Compiled` if `mode` is one of torch.compile's. The weights are shared.

    Call `train()` on both: the result's containers may be copies.

    What was compiled before in this process is let go: torch keeps few variants of one function's code, all networks
    go through one (`step.forward_loss`), and beyond the limit it would compute uncompiled without a word. steps: what
    else the code depends on, where the next call, if it says the same and has the same layers, shall use it: the next
    seed's.
    """
    global _compiled_before
    model = with_fast_layers(model, next((p.device for p in model.parameters()), torch.device("cpu")))
    if mode not in COMPILE_MODES:
        return model
    this = f"{steps}, {mode}: {model}" if steps else ""
    if not this or this != _compiled_before:
        torch._dynamo.reset()
    _compiled_before = this
    return Compiled(model, mode)


def plan(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    num_classes: int,
    count: int,
    device: torch.device,
    threads: int | None = None,
    earlier: dict[str, Any] | None = None,
    told: Callable[[str], None] = print,
    check: Callable[[], None] = lambda: None,
) -> Plan:
    """How to compute the steps of a run.

    build: gives the network, on the host; shape: (C, H, W) of an image; count: training images; threads: set by
    hand; earlier: values of the plan that a run began with, which are kept where this machine can; told: is given a
    line for the user; check: is called between the steps of a trial, and may raise.
    """
    default = _default(recipe, threads, device)
    if earlier:
        return _as_before(default, earlier, device, threads)
    candidates = _candidates(recipe, default, device, threads)
    if len(candidates) == 1 and (recipe.compile != "auto" or device.type not in COMPILE_FROM):
        return candidates[0]
    steps = recipe.epochs * -(-count // recipe.batch_size)
    # Of a trial: what is not counted, and two that are.
    least = 2 + first_played(default, device)
    if steps * SHARE < least * len(candidates):
        return replace(_first_guess(recipe, default, device), why="too few steps to measure")
    work = operations(build, shape) * recipe.epochs * count
    if work < MEASURE_FROM.get(device.type, 1e12):
        return replace(_first_guess(recipe, default, device), why="too short to measure")
    tries_compile = (
        recipe.compile == "auto" and work >= COMPILE_FROM.get(device.type, float("inf")) and _compiler(device)
    )
    if len(candidates) == 1 and not tries_compile:
        return candidates[0]
    key = _key(recipe, default, shape, num_classes, device, threads, tries_compile)

    def measured_before() -> Plan | None:
        values = _kept(key)
        if values is None:
            return None
        known = _from_values(default, values)
        uncompiled = _as_it_is(replace(known, compile=default.compile))
        as_asked = known == uncompiled or (tries_compile and known.compile in COMPILE_MODES)
        may_be_chosen = as_asked and uncompiled in candidates
        return replace(known, why="measured before on this machine") if may_be_chosen else None

    known = measured_before()
    if known is not None:
        return known
    rounds = min(3, int(steps * SHARE / (least * len(candidates))))
    most = int(steps * SHARE / (rounds * len(candidates)))  # all trials together keep to that share

    def timed(candidate: Plan) -> float:
        return seconds_per_step(candidate, recipe, build, shape, num_classes, device, most=most, check=check)

    told("trying how a step is fastest here ...")

    # Each round goes through all candidates, so that a busy moment does not hit one alone.
    found = dict.fromkeys(candidates, float("inf"))
    left = candidates
    for _ in range(rounds):
        for candidate in left:
            found[candidate] = min(found[candidate], timed(candidate))
        left = [c for c in candidates if found[c] < HOPELESS * min(found.values())]
        if len(left) < 2:
            break
    best = _best(found)
    if tries_compile:
        candidate = replace(best, compile="default")
        found[candidate] = timed(candidate)
        fastest = min(found, key=lambda c: found[c])
        if found[best] > GAIN * found[fastest]:
            best = fastest
    several = len({c.threads for c in found}) > 1
    times = {f"{c}, {c.threads} threads" if several else str(c): t for c, t in found.items()}
    if found[best] < float("inf"):  # else the run will say what is wrong, and the next is measured again
        # Another process may have measured meanwhile: then its answer holds for this one, too.
        known = measured_before()
        if known is not None:
            return known
        _keep(key, {"plan": best.values, "seconds_per_step": times}, told)
    speeds = ", ".join(f"{name}: {recipe.batch_size / t:,.0f}" for name, t in times.items())
    told(f"chosen by a trial: {best} (images/s of {speeds})")
    return replace(best, why=f"measured, images/s of {speeds}")


def fastest_plan(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    num_classes: int,
    device: torch.device,
    threads: int | None = None,
    seconds: float = 5.0,
) -> tuple[Plan, float]:
    """The fastest plan and its seconds per step (infinite: too large for the memory), measured now: for a benchmark.

    However short the recipe's run is, nothing is taken from an earlier call and nothing is kept. Once the trials have
    taken `seconds`, the candidates that are left are not tried, and the plan says so. Nothing is compiled.
    """
    recipe = replace(recipe, compile="auto" if recipe.compile in COMPILE_MODES else recipe.compile)
    candidates = _candidates(recipe, _default(recipe, threads, device), device, threads)
    found: dict[Plan, float] = {}
    began = time.perf_counter()
    for candidate in candidates:
        if found and time.perf_counter() - began > seconds:
            break
        found[candidate] = seconds_per_step(candidate, recipe, build, shape, num_classes, device, least=1)
    best = _best(found)
    speeds = ", ".join(f"{c}, threads {c.threads}: {recipe.batch_size / t:,.0f}" for c, t in found.items())
    rest = f"; no time was left for {len(candidates) - len(found)} more" if len(found) < len(candidates) else ""
    return replace(best, why=f"measured, images/s of {speeds}{rest}"), found[best]


def seconds_per_step(
    candidate: Plan,
    recipe: Recipe,
    build: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    num_classes: int,
    device: torch.device,
    least: int = 2,
    seconds: float = 0.2,
    most: int = 1000,
    check: Callable[[], None] = lambda: None,
) -> float:
    """Median time of the real step, on random images, after a warm-up: at least `least` steps, and some `seconds`.

    No more than `most` steps, warm-up included. check: called after each, and may raise. Infinite where the step needs
    more memory than there is, or cannot be compiled. No random state is touched.
    """
    with reproducible(0, candidate.threads):
        try:
            model = build().to(device).to(memory_format=candidate.memory_format).train()
            forward = compiled(model, candidate.compile)
            optimizer = make_optimizer(model, recipe, candidate.precision)
            x = torch.rand(recipe.batch_size, *shape, device=device).to(memory_format=candidate.memory_format)
            y = torch.randint(num_classes, (recipe.batch_size,), device=device)
            scaler = loss_scaler(device, candidate.precision)
            step = GuardedStep(scaler) if scaler else step_of(train_step, candidate, device)
            first = first_played(candidate, device)  # no earlier one counts
            times: list[float] = []
            for number in range(max(most, least + first)):
                began = time.perf_counter()
                step(forward, optimizer, x, y, recipe.label_smoothing, candidate.precision)
                synchronize(device)
                times.append(time.perf_counter() - began)
                check()
                if number >= least + first - 1 and sum(times[first:]) > seconds:
                    break
            return median(times[first:])
        except Exception as error:
            if not_repeatable(error):
                raise unrepeatable(error, recipe, device) from error
            if not out_of_memory(error) and not not_compiled(error):
                raise
            return float("inf")


def fitting_batch_size(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    num_classes: int,
    count: int,
    device: torch.device,
    threads: int | None = None,
) -> int:
    """The recipe's batch size or, where a step needs more memory than there is, the first half of it that fits.

    Tried with the real step on random images, `count` of them at most. Arguments as for `plan`. Raises: CnnlabError
    where not even two images fit.
    """
    plan, size = replace(_default(recipe, threads, device), compile="off"), recipe.batch_size
    while True:
        tried = replace(recipe, batch_size=min(size, count))
        with memory.limited() if device.type == "cpu" else contextlib.nullcontext():
            found = seconds_per_step(plan, tried, build, shape, num_classes, device, least=1, seconds=0.0)
        if found < float("inf"):
            return size
        if size < 4:
            raise CnnlabError(
                f"out of memory with batch_size={size} and images of {shape[1]} pixels; set a smaller image_size, or "
                "take a smaller network"
            )
        size //= 2


def not_compiled(error: BaseException) -> bool:
    """Did torch.compile fail, rather than the network?"""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _default(recipe: Recipe, threads: int | None, device: torch.device) -> Plan:
    """What the recipe and the caller have set; for all else what needs no trial."""
    # Recording takes no longer than some steps.
    records = device.type == "cuda" and recipe.on_nan != "skip"
    plan = Plan(
        threads=threads or available_cores(),
        precision=PRECISIONS.get(recipe.precision, torch.float32),
        memory_format=FORMATS.get(recipe.memory_format, torch.contiguous_format),
        compile=recipe.compile if recipe.compile != "auto" else "record" if records else "off",
        why="as the recipe says",
    )
    return _as_it_is(plan)


def _as_it_is(plan: Plan) -> Plan:
    """float16's steps are not recorded."""
    return replace(plan, compile="off") if plan.compile == "record" and plan.precision == torch.float16 else plan


def _best(found: dict[Plan, float]) -> Plan:
    """The fastest; the first, unless that is clearly slower."""
    best = min(found, key=lambda c: found[c])
    first = next(iter(found))
    return first if found[first] < GAIN * found[best] else best


def _candidates(recipe: Recipe, default: Plan, device: torch.device, threads: int | None) -> list[Plan]:
    """All that may be chosen, compilation aside; first what is taken unless another is clearly faster."""
    first = _first_guess(recipe, default, device)
    precisions = {first.precision: None, **({torch.float32: None} if recipe.precision == "auto" else {})}
    formats = {first.memory_format: None, **(dict.fromkeys(FORMATS.values()) if recipe.memory_format == "auto" else {})}
    counts = {first.threads: None}
    if threads is None and device.type == "cpu":
        counts[physical_cores()] = None
    return [
        _as_it_is(replace(default, precision=p, memory_format=f, threads=n))
        for p in precisions
        for f in formats
        for n in counts
    ]


def _first_guess(recipe: Recipe, default: Plan, device: torch.device) -> Plan:
    """What is likely the fastest, before anything has been measured. 16 bits only where there are units for them.

    Those units take the channels of a pixel side by side, so channels_last comes with them.
    """
    if recipe.precision != "auto" or not (has_bfloat16(device) or has_float16(device)):
        return default
    guess = replace(default, precision=torch.bfloat16 if has_bfloat16(device) else torch.float16)
    return _as_it_is(replace(guess, memory_format=torch.channels_last) if recipe.memory_format == "auto" else guess)


def _as_before(default: Plan, earlier: dict[str, Any], device: torch.device, threads: int | None) -> Plan:
    found = _from_values(default, earlier)
    if (found.compile in COMPILE_MODES and not _compiler(device)) or (
        found.compile == "record" and device.type != "cuda"
    ):
        found = replace(found, compile="off")
    return replace(found, threads=threads or min(found.threads, available_cores()), why="as the run began")


def _from_values(default: Plan, values: dict[str, Any]) -> Plan:
    """The plan that `Plan.values` gave; what is missing or makes no sense is the default's."""
    threads, mode = values.get("threads"), values.get("compile")
    return replace(
        default,
        threads=threads if isinstance(threads, int) and threads >= 1 else default.threads,
        precision=PRECISIONS.get(str(values.get("dtype")), default.precision),
        memory_format=FORMATS.get(str(values.get("memory_format")), default.memory_format),
        compile=mode if mode in COMPILE else default.compile,
    )


def operations(build: Callable[[], nn.Module], shape: tuple[int, int, int]) -> float:
    """Floating-point operations of a training step, for one image: the forward pass's three times over."""
    with torch.device("meta"):
        model = build().to("meta").eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.zeros(1, *shape))
    return 3.0 * counter.get_total_flops()


def check_compile(recipe: Recipe, device: torch.device) -> None:
    """Raises: CnnlabError where the recipe asks for compilation, and there is no compiler here; or for a recording."""
    if recipe.compile == "record" and device.type != "cuda":
        raise CnnlabError(f"compile=record needs a CUDA device, and this is {device}; set compile=off")
    if recipe.compile in COMPILE_MODES and not _compiler(device):
        raise CnnlabError("compile needs a C++ compiler, and there is none here; install g++, or set compile=off")


def _compiler(device: torch.device) -> bool:
    return device.type == "cuda" or any(map(shutil.which, ("g++", "c++", "clang++", "cl")))


def _key(
    recipe: Recipe,
    default: Plan,
    shape: tuple[int, ...],
    num_classes: int,
    device: torch.device,
    threads: int | None,
    tries_compile: bool,
) -> str:
    """What the answer depends on."""
    what = {
        "machine": [device_name(device), device.type, available_cores(), physical_cores(), threads],
        "versions": [package_version("cnnlab"), torch.__version__],
        "step": [recipe.model, list(shape), num_classes, recipe.batch_size, recipe.optimizer],
        "asked": [recipe.precision, recipe.memory_format, recipe.compile, tries_compile, default.values],
    }
    return blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()


def _file(key: str) -> Path:
    return Path(user_cache_dir("cnnlab")) / "plans" / f"{key}.json"


def _kept(key: str) -> dict[str, Any] | None:
    with contextlib.suppress(CnnlabError, OSError):
        if _file(key).exists():
            found = read_json(_file(key)).get("plan")
            return found if isinstance(found, dict) else None
    return None


def _keep(key: str, values: dict[str, Any], told: Callable[[str], None]) -> None:
    try:
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(key), values)
    except OSError as error:
        told(
            f"note: cannot keep the trial's answer in {_file(key).parent}: {reason(error)}; the next such run tries "
            "again, and may compute in another way"
        )
