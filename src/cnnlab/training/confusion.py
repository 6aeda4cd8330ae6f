"""The confusion matrix of an evaluation as a picture, readable for two to a few hundred classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from cnnlab.io.figures import add_title
from cnnlab.io.fonts import drawable, shorten, width

_NAMED_CELLS = 40  # largest number of classes for which cells show their counts
_LONGEST = 2.2  # inches; longer class names are shortened


def confusion_figure(matrix: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix (K, K): a row per true class, coloured by the fraction of its images."""
    k = len(classes)
    font = 8 if k <= 40 else 6
    names = [shorten(drawable(name), _LONGEST, font) for name in classes]
    cell = 0.42 if k <= _NAMED_CELLS else 0.115  # inches: the height of a line of text
    margin = 0.6 + max(width(name, font) for name in names)
    side = max(cell * k, 2.6)
    figure = Figure(figsize=(side + margin + 1.0, side + margin + 0.6), layout="constrained")
    axes = figure.subplots()
    # The square root in the colours shows a single mistake beside many correct predictions.
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    drawn = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="equal")
    axes.set_xticks(range(k), names, rotation=90, fontsize=font)
    axes.set_yticks(range(k), names, fontsize=font)
    axes.tick_params(length=0, pad=2)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if k <= _NAMED_CELLS:
        digits = len(str(matrix.max()))
        for i, j in zip(*matrix.nonzero(), strict=True):
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=min(8, 26 / digits),
                      color="white" if share[i, j] > 0.3 else "black")  # fmt: skip
    else:  # grid lines help the eye to follow a row
        axes.set_xticks(np.arange(9.5, k - 1, 10), minor=True)
        axes.set_yticks(np.arange(9.5, k - 1, 10), minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color("0.6")
    bar = figure.colorbar(drawn, ax=axes, shrink=min(1.0, 3 / side), aspect=20 * min(1.0, 3 / side), pad=0.02)
    bar.set_label("fraction of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    add_title(figure, title)
    return figure
