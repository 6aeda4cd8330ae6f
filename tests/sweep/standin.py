"""Workers for the tests of a sweep's storages. A fork server starts them; one replaces the training by a stand-in."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cnnlab.sweep import worker
from cnnlab.sweep.definition import read_sweep
from cnnlab.sweep.worker import Machine


def run_fake_trials(file: Path, log: Path, seconds: float) -> None:
    """Work on the sweep with fake trainings of `seconds` each. Write the start and end of each into `log`."""

    def note(what: str, trial: int) -> None:
        with log.open("a") as lines:
            lines.write(f"{what} {trial} {os.getpid()}\n")

    def run(self: Any, trial: int, params: dict[str, Any], seed: int, hook: Any) -> Any:
        recipe = self.sweep.recipe_of(params, seed)[0]
        note("begin", trial)
        on_epoch = hook.of(recipe)
        for epoch in range(1, recipe.epochs + 1):
            time.sleep(seconds / recipe.epochs)
            if on_epoch({"epoch": epoch, "val_acc": params["learning_rate"] / epoch}) is False:
                break
        note("end", trial)
        summary = {"best": params["learning_rate"], "epochs": epoch, "total_seconds": seconds}
        return SimpleNamespace(summary=summary, run=SimpleNamespace(path=Path(f"x-{trial}"), recipe=recipe))

    worker._Worker._run = run  # type: ignore[method-assign]
    worker.work(read_sweep(file), Machine(file.parent / "runs"))


def die_after_an_epoch(file: Path, runs_dir: Path) -> None:
    """Train for real, and die of kill -9 once the first epoch is saved and reported."""
    of = worker._Hook.of

    def deadly(self: Any, recipe: Any) -> Any:
        on_epoch = of(self, recipe)

        def call(row: dict[str, Any]) -> bool:
            on_epoch(row)
            os.kill(os.getpid(), signal.SIGKILL)
            return True

        return call

    worker._Hook.of = deadly  # type: ignore[method-assign]
    worker.work(read_sweep(file), Machine(runs_dir, threads=1))
