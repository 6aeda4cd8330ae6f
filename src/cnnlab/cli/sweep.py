"""`cnnlab sweep`: search settings with one or several workers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    RunsDir,
    SkipBad,
    machine_options,
    option_words,
    print_training,
)
from cnnlab.io.errors import CnnlabError, needs_extra
from cnnlab.io.tables import Table, number, to_json, wrap
from cnnlab.io.text import echo, plural
from cnnlab.recipe import metric_label

if TYPE_CHECKING:
    from cnnlab.sweep.results import SweepResult

_MOST_ROWS = 20


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="What to search.", show_default=False)],
    show: Annotated[bool, typer.Option("--show", help="Print what was found so far; train nothing.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes that train trials side by side.")] = 1,
    device: DeviceName = "auto",
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of each worker. Default: the cores, divided.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    progress: Annotated[str, typer.Option(help="Of each training: auto, bar, lines or none.")] = "none",
    as_json: AsJson = False,
) -> None:
    """Search a recipe's settings with Optuna.

    Each trial is an ordinary run. Run the same command again, or in a second
    terminal, to continue the sweep, even after kill -9. At the end it prints a
    table, and writes a page and the best recipe beside FILE.
    """
    with needs_extra("sweep", "optuna", "sqlalchemy", "alembic"):
        import optuna  # noqa: F401

        from cnnlab.sweep.definition import read_sweep
        from cnnlab.sweep.results import check_files, sweep_result
        from cnnlab.sweep.worker import Machine, work
        from cnnlab.sweep.workers import work_together

    definition = read_sweep(file)
    check_files(definition)
    options = machine_options(device, threads, data_dir, runs_dir, skip_bad=skip_bad)
    machine = Machine(runs_dir, device, threads, data_dir, skip_bad, progress)

    def result() -> str:
        ended = True
        if workers > 1 and not show:
            ended = work_together(definition, machine, workers, log=_log)
        elif not show:
            work(definition, machine, log=_log)
        found = sweep_result(definition)
        files = found.save() if found.trials else []
        if not ended and not found.done:
            raise CnnlabError(f"all workers of {file} ended before it was finished; run the same command again: it "
                              "continues")  # fmt: skip
        if found.done and found.best is None:
            why = next((trial.failed for trial in found.trials if trial.failed), "all were pruned")
            raise CnnlabError(f"no trial of {file} has finished: {why}")
        return to_json(found.to_dict()) if as_json else "\n".join(_lines(found, options, files))

    words = option_words({"--workers": str(workers) if workers > 1 else None, **options})
    print_training(result, f"Continue with: cnnlab sweep {shlex.join([str(file), *words])}")


def _log(text: str) -> None:
    echo(text, error=True, flush=True)


def _lines(found: SweepResult, options: dict[str, str | None], files: list[Path]) -> list[str]:
    """Return the lines that the command prints: the trials, best first, and the next command.

    options: see `machine_options`.
    """
    from cnnlab.sweep.worker import short

    sweep, best = found.sweep, found.best
    if not found.trials:
        command = shlex.join([str(sweep.file), *option_words(options)])
        return [f"no trial of {sweep.file} has started; start a worker: cnnlab sweep {command}"]
    spread = ["std"] if sweep.seeds > 1 else []
    table = Table("trial", metric_label(sweep.figure), *spread, "state", "epochs", *sweep.search)
    for trial in found.trials[:_MOST_ROWS]:
        stds = [number(trial.std, ".4f")] if spread else []
        epochs = "" if trial.epochs is None else str(trial.epochs)
        values = [short(trial.params[key]) if key in trial.params else "" for key in sweep.search]
        table.add_row(str(trial.number), number(trial.value, ".4f"), *stds, trial.state, epochs, *values)
    more = len(found.trials) - _MOST_ROWS
    lines = [str(table), *([f"and {plural(more, 'trial')} more: --json, or the page"] if more > 0 else []), ""]
    counts = [f"{found.count(state)} {state}" for state in ("finished", "pruned", "failed", "running")
              if found.count(state)]  # fmt: skip
    lines.append(f"{len(found.trials)} of {plural(sweep.trials, 'trial')}: {', '.join(counts)}")
    if found.importance:
        lines.append(wrap("importance: " + ", ".join(f"{key} {share:.2f}" for key, share in found.importance.items())))
    lines += [f"{'recipe' if path == sweep.recipe_file else 'page'}: {path}" for path in files]
    if best is not None:
        run = shlex.quote(str(Path(options["--runs-dir"] or "runs") / best.runs[0]))
        lines.append(
            wrap(
                f"note: the best of {plural(found.count('finished'), 'trial')} on the same validation images usually "
                f"does less well on new images; evaluate it on the test set once, at the very end: cnnlab eval {run}"
            )
        )
        lines.append(f"next: cnnlab train --recipe {shlex.join([str(sweep.recipe_file), *option_words(options)])}")
    return lines
