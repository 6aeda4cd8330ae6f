"""`cnnlab figures`, `reproduce` and `classical`: the manual's chapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnlab.cli.options import AsJson, DataDir, DeviceName, RunsDir, SkipBad, Threads, print_training
from cnnlab.io.errors import CnnlabError
from cnnlab.io.tables import as_text, new_table, to_json
from cnnlab.io.text import echo

if TYPE_CHECKING:
    from cnnlab.chapter.reproduce import Plan, Reproduction


def figures(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NUMBER...]", help="1.1 to 1.8. Unsaid: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures; those of the same name are replaced.")] = Path(
        "figures"
    ),
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="1.1: the trained run whose filters to show.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="1.8: the images to show samples of.", show_default=False)
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="svg or png; may be repeated. Unsaid: both.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Draw the chapter's figures from the real networks and a run's filters."""
    from cnnlab.chapter import figures as drawn

    left_out = drawn.left_out(names, run, data)
    if left_out:
        echo(left_out, error=True)
    for path in drawn.figures(
        names, out_dir=out, run=run, data=data, runs_dir=runs_dir, formats=formats or drawn.FORMATS
    ):
        echo(path)


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            help="Experiments: lenet, alexnet, vgg11, nin, lenet-bn-scratch, lenet-bn, resnet18, googlenet, densenet; "
            "classical for the baseline. Unsaid: the nine networks.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Train each from that many seeds; mean and std.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(help="Another number of epochs, for a quick look.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most that many images of each split, for a quick look.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however long it may take.")] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Go on with an interrupted one.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the folder. Unsaid: a free one.", show_default=False)
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    progress: Annotated[str, typer.Option(help="As for train.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Train the chapter's experiments by the manual's recipes; print ours beside the manual's figures.

    Says first how long that may take on this machine, and asks.
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
            raise CnnlabError("nobody is there to say yes; give --yes")
        return typer.confirm("Go on?", err=True)

    def call() -> str:
        if resume is not None:
            if names or name or epochs or limit or seeds != 1:
                raise CnnlabError(
                    "--resume goes on with its own plan; leave out names, --seeds, --epochs, --limit, --name"
                )
            found: Reproduction | None = reproduction.resume_reproduction(resume, **common)
        else:
            found = reproduction.reproduce(
                names or (), seeds=seeds, epochs=epochs, limit=limit, name=name, confirm=confirm, **common
            )
        if found is None:
            return "nothing was trained"
        failed.extend(row for row in found.rows if "failed" in row)
        return to_json(found.to_dict()) if as_json else reproduction_text(found)

    failed: list[dict[str, Any]] = []
    print_training(call)
    if failed:
        raise typer.Exit(1)


def classical(
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="[METHOD...]", help="hog-linear, hog-kernel, sift-linear, sift-kernel. Unsaid: all."),
    ] = None,
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, folder:PATH or store:PATH.")] = "digits",
    limit: Annotated[int, typer.Option(help="At most that many images of each split; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Held-out images, landmarks, visual words, order of the steps.")] = 0,
    threads: Threads = None,
    data_dir: DataDir = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Train the classical baseline: hand-made features and a support vector machine.

    HOG or bags of SIFT words, with a linear SVM or one with an approximated Gaussian kernel. Features are kept in the
    user's cache folder.
    """
    from cnnlab.chapter.classical import classical as train_classical
    from cnnlab.training.display import make_display

    display = make_display()
    try:
        found = train_classical(
            data, methods or None, data_dir=data_dir, limit=limit, seed=seed, threads=threads, skip_bad=skip_bad,
            report=display.read,
        )  # fmt: skip
    finally:
        display.end()
    echo(to_json([r.to_dict() for r in found]) if as_json else "\n".join(map(str, found)))


def plan_text(planned: Plan) -> str:
    """What a reproduction is going to train, and how long that may take."""
    table = new_table("experiment", "recipe", "epochs", "seeds", "images", "estimated time")
    for name, recipe in planned.recipes.items():
        images = f"at most {recipe.limit:,}" if recipe.limit else "all"
        seconds = planned.seconds[name]
        table.add_row(name, recipe.name, str(recipe.epochs), str(planned.seeds), images, duration(seconds))
    for name in planned.methods:
        images = f"at most {planned.limit:,}" if planned.limit else "all"
        table.add_row(name, "", "", "1", images, "not estimated")
    if not planned.recipes:
        return as_text(table)
    besides = ", the classical baseline not counted" if planned.methods else ""
    return f"{as_text(table)}\nabout {duration(planned.total)} in all on this machine{besides}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def reproduction_text(found: Reproduction) -> str:
    """The table: a line for ours and a line for what the manual prints, then what the rows are worth."""
    from cnnlab.chapter.experiments import CLASSICAL, cells, printed_cells

    table = new_table("experiment", "", "loss", "train acc", "test acc", "examples/s", "images/s with data")
    notes = []
    for row in found.rows:
        if "failed" in row:
            table.add_row(row["title"], "failed", *[""] * 5)
            notes.append(f"{row['title']} failed: {row['failed']}")
        else:
            n = row["test_acc"]["n"]
            table.add_row(row["title"], f"{n} seed{'s' if n > 1 else ''}", *cells(row))
            if row["limited"]:
                notes.append(f"{row['title']} was limited: {row['limited']}; not comparable with the printed figures")
        printed = printed_cells(row)
        if any(printed):
            table.add_row("", "published" if row["name"] in CLASSICAL else "printed", *printed, "")
    whole = [row["title"] for row in found.rows if "failed" not in row and not row["limited"]]
    if whole:
        notes.append(f"in full: {', '.join(whole)}")
    for row in found.rows:
        if "val_acc" in row:
            accuracy = row["val_acc"]["mean"]
            notes.append(f"{row['title']}: settings chosen on validation images, val acc {accuracy:.4f}")
        for what in ("gamma", "beta"):
            if what in row:
                values = ", ".join(f"{v:.3f}" for v in row[what])
                notes.append(f"{row['title']}, seed {row['seeds'][0]}, first layer's {what}: {values}")
    if any("failed" not in row and row["name"] not in CLASSICAL for row in found.rows):
        notes.append("the manual's recipes look at the test set after each epoch; choose nothing by it")
    return "\n".join([as_text(table), "", *notes, f"kept in {found.path} (results.json, table.md, every run)"])
