"""A plot that grows while a loop runs: redrawn in place in a notebook; elsewhere, printed values and one PNG file.

Figures are created without pyplot, so matplotlib's backend is left alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from itertools import count, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_atomic
from cnnlab.training.display import in_notebook

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Seconds between two drawings in a notebook: 20 times what the last one took, within these limits.
_MIN_INTERVAL, _MAX_INTERVAL = 0.2, 3.0
_FOLDER = Path("figures")


def use_svg_display() -> None:
    """Show matplotlib's figures as SVG in a notebook; do nothing elsewhere."""
    if in_notebook():
        import_module("matplotlib_inline.backend_inline").set_matplotlib_formats("svg")


def set_axes(
    axes: Any,
    xlabel: str | None,
    ylabel: str | None,
    xlim: Sequence[float] | None,
    ylim: Sequence[float] | None,
    xscale: str,
    yscale: str,
    legend: Sequence[str] | None,
) -> None:
    """Set the labels, limits, scales, legend and grid of matplotlib's `axes`.

    Equal limits, as for a single epoch, become an interval of length 1 that ends there.
    """
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    axes.set_xlim(_widened(xlim))
    axes.set_ylim(_widened(ylim))
    if legend:
        axes.legend(legend)
    axes.grid(True)


def _widened(limits: Sequence[float] | None) -> Sequence[float] | None:
    return limits if limits is None or limits[0] != limits[1] else (limits[0] - 1, limits[0])


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0  # tensors of one number have a length, too


class Animator:
    """Lines that grow point by point: `add(x, (y, y, ...))`, one y for each line, None for no point.

    In a notebook there is one figure, redrawn in place; the cell's other output stays. Elsewhere each integer x prints
    a line of values to stderr, and the figure is saved once, as figures/curve-N.png. The figure is complete when all
    lines have reached the end of `xlim`, and after `finish`. Without `xlim` a notebook draws every point, and other
    programs save the figure in `finish`.

    The arguments are those of the original. X, Y: the points of each line. fig, axes: matplotlib's objects; the lines
    are in axes[0].
    """

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        legend: Sequence[str] | None = None,
        xlim: Sequence[float] | None = None,
        ylim: Sequence[float] | None = None,
        xscale: str = "linear",
        yscale: str = "linear",
        fmts: Sequence[str] = ("-", "m--", "g-.", "r:"),
        nrows: int = 1,
        ncols: int = 1,
        figsize: tuple[float, float] = (3.5, 2.5),
    ) -> None:
        self.X: list[list[float]] = []
        self.Y: list[list[float]] = []
        self.fmts = fmts
        self._legend = list(legend or ())
        self._xlim, self._xlabel = xlim, xlabel
        self._style = (xlabel, ylabel, xlim, ylim, xscale, yscale)
        self._grid, self._figsize = (nrows, ncols), figsize
        self._in_notebook = in_notebook()
        self._handle: Any = None  # of the figure in the notebook
        self._path: Path | None = None  # of the saved figure
        self._next_drawing = 0.0
        self._drawn = True  # whether the figure shows all points

    @cached_property
    def fig(self) -> Figure:
        """matplotlib's figure, as last drawn."""
        from matplotlib.figure import Figure  # slow to import

        return Figure(figsize=self._figsize, layout="constrained")

    @cached_property
    def axes(self) -> list[Any]:
        """The figure's axes, row by row."""
        return list(self.fig.subplots(*self._grid, squeeze=False).flat)

    @property
    def names(self) -> list[str]:
        """The name of each line: from the legend, else y1, y2, ..."""
        return [self._legend[i] if i < len(self._legend) else f"y{i + 1}" for i in range(len(self.Y))]

    def add(self, x: Any, y: Any) -> None:
        """Add a point to each line. x, y: a number, or one for each line; None adds no point.

        Raise CnnlabError if the number of values differs from that of earlier calls.
        """
        ys = list(y) if _is_list(y) else [y]
        xs = list(x) if _is_list(x) else [x] * len(ys)
        if not self.Y:
            self.X, self.Y = [[] for _ in ys], [[] for _ in ys]
        if not len(xs) == len(ys) == len(self.Y):
            raise CnnlabError(
                f"Animator.add got {len(xs)} x and {len(ys)} y for {len(self.Y)} lines; pass None for a line without "
                "a point"
            )
        added = [i for i, (a, b) in enumerate(zip(xs, ys, strict=True)) if a is not None and b is not None]
        if not added:
            return
        was_complete = self._complete()
        for i in added:
            self.X[i].append(float(xs[i]))
            self.Y[i].append(float(ys[i]))
        self._drawn = False
        if not self._in_notebook:
            self._print(added)
        due = self._in_notebook and (self._xlim is None or time.perf_counter() >= self._next_drawing)
        if due or (self._complete() and not was_complete):
            self._draw()

    def finish(self) -> None:
        """Draw the points that have not been drawn yet."""
        if not self._drawn:
            self._draw()

    def plot(self) -> Figure:
        """Return the figure with all points in it."""
        axes = self.axes[0]
        axes.cla()
        for xs, ys, style in zip(self.X, self.Y, cycle(self.fmts), strict=False):
            # A line through a single point would be invisible.
            axes.plot(xs, ys, style, **({"marker": "o"} if len(xs) == 1 else {}))
        set_axes(axes, *self._style, self.names if self._legend else [])
        return self.fig

    def _complete(self) -> bool:
        """Return whether every line has reached the end of the x axis."""
        return self._xlim is not None and bool(self.X) and all(xs and xs[-1] >= self._xlim[1] for xs in self.X)

    def _print(self, added: list[int]) -> None:
        x = max(self.X[i][-1] for i in added)
        if x.is_integer():
            values = ", ".join(f"{self.names[i]} {self.Y[i][-1]:.3f}" for i in added)
            print(f"{self._xlabel or 'x'} {x:g}: {values}", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        start = time.perf_counter()
        if self._in_notebook:
            self._show()
        else:
            self._save()
        end = time.perf_counter()
        self._next_drawing = end + min(_MAX_INTERVAL, max(_MIN_INTERVAL, 20 * (end - start)))
        self._drawn = True

    def _show(self) -> None:
        from IPython.display import display

        from cnnlab.io import figures  # imports matplotlib, which is slow

        data = {"image/svg+xml": figures.svg(self.plot()), "text/plain": repr(self.fig)}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def _save(self) -> None:
        from cnnlab.io import figures  # imports matplotlib, which is slow

        try:
            first = self._path is None
            self._path = self._path or _new_file()
            write_atomic(self._path, figures.png(self.plot()))
        except OSError as error:  # a figure that cannot be saved must not end the training
            print(f"cannot save the curve in {_FOLDER.absolute()}: {reason(error)}", file=sys.stderr, flush=True)
            return
        if first:
            print(f"the curve is in {self._path}", file=sys.stderr, flush=True)


def _new_file() -> Path:
    """Create the next free figures/curve-N.png as an empty file, so that no other process takes the name."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = _FOLDER / f"curve-{number}.png"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path.absolute()
    raise AssertionError
