"""Figures of samples, speeds and grades, saved as PNG. Drawn without pyplot: no window, no global state."""

from __future__ import annotations

import io
import math
import statistics
import textwrap
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

# Distinct for colour-blind readers and, with the dashes, in greyscale print.
TRAIN_COLOR, EVAL_COLOR = "#3b6fb6", "#d1495b"


def speeds(rows: Sequence[dict[str, Any]], peaks: dict[str, dict[str, Any]], where: str) -> Figure:
    """Draw the fraction of the machine's measured peak, a bar per network and precision.

    rows, peaks: those of a BenchResult. where: names the machine in the title.
    """
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(names) + 0.17 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(peaks)
    for i, (precision, best) in enumerate(peaks.items()):
        bars = [row for row in rows if row["precision"] == precision]
        places = [names.index(row["model"]) + (i - (len(peaks) - 1) / 2) * height for row in bars]
        widths = [100 * row["fraction_of_peak"] for row in bars]
        label = f"{precision}: peak {best['flops_per_second'] / 1e9:,.0f} GFLOP/s"
        axes.barh(places, widths, height * 0.92, color=(TRAIN_COLOR, EVAL_COLOR)[i % 2], label=label)
        for place, width, row in zip(places, widths, bars, strict=True):
            axes.annotate(f"{row['images_per_second']:,.0f} images/s", (width, place), (4, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), [
        plain(f"{name}\n{row['image_size']} px, batch {row['batch_size']}")
        for name in names for row in [next(r for r in rows if r["model"] == name)]
    ], fontsize=8)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, max(100 * row["fraction_of_peak"] for row in rows) * 1.25)
    axes.set_xlabel("training, percent of the machine's measured peak")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(peaks), frameon=False, fontsize=8)
    add_title(figure, f"Training steps including data; {where}")
    return figure


def samples(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> Figure:
    """Draw sample images, a row of (H, W, C) uint8 arrays per class, of at most 30 classes: the manual's figure 1.8."""
    rows, columns = rows[:30], max(map(len, rows))
    labels = [plain(truncate(name, 32)) for name in names[: len(rows)]]
    width = 0.4 + 0.085 * max(map(len, labels)) + 0.62 * columns  # inches
    figure = Figure(figsize=(width, 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mosaic(rows), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    step = axes.get_ylim()[0] / len(rows)  # the y axis points down
    axes.set_yticks([(i + 0.5) * step for i in range(len(rows))], labels, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def mosaic(rows: Sequence[Sequence[Any]], white: float = 255) -> np.ndarray:
    """Return rows of arrays (H, W, C), all of one shape, as one array with white gaps."""
    height, width, channels = rows[0][0].shape
    gap = max(1, width // 12)
    size = len(rows) * (height + gap) - gap, max(map(len, rows)) * (width + gap) - gap, channels
    whole = np.full(size, white, rows[0][0].dtype)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            whole[y : y + height, x : x + width] = image
    return whole


def pairs(titled: Sequence[tuple[str, Sequence[Any]]], columns: int = 6) -> Figure:
    """Draw pairs of images side by side. titled: (title, two (H, W, C) uint8 arrays)."""
    rows = -(-len(titled) // columns)
    figure = Figure(figsize=(1.75 * columns, 1.05 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for place in grid:
        place.set_axis_off()
    for place, (title, (left, right)) in zip(grid, titled, strict=False):
        gap = np.full((left.shape[0], max(1, left.shape[1] // 14), left.shape[2]), 255, np.uint8)
        place.imshow(np.concatenate((left, gap, right), axis=1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        place.set_title(plain(title), fontsize=6, pad=1)
    return figure


def check_png(path: Path) -> None:
    """Raise CnnlabError unless `path` is the name of a new PNG file."""
    if path.suffix.lower() != ".png":
        raise CnnlabError(f"{path}: plots are saved as PNG; name a file that ends with .png")
    if path.exists():
        raise CnnlabError(f"{path} exists; name another file, or remove it first")


def save(path: Path, figure: Figure) -> None:
    """Write the figure to a PNG file. Raise CnnlabError if that fails."""
    try:
        write_atomic(path, png(figure))
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file") from error


def grades(accuracies: Sequence[float], title: str = "") -> Figure:
    """Draw a histogram of the submissions' accuracies and their median; `accuracies` may be empty."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    lowest = min(accuracies, default=0.0)
    # The narrowest bins that make at most 24 bars; the last one ends at 1.
    width = next((w for w in (0.0025, 0.005, 0.01, 0.02) if (1 - lowest) / w <= 24), 0.05)
    bars = max(1, math.ceil((1 - lowest) / width - 1e-9))
    # Both are rounded, so that 0.85 falls into the bin that starts there in spite of rounding errors.
    edges = [round(1 - (bars - i) * width, 9) for i in range(bars + 1)]
    axes.hist([max(edges[0], round(a, 9)) for a in accuracies], edges, color=TRAIN_COLOR, edgecolor="white")
    if accuracies:
        middle = statistics.median(accuracies)
        axes.axvline(middle, color=EVAL_COLOR, ls="--", label=f"median {middle:.4f}")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)  # above the axes
    else:
        axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel("accuracy")
    axes.set_ylabel("submissions")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    add_title(figure, title)
    return figure


def add_title(figure: Figure, text: str) -> None:
    """Set the figure's title, wrapped to its width; "" sets none."""
    if text:
        lines = textwrap.wrap(plain(text), int(12 * figure.get_figwidth()))  # characters per inch at this size
        figure.suptitle("\n".join(lines), fontsize=10)


def png(figure: Figure, dpi: int = 144) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks become boxes; a warning for each would only fill the screen.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def plain(text: str) -> str:
    """Return a user's text for a figure: escaped, without mathematics, each line at most 150 characters long."""
    return "\n".join(truncate(escape(line), 150) for line in text.split("\n")).replace("$", r"\$")
