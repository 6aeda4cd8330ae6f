"""`cnnlab grade`: score the submissions of a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli.options import AsJson, IdColumn, LabelColumn
from cnnlab.io.tables import Table, to_json, wrap
from cnnlab.io.text import echo, escape

if TYPE_CHECKING:
    from cnnlab.competition.grade import Grades


def grade(
    labels: Annotated[Path, typer.Option(help="CSV of the true labels.")],
    submissions: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SUBMISSION-OR-FOLDER]",
            help="A submission, or a folder with one CSV file or folder per student. Default: the roster's folder.",
            show_default=False,
        ),
    ] = None,
    roster: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The students: a CSV from Canvas, Moodle or Blackboard, a text file with one name per line, or "
            "a folder with one file or folder per student.",
            show_default=False,
        ),
    ] = None,
    id_column: IdColumn = "id",
    label_column: LabelColumn = "label",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of grades.csv and grades.png. Default: a free one in runs.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Score submissions against the true labels.

    Every student gets a line: a score, or `refused` or `missing`. The reasons follow.
    """
    from cnnlab.competition.grade import check_out
    from cnnlab.competition.grade import grade as measure
    from cnnlab.training.display import reporting

    check_out(out)
    with reporting() as report:
        found = measure(
            submissions, labels, roster=roster, id_column=id_column, label_column=label_column, out=out,
            report=report,
        )  # fmt: skip
    for text in found.skipped:
        echo(f"skipped: {text}", error=True)
    folder = found.save(out)
    echo(to_json(found.to_dict()) if as_json else grades_text(found))
    echo(f"saved in {folder} (grades.csv, grades.png)", error=True)


def grades_text(found: Grades) -> str:
    """Return one line per student, then notes on some of them, then the totals."""
    losses = any(row.score and row.score.log_loss is not None for row in found.rows)
    table = Table("student", "accuracy", *["log loss"] * losses, "right")
    for row in found.rows:
        score = row.score
        table.add_row(
            row.student,
            f"{score.accuracy:.4f}" if score else row.status,
            *[f"{score.log_loss:.4f}" if score and score.log_loss is not None else ""] * losses,
            f"{score.correct:,} of {score.count:,}" if score else "",
        )
    notes = [wrap(escape(f"{row.student}: {row.note}"), 2) for row in found.rows if row.note]
    return "\n".join([str(table), "", *notes, *[""] * bool(notes), str(found)])
