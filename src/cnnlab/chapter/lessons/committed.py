"""The committed results that the lessons show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def results_folder() -> Path:
    """Return the folder of the committed results: beside this file in a built package, else in the checkout."""
    inside = Path(__file__).parent / "results"
    return inside if inside.is_dir() else Path(__file__).parents[4] / "benchmarks" / "results"


def all_results(label: str) -> list[dict[str, Any]]:
    """Return all committed results with that label, the newest first."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in results_folder().glob(f"{label}_*.json")]
    return sorted(results, key=lambda result: str(result["environment"]["date"]), reverse=True)


def seeds_table(lesson: str, figure: str = "val_acc", *, epoch: int = 0) -> str:
    """Return a Markdown table of a lesson's committed trainings, including its solutions: one figure per seed.

    figure: "loss", "train_acc" or "val_acc". epoch: counted from 1; 0: the last. `benchmarks/lesson_seeds.py` writes
    the results.
    """
    name = {"loss": "loss", "train_acc": "training accuracy", "val_acc": "validation accuracy"}[figure]
    when = f"after epoch {epoch}" if epoch else "in the last epoch"
    lines = [f"| training | {name} {when}, seeds 0, 1, 2, ... |", "|---|---|"]
    for result in all_results(f"lesson-{lesson.replace('_', '-')}")[:1]:
        for training, found in result["trainings"].items():
            lines.append(f"| {training} | {', '.join(f'{epochs[epoch - 1]:.3f}' for epochs in found[figure])} |")
    return "\n".join(lines) + "\n"
