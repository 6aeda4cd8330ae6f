"""`cnnlab kaggle`: a competition from its archives to a submission, step by step or in one command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnlab.cli.evaluate import confusion, evaluation_text
from cnnlab.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    IdColumn,
    LabelColumn,
    Progress,
    RunsDir,
    Settings,
    SkipBad,
    Threads,
    print_training,
)
from cnnlab.io.errors import CnnlabError
from cnnlab.io.tables import Table, to_json, wrap
from cnnlab.io.text import echo, escape, plural

if TYPE_CHECKING:
    from cnnlab.competition import Competition, Overview, Submitted, Trained
    from cnnlab.competition.submission import Score

kaggle = typer.Typer(
    no_args_is_help=True,
    help="An image competition, from archives to submission.\n\n"
    "All steps in one: `cnnlab kaggle all FOLDER`. Finished steps are not repeated.",
)

Name = Annotated[str, typer.Option(help="Name of the work folder in --runs-dir.")]
Recipe = Annotated[
    str | None, typer.Option(help="See `cnnlab list recipes`. Default: cifar/10min.", show_default=False)
]
Seeds = Annotated[
    int | None,
    typer.Option(help="Number of networks whose probabilities are averaged. Default: 1.", show_default=False),
]
Views = Annotated[
    str | None,
    typer.Option(
        "--tta",
        help="Test-time augmentation: none, flip (2 views) or shift (6 views). Default: the best on validation.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="The file. Default: submission.csv in the work folder.", show_default=False)
]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Write one column per class. Default: if the sample submission does.")
]
Upload = Annotated[bool, typer.Option("--upload", help="Submit it with the official kaggle client.")]
To = Annotated[
    str | None,
    typer.Option(
        "--competition",
        help="Kaggle's name, for --upload. Default: NAME, if it is also the files' folder.",
        show_default=False,
    ),
]
Message = Annotated[str, typer.Option(help="Description of the submission.")]
_AGAIN = "Finished steps are saved: run the same command again to continue"


def _with_options_of(*steps: Callable[..., None], without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the options of `steps` to a command, as keyword arguments. without: one to omit."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: dict[str, inspect.Parameter] = {}
        for function in (*steps, command):
            for parameter in inspect.signature(function, eval_str=True).parameters.values():
                if parameter.kind is not inspect.Parameter.VAR_KEYWORD and parameter.name != without:
                    parameters.setdefault(parameter.name, parameter)
        command.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]
        command.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        return command

    return decorate


@kaggle.command()
def get(
    competition: Annotated[str, typer.Argument(help="Kaggle's name of the competition.")] = "cifar-10",
    to: Annotated[
        Path | None, typer.Option(help="Folder. Default: its name in the data folder.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    progress: Progress = "auto",
) -> None:
    """Download the files with the official kaggle client.

    Without the client, print which files to download and where to put them.
    """
    from cnnlab import competition as steps

    for path in steps.get(competition, to, data_dir=data_dir, progress=progress):
        echo(path)


@kaggle.command()
def prepare(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder or zip of the competition's files. Default: NAME in the data folder.", show_default=False
        ),
    ] = None,
    name: Name = "cifar-10",
    train: Annotated[
        str, typer.Option(help="Archive or folder of the training images.", rich_help_panel="Layout")
    ] = "train",
    test: Annotated[str, typer.Option(help="Archive or folder of the test images.", rich_help_panel="Layout")] = "test",
    labels: Annotated[
        str, typer.Option(help="CSV of the training labels.", rich_help_panel="Layout")
    ] = "trainLabels.csv",
    sample: Annotated[
        str, typer.Option(help="CSV of the sample submission.", rich_help_panel="Layout")
    ] = "sampleSubmission.csv",
    id_column: IdColumn = "id",
    label_column: LabelColumn = "label",
    image_size: Annotated[
        int, typer.Option(help="Pixels a side; 0: the images' own size.", rich_help_panel="Layout")
    ] = 0,
    fit: Annotated[str, typer.Option(help="pad, crop or stretch.", rich_help_panel="Layout")] = "pad",
    background: Annotated[
        str, typer.Option(help="Behind transparency: auto, black, white.", rich_help_panel="Layout")
    ] = "auto",
    store: Annotated[
        Path | None, typer.Option(help="Folder of the store. Default: in the cache folder.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Decoding processes. Default: one per core.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    progress: Progress = "auto",
) -> None:
    """Decode the archives into a store of images, ids and labels."""
    from cnnlab import competition as steps

    layout = steps.Layout(
        train=train, test=test, labels=labels, sample=sample, id_column=id_column, label_column=label_column,
        image_size=image_size, fit=fit, background=background,
    )  # fmt: skip
    work = steps.prepare(
        folder, name=name, runs_dir=runs_dir, data_dir=data_dir, store=store, workers=workers, skip_bad=skip_bad,
        layout=layout, progress=progress,
    )  # fmt: skip
    echo(prepared_text(work), flush=True)


@kaggle.command()
def show(name: Name = "cifar-10", runs_dir: RunsDir = Path("runs"), as_json: AsJson = False) -> None:
    """Draw sample images, count the classes, measure pixel mean and deviation."""
    from cnnlab import competition as steps

    found = steps.show(steps.open_competition(name, runs_dir))
    echo(to_json(found.to_dict()) if as_json else overview_text(found), flush=True)


@kaggle.command()
def train(
    name: Name = "cifar-10",
    recipe: Recipe = None,
    set_: Settings = None,
    seeds: Seeds = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    runs_dir: RunsDir = Path("runs"),
    progress: Progress = "auto",
) -> None:
    """Train with a validation split and evaluate on both splits."""
    from cnnlab import competition as steps

    work = steps.open_competition(name, runs_dir)
    options: dict[str, Any] = {"seeds": seeds, "device": device, "threads": threads, "progress": progress}
    print_training(lambda: trained_text(steps.train(work, recipe, settings=set_ or (), **options)), _AGAIN)


@kaggle.command()
def retrain(
    name: Name = "cifar-10",
    seeds: Seeds = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    runs_dir: RunsDir = Path("runs"),
    progress: Progress = "auto",
) -> None:
    """Train on all labelled images with the settings of `train`."""
    from cnnlab import competition as steps

    work = steps.open_competition(name, runs_dir)
    print_training(lambda: steps.retrain(work, seeds=seeds, device=device, threads=threads, progress=progress), _AGAIN)


@kaggle.command()
def submit(
    name: Name = "cifar-10",
    run: Annotated[
        list[str] | None,
        typer.Option(help="A run. May be repeated. Default: all finished runs of the work folder.", show_default=False),
    ] = None,
    views: Views = None,
    out: Out = None,
    probabilities: Probabilities = False,
    upload: Upload = False,
    competition: To = None,
    message: Message = "cnnlab",
    device: DeviceName = "auto",
    threads: Threads = None,
    runs_dir: RunsDir = Path("runs"),
    progress: Progress = "auto",
) -> None:
    """Classify the test images and write submission.csv.

    The file has the order of the sample submission and is checked against it.
    """
    from cnnlab import competition as steps

    work = steps.open_competition(name, runs_dir)
    options: dict[str, Any] = {"device": device, "threads": threads, "progress": progress}
    to = _upload_to(work, competition) if upload else None
    print_training(
        lambda: submitted_text(
            steps.submit(
                work,
                chosen=run or (),
                views=views,
                out=out,
                probabilities=probabilities,
                message=message,
                upload_to=to,
                **options,
            )
        ),
        _AGAIN,
    )


def _upload_to(work: Competition, competition: str | None) -> str:
    """Return Kaggle's name of the competition. A submission is final, so a guessed name must be unambiguous."""
    name = work.path.name
    if competition or name == work.folder.name.removesuffix(".zip"):
        return competition or name
    raise CnnlabError(f"--upload needs the competition's name on Kaggle, not {name!r}; give it with --competition")


@kaggle.command()
def score(
    file: Annotated[Path, typer.Argument(help="A submission.")],
    labels: Annotated[Path, typer.Option(help="CSV of the true labels.")],
    id_column: IdColumn = "id",
    label_column: LabelColumn = "label",
    as_json: AsJson = False,
) -> None:
    """Score a submission against the true labels.

    A submission with a probability for each class also gets its log loss.
    """
    from cnnlab.competition.submission import score as measure

    found = measure(file, labels, id_column=id_column, label_column=label_column)
    echo(to_json(found.to_dict()) if as_json else scored_text(found))


@kaggle.command("all")
@_with_options_of(prepare, train, submit, without="run")
def all_(
    again: Annotated[bool, typer.Option("--retrain/--no-retrain", help="Also train on all labelled images.")] = True,
    **options: Any,
) -> None:
    """Run all steps: prepare, show, train, retrain, submit.

    Run it again to continue where it stopped.
    """
    from cnnlab import competition as steps
    from cnnlab.inference.classifier import check_views

    def run(command: Callable[..., None]) -> None:
        command(**{name: value for name, value in options.items() if name in inspect.signature(command).parameters})

    if options["views"] is not None:
        check_views(options["views"])  # before an hour of training, not after it
    run(prepare)
    work = steps.open_competition(options["name"], options["runs_dir"])
    to = _upload_to(work, options["competition"]) if options["upload"] else None
    steps.check_submittable(work, to)
    run(show)
    run(train)
    if again:
        run(retrain)
    run(submit)


def prepared_text(found: Competition) -> str:
    """Return where the images are, and notes on damaged files."""
    store = found.open_store()
    train, test = len(store.train), len(store.test_ids)
    c, h, w = store.train.images.shape[1:]
    lines = [
        f"{train} labelled images of {len(store.train.classes)} classes, {test} test images, {c} x {h} x {w}",
        f"store: {store.path}",
    ]
    for what, names in (("labelled images were skipped", "skipped"), ("test images are black", "unreadable_test")):
        if damaged := store.info[names]:
            more = f"; {store.path / 'store.json'} names all" if len(damaged) > 1 else ""
            lines.append(wrap(escape(f"note: damaged: {len(damaged)} {what}; the first: {damaged[0]}{more}"), 2))
    return "\n".join([*lines, *(wrap(escape(f"note: {line}"), 2) for line in store.info["report"])])


def overview_text(found: Overview) -> str:
    """Return the class counts, and mean and standard deviation of the pixels."""
    table = Table("class", "labelled images")
    for name, count in found.counts.items():
        table.add_row(name, f"{count:,}")
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (found.mean, found.std))
    return f"{table}\npixel mean {mean}, std {std}\nfigure: {found.figure}"


def trained_text(found: Trained) -> str:
    """Return the training's result, the evaluation of both splits, and the accuracy with TTA."""
    from cnnlab.training.evaluate import VIEWS

    lines = [str(found.result)]
    for validation, train in zip(found.validation, found.train, strict=True):
        lines += [evaluation_text(train).splitlines()[0], evaluation_text(validation)]
    several = f" of {len(found.validation)} networks together" if len(found.validation) > 1 else ""
    accuracies = ", ".join(f"{found.views[views]:.4f} with {plural(count, 'view')}" for views, count in VIEWS.items())
    lines.append(wrap(f"validation acc{several}, by views of each image: {accuracies}", 2))
    return "\n".join(lines)


def submitted_text(found: Submitted) -> str:
    """Return the file, the runs whose predictions it contains, and Kaggle's answer to an upload."""
    from cnnlab.training.evaluate import VIEWS

    names = ", ".join(str(run.path) for run in found.runs)
    views = plural(VIEWS[found.views], "view")
    lines = [str(found.written), wrap(escape(f"from {names}; {views} of each image"), 2)]
    return "\n".join([*lines, *([found.answer] if found.answer else [])])


def scored_text(found: Score) -> str:
    """Return accuracy and confusion matrix. Predicted labels that are not a class are counted in the column `other`."""
    extra: Sequence[int] = found.other.tolist() if found.no_class else ()
    return f"{found}\n{confusion(found.classes, found.confusion.tolist(), found.class_accuracy, extra)}"
