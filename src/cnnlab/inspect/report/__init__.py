"""A report about one run or several: one HTML file that anybody can open, without this package or the network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cnnlab import __version__
from cnnlab.inspect.report.card import card
from cnnlab.inspect.report.comparison import compare
from cnnlab.inspect.report.folders import paths_of, shortened, without_folders
from cnnlab.inspect.report.page import render
from cnnlab.inspect.report.payload import (
    MOST_ROWS,
    Measured,
    Options,
    file_name,
    measure,
    plain,
    run_name,
    run_payload,
)
from cnnlab.inspect.report.pooled import is_cross_validation, pooled_payload
from cnnlab.inspect.report.thumbnails import Thumbnails
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_atomic
from cnnlab.io.text import escape, truncate
from cnnlab.models.own import Network, is_own
from cnnlab.training import runs
from cnnlab.training.runs import Run
from cnnlab.training.series import is_series, member_folders

__all__ = ["Report", "report"]
MOST_RUNS = 20


@dataclass(frozen=True)
class Report:
    """A report about runs, which displays itself in a notebook. payload: its content as plain JSON values."""

    runs: list[Run]
    payload: dict[str, Any] = field(repr=False)

    @property
    def html(self) -> str:
        """The page: one HTML file that makes no network requests."""
        return render(self.payload)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the page. Raise CnnlabError if the file cannot be written, or exists and `force` is not set."""
        path = Path(path)
        check_new(path, force)
        return _write(path, self.html)

    @property
    def markdown(self) -> str:
        """The report as a model card in Markdown."""
        return card(self.payload)

    def save_markdown(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the model card. Raise CnnlabError if the file cannot be written, or exists and `force` is not set."""
        path = Path(path)
        check_new(path, force, (".md", ".markdown"))
        return _write(path, self.markdown)

    def save_pictures(self, folder: str | Path, *, force: bool = False) -> list[Path]:
        """Write curves, confusion matrix, classes, calibration and mistakes, each as PNG and SVG. Return the files.

        Raise CnnlabError if a file cannot be written, or exists and `force` is not set.
        """
        from cnnlab.inspect.report.pictures import figures, save  # imports matplotlib, which is slow

        return save(figures(self.runs, self.payload), Path(folder), force)

    def only(self, section: str) -> Report:
        """Return the report with one section: curves, confusion, classes, images or calibration."""
        return replace(self, payload={**self.payload, "only": section})

    def _repr_html_(self) -> str:
        height = 760 if self.payload.get("only") is None else 620
        return (
            f'<iframe title="{html.escape(self.payload["title"])}" sandbox="allow-scripts allow-modals" '
            f'style="width:100%;height:{height}px;border:0" srcdoc="{html.escape(self.html)}"></iframe>'
        )


def _write(path: Path, text: str) -> Path:
    try:
        write_atomic(path, text)
    except OSError as error:
        raise CnnlabError(f"cannot write {path}: {reason(error)}; name another file") from error
    return path


def check_new(path: Path, force: bool, endings: Sequence[str] = (".html", ".htm")) -> None:
    """Raise CnnlabError unless `path` has one of the endings and is a new file, or one to replace with `force`."""
    if path.suffix.lower() not in endings:
        raise CnnlabError(f"{path}: name a file that ends with {endings[0]}")
    if path.is_dir():
        raise CnnlabError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise CnnlabError(f"{path} exists; name another file, or replace it with --force")
    if not path.parent.is_dir():
        raise CnnlabError(f"the folder {path.parent} does not exist; create it first")


def report(
    *names: Run | str | Path,
    split: str | None = None,
    weights: str | None = None,
    data: Any = None,
    model: Network | None = None,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    skip_bad: bool = False,
    folder: str | Path | None = None,
) -> Report:
    """Return a report about one run, or about several side by side; a folder of seeds or folds stands for its runs.

    split: test, validation or train. Default: the split that was evaluated during training; for other images, the first
    that exists. The evaluation is recorded in the run, as by `evaluate_run`, which explains the other arguments.
    folder: where the page will be saved; paths of images are relative to it. Default: the working folder. If a run
    lacks weights or images, the page says so and has no part that needs them. Raise CnnlabError for an option that does
    not fit.
    """
    chosen = find_runs(names, runs_dir)
    options = Options(
        split,
        weights,
        data,
        None,
        data_dir,
        device,
        threads,
        skip_bad,
        Path(folder or ".").absolute(),
        MOST_ROWS // len(chosen),
    )
    measured = [
        measure(run, replace(options, model=model if is_own(run.recipe.model) or len(chosen) == 1 else None))
        for run in chosen
    ]
    return _made(measured, options)


def live_report(chosen: Sequence[Run]) -> Report:
    """Return a report without an evaluation, for runs that are being trained or evaluated."""
    return _made([Measured(run, None, []) for run in chosen], Options())


def page_report(chosen: Sequence[Run], data_dir: str | Path | None, threads: int | None) -> Report:
    """Return a report for a page that compares any runs: it says what cannot be evaluated, and shows the rest."""
    options = Options(data_dir=data_dir, threads=threads, folder=Path().absolute(),
                      most_rows=MOST_ROWS // len(chosen), lenient=True)  # fmt: skip
    return _made([measure(run, options) for run in chosen], options)


def _made(measured: Sequence[Measured], options: Options) -> Report:
    chosen = [one.run for one in measured]
    thumbnails = Thumbnails()
    together = compare(measured, thumbnails) if len(measured) > 1 else None
    pooled, budget = None, thumbnails.budget
    if is_cross_validation(measured):
        thumbnails.budget = budget // 2
        pooled = pooled_payload(measured, thumbnails, options)
        budget = budget // 2 + thumbnails.budget
    share, parts = budget // len(measured), []
    for one in measured:
        thumbnails.budget = share
        parts.append(run_payload(one, thumbnails, options))
    names = shortened(path for run in chosen for path in paths_of(run, options.data))
    shown = without_folders(parts, names)
    for part, before in zip(shown, parts, strict=True):
        part["shortened"] = part["command"] != before["command"]
    title = " · ".join(truncate(escape(run_name(run)), 60) for run in chosen[:4])
    payload = {
        "format": "cnnlab report 1",
        "title": f"{title} … · cnnlab" if len(chosen) > 4 else f"{title} · cnnlab",
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="minutes"),
        "only": None,
        "runs": shown,
        "compare": together and {**together, "settings": without_folders(together["settings"], names)},
        "pooled": without_folders(pooled, names),
        "pictures": thumbnails.uris,
    }
    return Report(chosen, plain(payload))


def find_runs(names: Sequence[Run | str | Path], runs_dir: str | Path) -> list[Run]:
    """Return the named runs; a folder of seeds or folds stands for its runs. Raise CnnlabError."""
    chosen: list[Run] = []
    for name in names:
        path = name.path if isinstance(name, Run) else runs.find_folder(name, runs_dir)
        if is_series(path):
            chosen += [runs.open_run(member) for member in member_folders(path) if (member / "run.json").exists()]
        else:
            chosen.append(name if isinstance(name, Run) else runs.open_run(path))
    if not chosen:
        raise CnnlabError("no run to report; name one, `cnnlab runs` lists all runs")
    if len(chosen) > MOST_RUNS:
        raise CnnlabError(f"{len(chosen)} runs are too many for one page; name at most {MOST_RUNS}")
    return chosen


def default_file(name: str | Path) -> Path:
    """Return the default file of a report about the run `name`."""
    return Path(f"{file_name(Path(name).resolve().name)}.html")
