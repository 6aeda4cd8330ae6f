"""Pictures of a training. Figures are made without pyplot: no window, no global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_TRAIN, _WATCHED = (
    "#3b6fb6",
    "#d1495b",
)  # told apart by the colour-blind and, by brightness and dashes, in grey print


def curves(rows: Sequence[dict[str, Any]], watch: str, title: str = "") -> Figure:
    """Loss and accuracy of training and of the watched split over the epochs; `rows` are lines of metrics.jsonl."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    key = {"validation": "val", "test": "test"}[watch]
    marker = "o" if len(epochs) <= 20 else ""
    for axes, what in ((left, "loss"), (right, "acc")):
        train = [row["loss" if what == "loss" else "train_acc"] for row in rows]
        style: dict[str, Any] = {"marker": marker, "markersize": 3}
        axes.plot(epochs, train, color=_TRAIN, label="training", **style)
        axes.plot(epochs, [row[f"{key}_{what}"] for row in rows], color=_WATCHED, ls="--", label=watch, **style)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("loss (mean cross-entropy)")
    left.set_ylim(bottom=0)
    right.set_ylabel("accuracy")
    if rows:
        last = rows[-1][f"{key}_acc"]
        right.annotate(f"{last:.3f}", (epochs[-1], last), (4, 0), textcoords="offset points", color=_WATCHED,
                       va="center", fontsize=9)  # fmt: skip
    left.legend(frameon=False)
    if title:
        figure.suptitle(_plain(title), fontsize=10)
    return figure


def comparison(runs: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> Figure:
    """Accuracy on the watched split over the epochs, a line a run; `runs`: (name, watched split, rows)."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, watch, rows in runs:
        key = {"validation": "val_acc", "test": "test_acc"}[watch]
        axes.plot([r["epoch"] for r in rows], [r[key] for r in rows], label=_plain(f"{name} ({watch})"), marker=".")
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes; a line per letter on the screen helps nobody.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _plain(text: str) -> str:
    """A person's own names, safe from being read as mathematics."""
    return text.replace("$", r"\$")
