"""Figures of samples, speeds, rates and grades, saved as PNG. Drawn without pyplot: no window, no global state."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import check_new, write_atomic
from cnnlab.io.fonts import drawable, report_numbers, shorten, use_fonts, width, wrap

# Distinct for colour-blind readers and, with the dashes, in greyscale print.
TRAIN_COLOR, EVAL_COLOR = "#3b6fb6", "#d1495b"


def speeds(rows: Sequence[dict[str, Any]], peaks: dict[str, dict[str, Any]], where: str) -> Figure:
    """Draw each network's training speed as a fraction of the machine's measured peak, a bar per precision.

    rows, peaks: from a BenchResult. where: the machine, for the title.
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
        for place, end, row in zip(places, widths, bars, strict=True):
            axes.annotate(f"{row['images_per_second']:,.0f} images/s", (end, place), (4, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), [
        f"{shorten(drawable(name), 1.7, 8)}\n{row['image_size']} px, batch {row['batch_size']}"
        for name in names for row in [next(r for r in rows if r["model"] == name)]
    ], fontsize=8)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlim(0, max(100 * row["fraction_of_peak"] for row in rows) * 1.25)
    axes.set_xlabel("training, percent of the machine's measured peak")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure)
    add_title(figure, f"Training steps including data; {where}")
    return figure


def range_test(found: dict[str, Any], title: str = "") -> Figure:
    """Draw the loss against the learning rate, and mark the suggestion. found: the values of a RangeTest."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(found["rates"], found["losses"], color=TRAIN_COLOR, alpha=0.35, lw=1, label="loss of a step")
    axes.plot(found["rates"], found["smoothed"], color=TRAIN_COLOR, lw=2, label="smoothed")
    if rate := found["suggestion"].get("learning_rate"):
        axes.axvline(rate, color=EVAL_COLOR, ls="--", label=f"suggestion: {rate:g}")
    top = 1.3 * max(found["smoothed"][0], min(found["smoothed"]))  # where it diverges does not matter
    axes.set_ylim(-0.04 * top, top)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure)
    add_title(figure, title)
    return figure


def samples(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> Figure:
    """Draw sample images, a row of (H, W, C) uint8 arrays per class, of at most 30 classes: the manual's figure 1.8.

    A note says how many classes are left out.
    """
    count, rows = len(rows), rows[:30]
    labels = [shorten(drawable(name), 2.6, 9) for name in names[: len(rows)]]
    grid = mosaic(rows)
    left, below = max(width(label, 9) for label in labels) + 0.15, 0.25 if count > len(rows) else 0.05  # inches
    tall = 0.62 * len(rows)
    wide = tall * grid.shape[1] / grid.shape[0]
    note = f"the first {len(rows)} of {count:,} classes" if count > len(rows) else ""
    page = max(left + wide + 0.05, width(note, 8) + 0.2), tall + below + 0.05
    figure = Figure(figsize=page)
    axes = figure.add_axes((left / page[0], below / page[1], wide / page[0], tall / page[1]))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    step = axes.get_ylim()[0] / len(rows)  # the y axis points down
    axes.set_yticks([(i + 0.5) * step for i in range(len(rows))], labels, fontsize=9)
    axes.set_xticks([])
    if note:
        figure.text(0.5, 0.06 / page[1], note, ha="center", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def mosaic(rows: Sequence[Sequence[Any]], white: float = 255) -> np.ndarray:
    """Return rows of arrays (H, W, C), all of one shape, as one array with white gaps."""
    first = next(image for row in rows for image in row)
    height, width, channels = first.shape
    gap = max(1, width // 12)
    size = len(rows) * (height + gap) - gap, max(map(len, rows)) * (width + gap) - gap, channels
    whole = np.full(size, white, first.dtype)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            whole[y : y + height, x : x + width] = image
    return whole


def pairs(titled: Sequence[tuple[str, Sequence[Any]]], columns: int = 6) -> Figure:
    """Draw pairs of images side by side. titled: (title, two (H, W, C) uint8 arrays)."""
    rows = -(-len(titled) // columns)
    columns = -(-len(titled) // rows)  # rows that are equally full
    figure = Figure(figsize=(1.75 * columns, 1.05 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for place in grid:
        place.set_axis_off()
    for place, (title, (left, right)) in zip(grid, titled, strict=False):
        gap = np.full((left.shape[0], max(1, left.shape[1] // 14), left.shape[2]), 255, np.uint8)
        place.imshow(np.concatenate((left, gap, right), axis=1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        place.set_title(shorten(drawable(title), 1.65, 7), fontsize=7, pad=2)
    return figure


def check_png(path: Path) -> None:
    """Raise CnnlabError unless `path` is the name of a new PNG file."""
    if path.suffix.lower() != ".png":
        raise CnnlabError(f"{path}: plots are saved as PNG; name a file that ends with .png")
    check_new(path)


def save(path: Path, figure: Figure) -> None:
    """Write the figure to a PNG file. Raise CnnlabError if that fails."""
    try:
        write_atomic(path, png(figure))
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file") from error


def grades(accuracies: Sequence[float], title: str = "") -> Figure:
    """Draw a histogram of the submissions' accuracies and their median; `accuracies` may be empty.

    A few submissions far below the others share one grey bar at the left, so that the others keep their scale.
    """
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    below = _far_below(accuracies)
    accuracies, everybody = sorted(accuracies)[len(below) :], accuracies
    lowest = min(accuracies, default=0.0)
    # The narrowest bins that make at most 24 bars; the last one ends at 1.
    width = next((w for w in (0.0025, 0.005, 0.01, 0.02) if (1 - lowest) / w <= 24), 0.05)
    bars = max(1, math.ceil((1 - lowest) / width - 1e-9))
    # Both are rounded, so that 0.85 falls into the bin that starts there in spite of rounding errors.
    edges = [round(1 - (bars - i) * width, 9) for i in range(bars + 1)]
    axes.hist([max(edges[0], round(a, 9)) for a in accuracies], edges, color=TRAIN_COLOR, edgecolor="white")
    if below:
        place = edges[0] - 1.5 * width
        label = f"{len(below)} below {edges[0]:.4g}, the lowest {min(below):.4f}"
        axes.bar(place, len(below), width, color="#8a8a8a", edgecolor="white", label=label)
        ticks = [tick for tick in axes.get_xticks() if edges[0] - 1e-9 <= tick <= 1 + 1e-9]
        axes.set_xticks([place, *ticks], [f"<{edges[0]:.4g}", *(f"{tick:.4g}" for tick in ticks)])
    if everybody:
        middle = statistics.median(everybody)
        axes.axvline(middle, color=EVAL_COLOR, ls="--", label=f"median {middle:.4f}")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=2)  # above the axes
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


def _far_below(accuracies: Sequence[float]) -> list[float]:
    """Return the outliers at the lower end: at most a tenth of all values, or one."""
    if not accuracies:
        return []
    middle = statistics.median(accuracies)
    spread = statistics.median(abs(a - middle) for a in accuracies)
    below = sorted(a for a in accuracies if a < middle - max(0.1, 8 * spread))
    return below if len(below) <= max(1, len(accuracies) // 10) else []


def add_title(figure: Figure, text: str) -> None:
    """Set the figure's title, wrapped to its width; "" sets none."""
    if text:
        figure.suptitle(wrap(drawable(text), figure.get_figwidth() - 0.3, 10), fontsize=10)


def add_legend(figure: Figure, columns: int = 3, size: float = 8) -> None:
    """Put the legend of all lines and bars below the axes, in as many columns as fit. The figure grows with its lines.

    Names are shortened to the width of a column.
    """
    handles, labels = [], []
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.append(handle)
            labels.append(label)
    beside = 0.55  # inches: the line before a name, and the gap after it
    page = figure.get_figwidth() - 0.3
    widest = max((width(label, size) for label in labels), default=0) + beside
    columns = max(1, min(columns, len(labels), int(page / widest)))
    labels = [shorten(label, page / columns - beside, size) for label in labels]
    figure.set_figheight(figure.get_figheight() + 0.17 * (-(-len(labels) // columns) - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=size,
                  columnspacing=1.5)  # fmt: skip


def lines(axes: Any, named: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> None:
    """Draw (name, x, y) as lines. Where some coincide, the earlier ones are broader and show at the sides."""
    marked = max((len(x) for _, x, _ in named), default=0) <= 20
    steps = [_steps(x, y) for _, x, y in named]
    for i, (name, x, y) in enumerate(named):
        covering = min(sum(bool(steps[i] & other) for other in steps[i + 1 :]), 5)
        # Ten colours, then the same ones dashed.
        axes.plot(x, y, label=name, ls=("-", "--", ":", "-.")[i // 10 % 4], lw=1.5 + 2.2 * covering,
                  marker="o" if marked or len(x) == 1 else "", markersize=3 + 2.8 * covering)  # fmt: skip


def _steps(x: Sequence[float], y: Sequence[float]) -> set[tuple[float, ...]]:
    """Return the line's segments as (x, y, next x, next y); a single point as (x, y)."""
    points = list(zip(x, y, strict=True))
    return {a + b for a, b in pairwise(points)} or set(points)


def epoch_axis(axes: Any, epochs: Sequence[int]) -> None:
    """Label the x axis with whole epochs, none before the first or after the last one, with a margin on both sides."""
    first, last = min(epochs, default=1), max(epochs, default=1)
    ticks = (
        MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]).tick_values(first, last)
        if last > first
        else [first]
    )
    inside = [tick for tick in ticks if first < tick <= last]
    if not inside or inside[0] - first >= (last - first) / 12:
        inside = [first, *inside]
    axes.set_xticks(inside)
    margin = max(0.5 if last == first else 0.0, 0.04 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def share_axis(axes: Any) -> None:
    """Let the y axis show 0 to 1 and a margin, so that a line at either end is not on the frame."""
    axes.set_ylim(-0.04, 1.04)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])


def png(figure: Figure, dpi: int = 144) -> bytes:
    """Return the figure as a PNG file."""
    return file(figure, format="png", dpi=dpi)


def svg(figure: Figure) -> str:
    """Return the figure as the text of an SVG file."""
    return file(figure, format="svg").decode()


def file(figure: Figure, **options: Any) -> bytes:
    """Return the figure as a file, with fonts for all its letters. options: for `Figure.savefig`."""
    use_fonts(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    report_numbers()
    return buffer.getvalue()
