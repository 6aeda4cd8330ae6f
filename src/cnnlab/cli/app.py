"""The `cnnlab` command: parse, make one public call, print. What is slow to import is imported where it is used."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cnnlab import __version__
from cnnlab.cli.bench import bench
from cnnlab.cli.doctor import data as data_commands
from cnnlab.cli.doctor import doctor
from cnnlab.cli.grade import grade
from cnnlab.cli.kaggle import kaggle
from cnnlab.cli.lessons import lessons
from cnnlab.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    RunName,
    RunsDir,
    SkipBad,
    Threads,
    Weights,
    print_training,
)
from cnnlab.io import interrupt
from cnnlab.io.errors import CnnlabError, out_of_memory, reason
from cnnlab.io.text import echo

app = typer.Typer(
    name="cnnlab",
    help="Modern convolutional networks for small images: train, evaluate, predict.\n\n"
    "Start with `cnnlab train`: handwritten digits, no download, under a minute.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(kaggle, name="kaggle")
app.add_typer(data_commands, name="data")
app.add_typer(lessons, name="lessons")


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"cnnlab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    model: Annotated[
        str | None,
        typer.Argument(help="Network (cnnlab list models). Unsaid: the recipe's.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, folder:PATH or store:PATH. Unsaid: the recipe's, else digits.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="How to train (cnnlab list recipes). Unsaid: the source's default.", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train from that many seeds; print mean and std.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run's folder. Unsaid: a free one.", show_default=False)
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    on_nan: Annotated[
        str | None,
        typer.Option(
            help="stop or skip: what becomes of an update whose loss is no finite number. Unsaid: the recipe's (stop).",
            show_default=False,
        ),
    ] = None,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="Halve the batch until a step fits into the memory.")
    ] = False,
    progress: Annotated[
        str, typer.Option(help="auto (a bar in a terminal, else nothing), bar, lines, notebook or none.")
    ] = "auto",
) -> None:
    """Train a network. Without arguments: handwritten digits, in under a minute."""
    from cnnlab.recipes import choose_recipe
    from cnnlab.training import train as training

    common: dict[str, Any] = {
        "runs_dir": runs_dir, "device": device, "threads": threads, "data_dir": data_dir, "skip_bad": skip_bad,
        "progress": progress,
    }  # fmt: skip
    if resume is not None:
        given = {
            "MODEL": model,
            "--data": data,
            "--recipe": recipe,
            "--set": set_,
            "--seeds": seeds,
            "--name": name,
            "--auto-batch": auto_batch or None,
        }
        extra = [option for option, value in given.items() if value not in (None, [])]
        if extra:
            raise CnnlabError(f"--resume goes on with the run's own recipe; leave out {', '.join(extra)}")
        print_training(lambda: training.resume(resume, on_nan=on_nan, **common))
        return
    settings = [*(set_ or ()), *([f"on_nan={on_nan}"] if on_nan is not None else ())]
    chosen = choose_recipe(model=model, data=data, recipe=recipe, settings=settings)
    common["auto_batch"] = auto_batch
    if seeds is None:
        print_training(lambda: training.train(chosen, name=name, **common))
    else:
        print_training(lambda: training.train_seeds(chosen, seeds, name=name, **common))


@app.command("eval")
def evaluate(
    run: RunName,
    split: Annotated[
        str | None,
        typer.Option(help="test, validation or train. Unsaid: test, if the source has one.", show_default=False),
    ] = None,
    weights: Weights = None,
    views: Annotated[str, typer.Option(help="Looks at each image: none (one), flip (two) or shift (six).")] = "none",
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run's model: accuracy, loss, each class, confusion matrix."""
    from cnnlab.cli import tables
    from cnnlab.inference import evaluate_run
    from cnnlab.io.tables import to_json

    found = evaluate_run(
        run,
        split=split,
        weights=weights,
        runs_dir=runs_dir,
        device=device,
        data_dir=data_dir,
        skip_bad=skip_bad,
        views=views,
    )
    echo(to_json(found.to_dict()) if as_json else tables.evaluation(found))


@app.command()
def predict(
    run: RunName,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE-OR-FOLDER...", help="Image files, or folders.")],
    top: Annotated[int, typer.Option(help="How many classes to tell.")] = 3,
    format_: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    weights: Weights = None,
    invert: Annotated[bool, typer.Option("--invert", help="Exchange black and white first.")] = False,
    device: DeviceName = "auto",
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
) -> None:
    """Name what is in images: the most probable classes with their probabilities."""
    from cnnlab.cli import tables
    from cnnlab.inference import predict as predict_images

    show = tables.prediction_format(format_)
    found, skipped = predict_images(
        run,
        images,
        top=top,
        weights=weights,
        runs_dir=runs_dir,
        device=device,
        skip_bad=skip_bad,
        invert=invert,
    )
    for text in skipped:
        echo(f"skipped: {text}", error=True)
    echo(show(found))


@app.command()
def runs(
    compare: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Runs to compare. Unsaid: list all.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    plot: Annotated[
        Path | None, typer.Option(help="Also draw their accuracies into this PNG file.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs there are, or compare some: figures side by side and the settings that differ."""
    from cnnlab.cli import tables
    from cnnlab.io.tables import to_json
    from cnnlab.training.runs import list_runs, open_run

    if compare:
        chosen = [open_run(name, runs_dir) for name in compare]
    else:
        chosen = list_runs(runs_dir, damaged=lambda text: echo(f"left out: {text}", error=True))
    if plot is not None:
        tables.save_comparison(plot, chosen)
    echo(to_json(tables.run_rows(chosen)) if as_json else tables.run_list(chosen, runs_dir, bool(compare)))


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Network (cnnlab list models), timm:NAME or torchvision:NAME.")],
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side. Unsaid: as the manual prints it.", show_default=False)
    ] = None,
    channels: Annotated[int, typer.Option(help="Channels of the image: 1 grey, 3 colour.")] = 1,
    classes: Annotated[int, typer.Option(help="Classes to tell apart.")] = 10,
    depth: Annotated[int, typer.Option(help="1: the manual's rows; 2: also their parts, ...; 0: every layer.")] = 1,
    format_: Annotated[str, typer.Option("--format", help="table, markdown or json.")] = "table",
) -> None:
    """Show a network layer by layer: output shape, parameters, multiply-adds, receptive field."""
    from cnnlab.inspect.summary import summarize, summary_format

    print_as = summary_format(format_)
    echo(print_as(summarize(model, image_size=image_size, in_channels=channels, num_classes=classes, depth=depth)))


@app.command()
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


@app.command()
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
    from cnnlab.cli import tables
    from cnnlab.io.tables import to_json

    common: dict[str, Any] = {
        "runs_dir": runs_dir, "device": device, "threads": threads, "data_dir": data_dir, "progress": progress
    }  # fmt: skip

    def confirm(plan: reproduction.Plan) -> bool:
        echo(tables.plan(plan), error=True)
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
            found: reproduction.Reproduction | None = reproduction.resume_reproduction(resume, **common)
        else:
            found = reproduction.reproduce(
                names or (), seeds=seeds, epochs=epochs, limit=limit, name=name, confirm=confirm, **common
            )
        if found is None:
            return "nothing was trained"
        failed.extend(row for row in found.rows if "failed" in row)
        return to_json(found.to_dict()) if as_json else tables.reproduction(found)

    failed: list[dict[str, Any]] = []
    print_training(call)
    if failed:
        raise typer.Exit(1)


@app.command()
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
    from cnnlab.io.tables import to_json
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


app.command()(bench)
app.command()(doctor)
app.command()(grade)


@app.command("list")
def list_(
    what: Annotated[str | None, typer.Argument(help="models, data, recipes or settings. Unsaid: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the networks, the sources of images, the recipes and a recipe's settings."""
    from cnnlab.cli import tables
    from cnnlab.io.tables import to_json

    known = tables.known_things(what)
    echo(to_json(known) if as_json else tables.known_list(known))


def main() -> NoReturn:
    """Run the command; bad input is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name or a ± that this terminal cannot show
    try:
        code = app(standalone_mode=False)
        if code == 130:  # Typer has turned Ctrl-C into this, without a word; a training says its own
            echo("stopped", error=True)
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
    except CnnlabError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        interrupt.ending()
        echo("stopped", error=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: nothing is wrong, and nothing more can be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
    except Exception as error:
        if out_of_memory(error):
            _fail("out of memory; use smaller images (image_size), a smaller batch_size or fewer images")
        # Typer's own errors (unknown option, missing argument) know how to say themselves.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message().rstrip('.')}. See cnnlab --help, or cnnlab COMMAND --help.")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str) -> NoReturn:
    echo(f"error: {' '.join(text.splitlines())}", error=True)  # Typer's own may have several lines
    sys.exit(2)
