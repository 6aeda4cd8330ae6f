"""`cnnlab figures`, `reproduce` and `classical`: the manual's chapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnlab.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    OwnModel,
    Progress,
    RunsDir,
    SkipBad,
    Threads,
    own_model,
    print_training,
)
from cnnlab.io.errors import CnnlabError
from cnnlab.io.tables import Table, to_json, wrap
from cnnlab.io.text import echo, plural

if TYPE_CHECKING:
    from cnnlab.chapter.reproduce import Plan, Reproduction


def figures(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NUMBER...]", help="1.1 to 1.8. Default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Output folder. Existing files are replaced.")] = Path("figures"),
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="1.1: the run whose filters to draw.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="1.8: data source of the sample images.", show_default=False)
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="svg or png. May be repeated. Default: both.")
    ] = None,
    model: OwnModel = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Draw the chapter's figures from the real networks."""
    from cnnlab.chapter import figures as drawn

    left_out = drawn.left_out(names, run, data)
    if left_out:
        echo(left_out, error=True)
    for path in drawn.figures(
        names,
        out_dir=out,
        run=run,
        data=data,
        model=own_model(model),
        runs_dir=runs_dir,
        formats=formats or drawn.FORMATS,
    ):
        echo(path)


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            help="lenet, alexnet, vgg11, nin, lenet-bn-scratch, lenet-bn, resnet18, googlenet, densenet, or classical. "
            "Default: the nine networks.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Train each with this many seeds; print mean and std.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs, for a quick trial.", show_default=False)] = None,
    limit: Annotated[
        int | None, typer.Option(help="Largest number of images per split, for a quick trial.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Resume an interrupted reproduction.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the folder. Default: a free one.", show_default=False)
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    progress: Progress = "auto",
    as_json: AsJson = False,
) -> None:
    """Train the chapter's experiments.

    Estimate the time and ask first. Print the results beside the manual's.
    """
    from cnnlab.chapter import reproduce as reproduction

    common: dict[str, Any] = {
        "runs_dir": runs_dir, "device": device, "threads": threads, "data_dir": data_dir, "progress": progress
    }  # fmt: skip

    def confirm(plan: Plan) -> bool:
        echo(plan_text(plan), error=True)
        if yes:
            return True
        if sys.stdin is None or not sys.stdin.isatty():
            raise CnnlabError("there is no terminal to confirm in; pass --yes")
        return typer.confirm("Continue?", err=True)

    def call() -> str:
        if resume is not None:
            if names or name or epochs or limit or seeds != 1:
                raise CnnlabError("--resume uses the saved plan; leave out names, --seeds, --epochs, --limit, --name")
            done: Reproduction | None = reproduction.resume_reproduction(resume, **common)
        else:
            done = reproduction.reproduce(
                names or (), seeds=seeds, epochs=epochs, limit=limit, name=name, confirm=confirm, **common
            )
        if done is None:
            return "nothing was trained"
        failed.extend(row for row in done.rows if "failed" in row)
        return to_json(done.to_dict()) if as_json else reproduction_text(done)

    failed: list[dict[str, Any]] = []
    print_training(call)
    if failed:
        raise typer.Exit(1)


def classical(
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="[METHOD...]", help="hog-linear, hog-kernel, sift-linear or sift-kernel. Default: all."),
    ] = None,
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, folder:PATH or another.")] = "digits",
    limit: Annotated[int, typer.Option(help="Largest number of images per split; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    threads: Threads = None,
    data_dir: DataDir = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Train the classical baseline.

    HOG or SIFT features and a support vector machine. The SVM is linear or has an
    approximated Gaussian kernel. Features are cached.
    """
    from cnnlab.chapter.classical import classical as train_classical
    from cnnlab.training.display import reporting

    with reporting() as report:
        results = train_classical(
            data, methods or None, data_dir=data_dir, limit=limit, seed=seed, threads=threads, skip_bad=skip_bad,
            report=report,
        )  # fmt: skip
    lines = (wrap(line, 4) for r in results for line in str(r).split("\n"))
    echo(to_json([r.to_dict() for r in results]) if as_json else "\n".join(lines))


def plan_text(planned: Plan) -> str:
    """Return a table of what a reproduction is going to train, with the estimated time."""
    table = Table("experiment", "recipe", "epochs", "seeds", "images", "estimated time")
    for name, recipe in planned.recipes.items():
        images = f"at most {recipe.limit:,}" if recipe.limit else "all"
        seconds = planned.seconds[name]
        table.add_row(name, recipe.name, str(recipe.epochs), str(planned.seeds), images, duration(seconds))
    for name in planned.methods:
        images = f"at most {planned.limit:,}" if planned.limit else "all"
        table.add_row(name, "", "", "1", images, "not estimated")
    if not planned.recipes:
        return str(table)
    besides = ", without the classical baseline" if planned.methods else ""
    return f"{table}\nabout {duration(planned.total)} in all on this machine{besides}"


def duration(seconds: float) -> str:
    """Return seconds as text, in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def reproduction_text(reproduction: Reproduction) -> str:
    """Return a table with a row of our figures and a row of the manual's for each experiment, then notes."""
    from cnnlab.chapter.experiments import CLASSICAL, cells, how, printed_cells

    table = Table("experiment", "", "loss", "train acc", "test acc", "examples/s", "images/s")
    notes = []
    for row in reproduction.rows:
        if "failed" in row:
            table.add_row(row["title"], "failed", *[""] * 5)
            notes.append(f"{row['title']} failed: {row['failed']}")
        else:
            n = row["test_acc"]["n"]
            table.add_row(row["title"], plural(n, "seed"), *cells(row))
            if row["limited"]:
                notes.append(f"{row['title']} was limited: {row['limited']}; not comparable with the printed figures")
        printed = printed_cells(row)
        if any(printed):
            table.add_row("", "published" if row["name"] in CLASSICAL else "printed", *printed, "")
    whole = [row for row in reproduction.rows if "failed" not in row and not row["limited"]]
    for text in dict.fromkeys(how(row) for row in whole):
        notes.append(f"{text}: {', '.join(row['title'] for row in whole if how(row) == text)}")
    for row in reproduction.rows:
        if "val_acc" in row:
            accuracy = row["val_acc"]["mean"]
            notes.append(f"{row['title']}: settings selected on validation images, val acc {accuracy:.4f}")
        for name in ("gamma", "beta"):
            if name in row:
                values = ", ".join(f"{v:.3f}" for v in row[name])
                notes.append(f"{row['title']}, seed {row['seeds'][0]}, first layer's {name}: {values}")
    if any("failed" not in row and row["name"] not in CLASSICAL for row in reproduction.rows):
        notes.append("the manual's recipes evaluate on the test set after each epoch; do not select models by it")
    notes.append(f"saved in {reproduction.path} (results.json, table.md, every run)")
    return "\n".join([str(table), "", *(wrap(note, 2) for note in notes)])
