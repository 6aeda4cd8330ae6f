"""Choosing a plan by timing real training steps, where the run is long enough to gain from it.

Whether to measure depends on operation counts, never on elapsed time, and results are kept in the user's cache for this
machine, network and batch. So the same seed gives the same bits again although no two measurements are equal.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any

import torch
from platformdirs import user_cache_dir

from cnnlab.device import hardware, memory
from cnnlab.device.determinism import reproducible
from cnnlab.device.precision import grad_scaler
from cnnlab.device.timing import synchronize
from cnnlab.io.errors import CnnlabError, out_of_memory, reason
from cnnlab.io.files import read_json, write_json
from cnnlab.models.own import is_own
from cnnlab.recipe import COMPILE_MODES
from cnnlab.training.cuda_graph import make_step, warmup_steps
from cnnlab.training.guard import is_nondeterministic, nondeterminism_error
from cnnlab.training.optim import make_optimizer
from cnnlab.training.plan import (
    Plan,
    Workload,
    candidates,
    default_plan,
    first_guess,
    has_compiler,
    is_compile_error,
    operations,
    prepare_model,
    resumed_plan,
)
from cnnlab.training.step import GuardedStep, train_step

# With fewer floating-point operations, a run is over before a measurement pays off: a few seconds on two cores.
MEASURE_FROM = {"cpu": 1e12, "mps": 1e13, "cuda": 1e14}
# Compilation takes 10 to 60 seconds, and measuring it as long again. These thresholds are about an hour's work for a
# CPU and a few minutes' for a large GPU (on an H200, 18 seconds of it save a quarter of each airbench94 step).
COMPILE_FROM = {"cpu": 1e15, "cuda": 3e16}
# Largest fraction of a run's steps that a measurement may take.
MAX_SHARE = 0.05
# A gain below MIN_GAIN lies within the noise of a busy machine; a plan slower by MAX_LAG is not timed again.
MIN_GAIN = 1.1
MAX_LAG = 1.3


def _nothing() -> None:
    pass


def choose_plan(
    work: Workload,
    earlier: dict[str, Any] | None = None,
    *,
    log: Callable[[str], None] = print,
    check: Callable[[], None] = _nothing,
) -> Plan:
    """Return the plan for the steps of a run, measured if that pays.

    earlier: the values of the plan that a resumed run started with. log: receives lines for the user. check: called
    after each timed step; may raise.
    """
    if earlier:
        return resumed_plan(work, earlier)
    recipe, plans = work.recipe, candidates(work)
    if len(plans) == 1 and (recipe.compile != "auto" or work.device.type not in COMPILE_FROM):
        return plans[0]
    # Steps per timing: the warm-up and two measured steps.
    min_steps = 2 + warmup_steps(default_plan(work), work.device)
    budget = work.steps * MAX_SHARE
    if budget < min_steps * len(plans):
        return replace(first_guess(work), why="too few steps to measure")
    flops = _total_operations(work)
    if flops < MEASURE_FROM.get(work.device.type, 1e12):
        return replace(first_guess(work), why="too short to measure")
    compile_from = COMPILE_FROM.get(work.device.type, float("inf"))
    tries_compile = recipe.compile == "auto" and flops >= compile_from and has_compiler(work.device)
    if len(plans) == 1 and not tries_compile:
        return plans[0]
    cache = _Cache(work, plans, tries_compile)
    if known := cache.read():
        return known
    log("timing several ways to compute a step ...")
    rounds = min(3, int(budget / (min_steps * len(plans))))
    max_steps = int(budget / (rounds * len(plans)))  # all timings together keep within the budget
    times = _measure(plans, rounds, lambda plan: time_step(work, plan, max_steps=max_steps, check=check))
    best = _best(times)
    if tries_compile:
        compiled = replace(best, compile="default")
        times[compiled] = time_step(work, compiled, max_steps=max_steps, check=check)
        fastest = min(times, key=lambda plan: times[plan])
        if times[best] > MIN_GAIN * times[fastest]:
            best = fastest
    if times[best] < float("inf"):  # else the run itself reports the error, and the next run measures again
        # If another process has measured in the meantime, its result holds.
        if known := cache.read():
            return known
        cache.write(best, times, log)
    speeds = _speeds(times, recipe.batch_size)
    log(f"fastest: {best} (images/s of {speeds})")
    return replace(best, why=f"measured, images/s of {speeds}", seconds=times[best])


def fastest_plan(work: Workload, seconds: float = 5.0) -> tuple[Plan, float]:
    """Return the fastest plan and its seconds per step (Inf if out of memory), measured now: for a benchmark.

    The cache is not used and nothing is compiled. After `seconds` the remaining candidates are skipped, which
    `Plan.why` mentions.
    """
    mode = "auto" if work.recipe.compile in COMPILE_MODES else work.recipe.compile
    work = replace(work, recipe=replace(work.recipe, compile=mode))
    plans = candidates(work)
    times: dict[Plan, float] = {}
    start = time.perf_counter()
    for plan in plans:
        if times and time.perf_counter() - start > seconds:
            break
        times[plan] = time_step(work, plan, min_steps=1)
    best = _best(times)
    speeds = _speeds(times, work.recipe.batch_size)
    rest = f"; no time was left for {len(plans) - len(times)} more" if len(times) < len(plans) else ""
    return replace(best, why=f"measured, images/s of {speeds}{rest}"), times[best]


def time_step(
    work: Workload,
    plan: Plan,
    *,
    min_steps: int = 2,
    seconds: float = 0.2,
    max_steps: int = 1000,
    check: Callable[[], None] = _nothing,
) -> float:
    """Return the median time in seconds of the real training step on random images, after a warm-up.

    Time at least `min_steps` steps and `seconds` seconds, but at most `max_steps` steps including the warm-up. check:
    called after each step; may raise. Return Inf if the step runs out of memory or cannot be compiled. Random states
    are restored.
    """
    recipe, device = work.recipe, work.device
    with reproducible(0, plan.threads):
        try:
            model = work.build().to(device).to(memory_format=plan.memory_format).train()
            forward = prepare_model(model, plan.compile)
            optimizer = make_optimizer(model, recipe, plan.precision)
            x = torch.rand(recipe.batch_size, *work.shape, device=device).to(memory_format=plan.memory_format)
            y = torch.randint(work.num_classes, (recipe.batch_size,), device=device)
            scaler = grad_scaler(device, plan.precision)
            micro = recipe.micro_batch
            plain = partial(train_step, micro_batch=micro) if micro else train_step
            step = GuardedStep(scaler, micro_batch=micro) if scaler else make_step(plain, plan, device)
            warmup = warmup_steps(plan, device)
            times: list[float] = []
            for number in range(max(max_steps, min_steps + warmup)):
                start = time.perf_counter()
                step(forward, optimizer, x, y, recipe.label_smoothing, plan.precision)
                synchronize(device)
                times.append(time.perf_counter() - start)
                check()
                if number >= min_steps + warmup - 1 and sum(times[warmup:]) > seconds:
                    break
            return median(times[warmup:])
        except Exception as error:
            if is_nondeterministic(error):
                raise nondeterminism_error(error, recipe, device) from error
            if not out_of_memory(error) and not is_compile_error(error):
                raise
            return float("inf")


def expected_seconds(work: Workload, plan: Plan) -> float | None:
    """Return roughly how long the training steps take in all.

    None if the training is too short to be worth a measurement, has frozen epochs, or is recorded or compiled.
    """
    recipe = work.recipe
    if work.steps * MAX_SHARE < 2 + warmup_steps(plan, work.device) or recipe.freeze_epochs or plan.compile != "off":
        return None
    if _total_operations(work) < MEASURE_FROM.get(work.device.type, 1e12):
        return None
    return (plan.seconds or time_step(work, plan, min_steps=1, seconds=0.0, max_steps=3)) * work.steps


def _total_operations(work: Workload) -> float:
    """Return the floating-point operations of the whole training."""
    device = "cpu" if is_own(work.recipe.model) else "meta"
    return operations(work.build, work.shape, device) * work.recipe.epochs * work.count


def find_batch_size(work: Workload) -> int:
    """Return the recipe's batch size, halved until a step on random images fits into memory.

    Raise CnnlabError if a batch of fewer than four images does not fit.
    """
    plan, size = replace(default_plan(work), compile="off"), work.recipe.batch_size
    while True:
        tried = replace(work, recipe=replace(work.recipe, batch_size=min(size, work.count)))
        with memory.limit_memory() if work.device.type == "cpu" else contextlib.nullcontext():
            fits = time_step(tried, plan, min_steps=1, seconds=0.0) < float("inf")
        if fits:
            return size
        if size < 4:
            raise CnnlabError(
                f"out of memory with batch_size={size} and images of {work.shape[1]} pixels; set a smaller image_size, "
                "or use a smaller network"
            )
        size //= 2


def _measure(plans: Sequence[Plan], rounds: int, seconds_of: Callable[[Plan], float]) -> dict[Plan, float]:
    """Return the shortest time of each plan. Each round times all plans, so that a busy moment affects all of them."""
    times = dict.fromkeys(plans, float("inf"))
    for _ in range(rounds):
        for plan in plans:
            times[plan] = min(times[plan], seconds_of(plan))
        plans = [plan for plan in plans if times[plan] < MAX_LAG * min(times.values())]
        if len(plans) < 2:
            break
    return times


def _best(times: dict[Plan, float]) -> Plan:
    """Return the first plan, unless the fastest is clearly faster."""
    best = min(times, key=lambda plan: times[plan])
    first = next(iter(times))
    return first if times[first] < MIN_GAIN * times[best] else best


def _by_name(times: dict[Plan, float]) -> dict[str, float]:
    several = len({plan.threads for plan in times}) > 1
    return {f"{plan}, {plan.threads} threads" if several else str(plan): t for plan, t in times.items()}


def _speeds(times: dict[Plan, float], batch_size: int) -> str:
    return ", ".join(f"{name}: {batch_size / t:,.0f}" for name, t in _by_name(times).items())


class _Cache:
    """The measured plan of one kind of step, in the user's cache."""

    def __init__(self, work: Workload, plans: list[Plan], tries_compile: bool) -> None:
        recipe, device = work.recipe, work.device
        self._default, self._plans, self._tries_compile = default_plan(work), plans, tries_compile
        # Two custom networks may share a name.
        with torch.device("meta"):
            model = work.build()
        architecture = [str(model), *(f"{name} {tuple(p.shape)}" for name, p in model.named_parameters())]
        facts = {
            "machine": [
                hardware.device_name(device), device.type, hardware.available_cores(), hardware.physical_cores(),
                work.threads,
            ],
            "versions": [hardware.package_version("cnnlab"), torch.__version__],
            "step": [
                recipe.model, architecture, list(work.shape), work.num_classes, recipe.batch_size, recipe.optimizer
            ],
            "asked": [recipe.precision, recipe.memory_format, recipe.compile, tries_compile, self._default.values],
        }  # fmt: skip
        key = blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()
        self.path = Path(user_cache_dir("cnnlab")) / "plans" / f"{key}.json"

    def read(self) -> Plan | None:
        """Return the cached plan, or None if there is none or it may not be chosen here."""
        values, seconds = None, None
        with contextlib.suppress(CnnlabError, OSError):
            content = read_json(self.path) if self.path.exists() else {}
            values, seconds = content.get("plan"), content.get("seconds")
        if not isinstance(values, dict):
            return None
        plan = self._default.with_values(values)
        uncompiled = replace(plan, compile=self._default.compile).possible()
        if uncompiled not in self._plans:
            return None
        if plan != uncompiled and not (self._tries_compile and plan.compile in COMPILE_MODES):
            return None
        seconds = seconds if isinstance(seconds, float) and 0 < seconds < 1e6 else 0.0
        return replace(plan, why="measured before on this machine", seconds=seconds)

    def write(self, plan: Plan, times: dict[Plan, float], log: Callable[[str], None]) -> None:
        """Write the plan; if that fails, log a note."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"plan": plan.values, "seconds": times[plan], "seconds_per_step": _by_name(times)})
        except OSError as error:
            log(
                f"note: cannot cache the measured plan in {self.path.parent}: {reason(error)}; the next such run "
                "measures again and may compute differently"
            )
