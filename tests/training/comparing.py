"""Comparing two runs, and interrupting one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnnlab import Recipe, TrainingInterrupted, open_run, train
from cnnlab.training import loop

TIMES = {"train_seconds", "compute_seconds", "evaluation_seconds", "seconds", "images_per_second",
         "examples_per_second", "total_seconds", "check", "blake2b"}  # fmt: skip


def figures(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl and the summary, without times."""
    lines = [*(path / "metrics.jsonl").read_text().splitlines(), (path / "summary.json").read_text()]
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def assert_same_run(path: Path, other: Path) -> None:
    """Check that two runs ended alike: bit-identical weights, one row per epoch, the same summary, no leftover files.

    Only times may differ.
    """
    for name in ("last.safetensors", "best.safetensors"):
        assert (path / name).read_bytes() == (other / name).read_bytes(), name
    assert figures(path) == figures(other)
    assert not list(path.glob(".*.tmp"))
    run = open_run(path)
    assert [row["epoch"] for row in run.metrics()] == list(range(1, run.recipe.epochs + 1))


class Interrupt:
    """A patch that counts the calls of a function and raises KeyboardInterrupt instead of call `turn` (0: never)."""

    def __init__(self, turn: int) -> None:
        self.turn, self.calls = turn, 0

    @contextmanager
    def patched(self, module: Any, name: str) -> Iterator[None]:
        real = getattr(module, name)

        def call(*args: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls == self.turn:
                raise KeyboardInterrupt
            return real(*args, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, call)
            yield


def interrupted(
    recipe: Recipe, turn: int, name: str = "run", module: Any = loop, function: str = "train_step", **options: Any
) -> Path:
    """Train until call number `turn` of `module.function`, by default an update. Return the run's folder."""
    with Interrupt(turn).patched(module, function), pytest.raises(TrainingInterrupted, match="--resume"):
        train(recipe, name=name, threads=1, **options)
    return Path("runs") / name
