"""`cnnlab runs`: list the runs, or compare some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnlab.cli.options import AsJson, RunsDir
from cnnlab.io.errors import CnnlabError
from cnnlab.io.tables import as_text, new_table, number, to_json
from cnnlab.io.text import echo

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
        "test_acc": last.get("test_acc"),
        "images_per_second": sum(r["images"] for r in rows) / sum(r["train_seconds"] for r in rows) if rows else None,
        "seconds": sum(r["seconds"] for r in rows),
    }


def run_list(chosen: Sequence[Run], runs_dir: Path, compare: bool) -> str:
    """Return the runs as a table. compare: add the settings that differ."""
    if not chosen:
        return f"no runs in {runs_dir}; train a network with: cnnlab train"
    table = new_table(
        "run", "model", "recipe", "seed", "epochs", "loss", "train acc", "val acc", "test acc", "images/s"
    )
    for r in run_rows(chosen):
        epochs = str(r["epochs"]) if r["finished"] else f"{r['epochs']} of {r['of']}"
        table.add_row(r["run"], r["model"], r["recipe"], str(r["seed"]), epochs,
                      *(number(r[k]) for k in ("loss", "train_acc", "val_acc", "test_acc")),
                      number(r["images_per_second"], ",.0f"))  # fmt: skip
    text = as_text(table)
    if compare and len(chosen) > 1:
        table = new_table("setting that differs", *(str(run.path) for run in chosen))
        for key in chosen[0].recipe.to_dict():
            values = [str(getattr(run.recipe, key)) for run in chosen]
            if len(set(values)) > 1:
                table.add_row(key, *values)
        text += "\n\n" + (as_text(table) if table.row_count else "all settings are the same")
    return text


def save_comparison(path: Path, chosen: Sequence[Run]) -> None:
    """Plot the runs' accuracies over the epochs to a PNG file. Raise CnnlabError if it cannot be written."""
    from cnnlab.io import figures as plots
    from cnnlab.training.curves import comparison

    drawn = [(str(run.path), run.recipe.eval_split, run.metrics()) for run in chosen]
    drawn = [d for d in drawn if d[2]]
    if not drawn:
        raise CnnlabError("none of these runs has finished an epoch: nothing to plot")
    plots.check_png(path)
    plots.save(path, comparison(drawn))
