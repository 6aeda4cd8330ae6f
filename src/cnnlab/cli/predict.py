"""`cnnlab predict`: classify images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli.options import (
    DeviceName,
    OwnModel,
    RunName,
    RunsDir,
    SkipBad,
    Threads,
    Tta,
    Weights,
    own_model,
)
from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.io.tables import Table, to_json
from cnnlab.io.text import echo, echo_csv, plural

if TYPE_CHECKING:
    from cnnlab.inference import Prediction
    from cnnlab.inference.stream import Stream

_FORMATS = ("table", "csv", "json", "jsonl")


def predict(
    run: RunName,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE-OR-FOLDER...", help="Image files or folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Save to this new .csv, .jsonl or .parquet file. After an interruption, the same command continues.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of classes per image.")] = 3,
    format_: Annotated[
        str, typer.Option("--format", help="table, csv, json or jsonl. csv and jsonl print each batch as it is done.")
    ] = "table",
    weights: Weights = None,
    tta: Tta = "none",
    invert: Annotated[bool, typer.Option("--invert", help="Invert the images (swap black and white) first.")] = False,
    model: OwnModel = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
) -> None:
    """Classify images.

    Print or save the most probable classes of each image with their
    probabilities.
    """
    from cnnlab.inference.output import check_output
    from cnnlab.inference.stream import predict_stream

    if format_ not in _FORMATS:
        raise unknown("format", format_, _FORMATS)
    if out is not None:
        if format_ not in ("table", out.suffix.lower().removeprefix(".")):
            raise CnnlabError(
                f"--format {format_} and --out {out}: the file's extension sets the format; leave out --format"
            )
        check_output(out)
    stream = predict_stream(
        run,
        images,
        model=own_model(model),
        top=top,
        weights=weights,
        runs_dir=runs_dir,
        device=device,
        skip_bad=skip_bad,
        invert=invert,
        views=tta,
        threads=threads,
    )
    for text in stream.others:
        echo(f"skipped: {text}", error=True)
    if out is not None:
        _save(stream, out)
    elif format_ in ("csv", "jsonl"):
        _print_lines(stream, format_)
    else:
        _print_all(stream, format_)


def _save(stream: Stream, out: Path) -> None:
    from cnnlab.inference.output import save
    from cnnlab.training.display import reporting

    with reporting() as report:
        saved = save(stream, out, report=report, log=lambda text: echo(text, error=True))
    damaged = f", {saved.damaged:,} damaged (see the field error)" if saved.damaged else ""
    echo(f"{out}: {plural(saved.images, 'image')} classified{damaged}")


def _print_lines(stream: Stream, format_: str) -> None:
    """Print a line for each image, one batch at a time."""
    from cnnlab.inference.output import lines_of
    from cnnlab.training.display import reporting

    lines = lines_of(format_, stream.columns)
    done, damaged = 0, 0
    with (
        reporting("none" if sys.stdout and sys.stdout.isatty() else "auto") as report,
        closing(stream.batches()) as batches,
    ):
        for batch in batches:
            head = "" if done else lines.head
            echo_csv(f"{head}{''.join(map(lines.line, batch))}"[:-1])
            done, damaged = done + len(batch), damaged + sum(bool(p.error) for p in batch)
            report("classifying", done, len(stream))
    if damaged == len(stream):
        raise stream.none_readable("the field error says why")
    if damaged:
        images = plural(len(stream) - damaged, "image")
        echo(f"{images} classified, {damaged:,} damaged (see the field error)", error=True)


def _print_all(stream: Stream, format_: str) -> None:
    """Print the predictions as one table or one JSON list; damaged images are named on standard error."""
    from cnnlab.inference.output import to_dict
    from cnnlab.training.display import reporting

    found: list[Prediction] = []
    with reporting() as report, closing(stream.batches()) as batches:
        for batch in batches:
            found += batch
            report("classifying", len(found), len(stream))
    good, bad = [p for p in found if not p.error], [p.error for p in found if p.error]
    if not good:
        raise stream.none_readable(bad[0])
    for text in bad:
        echo(f"skipped: {text}", error=True)
    echo(to_json([*map(to_dict, good)]) if format_ == "json" else _table(good))
    if bad:
        echo(f"{plural(len(good), 'image')} classified, {len(bad):,} damaged (named above)", error=True)


def _table(predictions: Sequence[Prediction]) -> str:
    table = Table("image", *(f"{i + 1}." for i in range(len(predictions[0].top))))
    for p in predictions:
        first, *others = (f"{label} {probability:.1%}" for label, probability in p.top)
        table.add_row(str(p.path), f"none of these ({first})" if p.none_of_these else first, *others)
    return str(table)
