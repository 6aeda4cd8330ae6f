"""Loss and accuracy over the epochs of one training or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnnlab.io.figures import EVAL_COLOR, TRAIN_COLOR, add_title, plain, png
from cnnlab.io.files import write_atomic
from cnnlab.recipe import KEYS
from cnnlab.training.runs import Run

_LABELS = {"train": "training images, not augmented"}


def curves(rows: Sequence[dict[str, Any]], eval_split: str, title: str = "") -> Figure:
    """Draw loss and accuracy of training and of the evaluation split over the epochs. rows: of metrics.jsonl."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs, key = [row["epoch"] for row in rows], KEYS[eval_split]
    for axes, train_key, eval_key in ((left, "loss", f"{key}_loss"), (right, "train_acc", f"{key}_acc")):
        marker = {"marker": "o" if len(rows) <= 20 else "", "markersize": 3}
        axes.plot(epochs, [row[train_key] for row in rows], color=TRAIN_COLOR, label="training", **marker)
        label = _LABELS.get(eval_split, eval_split)
        axes.plot(epochs, [row[eval_key] for row in rows], color=EVAL_COLOR, ls="--", label=label, **marker)
        _style(axes)
    left.set_ylabel("loss (mean cross-entropy)")
    right.set_ylabel("accuracy")
    if rows:
        left.update_datalim([(epochs[0], 0)])
        left.autoscale_view()
        last = rows[-1][f"{key}_acc"]
        right.annotate(f"{last:.3f}", (epochs[-1], last), (4, 0), textcoords="offset points", color=EVAL_COLOR,
                       va="center", fontsize=9)  # fmt: skip
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    add_title(figure, title)
    return figure


def comparison(runs: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> Figure:
    """Draw accuracy on the evaluation split over the epochs, a line per run. runs: (name, evaluation split, rows)."""
    below = len(runs) > 6  # inside the axes so many names would hide the lines
    figure = Figure(figsize=(8, 4 + (0.1 * len(runs) if below else 0)), layout="constrained")
    axes = figure.subplots()
    for i, (name, eval_split, rows) in enumerate(runs):
        key = f"{KEYS[eval_split]}_acc"
        marker = "." if len(rows) <= 20 else ""
        # Ten colours, then the same ones dashed.
        style = ("-", "--", ":", "-.")[i // 10 % 4]
        label = plain(f"{name} ({eval_split})")
        axes.plot([r["epoch"] for r in rows], [r[key] for r in rows], label=label, marker=marker, ls=style)
    axes.set_ylabel("accuracy")
    _style(axes)
    if below:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    else:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _style(axes: Any) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save_curves(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Save loss and accuracy of a run as curves.png in its folder. Raise OSError."""
    recipe = run.recipe
    title = f"{recipe.model} on {recipe.data.split('/')[-1]}, recipe {recipe.name}, seed {recipe.seed}"
    write_atomic(run.path / "curves.png", png(curves(rows, recipe.eval_split, title)))
