"""Figures of samples, speeds and grades, and how they are saved. Made without pyplot: no window, no global state."""

from __future__ import annotations

import io
import math
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_atomic
from cnnlab.io.text import escape, truncate

# Told apart by the colour-blind and, by brightness and dashes, in grey print.
TRAIN_COLOR, EVAL_COLOR = "#3b6fb6", "#d1495b"


def speeds(rows: Sequence[dict[str, Any]], peaks: dict[str, dict[str, Any]], where: str) -> Figure:
    """Share of the machine's measured peak, a bar for each network and precision; `rows`, `peaks`: a BenchResult's."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(names) + 0.17 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(peaks)
    for i, (precision, best) in enumerate(peaks.items()):
        found = [row for row in rows if row["precision"] == precision]
        places = [names.index(row["model"]) + (i - (len(peaks) - 1) / 2) * height for row in found]
        widths = [100 * row["fraction_of_peak"] for row in found]
        label = f"{precision}: of {best['flops_per_second'] / 1e9:,.0f} GFLOP/s"
        axes.barh(places, widths, height * 0.92, color=(TRAIN_COLOR, EVAL_COLOR)[i % 2], label=label)
        for place, width, row in zip(places, widths, found, strict=True):
            axes.annotate(f"{row['images_per_second']:,.0f} images/s", (width, place), (4, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), [
        plain(f"{name}\n{row['image_size']} px, batch {row['batch_size']}")
        for name in names for row in [next(r for r in rows if r["model"] == name)]
    ], fontsize=8)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, max(100 * row["fraction_of_peak"] for row in rows) * 1.25)
    axes.set_xlabel("percent of the machine's measured peak, while it trains")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(peaks), frameon=False, fontsize=8)
    figure.suptitle(plain(f"Training steps, with data; {where}"), fontsize=10)
    return figure


def samples(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> Figure:
    """Sample images, a row of (H, W, C) uint8 arrays for each name: the manual's figure 1.8."""
    columns = max(map(len, rows))
    shown = rows[:30]  # more classes would make each image too small to see
    figure = Figure(figsize=(1.2 + 0.62 * columns, 0.62 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for axes, row, name in zip(grid, shown, names, strict=False):
        for place in axes:
            place.set_axis_off()
        for place, image in zip(axes, row, strict=False):
            place.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes[0].text(-0.15, 0.5, plain(name), transform=axes[0].transAxes, ha="right", va="center", fontsize=9)
    return figure


def pairs(shown: Sequence[tuple[str, Sequence[Any]]], columns: int = 6) -> Figure:
    """Pairs of (H, W, C) uint8 arrays side by side, each under its head."""
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.75 * columns, 1.05 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for place in grid:
        place.set_axis_off()
    for place, (head, (left, right)) in zip(grid, shown, strict=False):
        gap = np.full((left.shape[0], max(1, left.shape[1] // 14), left.shape[2]), 255, np.uint8)
        place.imshow(np.concatenate((left, gap, right), axis=1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        place.set_title(plain(head), fontsize=6, pad=1)
    return figure


def check_png(path: Path) -> None:
    """Raises: CnnlabError where `path` is not the name of a new PNG file."""
    if path.suffix.lower() != ".png":
        raise CnnlabError(f"{path}: the plot is a PNG picture; name a file that ends with .png")
    if path.exists():
        raise CnnlabError(f"{path} exists; name another file, or remove it first")


def save(path: Path, figure: Figure) -> None:
    """Write the figure into a PNG file. Raises: CnnlabError where that cannot be done."""
    try:
        write_atomic(path, png(figure))
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file") from error


def grades(accuracies: Sequence[float], title: str = "") -> Figure:
    """How many submissions have which accuracy, with their median; `accuracies` may be empty."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    lowest = min(accuracies, default=0.0)
    # Narrow bars where the class is close together, but at most 24 of them; the last one ends at 1.
    width = next((w for w in (0.0025, 0.005, 0.01, 0.02) if (1 - lowest) / w <= 24), 0.05)
    bars = max(1, math.ceil((1 - lowest) / width - 1e-9))
    # Rounded alike, so that an accuracy of 0.85 falls into the bar that begins there, whatever the last bit says.
    edges = [round(1 - (bars - i) * width, 9) for i in range(bars + 1)]
    axes.hist([max(edges[0], round(a, 9)) for a in accuracies], edges, color=TRAIN_COLOR, edgecolor="white")
    if accuracies:
        middle = statistics.median(accuracies)
        axes.axvline(middle, color=EVAL_COLOR, ls="--", label=f"median {middle:.4f}")
        axes.legend(frameon=False, loc="upper left")
    else:
        axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy")
    axes.set_ylabel("submissions")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(plain(title), fontsize=10)
    return figure


def png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes; a line per letter on the screen helps nobody.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def plain(text: str) -> str:
    """A person's own names, safe from being read as mathematics, and no longer than a picture is wide."""
    return "\n".join(truncate(escape(line), 150) for line in text.split("\n")).replace("$", r"\$")
