"""`cnnlab runs`: list the runs, or compare some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnlab.cli.options import AsJson, RunsDir
from cnnlab.io.errors import CnnlabError
from cnnlab.io.tables import Table, number, to_json
from cnnlab.io.text import echo, plural
from cnnlab.recipe import metric_label

if TYPE_CHECKING:
    from cnnlab.training.runs import Run


def runs(
    compare: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Runs to compare. Default: list all.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    plot: Annotated[
        Path | None, typer.Option(help="Also plot their accuracies to this PNG file.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List all runs, or compare some.

    A comparison shows the figures and the settings that differ.
    """
    from cnnlab.training.runs import list_runs, open_run

    if compare:
        chosen = [open_run(name, runs_dir) for name in compare]
    else:
        chosen = list_runs(runs_dir, damaged=lambda text: echo(f"skipped: {text}", error=True))
    if plot is not None:
        save_comparison(plot, chosen)
    echo(to_json(run_rows(chosen)) if as_json else run_list(chosen, runs_dir, bool(compare)))


def run_rows(chosen: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row of plain values per run."""
    return [_run_row(run) for run in chosen]


def _run_row(run: Run) -> dict[str, Any]:
    rows, summary = run.metrics(), run.summary()
    best = summary or {}
    last = rows[-1] if rows else {}
    return {
        "run": str(run.path),
        "model": run.recipe.model,
        "data": run.recipe.data,
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "epochs": len(rows),
        "of": run.recipe.epochs,
        "finished": summary is not None,
        "loss": last.get("loss"),
        "train_acc": last.get("train_acc"),
        "val_acc": last.get("val_acc"),
        "test_acc": last["test_acc"] if "test_acc" in last else _evaluated_on_test(run),
        "best_epoch": best.get("best_epoch"),
        "best_by": best.get("best_by"),
        "best": best.get("best"),
        "figures": best.get("figures"),
        "images_per_second": sum(r["images"] for r in rows) / sum(r["train_seconds"] for r in rows) if rows else None,
        "seconds": sum(r["seconds"] for r in rows),
    }


def run_list(chosen: Sequence[Run], runs_dir: Path, compare: bool) -> str:
    """Return the runs as a table. compare: add the settings that differ."""
    if not chosen:
        return f"no runs in {runs_dir}; train a network with: cnnlab train"
    names = [_short_path(run, runs_dir) for run in chosen]
    return _comparison(chosen, names) if compare else _list(chosen, names)


def _list(chosen: Sequence[Run], names: Sequence[str]) -> str:
    table = Table("run", "model", "recipe", "seed", "epochs", "val acc", "test acc")
    for name, r in zip(names, run_rows(chosen), strict=True):
        recipe, *changes = r["recipe"].split(", ")
        short = f"{recipe}, +{plural(len(changes), 'change')}" if changes else recipe
        table.add_row(name, r["model"], short, str(r["seed"]), _epochs(r), number(r["val_acc"]), number(r["test_acc"]))
    return str(table)


def _comparison(chosen: Sequence[Run], names: Sequence[str]) -> str:
    """Return a column of figures for each run, then the settings that differ."""
    table, rows = Table("", *names), run_rows(chosen)
    table.add_row("model", *(r["model"] for r in rows))
    table.add_row("recipe", *(r["recipe"].partition(", ")[0] for r in rows))
    table.add_row("seed", *(str(r["seed"]) for r in rows))
    table.add_row("epochs", *map(_epochs, rows))
    for key in ("loss", "train_acc", "val_acc", "test_acc"):
        table.add_row(key.replace("_", " "), *(number(r[key]) for r in rows))
    table.add_row("best epoch", *("" if r["best_epoch"] is None else str(r["best_epoch"]) for r in rows))
    table.add_row("chosen by", *("" if r["best_by"] is None else metric_label(r["best_by"]) for r in rows))
    for key in ("accuracy", "balanced_accuracy", "macro_f1"):
        table.add_row(f"{metric_label(key)}, 95%", *(_with_interval(r["figures"], key) for r in rows))
    table.add_row("images/s", *(number(r["images_per_second"], ",.0f") for r in rows))
    if len(chosen) == 1:
        changes = chosen[0].recipe.name.split(", ")[1:]
        return f"{table}\n\n" + ("changes: " + "\n  ".join(changes) if changes else "no setting was changed")
    settings = Table("setting that differs", *names)
    for key in chosen[0].recipe.to_dict():
        values = [str(getattr(run.recipe, key)) for run in chosen]
        if key != "name" and len(set(values)) > 1:
            settings.add_row(key, *values)
    return f"{table}\n\n{settings if settings.rows else 'all settings are the same'}"


def _with_interval(found: dict[str, Any] | None, key: str) -> str:
    """Return a figure for the weights that a run predicts with, and its 95% interval."""
    if found is None:
        return ""
    return f"{found[key]:.3f} ({'-'.join(f'{bound:.3f}' for bound in found['intervals'][key])})"


def _epochs(row: dict[str, Any]) -> str:
    return str(row["epochs"]) if row["finished"] else f"{row['epochs']} of {row['of']}"


def _short_path(run: Run, runs_dir: Path) -> str:
    """Return the run's path relative to the folder of runs, which every command accepts; outside it, the whole path."""
    inside = run.path.is_relative_to(runs_dir)
    return str(run.path.relative_to(runs_dir)) if inside and run.path != runs_dir else str(run.path)


def _evaluated_on_test(run: Run) -> float | None:
    """Return the test accuracy that the last plain `cnnlab eval` of the run measured, or None."""
    plain = {"split": "test", "other_data": False, "views": "none", "weights": run.weights().name}
    rows = [row for row in run.evaluations() if all(row.get(key) == value for key, value in plain.items())]
    accuracies = [row.get("accuracy") for row in rows]
    return next((float(a) for a in reversed(accuracies) if isinstance(a, int | float) and 0 <= a <= 1), None)


def save_comparison(path: Path, chosen: Sequence[Run]) -> None:
    """Plot the runs' accuracies over the epochs to a PNG file.

    Raise CnnlabError if no run has finished an epoch, or if the file cannot be written.
    """
    from cnnlab.io import figures as plots
    from cnnlab.training.curves import comparison

    drawn = [(str(run.path), run.recipe.eval_split, run.metrics()) for run in chosen]
    drawn = [d for d in drawn if d[2]]
    if not drawn:
        raise CnnlabError("none of these runs has finished an epoch: nothing to plot")
    plots.check_png(path)
    plots.save(path, comparison(drawn))
