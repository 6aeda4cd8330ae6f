"""A plot that grows as a loop runs: in place in a notebook, numbers and a small chart in a terminal, else a file.

matplotlib's pyplot and its backends are left alone: a figure is made, and given to whoever shows it.
"""

from __future__ import annotations

import atexit
import io
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib import import_module
from itertools import count, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_atomic
from cnnlab.training.display import in_notebook

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST, _MOST = 0.2, 3.0  # seconds between two drawings; in between, twenty times as many as the last one took


def use_svg_display() -> None:
    """Let a notebook show matplotlib's figures as SVG, sharp at any size; elsewhere nothing."""
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
    """Give matplotlib's `axes` labels, limits, scales, a legend and a grid.

    Limits that are equal, as those of a single epoch, become a unit's length up to there.
    """
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    axes.set_xlim(_wide(xlim))
    axes.set_ylim(_wide(ylim))
    if legend:
        axes.legend(legend)
    axes.grid(True)


def _wide(limits: Sequence[float] | None) -> Sequence[float] | None:
    return limits if limits is None or limits[0] != limits[1] else (limits[0] - 1, limits[0])


class Animator:
    """Lines that grow point by point: `add(x, (y, y, ...))`, a value for each line, None where there is none.

    In a notebook it is one figure, redrawn in its place, which leaves the other output alone. In a terminal each whole
    x gets a line of numbers, and in the end there is a chart of characters. Anywhere else, as in a job, the figure is
    kept in figures/curve-N.png. Little of the time is spent on drawing: what has not been drawn is drawn when all lines
    have come to the end of `xlim`, when the notebook's cell or the program ends, and by `finish`.

    The arguments are the original's. X, Y: the points of each line; fig, axes: matplotlib's, axes[0] with the lines.
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
        self._xlim, self._xlabel, self._scales = xlim, xlabel, (xscale, yscale)
        self._grid, self._figsize = (nrows, ncols), figsize
        self._config: Callable[[Any, list[str]], None] = lambda axes, names: set_axes(
            axes, xlabel, ylabel, xlim, ylim, xscale, yscale, names
        )
        self._screen = _screen()
        self._due, self._ended = 0.0, False
        _draw_the_rest()

    @cached_property
    def fig(self) -> Figure:
        """matplotlib's figure, with the lines as last drawn."""
        from matplotlib.figure import Figure  # slow to import, and a terminal does without it

        return Figure(figsize=self._figsize, layout="constrained")

    @cached_property
    def axes(self) -> list[Any]:
        """Its axes, row by row."""
        return list(self.fig.subplots(*self._grid, squeeze=False).flat)

    @property
    def names(self) -> list[str]:
        """What each line is called: the legend, as far as it goes."""
        return [self._legend[i] if i < len(self._legend) else f"y{i + 1}" for i in range(len(self.Y))]

    def add(self, x: Any, y: Any) -> None:
        """Add a point to each line: at `x`, or each at its own of a list. A value or list of them; None: no point.

        Raises: CnnlabError for another number of values than before.
        """
        ys = list(y) if hasattr(y, "__len__") else [y]
        xs = list(x) if hasattr(x, "__len__") else [x] * len(ys)
        if not self.Y:
            self.X, self.Y = [[] for _ in ys], [[] for _ in ys]
        if not len(xs) == len(ys) == len(self.Y):
            raise CnnlabError(
                f"Animator.add took {len(xs)} x and {len(ys)} y for {len(self.Y)} lines; give None for a line without "
                "a point"
            )
        told = []
        for i, (a, b) in enumerate(zip(xs, ys, strict=True)):
            if a is not None and b is not None:
                self.X[i].append(float(a))
                self.Y[i].append(float(b))
                told.append(i)
        if not told:
            return
        now = max(self.X[i][-1] for i in told)
        numbers = ", ".join(f"{self.names[i]} {self.Y[i][-1]:.3f}" for i in told)
        self._screen.tell(f"{self._xlabel or 'x'} {now:g}: {numbers}", now.is_integer())
        _waiting[self] = None
        ended, self._ended = self._ended, self._complete()
        if (self._ended and not ended) or (self._screen.live and time.perf_counter() >= self._due):
            self._draw()

    def finish(self) -> None:
        """Draw what has not been drawn."""
        self._screen.end_line()
        if self in _waiting:
            self._draw()

    def plot(self) -> Figure:
        """The figure with all points in it."""
        axes = self.axes[0]
        axes.cla()
        for xs, ys, style in zip(self.X, self.Y, cycle(self.fmts), strict=False):
            axes.plot(xs, ys, style)
        self._config(axes, self.names if self._legend else [])
        return self.fig

    def chart(self, width: int = 64, height: int = 10) -> str:
        """The lines as a chart of characters."""
        return text_chart(self.X, self.Y, self.names, self._xlabel or "x", self._scales, width, height)

    def _complete(self) -> bool:
        """Has every line come to the end of the x axis?"""
        return self._xlim is not None and all(xs and xs[-1] >= self._xlim[1] for xs in self.X)

    def _draw(self) -> None:
        began = time.perf_counter()
        self._screen.draw(self)
        ended = time.perf_counter()
        self._due = ended + min(_MOST, max(_LEAST, 20 * (ended - began)))
        _waiting.pop(self, None)


# What has points that are not drawn yet, in the order in which they came.
_waiting: dict[Animator, None] = {}


@cache
def _draw_the_rest() -> None:
    """From now on, whatever waits is drawn at the end of each of the notebook's cells, and of the program."""
    atexit.register(_finish_all)
    if in_notebook():
        sys.modules["IPython"].get_ipython().events.register("post_execute", _finish_all)


def _finish_all() -> None:
    for animator in list(_waiting):
        animator.finish()


class _Screen:
    """Where a plot is seen. live: is each drawing put in the place of the last?"""

    live = True

    def tell(self, line: str, whole: bool) -> None:
        """The numbers of the moment; whole: at a whole x."""

    def end_line(self) -> None:
        """Leave the cursor at the beginning of a line."""

    def draw(self, animator: Animator) -> None:
        """Show the plot as it is now."""


class _Notebook(_Screen):
    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, animator: Animator) -> None:
        from IPython.display import display

        text = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a line per letter would help nobody
            animator.plot().savefig(text, format="svg")
        picture = {"image/svg+xml": text.getvalue(), "text/plain": animator.chart()}
        if self._handle is None:
            self._handle = display(picture, raw=True, display_id=True)
        else:
            self._handle.update(picture, raw=True)


class _Terminal(_Screen):
    live = False  # what is printed in between must not be wiped, so nothing goes back over a line that is finished

    def __init__(self) -> None:
        self._open = False  # is there an unfinished line?
        self._due = 0.0

    def tell(self, line: str, whole: bool) -> None:
        now = time.perf_counter()
        if not whole and now < self._due:
            return
        self._due = now + _LEAST
        columns = shutil.get_terminal_size().columns
        print(f"\r\x1b[K{line[: columns - 1]}", end="\n" if whole else "", file=sys.stderr, flush=True)
        self._open = not whole

    def end_line(self) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False

    def draw(self, animator: Animator) -> None:
        self.end_line()
        columns = shutil.get_terminal_size().columns
        print(animator.chart(width=max(20, min(64, columns - 12))), file=sys.stderr, flush=True)


class _File(_Screen):
    def __init__(self) -> None:
        self._path: Path | None = None
        self._failed = False

    def draw(self, animator: Animator) -> None:
        if self._failed:
            return
        from cnnlab.io import figures as plots  # matplotlib is slow to import

        first = self._path is None
        try:
            self._path = self._path or _new_file()
            write_atomic(self._path, plots.png(animator.plot()))
        except OSError as error:
            # A training must not end because its picture cannot be kept.
            self._failed = True
            print(f"the curve cannot be kept in {_FOLDER.absolute()}: {reason(error)}", file=sys.stderr, flush=True)
            return
        if first:
            print(f"the curve is in {self._path}", file=sys.stderr, flush=True)


_FOLDER = Path("figures")


def _new_file() -> Path:
    """The next free figures/curve-N.png, made empty so that no other process takes it."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = _FOLDER / f"curve-{number}.png"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path.absolute()
    raise AssertionError


def _screen() -> _Screen:
    if in_notebook():
        return _Notebook()
    return _Terminal() if sys.stderr.isatty() else _File()


_MARKS = "*o+x#@%&"


def text_chart(
    xs: Sequence[Sequence[float]],
    ys: Sequence[Sequence[float]],
    names: Sequence[str],
    xlabel: str,
    scales: tuple[str, str] = ("linear", "linear"),
    width: int = 64,
    height: int = 10,
) -> str:
    """A chart in plain ASCII, a mark for each line; xs, ys: the points of each. What is not finite is left out."""
    points = [
        (_scaled(a, scales[0]), _scaled(b, scales[1]), _MARKS[i % len(_MARKS)])
        for i, (line_x, line_y) in enumerate(zip(xs, ys, strict=True))
        for a, b in zip(line_x, line_y, strict=True)
    ]
    points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    if not points:
        return "(no points)"
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    grid = [[" "] * width for _ in range(height)]
    for x, y, mark in points:
        column = round((x - left) / (right - left or 1) * (width - 1))
        row = height - 1 - round((y - low) / (high - low or 1) * (height - 1))
        grid[row][column] = mark
    ends = {0: _back(high, scales[1]), height - 1: _back(low, scales[1])}
    lines = [f"{ends.get(i, ''):>8} |{''.join(row)}".rstrip() for i, row in enumerate(grid)]
    first, last = _back(left, scales[0]), _back(right, scales[0])
    lines.append(" " * 8 + " +" + "-" * width)
    lines.append(" " * 10 + first + xlabel.center(max(len(xlabel), width - len(first) - len(last))) + last)
    lines.append(" " * 10 + "   ".join(f"{_MARKS[i % len(_MARKS)]} {name}" for i, name in enumerate(names)))
    return "\n".join(lines)


def _scaled(value: float, scale: str) -> float:
    if scale != "log":
        return value
    return math.log10(value) if value > 0 else math.nan


def _back(value: float, scale: str) -> str:
    return f"{10**value if scale == 'log' else value:.3g}"
