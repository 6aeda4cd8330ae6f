"""The display of a training's progress: a bar in a terminal, a curve in a notebook, lines in a log, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from cnnlab.device.timing import AsyncScalarReader
from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.io.tables import wrap
from cnnlab.io.text import echo, escape, escape_lines
from cnnlab.recipe import metric_label

if TYPE_CHECKING:
    from torch import Tensor

    from cnnlab.data.imageset import Report
    from cnnlab.data.loader import Loader
    from cnnlab.recipe import Recipe

KINDS = ("auto", "bar", "lines", "notebook", "none")
_INTERVAL = 0.1  # seconds between two updates of the numbers
_LINE_INTERVAL = 30.0  # seconds between two lines in a log
_FIRST_LINE = 5.0  # seconds of training after which its duration can be estimated
_TIME = 14  # columns reserved for the time left, beside the numbers
_DRAW_INTERVAL = 1.0  # seconds between two drawings of the curve; each takes about 0.2 s of one core


class Display:
    """A display that shows nothing. Subclasses override what they need."""

    def message(self, text: str) -> None:
        """Show a note, such as a changed batch size."""

    def read(self, what: str, done: int, total: int) -> None:
        """Show that reading data has reached `done` of `total` (0: unknown)."""

    def start(self, recipe: Recipe, loader: Loader, rows: list[dict[str, Any]]) -> None:
        """Show that a training starts. rows: one per finished epoch."""

    def step(self, epoch: int, images: int, sums: Tensor) -> None:
        """Show that `images` of this epoch are done. sums: (2,) summed loss and correct predictions, on the device."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Show the row of an epoch that is finished and saved."""

    def end(self) -> None:
        """Clean up after the training, however it ended. May be called twice."""


class Lines(Display):
    """Plain lines for log files: one per epoch, and one every half minute within long epochs."""

    def __init__(self) -> None:
        self._due = time.perf_counter() + _LINE_INTERVAL  # time of the next line during a long read or epoch

    def message(self, text: str) -> None:
        """Print the note."""
        echo(text, error=True, flush=True)

    def read(self, what: str, done: int, total: int) -> None:
        """Print how far a long read is."""
        if time.perf_counter() >= self._due:
            self.message(f"{what}: {done:,}{f' of {total:,}' if total else ''}")
            self._due = time.perf_counter() + _LINE_INTERVAL

    def start(self, recipe: Recipe, loader: Loader, rows: list[dict[str, Any]]) -> None:
        """Store what the lines need. The first line comes after a few seconds, with an estimate of the time left."""
        self._epochs, self._recipe = recipe.epochs, recipe
        self._reader, self._count = AsyncScalarReader(loader.device), loader.count
        self._due, self._epoch = time.perf_counter() + _FIRST_LINE, -1
        # Epochs on frozen features say nothing about the duration of the others.
        self._frozen = recipe.freeze_epochs if recipe.freeze_epochs < recipe.epochs else 0
        self._seconds = [row["seconds"] for row in rows[-1:] if row["epoch"] > self._frozen]

    def step(self, epoch: int, images: int, sums: Tensor) -> None:
        """Print a line within a long epoch; otherwise do nothing."""
        now = time.perf_counter()
        if epoch != self._epoch:
            self._epoch, self._began, self._before = epoch, now, images  # a resumed epoch begins in its middle
        if now < self._due or images <= self._before:
            return
        values = self._reader(sums, images)
        if values is None:
            return
        self._due = now + _LINE_INTERVAL
        speed = (images - self._before) / (now - self._began)
        left = self._time_left(epoch, (self._count - images) / speed, self._count / speed)
        self.message(
            f"epoch {epoch + 1}/{self._epochs}  {images / self._count:.0%}  loss {values[0]:.3f}  acc {values[1]:.3f}  "
            f"{speed:,.0f} images/s{left}"
        )

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the line."""
        self._seconds += [row["seconds"]] if row["epoch"] > self._frozen else []
        self._due = time.perf_counter() + _LINE_INTERVAL
        self.message(
            f"epoch {row['epoch']}/{self._epochs}  loss {row['loss']:.3f}  train acc {row['train_acc']:.3f}  "
            f"{evaluated(row, self._recipe)}  {row['images_per_second']:,.0f} images/s"
            f"{self._time_left(row['epoch'], 0, row['seconds'])}"
        )

    def _time_left(self, done: int, seconds: float, whole: float) -> str:
        """Return the text on the time left after `done` whole epochs; empty below five seconds and in frozen epochs.

        seconds: left in the current epoch, 0 between epochs. whole: duration of an epoch, used if none was measured.
        """
        if done < self._frozen or (done == self._frozen > 0 and not (self._seconds or seconds)):
            return ""
        each = self._seconds[-1] if self._seconds else whole
        left = seconds + each * (self._epochs - done - (seconds > 0))
        return f"  about {clock(left)} left" if left >= 5 else ""


def clock(seconds: float) -> str:
    """Return a time as `m:ss` or `h:mm:ss`."""
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}" if minutes >= 60 else f"{minutes}:{whole:02d}"


class _Numbers(ProgressColumn):
    """The numbers of a training, on one line; the bar gets the rest of the width."""

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("numbers", ""))


class _TimeLeft(ProgressColumn):
    """The time left; at the end, the time taken."""

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        seconds = task.finished_time if task.finished else task.time_remaining
        if seconds is None:
            return Text("")
        text = clock(seconds)
        return Text(text if task.finished else f"{text} left")


class Bar(Display):
    """A progress bar over the whole training, with current numbers beside it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._reading: Any = None

    def message(self, text: str) -> None:
        """Print the note above the bar, with long lines wrapped."""
        text = "\n".join(wrap(line, 2) for line in escape_lines(text).split("\n"))
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def read(self, what: str, done: int, total: int) -> None:
        """Show a bar for each thing that is read or downloaded."""
        if self._progress is None:
            self._progress = Progress(TextColumn("{task.description}"), BarColumn(), _Percent(), TimeRemainingColumn(),
                                      console=self._console, transient=True)  # fmt: skip
            self._progress.start()
            self._reading = None
        if self._reading is None or self._reading[1] != what:
            self._reading = (self._progress.add_task(escape_markup(escape(what)), total=total or None), what)
        self._progress.update(self._reading[0], completed=done, total=total or None)

    def start(self, recipe: Recipe, loader: Loader, rows: list[dict[str, Any]]) -> None:
        """Start the bar. A resumed training's starts where it stopped."""
        self.end()
        self._reader = AsyncScalarReader(loader.device)
        self._count, self._epochs, self._recipe = loader.count, recipe.epochs, recipe
        self._evaluated = f"  {evaluated(rows[-1], recipe)}" if rows else ""
        self._due, self._epoch = 0.0, -1
        self._progress = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            _Numbers(),
            _TimeLeft(),
            console=self._console,
            expand=True,
        )
        self._task = self._progress.add_task(
            "",
            total=recipe.epochs * loader.count,
            completed=len(rows) * loader.count,
            numbers=f"epoch {len(rows) + 1}/{recipe.epochs}",
        )
        self._progress.start()

    def step(self, epoch: int, images: int, sums: Tensor) -> None:
        """Update the numbers a few times a second; otherwise do nothing."""
        now = time.perf_counter()
        if epoch != self._epoch:
            # A resumed epoch does not start with its first image.
            self._epoch, self._began, self._before = epoch, now, images
        if now < self._due or self._progress is None or images == 0:
            return
        self._due = now + _INTERVAL
        self._progress.update(self._task, completed=epoch * self._count + images)
        values = self._reader(sums, images)
        elapsed = now - self._began
        if values is not None and elapsed > 0:
            self._show(epoch, values[0], values[1], (images - self._before) / elapsed)

    def epoch(self, row: dict[str, Any]) -> None:
        """Show the exact numbers of the epoch."""
        if self._progress is not None:
            self._evaluated = f"  {evaluated(row, self._recipe)}"
            self._progress.update(self._task, completed=row["epoch"] * self._count)
            self._show(row["epoch"] - 1, row["loss"], row["train_acc"], row["images_per_second"])

    def _show(self, epoch: int, loss: float, accuracy: float, speed: float) -> None:
        assert self._progress is not None
        parts = f"epoch {epoch + 1}/{self._epochs}", f"loss {loss:.3f}", f"acc {accuracy:.3f}{self._evaluated}"
        text = "  ".join((*parts, f"{speed:,.0f} images/s"))
        if len(text) > self._console.width - _TIME:  # rich would cut it off
            text = "  ".join(parts)
        self._progress.update(self._task, numbers=text)

    def end(self) -> None:
        """Leave the bar where it is."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Percent(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.percentage:3.0f}%" if task.total else f"{task.completed:,.0f}")


class Notebook(Display):
    """A curve that is updated in place in a notebook's output."""

    def __init__(self) -> None:
        self._drawn = True

    def message(self, text: str) -> None:
        """Print the note into the cell's output."""
        echo(text)

    def start(self, recipe: Recipe, loader: Loader, rows: list[dict[str, Any]]) -> None:  # noqa: ARG002
        """Store the rows so far; the first epoch draws the figure."""
        self._rows, self._recipe = list(rows), recipe
        self._handle: Any = None
        self._due = 0.0

    def epoch(self, row: dict[str, Any]) -> None:
        """Redraw the curve in place; not after every epoch if epochs are short."""
        self._rows.append(row)
        self._drawn = False
        if time.perf_counter() >= self._due:
            self._draw()
            self._due = time.perf_counter() + _DRAW_INTERVAL

    def end(self) -> None:
        """Draw what is not yet drawn."""
        if not self._drawn:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import Image, display

        from cnnlab.io import figures as plots
        from cnnlab.training.curves import curves

        row = self._rows[-1]
        title = (
            f"epoch {row['epoch']}: loss {row['loss']:.3f}, train acc {row['train_acc']:.3f}, "
            f"{evaluated(row, self._recipe)}, {row['images_per_second']:,.0f} images/s"
        )
        png = plots.png(curves(self._rows, self._recipe, title), dpi=100)
        image = Image(data=png, format="png", alt=f"Loss and accuracy over the epochs; {title}")
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)
        self._drawn = True


def evaluated(row: dict[str, Any], recipe: Recipe) -> str:
    """Return an epoch's evaluation accuracy as text, with the figure that selects the best epoch if it is another."""
    keys = dict.fromkeys((f"{recipe.key}_acc", recipe.best_by)) if recipe.best_by != "loss" else [f"{recipe.key}_acc"]
    return "  ".join(f"{metric_label(key)} {row[key]:.3f}" for key in keys)


def make_display(kind: str = "auto") -> Display:
    """Return the display called `kind`. auto: the curve in a notebook, the bar in a terminal, lines elsewhere."""
    if kind not in KINDS:
        raise unknown("progress display", kind, KINDS)
    if kind == "auto":
        kind = "notebook" if in_notebook() else "bar" if sys.stderr.isatty() else "lines"
    if kind == "notebook":
        try:
            import IPython  # noqa: F401
        except ImportError as error:
            raise CnnlabError("progress notebook needs IPython, which notebooks have; choose another one") from error
    displays: dict[str, type[Display]] = {
        "bar": Bar, "lines": Lines, "notebook": Notebook, "none": Display
    }  # fmt: skip
    return displays[kind]()


@contextmanager
def reporting(kind: str = "auto") -> Iterator[Report]:
    """Yield a function that displays the progress of a long read; clean up afterwards. kind: see `make_display`."""
    display = make_display(kind)
    try:
        yield display.read
    finally:
        display.end()


def in_notebook() -> bool:
    """Return whether this is a notebook, whose output can show images."""
    # A notebook has imported IPython; importing it here would take half a second.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None
