"""`cnnlab eval`: measure a run's model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli.options import (
    AsJson,
    DataDir,
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
from cnnlab.io.tables import Table, to_json, wrap
from cnnlab.io.text import echo, escape, plural, truncate

if TYPE_CHECKING:
    from cnnlab.inference import RunEvaluation
    from cnnlab.training.evaluate import Evaluation


def evaluate(
    run: RunName,
    split: Annotated[
        str | None,
        typer.Option(help="test, val or train. Default: test if the data has one.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Where the run's images are now, or other images of the same classes. Default: the run's.",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also save each image's prediction to this CSV file.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also plot the confusion matrix to this PNG file.", show_default=False),
    ] = None,
    weights: Weights = None,
    tta: Tta = "none",
    model: OwnModel = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on a split.

    Print accuracy, loss, precision and recall per class, and the confusion matrix.
    """
    from cnnlab.inference import evaluate_run
    from cnnlab.io.figures import check_png
    from cnnlab.io.files import check_new_csv

    if predictions is not None:
        check_new_csv(predictions)
    if plot is not None:
        check_png(plot)
    evaluation = evaluate_run(
        run,
        model=own_model(model),
        data=data,
        split=split,
        weights=weights,
        runs_dir=runs_dir,
        device=device,
        threads=threads,
        data_dir=data_dir,
        skip_bad=skip_bad,
        views=tta,
    )
    echo(to_json(evaluation.to_dict()) if as_json else evaluation_text(evaluation))
    if predictions is not None:
        evaluation.save_predictions(predictions)
    if plot is not None:
        evaluation.save_plot(plot)


def evaluation_text(evaluation: RunEvaluation) -> str:
    """Return accuracy and loss in one line, then the figures of each class, the confusion matrix and notes."""
    from cnnlab.training.evaluate import VIEWS

    e, classes, run = evaluation.result, evaluation.run.classes, evaluation.run
    views = f", {plural(VIEWS[evaluation.views], 'view')} of each" if VIEWS[evaluation.views] > 1 else ""
    # Other images in one folder form the split "train", but the run was not trained on them.
    what = "acc" if evaluation.other else f"{evaluation.split} acc"
    where = f" of {evaluation.data}, split {evaluation.split}" if evaluation.other else ""
    intervals = zip(("acc", "balanced acc", "macro F1"), e.scores.intervals.values(), strict=True)
    lines = [
        f"{what} {e.accuracy:.4f} ({e.correct:,} of {plural(e.count, 'image')}{where}{views}), "
        f"balanced acc {e.balanced_accuracy:.4f}, loss {e.loss:.4f}",
        f"macro F1 {e.scores.macro_f1:.4f}",
        f"95% intervals: {', '.join(f'{name} {low:.3f}-{high:.3f}' for name, (low, high) in intervals)}",
        *_calibration(evaluation),
        f"{run.path}, {evaluation.weights.name}",
    ]
    table = Table("class", "precision", "recall", "F1", "images")
    for name, c in zip(classes, e.per_class, strict=True):
        figures = ((c.precision, c.precision_interval), (c.recall, c.recall_interval), (c.f1, c.f1_interval))
        table.add_row(name, *(_with_interval(*figure) for figure in figures), f"{c.support:,}")
    lines += ["", str(table), "", confusion(classes, e.confusion.tolist()), ""]
    lines += [never_predicted(classes, e)] * bool(e.never_predicted)
    skipped = evaluation.skipped
    if skipped:
        lines.append(f"{plural(len(skipped), 'damaged image')} skipped; the first: {skipped[0]}")
    if evaluation.split == "test" and not evaluation.other:
        lines.append(_test_note(evaluation))
    elif not evaluation.recorded:
        lines.append("this evaluation could not be recorded: the run's folder cannot be written to")
    return "\n".join(lines).rstrip()


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    """Return a figure with its 95% interval: `0.912 (.86-.95)`."""
    if value is None or interval is None:
        return "-"
    low, high = (f"{bound:.2f}".removeprefix("0") for bound in interval)
    return f"{value:.3f} ({low}-{high})"


def _calibration(evaluation: RunEvaluation) -> list[str]:
    error = evaluation.calibration_error
    if error is None:
        return []
    lines = [f"expected calibration error {error:.4f} with temperature {evaluation.temperature:.2f}"]
    if evaluation.threshold:
        (accepted, correct), count = evaluation.accepted, evaluation.result.count
        of_these = f"; acc {correct / accepted:.4f} on the rest" if accepted else ""
        lines.append(
            f"rejected as none of these (below {evaluation.threshold:.4f}): {count - accepted:,} of {count:,}{of_these}"
        )
    return lines


def _test_note(evaluation: RunEvaluation) -> str:
    recipe = evaluation.run.recipe
    if recipe.eval_split == "test":
        epochs = "its last epoch" if recipe.epochs == 1 else f"each of {recipe.epochs} epochs"
        return f"its recipe evaluated on the test set after {epochs}; do not select models by it"
    if not evaluation.recorded:
        return "this evaluation could not be recorded: the run's folder cannot be written to"
    rows = evaluation.run.evaluations()
    times = sum(1 for row in rows if row.get("split") == "test" and not row.get("other_data"))
    return f"this run has been evaluated on the test set {plural(times, 'time')}; select models on validation"


def never_predicted(classes: Sequence[str], found: Evaluation) -> str:
    """Return a warning that names the classes that were never predicted."""
    named = [
        f"{truncate(escape(classes[k]), 40)} ({plural(int(found.confusion[k].sum()), 'image')})"
        for k in found.never_predicted
    ]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return wrap(f"warning: never predicted: {', '.join(named[:5])}{more}", 2)


def confusion(
    classes: Sequence[str],
    rows: Sequence[Sequence[int]],
    recall: Sequence[float] = (),
    others: Sequence[int] = (),
) -> str:
    """Return the confusion matrix, one row per class. For more than 20 classes: the most frequent mistakes.

    recall: one value per class. others: for each class, the number of images whose predicted label is not a class, in a
    column of their own.
    """
    if len(classes) <= 20:
        table = Table("true \\ predicted", *(str(k) for k in range(len(classes))), *["other"] * bool(others),
                      *["recall"] * bool(recall))  # fmt: skip
        for k, row in enumerate(rows):
            cells = [str(n) if n else "." for n in [*row, *others[k : k + 1]]]
            cells += [f"{r:.3f}" for r in recall[k : k + 1]]
            table.add_row(classes[k] if classes[k] == str(k) else f"{k} {classes[k]}", *cells)
        return str(table)
    # A matrix would be too wide.
    names = [*classes, "other"]
    counts = [[*row, *others[i : i + 1]] for i, row in enumerate(rows)]
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    if not pairs:
        return "no mistakes"
    table = Table("most frequent mistakes: true", "predicted", "images", left=(1,))
    for n, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:10]:
        table.add_row(names[i], names[j], str(n))
    return str(table)
