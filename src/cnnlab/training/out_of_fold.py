"""Out-of-fold predictions of a cross-validation: each image is predicted by the network that was not trained on it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnlab.data import ImageSet
from cnnlab.io.files import write_atomic
from cnnlab.io.text import cell
from cnnlab.training.calibration import held_out_logits
from cnnlab.training.evaluate import Evaluation
from cnnlab.training.evaluate import probabilities as probabilities_of
from cnnlab.training.results import Result
from cnnlab.training.series import OUT_OF_FOLD, Series, spread
from cnnlab.training.session import Session


def write_out_of_fold(session: Session, series: Series, results: Sequence[Result]) -> dict[str, Any]:
    """Write out_of_fold.csv into the folder of the finished folds. Return the figures for their summary.

    A row per image: path, label, predicted, the probability of each of the K classes, fold. Each fold's probabilities
    are calibrated with its own temperature, as in `predict`. Raise OSError.
    """
    folds = [_predicted(session, result) for result in results]
    classes = results[0].run.classes
    confusions = [_confusion(images, p) for images, p in folds]
    pooled = Evaluation(0.0, torch.stack(confusions).sum(0))
    write_atomic(series.path / OUT_OF_FOLD, _table(classes, series.numbers, folds))
    accuracies = [Evaluation(0.0, confusion).accuracy for confusion in confusions]
    return {
        "images": pooled.count,
        "correct": pooled.correct,
        "accuracy": pooled.accuracy,
        "balanced_accuracy": pooled.balanced_accuracy,
        "per_fold": spread(accuracies),
        "weights": results[0].run.weights().name,
    }


def _predicted(session: Session, result: Result) -> tuple[ImageSet, Tensor]:
    """Return the images that a fold held out, and their probabilities (N, K) float32 with its chosen weights."""
    run = result.run
    session.divide(run.recipe)
    session.check_images(run, run.recipe.data)
    return session.eval_set, probabilities_of(held_out_logits(session, run)[0], run.temperature(run.weights()))


def _confusion(images: ImageSet, probabilities: Tensor) -> Tensor:
    """Return the confusion matrix, (K, K) int64."""
    k = probabilities.shape[1]
    return torch.bincount(images.labels * k + probabilities.argmax(1), minlength=k * k).view(k, k)


def _table(classes: Sequence[str], numbers: Sequence[int], folds: Sequence[tuple[ImageSet, Tensor]]) -> str:
    names = [cell(name) for name in classes]

    def rows() -> Iterator[list[str]]:
        yield ["path", "label", "predicted", *(cell(f"p_{name}") for name in classes), "fold"]
        for number, (images, probabilities) in zip(numbers, folds, strict=True):
            predicted = probabilities.argmax(1).tolist()
            parts = zip(images.ids, images.labels.tolist(), predicted, probabilities.tolist(), strict=True)
            for id_, label, guess, ps in parts:
                yield [cell(id_), names[label], names[guess], *(f"{p:.6f}" for p in ps), str(number)]

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows())
    return out.getvalue()
