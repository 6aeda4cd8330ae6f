"""`cnnlab kaggle`: a competition's steps. Parse, make one public call, print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from cnnlab.cli.predict import confusion, evaluation_text
from cnnlab.io.errors import CnnlabError
from cnnlab.io.tables import to_json
from cnnlab.io.text import echo

if TYPE_CHECKING:
    from cnnlab.competition import Competition, Overview, Submitted, Trained
    from cnnlab.competition.layout import Layout
    from cnnlab.competition.submission import Score

kaggle = typer.Typer(
    no_args_is_help=True,
    help="A competition of images, from its archives to a submission; CIFAR-10 unless said otherwise.\n\n"
    "All steps in one: `cnnlab kaggle all FOLDER`. What is finished is not done again.",
)

Folder = Annotated[
    Path | None,
    typer.Argument(
        help="Folder with the competition's files, or its zip. Unsaid: NAME in the folder of the datasets.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Option(help="Name of the work folder in --runs-dir.")]
Recipe = Annotated[
    str | None, typer.Option(help="How to train (cnnlab list recipes). Unsaid: cifar/10min.", show_default=False)
]
Seeds = Annotated[
    int | None,
    typer.Option(help="Train that many networks, whose answers are averaged. Unsaid: 1.", show_default=False),
]
Views = Annotated[
    str | None,
    typer.Option(
        help="Looks at each image: none (1), flip (2, mirrored too), shift (6, moved a pixel too). Unsaid: what was "
        "best on the validation images.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="The file. Unsaid: submission.csv in the work folder.", show_default=False)
]
Upload = Annotated[bool, typer.Option("--upload", help="Hand it in with the official kaggle client.")]
To = Annotated[
    str | None,
    typer.Option(
        "--competition",
        help="Kaggle's name, for --upload. Unsaid: NAME, if the files' folder has it, too.",
        show_default=False,
    ),
]
Message = Annotated[str, typer.Option(help="What Kaggle notes beside it.")]
Train = Annotated[str, typer.Option(help="Archive or folder of the training images.", rich_help_panel="Layout")]
Test = Annotated[str, typer.Option(help="Archive or folder of the test images.", rich_help_panel="Layout")]
Labels = Annotated[str, typer.Option(help="CSV of the training labels.", rich_help_panel="Layout")]
Sample = Annotated[str, typer.Option(help="CSV of the sample submission.", rich_help_panel="Layout")]
ImageSize = Annotated[int, typer.Option(help="Pixels a side; 0: the images' own.", rich_help_panel="Layout")]
Fit = Annotated[str, typer.Option(help="pad, crop or stretch.", rich_help_panel="Layout")]
StorePath = Annotated[
    Path | None, typer.Option("--store", help="Folder of the store. Unsaid: in the user's cache.", show_default=False)
]
Workers = Annotated[int | None, typer.Option(help="Processes that decode. Unsaid: one a core.", show_default=False)]

_AGAIN = "What is finished is kept: run the same command again to go on"


def _layout(*values: Any) -> Layout:
    from cnnlab.competition.layout import Layout

    names = ("train", "test", "labels", "sample", "id_column", "label_column", "image_size", "fit")
    return Layout(**dict(zip(names, values, strict=True)))


@kaggle.command()
def get(
    competition: Annotated[str, typer.Argument(help="Kaggle's name of the competition.")] = "cifar-10",
    to: Annotated[
        Path | None, typer.Option(help="Folder. Unsaid: its name in the folder of the datasets.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    progress: Progress = "auto",
) -> None:
    """Download the files with the official kaggle client, or say which to fetch by hand, and where to put them."""
    from cnnlab import competition as steps

    for path in steps.get(competition, to, data_dir=data_dir, progress=progress):
        echo(path)


@kaggle.command()
def prepare(
    folder: Folder = None,
    name: Name = "cifar-10",
    train: Train = "train",
    test: Test = "test",
    labels: Labels = "trainLabels.csv",
    sample: Sample = "sampleSubmission.csv",
    id_column: IdColumn = "id",
    label_column: LabelColumn = "label",
    image_size: ImageSize = 0,
    fit: Fit = "pad",
    store: StorePath = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    progress: Progress = "auto",
) -> None:
    """Decode the archives into one store of images, ids and labels; a second call finds it."""
    from cnnlab import competition as steps

    found = steps.prepare(
        folder, name=name, runs_dir=runs_dir, data_dir=data_dir, store=store, workers=workers, skip_bad=skip_bad,
        layout=_layout(train, test, labels, sample, id_column, label_column, image_size, fit), progress=progress,
    )  # fmt: skip
    echo(prepared_text(found))


@kaggle.command()
def show(name: Name = "cifar-10", runs_dir: RunsDir = Path("runs"), as_json: AsJson = False) -> None:
    """Draw sample images (figure 1.8); count the classes; measure the pixels' mean and deviation."""
    from cnnlab import competition as steps

    found = steps.show(steps.open_competition(name, runs_dir))
    echo(to_json(found.to_dict()) if as_json else overview_text(found))


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
    """Train with images held out, and measure every image of both parts."""
    from cnnlab import competition as steps

    work = steps.open_competition(name, runs_dir)
    on: dict[str, Any] = {"device": device, "threads": threads, "progress": progress}
    print_training(lambda: trained_text(steps.train(work, recipe, settings=set_ or (), seeds=seeds, **on)), _AGAIN)


@kaggle.command()
def retrain(
    name: Name = "cifar-10",
    seeds: Seeds = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    runs_dir: RunsDir = Path("runs"),
    progress: Progress = "auto",
) -> None:
    """Train on every labelled image, with the settings of `train`."""
    from cnnlab import competition as steps

    work = steps.open_competition(name, runs_dir)
    print_training(lambda: steps.retrain(work, seeds=seeds, device=device, threads=threads, progress=progress), _AGAIN)


@kaggle.command()
def submit(
    name: Name = "cifar-10",
    run: Annotated[
        list[str] | None,
        typer.Option(help="A run; may be repeated. Unsaid: all finished runs of the work folder.", show_default=False),
    ] = None,
    views: Views = None,
    out: Out = None,
    upload: Upload = False,
    competition: To = None,
    message: Message = "cnnlab",
    device: DeviceName = "auto",
    threads: Threads = None,
    runs_dir: RunsDir = Path("runs"),
    progress: Progress = "auto",
) -> None:
    """Name every test image; write submission.csv in the sample's order, checked against it."""
    from cnnlab import competition as steps

    work = steps.open_competition(name, runs_dir)
    found = steps.submit(
        work, chosen=run or (), views=views, out=out, message=message,
        upload_to=_upload_to(work, competition) if upload else None, device=device, threads=threads, progress=progress,
    )  # fmt: skip
    echo(submitted_text(found))


def _upload_to(work: Competition, competition: str | None) -> str:
    """Kaggle's name of the competition to hand in to. Unsaid it must be beyond doubt: what is sent there stays."""
    name = work.path.name
    if competition or name == work.folder.name.removesuffix(".zip"):
        return competition or name
    raise CnnlabError(f"--upload: {name!r} is the work folder's name; name Kaggle's with --competition")


@kaggle.command()
def score(
    file: Annotated[Path, typer.Argument(help="A submission.")],
    labels: Annotated[Path, typer.Option(help="CSV of the true labels.")],
    id_column: IdColumn = "id",
    label_column: LabelColumn = "label",
    as_json: AsJson = False,
) -> None:
    """Measure a submission against the true labels: accuracy and confusion matrix."""
    from cnnlab.competition.submission import score as measure

    found = measure(file, labels, id_column=id_column, label_column=label_column)
    echo(to_json(found.to_dict()) if as_json else scored_text(found))


@kaggle.command("all")
def all_(
    folder: Folder = None,
    name: Name = "cifar-10",
    recipe: Recipe = None,
    set_: Settings = None,
    seeds: Seeds = None,
    again: Annotated[bool, typer.Option("--retrain/--no-retrain", help="Also train on every labelled image.")] = True,
    views: Views = None,
    out: Out = None,
    upload: Upload = False,
    competition: To = None,
    message: Message = "cnnlab",
    train: Train = "train",
    test: Test = "test",
    labels: Labels = "trainLabels.csv",
    sample: Sample = "sampleSubmission.csv",
    id_column: IdColumn = "id",
    label_column: LabelColumn = "label",
    image_size: ImageSize = 0,
    fit: Fit = "pad",
    store: StorePath = None,
    workers: Workers = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    progress: Progress = "auto",
) -> None:
    """All steps in one: prepare, show, train, retrain, submit. Repeat it to go on where it stopped."""
    from cnnlab import competition as steps

    on: dict[str, Any] = {"device": device, "threads": threads, "progress": progress}
    work = steps.prepare(
        folder, name=name, runs_dir=runs_dir, data_dir=data_dir, store=store, workers=workers, skip_bad=skip_bad,
        layout=_layout(train, test, labels, sample, id_column, label_column, image_size, fit), progress=progress,
    )  # fmt: skip
    echo(prepared_text(work), flush=True)
    to = _upload_to(work, competition) if upload else None
    steps.check_submittable(work, to)  # not after an hour of training
    echo(overview_text(steps.show(work)), flush=True)
    print_training(lambda: trained_text(steps.train(work, recipe, settings=set_ or (), seeds=seeds, **on)), _AGAIN)
    if again:
        print_training(lambda: steps.retrain(work, seeds=seeds, **on), _AGAIN)
    print_training(
        lambda: submitted_text(steps.submit(work, views=views, out=out, message=message, upload_to=to, **on)), _AGAIN
    )


def prepared_text(found: Competition) -> str:
    """Where the images are, and what was noticed on the way."""
    store = found.images()
    train, test = len(store.train), len(store.test_ids)
    c, h, w = store.train.images.shape[1:]
    lines = [
        f"{train} labelled images of {len(store.train.classes)} classes, {test} test images, {c} x {h} x {w}; store: "
        f"{store.path}"
    ]
    for what, names in (("labelled images were left out", "skipped"), ("test images are black", "unreadable_test")):
        if damaged := store.info[names]:
            more = f"; {store.path / 'store.json'} names all" if len(damaged) > 1 else ""
            lines.append(f"note: damaged: {len(damaged)} {what}; the first: {damaged[0]}{more}")
    return "\n".join([*lines, *(f"note: {line}" for line in store.info["report"])])


def overview_text(found: Overview) -> str:
    """Class counts and the pixels' moments."""
    width = max(map(len, found.counts))
    lines = [f"  {name:<{width}}  {count}" for name, count in found.counts.items()]
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (found.mean, found.std))
    return "\n".join(
        ["labelled images of each class:", *lines, f"pixel mean {mean}, std {std}", f"figure: {found.figure}"]
    )


def trained_text(found: Trained) -> str:
    """The training's own lines, then both parts measured image by image, and what more views give."""
    from cnnlab.training.evaluate import VIEWS

    lines = [str(found.result)]
    for validation, train in zip(found.validation, found.train, strict=True):
        lines += [evaluation_text(train).splitlines()[0], evaluation_text(validation)]
    several = f" of {len(found.validation)} networks together" if len(found.validation) > 1 else ""
    told = ", ".join(f"{found.views[views]:.4f} with {_looks(count)}" for views, count in VIEWS.items())
    lines.append(f"validation acc{several}, by looks at each image: {told}")
    return "\n".join(lines)


def submitted_text(found: Submitted) -> str:
    """The file, and whose answers it holds."""
    from cnnlab.training.evaluate import VIEWS

    names = ", ".join(str(run.path) for run in found.runs)
    looks = _looks(VIEWS[found.views])
    lines = [str(found.written), f"from {names}; {looks} at each image"]
    return "\n".join([*lines, *([found.answer] if found.answer else [])])


def scored_text(found: Score) -> str:
    """Accuracy, then the confusion matrix; labels that are no class have the last column."""
    extra: Sequence[int] = found.other.tolist() if found.no_class else ()
    return f"{found}\n{confusion(found.classes, found.confusion.tolist(), found.class_accuracy, extra)}"


def _looks(count: int) -> str:
    return "1 look" if count == 1 else f"{count} looks"
