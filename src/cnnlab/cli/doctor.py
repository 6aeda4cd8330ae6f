"""`cnnlab doctor` and `cnnlab data`: parse, make one public call, print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli.options import AsJson, DataDir, DeviceName, IdColumn, LabelColumn, RunsDir, SkipBad
from cnnlab.io.text import echo

if TYPE_CHECKING:
    from cnnlab.machine.doctor import Check

data = typer.Typer(no_args_is_help=True, help="The files of a source of images.")


def doctor(
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Look whether all is well here, and print what a bug report needs: versions, device, disk, data files, runs."""
    from cnnlab.machine.doctor import examine

    _tell(examine(runs_dir=runs_dir, data_dir=data_dir, device=device), as_json)


@data.command()
def verify(
    source: Annotated[str, typer.Argument(help="digits, fashion-mnist, folder:PATH or store:PATH.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of a source of images; exit code 1 where one is damaged."""
    from cnnlab.machine.doctor import verify as look

    _tell(look(source, data_dir=data_dir), as_json)


@data.command()
def duplicates(
    source: Annotated[str, typer.Argument(help="digits, fashion-mnist, folder:PATH or store:PATH.")],
    likeness: Annotated[float, typer.Option(help="How alike images must be to count as nearly the same, to 1.")] = 0.96,
    exact: Annotated[bool, typer.Option("--exact", help="Only images that are the same pixel for pixel.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the first 60 pairs into this PNG file.", show_default=False)
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="How many pairs of each kind to tell.")] = 20,
    image_size: Annotated[int, typer.Option(help="Of a folder's images: pixels a side. 0: as a training would.")] = 0,
    data_dir: DataDir = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Find images that are there twice, exactly or nearly, within and across the parts of a source."""
    from cnnlab.data.duplicates import duplicates as find
    from cnnlab.io.tables import to_json
    from cnnlab.training.display import make_display

    display = make_display()
    try:
        found = find(source, least=None if exact else likeness, data_dir=data_dir, image_size=image_size,
                     skip_bad=skip_bad, picture=plot, report=display.read)  # fmt: skip
    finally:
        display.end()
    echo(to_json(found.to_dict()) if as_json else found.told(most))


@data.command()
def labels(
    table: Annotated[Path, typer.Argument(help="CSV of ids and labels.")],
    images: Annotated[Path, typer.Argument(help="Folder or archive of the images.")],
    classes: Annotated[
        str, typer.Option(help="The classes there should be, separated by commas. Unsaid: not compared.")
    ] = "",
    id_column: IdColumn = "id",
    label_column: LabelColumn = "label",
    as_json: AsJson = False,
) -> None:
    """Compare a table of labels with the images' names; exit code 1 where they do not fit."""
    from cnnlab.competition.labels import check_labels
    from cnnlab.io.tables import to_json

    wanted = [name.strip() for name in classes.split(",") if name.strip()]
    found = check_labels(table, images, id_column=id_column, label_column=label_column, classes=wanted)
    echo(to_json(found.to_dict()) if as_json else found)
    if found.faults:
        raise typer.Exit(1)


def _tell(checks: Iterator[Check], as_json: bool) -> None:
    """Print each as it comes, or all as JSON; exit with 1 where something has failed."""
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
