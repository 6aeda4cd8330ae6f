"""`cnnlab doctor` and `cnnlab data`: check the installation, and the files of a data source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    IdColumn,
    LabelColumn,
    OwnModel,
    RunName,
    RunsDir,
    SkipBad,
    Threads,
    own_model,
)
from cnnlab.io.text import echo, echo_csv

if TYPE_CHECKING:
    from cnnlab.machine.doctor import Check

Source = Annotated[str, typer.Argument(help="A source of images: `cnnlab list data`.")]
Columns = Annotated[str, typer.Option(help="Column names of a table, such as path=file,label=species.")]

data = typer.Typer(no_args_is_help=True, help="Check a data source, or pack it for sets larger than memory.")


def doctor(
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Check the installation: versions, device, disk, data files, runs.

    Include the output in a bug report.
    """
    from cnnlab.machine.doctor import examine

    _print_checks(examine(runs_dir=runs_dir, data_dir=data_dir, device=device), as_json)


@data.command()
def pack(
    source: Source,
    store: Annotated[Path, typer.Argument(help="Folder to create. Train on it with --data pack:STORE.")],
    size: Annotated[
        int, typer.Option(min=0, help="Shorter side in pixels to reduce larger files to; 0: leave all.")
    ] = 0,
    quality: Annotated[
        int,
        typer.Option(min=0, max=100, help="JPEG quality; 0: keep the files as they are, or 90 with --size."),
    ] = 0,
    background: Annotated[
        str, typer.Option(help="Behind transparent pixels: black, white or auto, by the images.")
    ] = "auto",
    columns: Columns = "",
    data_dir: DataDir = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Write a data source as one folder that training reads from disk.

    For sets that are larger than memory: docs/data.md. Small images of one size
    are stored as pixels, others as the files they are. After an interruption, the
    same command continues.
    """
    from cnnlab.data import SourceOptions, data_folder
    from cnnlab.data.pack_writer import pack as write_pack
    from cnnlab.io.decode import BACKGROUNDS
    from cnnlab.io.errors import unknown
    from cnnlab.io.tables import to_json
    from cnnlab.training.display import reporting

    if background not in BACKGROUNDS:
        raise unknown("background", background, BACKGROUNDS)
    with reporting() as report:
        options = SourceOptions(data_dir=data_folder(data_dir), background=background, columns=columns,
                                skip_bad=skip_bad, report=report)  # fmt: skip
        packed = write_pack(source, store, options, size=size, quality=quality)
    echo(to_json(packed.to_dict()) if as_json else packed.to_text())


@data.command()
def verify(
    source: Source,
    columns: Columns = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of a data source. Exit with 1 if one is damaged."""
    from cnnlab.machine.doctor import verify as verify_source

    _print_checks(verify_source(source, data_dir=data_dir, columns=columns), as_json)


@data.command()
def duplicates(
    source: Source,
    similarity: Annotated[float, typer.Option(help="Minimum similarity of near-duplicates, at most 1.")] = 0.96,
    exact: Annotated[bool, typer.Option("--exact", help="Find exact duplicates only.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the first 60 pairs to this PNG file.", show_default=False)
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="Number of pairs of each kind to print.")] = 20,
    image_size: Annotated[int, typer.Option(help="For a folder: pixels a side; 0: by the images.")] = 0,
    columns: Columns = "",
    data_dir: DataDir = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Find exact and near-duplicates within and across the splits of a data source."""
    from cnnlab.data.duplicates import duplicates as find
    from cnnlab.io.tables import to_json
    from cnnlab.training.display import reporting

    with reporting() as report:
        found = find(source, threshold=None if exact else similarity, data_dir=data_dir, image_size=image_size,
                     columns=columns, skip_bad=skip_bad, picture=plot, report=report)  # fmt: skip
    echo(to_json(found.to_dict()) if as_json else found.to_text(most))


@data.command()
def split(
    run: RunName,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save to this CSV file. Default: print.", show_default=False),
    ] = None,
    images: Annotated[
        str | None, typer.Option("--data", help="Where the run's images are now.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
) -> None:
    """Export the split of a run: path, label, split and group of each image.

    `cnnlab train --data csv:FILE` trains on the same split again. A folder of
    folds gives the fold of each image instead of its split.
    """
    from cnnlab.inference.split_table import split_table
    from cnnlab.io.files import check_new_csv

    if output is not None:
        check_new_csv(output)
    table = split_table(run, data=images, runs_dir=runs_dir, data_dir=data_dir, skip_bad=skip_bad)
    if output is None:
        echo_csv(table.to_csv(Path()).rstrip("\n"))
    else:
        table.save(output)


@data.command()
def suspects(
    run: RunName,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also save all to this CSV file.", show_default=False)
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="Number of images to print.")] = 20,
    images: Annotated[
        str | None, typer.Option("--data", help="Where the run's images are now.", show_default=False)
    ] = None,
    model: OwnModel = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Find labels that are probably wrong.

    RUN is a folder of `cnnlab train --folds`, to search all images, or a run, to
    search its validation images.
    """
    from cnnlab.inference.suspects import find_suspects
    from cnnlab.io.files import check_new_csv
    from cnnlab.io.tables import to_json

    if csv is not None:
        check_new_csv(csv)
    found = find_suspects(
        run, model=own_model(model), data=images, runs_dir=runs_dir, device=device, threads=threads
    )  # fmt: skip
    echo(to_json(found.to_dict()) if as_json else found.to_text(most))
    if csv is not None:
        found.save(csv)


@data.command()
def labels(
    table: Annotated[Path, typer.Argument(help="CSV of ids and labels.")],
    images: Annotated[Path, typer.Argument(help="Folder or archive of the images.")],
    classes: Annotated[str, typer.Option(help="Expected classes, separated by commas. Default: not checked.")] = "",
    id_column: IdColumn = "id",
    label_column: LabelColumn = "label",
    as_json: AsJson = False,
) -> None:
    """Compare a table of labels with the image files. Exit with 1 if they differ."""
    from cnnlab.competition.labels import check_labels
    from cnnlab.io.tables import to_json

    wanted = [name.strip() for name in classes.split(",") if name.strip()]
    found = check_labels(table, images, id_column=id_column, label_column=label_column, classes=wanted)
    echo(to_json(found.to_dict()) if as_json else found)
    if found.faults:
        raise typer.Exit(1)


def _print_checks(checks: Iterator[Check], as_json: bool) -> None:
    """Print each check as it finishes, or all as JSON. Exit with 1 if one has failed."""
    from cnnlab.io.tables import to_json

    found = []
    for check in checks:
        found.append(check)
        if not as_json:
            echo(check, flush=True)
    if as_json:
        echo(to_json([check.to_dict() for check in found]))
    if any(check.state == "failed" for check in found):
        raise typer.Exit(1)
