"""`cnnlab eval` and `cnnlab predict`: measure a run's model, and classify images with it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli.options import AsJson, DataDir, DeviceName, RunName, RunsDir, SkipBad, Weights
from cnnlab.io.errors import unknown
from cnnlab.io.tables import as_text, new_table, to_json
from cnnlab.io.text import cell, echo, echo_csv

if TYPE_CHECKING:
    from cnnlab.inference import Prediction, RunEvaluation


def evaluate(
    run: RunName,
    split: Annotated[
        str | None,
        typer.Option(help="test, validation or train. Default: test if the data has one.", show_default=False),
    ] = None,
    weights: Weights = None,
    views: Annotated[
        str, typer.Option(help="Test-time augmentation: none, flip (2 views) or shift (6 views).")
    ] = "none",
    device: DeviceName = "auto",
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on a split.

    Print accuracy, loss, accuracy per class and the confusion matrix.
    """
    from cnnlab.inference import evaluate_run

    evaluation = evaluate_run(
        run,
        split=split,
        weights=weights,
        runs_dir=runs_dir,
        device=device,
        data_dir=data_dir,
        skip_bad=skip_bad,
        views=views,
    )
    echo(to_json(evaluation.to_dict()) if as_json else evaluation_text(evaluation))


def predict(
    run: RunName,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE-OR-FOLDER...", help="Image files or folders.")],
    top: Annotated[int, typer.Option(help="Number of classes per image.")] = 3,
    format_: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    weights: Weights = None,
    invert: Annotated[bool, typer.Option("--invert", help="Invert the images (swap black and white) first.")] = False,
    device: DeviceName = "auto",
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
) -> None:
    """Classify images.

    Print the most probable classes of each image with their probabilities.
    """
    from cnnlab.inference import predict as predict_images

    show = prediction_format(format_)
    predictions, skipped = predict_images(
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
    (echo_csv if format_ == "csv" else echo)(show(predictions))


def evaluation_text(evaluation: RunEvaluation) -> str:
    """Return accuracy and loss in one line, then the confusion matrix with the accuracy of each class."""
    from cnnlab.training.evaluate import VIEWS

    e, classes = evaluation.result, evaluation.run.classes
    views = f", {VIEWS[evaluation.views]} views of each" if VIEWS[evaluation.views] > 1 else ""
    lines = [
        f"{evaluation.split} acc {e.accuracy:.4f} ({e.correct} of {e.count} images{views}), loss {e.loss:.4f}; "
        f"{evaluation.run.path}, {evaluation.weights.name}"
    ]
    lines.append(confusion(classes, e.confusion.tolist(), e.class_accuracy))
    if evaluation.skipped:
        lines.append(f"{len(evaluation.skipped)} damaged images were skipped; the first: {evaluation.skipped[0]}")
    if evaluation.split == "test":
        recipe = evaluation.run.recipe
        if recipe.eval_split == "test":
            lines.append(
                f"its recipe evaluated on the test set after each of {recipe.epochs} epochs; do not select models by it"
            )
            return "\n".join(lines)
        times = sum(1 for row in evaluation.run.evaluations() if row.get("split") == "test")
        lines.append(
            f"this run has been evaluated on the test set {times} time{'s' if times != 1 else ''}; select models on "
            "validation"
            if evaluation.recorded
            else "this evaluation could not be recorded: the run's folder cannot be written to"
        )
    return "\n".join(lines)


def confusion(
    classes: Sequence[str],
    rows: Sequence[Sequence[int]],
    class_accuracy: Sequence[float | None],
    others: Sequence[int] = (),
) -> str:
    """Return the confusion matrix, one row per class. For more than 20 classes: the ten most frequent mistakes.

    others: for each class, the images whose predicted label is no class; they get a column of their own.
    """
    if len(classes) <= 20:
        table = new_table("true \\ predicted", *(str(k) for k in range(len(classes))), *["other"] * bool(others), "acc")
        for k, (row, accuracy) in enumerate(zip(rows, class_accuracy, strict=True)):
            cells = [str(n) if n else "." for n in [*row, *others[k : k + 1]]]
            name = classes[k] if classes[k] == str(k) else f"{k} {classes[k]}"
            table.add_row(name, *cells, "-" if accuracy is None else f"{accuracy:.3f}")
    else:  # a matrix would be too wide
        table = new_table("true", "predicted", "images")
        pairs = [(n, i, j) for i, row in enumerate(rows) for j, n in enumerate(row) if n and i != j]
        for n, i, j in sorted(pairs, reverse=True)[:10]:
            table.add_row(classes[i], classes[j], str(n))
    return as_text(table)


def prediction_format(name: str) -> Callable[[Sequence[Prediction]], str]:
    """Return the function that formats predictions as table, csv or json. Raises: CnnlabError."""
    formats = {"table": _prediction_table, "csv": _prediction_csv, "json": _prediction_json}
    if name not in formats:
        raise unknown("format", name, formats)
    return formats[name]


def _prediction_table(predictions: Sequence[Prediction]) -> str:
    table = new_table("image", *(f"{i + 1}." for i in range(len(predictions[0].top))))
    for p in predictions:
        table.add_row(str(p.path), *(f"{label} {probability:.1%}" for label, probability in p.top))
    return as_text(table)


def _prediction_csv(predictions: Sequence[Prediction]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ["image"]
    for i in range(1, len(predictions[0].top) + 1):
        columns += [f"label_{i}", f"probability_{i}"]
    writer.writerow(columns)
    for p in predictions:
        top = (field for label, probability in p.top for field in (cell(label), f"{probability:.6f}"))
        writer.writerow([cell(str(p.path)), *top])
    return out.getvalue().rstrip("\n")


def _prediction_json(predictions: Sequence[Prediction]) -> str:
    return to_json(
        [{"image": str(p.path), "top": [{"label": label, "probability": v} for label, v in p.top]} for p in predictions]
    )
