"""Loss and accuracy over the epochs of one training or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from cnnlab.io.figures import (
    EVAL_COLOR,
    TRAIN_COLOR,
    add_legend,
    add_title,
    epoch_axis,
    lines,
    png,
    share_axis,
)
from cnnlab.io.files import write_atomic
from cnnlab.io.fonts import drawable
from cnnlab.recipe import KEYS, Recipe, metric_label
from cnnlab.training.progress import ranking
from cnnlab.training.runs import Run

_LABELS = {"train": "training images, not augmented"}
# A loss is off the scale if it is more than this many times the next smaller one, which counts as at least 0.6. The
# usual fall in the first epochs stays on the scale. Two points, or a tenth of all if more, may be off it.
_OFF_SCALE, _LEAST = 4, 0.6


def curves(rows: Sequence[dict[str, Any]], recipe: Recipe, title: str = "") -> Figure:
    """Draw loss and accuracy of training and of the evaluation split over the epochs. rows: of metrics.jsonl.

    With validation images, a ring marks the best epoch, and a dotted line shows the figure that selected it if that is
    neither accuracy nor loss. Single losses far above the others are off the scale; a note gives their epochs and
    values.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs, key = [row["epoch"] for row in rows], KEYS[recipe.eval_split]
    split = _LABELS.get(recipe.eval_split, recipe.eval_split)
    changed = _changed_loss(recipe)
    train_label, eval_label = "training", split
    if changed:
        train_label, eval_label = f"training (loss with {changed})", f"{split} (loss without)"
    best = max(rows, key=lambda row: ranking(row, recipe)) if rows and recipe.eval_split == "validation" else None
    marker, by = "o" if len(rows) <= 20 else "", recipe.best_by
    for axes, train_key, eval_key in ((left, "loss", f"{key}_loss"), (right, "train_acc", f"{key}_acc")):
        # Where both are equal, the broad line shows between the dashes of the other.
        axes.plot(epochs, [row[train_key] for row in rows], color=TRAIN_COLOR, lw=2.4, marker=marker, markersize=5,
                  label=train_label if axes is left else "")  # fmt: skip
        axes.plot(epochs, [row[eval_key] for row in rows], color=EVAL_COLOR, ls="--", lw=1.4, marker=marker,
                  markersize=2.5, label=eval_label if axes is left else "")  # fmt: skip
        if best is not None:
            label = f"best epoch: {best['epoch']}, {metric_label(by)} {best[by]:.3f}" if axes is right else ""
            axes.plot(best["epoch"], best[eval_key], "o", color=EVAL_COLOR, fillstyle="none", markersize=9, label=label)
        epoch_axis(axes, epochs)
    if by not in (f"{key}_acc", f"{key}_loss", "loss"):
        right.plot(epochs, [row[by] for row in rows], color=EVAL_COLOR, ls=":", lw=1.4, label=metric_label(by))
    _loss_axis(left, rows, ("loss", f"{key}_loss"))
    left.set_ylabel("loss" if changed else "loss (mean cross-entropy)")
    share_axis(right)
    right.set_ylabel("accuracy")
    if rows:
        last = rows[-1][f"{key}_acc"]
        right.annotate(f"{last:.3f}", (epochs[-1], last), (7, 0), textcoords="offset points", color=EVAL_COLOR,
                       va="center", fontsize=9)  # fmt: skip
    add_legend(figure)
    add_title(figure, title)
    return figure


def comparison(runs: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> Figure:
    """Draw accuracy on the evaluation split over the epochs, a line per run. runs: (name, evaluation split, rows)."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    drawn = []
    for name, eval_split, rows in runs:
        y = [row[f"{KEYS[eval_split]}_acc"] for row in rows]
        drawn.append((drawable(f"{name} ({eval_split}{f', last {y[-1]:.3f}' if y else ''})"),
                      [row["epoch"] for row in rows], y))  # fmt: skip
    lines(axes, drawn)
    share_axis(axes)
    axes.set_ylabel("accuracy")
    epoch_axis(axes, [x for _, xs, _ in drawn for x in xs])
    add_legend(figure, columns=2)
    return figure


def _changed_loss(recipe: Recipe) -> str:
    """Return how the training loss differs from the evaluation loss, or ""."""
    names = [f"label smoothing {recipe.label_smoothing:g}"] if recipe.label_smoothing else []
    names += [name for name, alpha in (("mixup", recipe.mixup), ("CutMix", recipe.cutmix)) if alpha]
    names += ["class weights"] * (recipe.balance == "weights")
    return " and ".join(names)


def _loss_axis(axes: Any, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Scale the axis from 0 to the largest loss, with a margin. List losses that are off the scale in its title."""
    values = {(row["epoch"], key): row[key] for row in rows for key in keys if math.isfinite(row[key])}
    falling = sorted(values.values(), reverse=True)
    outliers = 0
    for k in range(1, min(max(2, len(falling) // 10), len(falling) - 2) + 1):
        if falling[k - 1] > _OFF_SCALE * max(falling[k], _LEAST):
            outliers = k
    top = (falling[outliers] if falling else 0) or 1.0
    axes.set_ylim(-0.04 * top, 1.08 * top)
    if outliers:
        above = sorted(((epoch, value) for (epoch, _), value in values.items() if value > top), key=lambda e: -e[1])
        named = dict(reversed(above[:3]))  # the larger of an epoch's two losses
        text = ", ".join(f"{value:.3g} in epoch {epoch}" for epoch, value in sorted(named.items()))
        axes.set_title(f"off the scale: {text}{', ...' if len(above) > 3 else ''}", fontsize=8)


def save_curves(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Save loss and accuracy of a run as curves.png in its folder. Raise OSError."""
    recipe = run.recipe
    title = f"{recipe.model} on {recipe.data.split('/')[-1]}, recipe {recipe.name}, seed {recipe.seed}"
    write_atomic(run.path / "curves.png", png(curves(rows, recipe, title)))
