"""Plans: which one is chosen, when plans are measured, and that a run keeps its plan. Times are faked."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import Interrupt, assert_same_run, interrupted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnlab import Recipe, resume, train, train_seeds
from cnnlab.device import hardware
from cnnlab.io.errors import CnnlabError, TrainingInterrupted
from cnnlab.models import build_model
from cnnlab.training import autotune
from cnnlab.training import loop as training
from cnnlab.training import plan as plans
from cnnlab.training.autotune import choose_plan
from cnnlab.training.plan import FORMATS, Plan, Workload
from cnnlab.training.runs import Run
from cnnlab.training.session import Session
from conftest import Command, one_line_error

CPU = torch.device("cpu")
SHAPE = (1, 28, 28)
LAST, FIRST = torch.channels_last, torch.contiguous_format
Pace = Callable[[Plan], float]


def build() -> nn.Module:
    return build_model("lenet", num_classes=10, in_channels=1, image_size=28)


class Clock:
    """A fake `time_step`. pace: gives the seconds per step; tried: the timed plans; max_steps: the steps allowed."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self.tried, self.max_steps = pace, list[Plan](), 0

    def __call__(self, work: Workload, candidate: Plan, **more: Any) -> float:
        self.max_steps += more["max_steps"]
        self.tried.append(candidate)
        return self.pace(candidate)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pace], Clock]:
    """Return a function that installs a `Clock`. Runs are long enough to measure; 2 physical cores, 4 logical."""
    monkeypatch.setattr(autotune, "MEASURE_FROM", {"cpu": 0.0})
    monkeypatch.setattr(hardware, "available_cores", lambda: 4)
    monkeypatch.setattr(hardware, "physical_cores", lambda: 2)
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: False)

    def fake(pace: Pace) -> Clock:
        clock = Clock(pace)
        monkeypatch.setattr(autotune, "time_step", clock)
        return clock

    return fake


def plan(
    threads: int | None = None,
    earlier: dict[str, Any] | None = None,
    count: int = 10_000,
    log: Callable[[str], None] = lambda text: None,
    **changes: Any,
) -> Plan:
    recipe = replace(Recipe(model="lenet", epochs=10, batch_size=64), **changes)
    return choose_plan(Workload(recipe, build, SHAPE, 10, CPU, count, threads), earlier, log=log)


def slow_unless(fast: Callable[[Plan], bool], gain: float = 2.0) -> Pace:
    return lambda candidate: 0.01 if fast(candidate) else 0.01 * gain


# What is chosen


def test_fastest_plan_is_chosen(clock: Callable[[Pace], Clock]) -> None:
    log: list[str] = []
    clock(slow_unless(lambda c: c.memory_format == LAST and c.threads == 2))
    chosen = plan(log=log.append)
    assert (chosen.memory_format, chosen.threads, chosen.precision, chosen.compile) == (LAST, 2, torch.float32, "off")
    assert len(log) == 2
    assert "channels_last, 2 threads: 6,400" in log[1]
    assert "contiguous, 4 threads: 3,200" in log[1]
    assert chosen.why.startswith("measured")


@pytest.mark.parametrize(("gain", "layout"), [(1.0, FIRST), (1.099, FIRST), (1.101, LAST)])
def test_small_gain_is_ignored(clock: Callable[[Pace], Clock], gain: float, layout: object) -> None:
    clock(slow_unless(lambda c: c.memory_format == LAST, gain))
    assert plan().memory_format == layout


@settings(deadline=None, max_examples=50)
@given(
    times=st.lists(st.floats(0.001, 1), min_size=8, max_size=8),
    units=st.booleans(),
    precision=st.sampled_from(["float32", "bfloat16", "auto"]),
    layout=st.sampled_from(["auto", *FORMATS]),
    threads=st.sampled_from([None, 1, 3]),
    cores=st.integers(3, 6),
    physical=st.integers(1, 3),
)
def test_choice_is_allowed_and_near_the_fastest(
    times: list[float], units: bool, precision: str, layout: str, threads: int | None, cores: int, physical: int
) -> None:
    pace = dict(zip([(p, f, n) for p in (0, 1) for f in (0, 1) for n in (0, 1)], times, strict=True))
    folder = tempfile.mkdtemp(dir=Path.cwd())

    def timed(work: Workload | None, c: Plan, **more: object) -> float:
        return pace[c.precision == torch.bfloat16, c.memory_format == LAST, c.threads == physical]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "MEASURE_FROM", {"cpu": 0.0})
        patch.setattr(hardware, "available_cores", lambda: cores)
        patch.setattr(hardware, "physical_cores", lambda: physical)
        patch.setattr(hardware, "has_bfloat16", lambda device: units)
        patch.setattr(autotune, "time_step", timed)
        patch.setattr(autotune, "user_cache_dir", lambda name: folder)
        chosen = plan(threads, precision=precision, memory_format=layout)
        again = plan(threads, precision=precision, memory_format=layout)
    assert again.values == chosen.values
    assert chosen.threads == threads if threads else chosen.threads in (cores, physical)
    assert chosen.compile == "off"
    if precision != "auto":
        assert chosen.values["dtype"] == precision
    elif not units:
        assert chosen.precision == torch.float32
    if layout != "auto":
        assert chosen.values["memory_format"] == layout
    allowed = [
        timed(None, Plan(threads=n, precision=p, memory_format=f))
        for p in ([torch.float32, torch.bfloat16] if precision == "auto" and units else [chosen.precision])
        for f in (FORMATS.values() if layout == "auto" else [chosen.memory_format])
        for n in ([threads] if threads else [cores, physical])
    ]
    assert timed(None, chosen) < 1.1 * min(allowed) * (1 + 1e-9)


def test_plan_out_of_memory_is_not_chosen(clock: Callable[[Pace], Clock]) -> None:
    clock(lambda c: float("inf") if c.memory_format == FIRST else 0.01)
    assert plan().memory_format == LAST
    clock(lambda c: float("inf"))
    chosen = plan(batch_size=65)  # nothing fits: the run will report it, and the next one measures again
    assert chosen.memory_format == FIRST
    again = clock(lambda c: 0.01)
    plan(batch_size=65)
    assert again.tried


def test_time_step_is_inf_without_memory_or_compiler_and_raises_other_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(error: Exception) -> float:
        def step(*args: object) -> None:
            raise error

        monkeypatch.setattr(autotune, "train_step", step)
        work = Workload(Recipe(model="lenet"), build, SHAPE, 10, CPU)
        return autotune.time_step(work, Plan(threads=1))

    assert failing(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) == float("inf")
    assert failing(torch._dynamo.exc.BackendCompilerFailed(print, RuntimeError("no g++"), None)) == float("inf")
    with pytest.raises(RuntimeError, match="a mistake"):
        failing(RuntimeError("a mistake"))


# When it is measured


def test_single_candidate_is_not_measured(clock: Callable[[Pace], Clock]) -> None:
    trial = clock(lambda c: 0.01)
    for mode in ("off", "auto"):
        chosen = plan(threads=3, memory_format="channels_last", compile=mode)
        assert chosen == Plan(threads=3, memory_format=LAST, why=chosen.why)
        assert "recipe" in chosen.why
    assert not trial.tried


def test_short_runs_are_not_measured(clock: Callable[[Pace], Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    trial = clock(lambda c: 0.01)
    assert "steps" in plan(count=640).why
    # Two memory formats and two numbers of threads, three steps each, are 5 percent of 240 steps.
    assert "steps" in plan(count=64 * 23, epochs=10).why
    assert not trial.tried
    assert plan(count=64 * 24, epochs=10).why.startswith("measured")
    assert len(trial.tried) == 4
    assert trial.max_steps == 12
    trial.tried.clear()
    work = plans.operations(build, SHAPE) * 10 * 10_000
    monkeypatch.setattr(autotune, "MEASURE_FROM", {"cpu": work * 1.01})
    assert "short" in plan().why
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: True)
    chosen = plan(precision="auto")  # bfloat16 units exist and need channels_last
    assert (chosen.precision, chosen.memory_format) == (torch.bfloat16, LAST)
    assert plan(precision="auto", memory_format="contiguous").memory_format == FIRST
    assert plan(precision="float32").precision == torch.float32
    assert not trial.tried


@settings(deadline=None, max_examples=50)
@given(steps=st.integers(1, 5000), cores=st.integers(1, 4), precision=st.sampled_from(["float32", "auto"]))
def test_measurement_keeps_within_its_share_of_the_steps(steps: int, cores: int, precision: str) -> None:
    trial = Clock(lambda c: 0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "MEASURE_FROM", {"cpu": 0.0})
        patch.setattr(hardware, "available_cores", lambda: cores)
        patch.setattr(hardware, "physical_cores", lambda: 1)
        patch.setattr(hardware, "has_bfloat16", lambda device: True)
        patch.setattr(autotune, "time_step", trial)
        patch.setattr(autotune._Cache, "read", lambda cache: None)
        patch.setattr(autotune._Cache, "write", lambda *args: None)
        plan(epochs=1, count=64 * steps, precision=precision)
    assert trial.max_steps <= 0.05 * steps


def test_time_step_ends_after_its_steps_and_can_be_interrupted() -> None:
    calls: list[int] = []

    def count() -> None:
        calls.append(1)

    def stop() -> None:
        raise KeyboardInterrupt

    def measure(most: int, check: Callable[[], None]) -> None:
        recipe = Recipe(model="lenet", batch_size=8)
        work = Workload(recipe, build, SHAPE, 10, CPU)
        autotune.time_step(work, Plan(threads=1), seconds=1e9, max_steps=most, check=check)

    measure(5, count)
    assert len(calls) == 5
    with pytest.raises(KeyboardInterrupt):
        measure(5, stop)


def test_plan_measured_by_another_process_meanwhile_is_used(clock: Callable[[Pace], Clock]) -> None:
    def pace(candidate: Plan) -> float:
        if not inner:  # another process, for which the other layout is faster, runs during our trial
            inner.append(candidate)
            theirs.append(plan())
        return 0.01 if (candidate.memory_format == LAST) == bool(theirs) else 0.02

    inner: list[Plan] = []
    theirs: list[Plan] = []
    clock(pace)
    ours = plan()
    assert ours.values == theirs[0].values
    assert theirs[0].memory_format == FIRST


def test_operations_match_a_count_by_hand() -> None:
    # conv 5x5x6 over 28x28, conv 5x5x16 of 6 over 10x10, 400x120, 120x84, 84x10
    # Two operations per multiply-add; a training step counts as three forward passes.
    by_hand = 25 * 6 * 28**2 + 25 * 6 * 16 * 10**2 + 400 * 120 + 120 * 84 + 84 * 10
    assert plans.operations(build, SHAPE) == 3 * 2 * by_hand


def test_measured_plan_is_cached(clock: Callable[[Pace], Clock]) -> None:
    first = clock(slow_unless(lambda c: c.memory_format == LAST))
    chosen = plan()
    assert first.tried
    again = clock(slow_unless(lambda c: c.memory_format == FIRST))  # a busy moment must not change the plan
    cached = plan(epochs=20)
    assert not again.tried
    assert cached.values == chosen.values
    assert "before" in cached.why
    plan(batch_size=128)  # another kind of step
    assert again.tried


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"plan": 3}',
        '{"plan": {"threads": 4000, "dtype": "float32", "memory_format": "channels_last", "compile": "off"}}',
        '{"plan": {"threads": 4, "dtype": "bfloat16", "memory_format": "channels_last", "compile": "off"}}',
        '{"plan": {"threads": 4, "dtype": "float32", "memory_format": "contiguous", "compile": "default"}}',
    ],
)
def test_damaged_or_impossible_cache_is_measured_again(clock: Callable[[Pace], Clock], damage: str) -> None:
    first = clock(slow_unless(lambda c: c.memory_format == LAST))
    chosen = plan()
    (file,) = Path(autotune.user_cache_dir("cnnlab")).rglob("*.json")
    file.write_text(damage)
    first.tried.clear()
    assert plan().values == chosen.values
    assert first.tried
    assert json.loads(file.read_text())["plan"] == chosen.values  # the file is repaired


def test_unwritable_cache_is_not_an_error(
    clock: Callable[[Pace], Clock], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(autotune, "user_cache_dir", lambda name: str(tmp_path / "file" / name))
    trial = clock(slow_unless(lambda c: c.memory_format == LAST))
    assert plan().memory_format == LAST
    trial.tried.clear()
    plan()
    assert trial.tried  # measured again


# Resumed runs


def test_resumed_run_keeps_its_plan_where_possible(clock: Callable[[Pace], Clock]) -> None:
    trial = clock(slow_unless(lambda c: c.memory_format == LAST and c.threads == 2))
    first = plan()
    trial.tried.clear()
    chosen = plan(earlier=first.values)
    assert chosen.values == first.values
    assert "started" in chosen.why
    assert plan(threads=3, earlier=first.values).threads == 3  # an explicit number wins
    assert plan(earlier={**first.values, "threads": 64}).threads == 4  # never more than the cores
    # Missing values come from the recipe.
    assert plan(earlier={"threads": 2}, memory_format="channels_last").values == first.values
    assert not trial.tried


def test_compiled_run_resumes_uncompiled_without_a_compiler(
    clock: Callable[[Pace], Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = Plan(threads=2, compile="default").values
    monkeypatch.setattr(plans.shutil, "which", lambda name: "/usr/bin/g++")
    assert plan(earlier=earlier).compile == "default"
    monkeypatch.setattr(plans.shutil, "which", lambda name: None)
    assert plan(earlier=earlier).compile == "off"


# Compilation


@pytest.mark.parametrize(("gain", "mode"), [(1.09, "off"), (1.11, "default")])
def test_compilation_is_tried_for_long_runs(
    clock: Callable[[Pace], Clock], monkeypatch: pytest.MonkeyPatch, gain: float, mode: str
) -> None:
    monkeypatch.setattr(plans.shutil, "which", lambda name: "/usr/bin/g++")
    trial = clock(slow_unless(lambda c: c.compile != "off", gain))
    plan()
    assert all(c.compile == "off" for c in trial.tried)  # too short
    monkeypatch.setattr(autotune, "COMPILE_FROM", {"cpu": 0.0})
    chosen = plan()
    assert chosen.compile == mode
    assert [c.compile for c in trial.tried].count("default") == 1
    trial.tried.clear()
    assert plan().values == chosen.values
    assert not trial.tried
    # Compilation is tried even if all else is set, but not if it is off or there is no compiler.
    assert plan(threads=1, memory_format="contiguous").compile == mode
    assert plan(compile="off", batch_size=65).compile == "off"
    monkeypatch.setattr(plans.shutil, "which", lambda name: None)
    assert plan(batch_size=66).compile == "off"


def test_compile_without_a_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    monkeypatch.setattr(plans.shutil, "which", lambda name: None)
    line = one_line_error(cnnlab("train", "--set", "compile=default", "--device", "cpu", "--name", "x"))
    assert re.search(r"C\+\+.*compile=off", line)
    assert not Path("runs/x").exists()


def test_failed_compilation_is_an_error(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(print, RuntimeError("g++ gave up"), None)

    monkeypatch.setattr(training, "train_step", failing)
    with pytest.raises(CnnlabError, match=r"lenet-bn.*g\+\+ gave up.*compile=off"):
        train(quick)


# Trainings with measured plans


def random_states() -> list[object]:
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_num_threads(),
    ]


def test_measuring_restores_random_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "MEASURE_FROM", {"cpu": 0.0})
    torch.manual_seed(3)
    before = random_states()
    chosen = plan(batch_size=16, threads=1)
    assert chosen.why.startswith("measured")
    assert random_states() == before


def first_session(path: Path) -> dict[str, Any]:
    session: dict[str, Any] = json.loads((path / "environment.json").read_text())["sessions"][0]
    return session


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure plans for every run, however short."""
    monkeypatch.setattr(autotune, "MEASURE_FROM", {"cpu": 0.0})
    monkeypatch.setattr(autotune, "MAX_SHARE", 1.0)


@pytest.fixture
def channels_last_first(measured: None, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for which channels_last is the faster memory format until `swap_formats` is called."""
    clock = Clock(slow_unless(lambda c: c.memory_format == LAST))
    monkeypatch.setattr(autotune, "time_step", clock)
    return clock


def swap_formats(clock: Clock) -> None:
    """Make the other memory format faster and forget what was measured."""
    for file in Path(autotune.user_cache_dir("cnnlab")).rglob("*.json"):
        file.unlink()
    clock.pace = slow_unless(lambda c: c.memory_format == FIRST)
    clock.tried.clear()


@pytest.mark.usefixtures("measured")
def test_measured_plan_is_recorded_and_used_again(quick: Recipe) -> None:
    recipe = quick.changed(precision="auto", epochs=8)  # with bfloat16 units, more plans are timed
    paths = [train(recipe, name=name, threads=1).run.path for name in ("one", "two")]
    one, two = map(first_session, paths)
    assert one["plan"].startswith("measured")
    assert "before" in two["plan"]
    assert [one[key] for key in ("threads", "dtype", "memory_format", "compile")] == [
        two[key] for key in ("threads", "dtype", "memory_format", "compile")
    ]
    assert_same_run(*paths)
    assert len(list(Path(autotune.user_cache_dir("cnnlab")).rglob("*.json"))) == 1


def test_resumed_run_is_not_measured_again(quick: Recipe, channels_last_first: Clock) -> None:
    whole = train(quick, name="whole", threads=1).run.path
    path = interrupted(quick, 6)
    swap_formats(channels_last_first)
    resume(path, threads=1)
    assert not channels_last_first.tried
    first, second = json.loads((path / "environment.json").read_text())["sessions"]
    assert first["memory_format"] == second["memory_format"] == "channels_last"
    assert "started" in second["plan"]
    assert_same_run(path, whole)


@pytest.mark.usefixtures("measured")
def test_interrupt_while_measuring_can_be_resumed(quick: Recipe) -> None:
    path = interrupted(quick, 1, "run", autotune, "time_step")
    assert resume(path).summary["epochs"] == 2


def test_seeds_not_yet_started_are_resumed_with_the_same_plan(quick: Recipe, channels_last_first: Clock) -> None:
    whole = train_seeds(quick, 2, name="whole", threads=1).path
    with Interrupt(1).patched(training, "save_weights"), pytest.raises(TrainingInterrupted):
        train_seeds(quick, 2, name="stopped", threads=1)
    assert not Path("runs/stopped/seed-1").exists()
    swap_formats(channels_last_first)
    resume("runs/stopped", threads=1)
    for seed in ("seed-0", "seed-1"):
        assert first_session(Path("runs/stopped") / seed)["memory_format"] == "channels_last"
        assert_same_run(Path("runs/stopped") / seed, whole / seed)


def test_seeds_share_a_plan_without_a_cache(
    quick: Recipe, channels_last_first: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(autotune, "user_cache_dir", lambda name: str(tmp_path / "file" / name))
    real = Plan.environment

    def swapping(*args: Any) -> dict[str, Any]:
        channels_last_first.pace = slow_unless(lambda c: c.memory_format == FIRST)
        return real(*args)

    monkeypatch.setattr(Plan, "environment", swapping)
    path = train_seeds(quick, 2, threads=1).path
    assert [first_session(path / f"seed-{s}")["memory_format"] for s in (0, 1)] == ["channels_last"] * 2


def test_next_seed_reuses_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[int] = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))
    monkeypatch.setattr(plans, "_compiled_before", "")
    for count, steps in ((1, "a"), (1, "a"), (2, "b"), (3, "a"), (4, ""), (5, "")):
        plans.prepare_model(build(), "default", steps)
        assert len(resets) == count
    plans.prepare_model(build(), "off", "a")
    assert len(resets) == 5


def test_steps_are_recorded_on_cuda_unless_the_host_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    recipe = Recipe(model="lenet", epochs=1)

    def planned(recipe: Recipe = recipe, device: torch.device = cuda, earlier: dict[str, Any] | None = None) -> Plan:
        return choose_plan(Workload(recipe, build, SHAPE, 10, device, 100, 1), earlier)

    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(hardware, "has_float16", lambda device: False)
    assert planned().compile == "record"
    assert str(planned()).endswith(", recorded")
    assert planned(device=CPU).compile == "off"
    for changes in ({"on_nan": "skip"}, {"precision": "float16"}, {"compile": "off"}):
        assert planned(recipe.changed(**changes)).compile == "off", changes
    monkeypatch.setattr(hardware, "has_float16", lambda device: True)
    guess = planned(recipe.changed(precision="auto"))
    assert (guess.precision, guess.compile) == (torch.float16, "off")
    # A resumed run keeps its plan where possible.
    assert planned(earlier={"compile": "off"}).compile == "off"
    assert planned(earlier={"compile": "record"}).compile == "record"
    assert planned(device=CPU, earlier={"compile": "record"}).compile == "off"


def test_recorded_run_resumes_without_cuda(quick: Recipe) -> None:
    recipe = quick.changed(compile="record")
    with Session("cpu", 1, None, False, "none") as session:
        with pytest.raises(CnnlabError, match="compile=record.*compile=off"):
            session.load_data(recipe)
        session.load_data(quick)
        session.load_data(recipe, resumed=Run(Path(), recipe, session.run_info(quick)))
        assert session.plan(recipe, {"compile": "record"}).compile == "off"
