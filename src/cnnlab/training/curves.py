"""Loss and accuracy over the epochs of one training or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnnlab.io.figures import EVAL_COLOR, TRAIN_COLOR, plain, png
from cnnlab.io.files import write_atomic
from cnnlab.recipe import KEYS
from cnnlab.training.runs import Run

_LABELS = {"train": "training images, not augmented"}


def curves(rows: Sequence[dict[str, Any]], eval_split: str, title: str = "") -> Figure:
    """Draw loss and accuracy of training and of the evaluation split over the epochs. rows: of metrics.jsonl."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    key = KEYS[eval_split]
    marker = "o" if len(epochs) <= 20 else ""
    for axes, what in ((left, "loss"), (right, "acc")):
        train = [row["loss" if what == "loss" else "train_acc"] for row in rows]
        style: dict[str, Any] = {"marker": marker, "markersize": 3}
        axes.plot(epochs, train, color=TRAIN_COLOR, label="training", **style)
        axes.plot(
            epochs,
            [row[f"{key}_{what}"] for row in rows],
            color=EVAL_COLOR,
            ls="--",
            label=_LABELS.get(eval_split, eval_split),
            **style,
        )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("loss (mean cross-entropy)")
    left.set_ylim(bottom=0)
    right.set_ylabel("accuracy")
    if rows:
        last = rows[-1][f"{key}_acc"]
        right.annotate(f"{last:.3f}", (epochs[-1], last), (4, 0), textcoords="offset points", color=EVAL_COLOR,
                       va="center", fontsize=9)  # fmt: skip
    left.legend(frameon=False)
    if title:
        figure.suptitle(plain(title), fontsize=10)
    return figure


def comparison(runs: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> Figure:
    """Draw accuracy on the evaluation split over the epochs, a line per run. runs: (name, evaluation split, rows)."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, eval_split, rows in runs:
        key = f"{KEYS[eval_split]}_acc"
        axes.plot([r["epoch"] for r in rows], [r[key] for r in rows], label=plain(f"{name} ({eval_split})"), marker=".")
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def save_curves(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Save loss and accuracy of a run as curves.png in its folder. Raise OSError."""
    recipe = run.recipe
    title = f"{recipe.model} on {recipe.data.split('/')[-1]}, recipe {recipe.name}, seed {recipe.seed}"
    write_atomic(run.path / "curves.png", png(curves(rows, recipe.eval_split, title)))
