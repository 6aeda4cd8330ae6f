"""Evaluate a run: on a split of its own data, or on other images of the same classes."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnnlab.data import ImageSet
from cnnlab.data.loader import Loader
from cnnlab.data.own import MEMORY
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores, check_threads, pick_device
from cnnlab.device.precision import PRECISIONS, exact_float32
from cnnlab.device.timing import synchronize
from cnnlab.inference.classifier import (
    batch_size_of,
    check_views,
    load_network,
    preprocessing_of,
    weights_file,
)
from cnnlab.inference.run_images import find_images, source_options, split_name
from cnnlab.io.errors import unknown
from cnnlab.io.files import save_new_csv
from cnnlab.io.text import cell
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.evaluate import Evaluation, calibration_error, evaluate
from cnnlab.training.results import layout_of
from cnnlab.training.runs import Run

_RECORDED = 100  # the run records the confusion matrix of at most this many classes


@dataclass(frozen=True)
class RunEvaluation:
    """The result of `evaluate_run`. seconds: duration of the evaluation only, after images and weights were loaded.

    data: the source of the images; other: whether they are other images than the run's. images: the evaluated images,
    with the files that were skipped. temperature: divisor of the logits. threshold: see `evaluate_run`.
    """

    run: Run
    split: str
    weights: Path
    result: Evaluation
    recorded: bool
    images: ImageSet | None = None
    data: str = ""
    other: bool = False
    views: str = "none"
    precision: str = "float32"
    seconds: float = 0.0
    temperature: float = 1.0
    threshold: float = 0.0

    @property
    def accepted(self) -> tuple[int, int]:
        """The number of images at or above `threshold`, and the number of correct predictions among them."""
        predicted, probability = self.result.predicted, self.result.probability
        if self.images is None or predicted is None or probability is None:
            return self.result.count, self.result.correct
        accepted = probability.double() >= self.threshold
        return int(accepted.sum()), int((accepted & predicted.eq(self.images.labels)).sum())

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error of the probabilities, scaled by `temperature`; None if they were not kept."""
        predicted, probability = self.result.predicted, self.result.probability
        if self.images is None or predicted is None or probability is None:
            return None
        return calibration_error(probability, predicted.eq(self.images.labels))

    @property
    def skipped(self) -> tuple[str, ...]:
        """The errors of the files that could not be read."""
        return self.images.skipped if self.images is not None else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as plain values. classes: precision, recall, f1 and support (images) of each class.

        intervals, and *_interval of each class: 95% intervals, see training/intervals.py.
        """
        result = self.result
        return {
            "run": str(self.run.path),
            "weights": self.weights.name,
            "data": self.data,
            "other_data": self.other,
            "split": self.split,
            "views": self.views,
            "precision": self.precision,
            "seconds": self.seconds,
            "images": result.count,
            "correct": result.correct,
            "loss": result.loss,
            **result.scores.to_dict(self.run.classes),
            "temperature": self.temperature,
            "calibration_error": self.calibration_error,
            "threshold": self.threshold,
            "accepted": self.accepted[0],
            "accepted_correct": self.accepted[1],
            "never_predicted": [self.run.classes[k] for k in result.never_predicted],
            "confusion": result.confusion.tolist(),
            "skipped": list(self.skipped),
        }

    def predictions_csv(self) -> str:
        """Return a CSV table with a row per image: its id, true label, prediction and the prediction's probability."""
        predicted, probability = self.result.predicted, self.result.probability
        assert self.images is not None
        assert predicted is not None
        assert probability is not None
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("image", "true_label", "prediction", "probability"))
        names = [cell(name) for name in self.run.classes]
        rows = zip(
            self.images.ids, self.images.labels.tolist(), predicted.tolist(), probability.tolist(), strict=True
        )  # fmt: skip
        for image, true, guess, p in rows:
            writer.writerow((cell(image), names[true], names[guess], f"{p:.6f}"))
        return out.getvalue()

    def save_predictions(self, path: str | Path) -> None:
        """Write `predictions_csv` to a new file in UTF-8. Raise CnnlabError if that fails."""
        save_new_csv(path, self.predictions_csv())

    def save_plot(self, path: str | Path) -> None:
        """Draw the confusion matrix to a new PNG file. Raise CnnlabError if that fails."""
        from cnnlab.io import figures as plots  # imports matplotlib, which is slow
        from cnnlab.training.confusion import confusion_figure

        plots.check_png(Path(path))
        result = self.result
        title = f"{self.run.path.name}, {self.split}: accuracy {result.accuracy:.4f} of {result.count:,} images"
        plots.save(Path(path), confusion_figure(result.confusion.numpy(), self.run.classes, title))


def evaluate_run(
    name: Run | str | Path,
    *,
    model: Network | None = None,
    data: Any = None,
    split: str | None = None,
    own_split: str | None = None,
    weights: str | None = None,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    threads: int | None = None,
    views: str = "none",
    precision: str = "float32",
    threshold: float | None = None,
    keep_logits: bool = False,
) -> RunEvaluation:
    """Evaluate a run's model on all images of a split, and record the result in the run's folder.

    model: your own network, if the run trained one. data: where the run's own images are now, recognised by their
    fingerprint; or other images, of all or some of the run's classes: a source's name, or images as `train` takes them.
    Any split of other images may be evaluated. Default: the run's source.
    split: test, validation or train, or the beginning of such a name. Default: the first of these that the data have.
    own_split: the default for the run's own images.
    weights: best or last. Default: best if it was chosen on validation images, else last. views: test-time
    augmentation, a key of VIEWS. precision: of convolutions and matrix products, a key of PRECISIONS; in 16 bits the
    logits of an image may depend on the rest of its batch. threshold: an image whose top probability is lower belongs
    to none of the classes. Default: the run's. skip_bad: skip damaged images; a run that was trained with it always
    skips those of its own data. keep_logits: keep the logits (N, K) in the result. Raise CnnlabError.
    """
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    check_views(views)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    split = split_name(split)
    file = weights_file(run, weights)
    check_threads(threads)
    here = pick_device(device)
    threshold = run.threshold(file) if threshold is None else threshold
    network, temperature = load_network(run, file, model), run.temperature(file)
    preprocessing = preprocessing_of(run)
    images, split, other = find_images(run, split, source_options(run, data_dir, skip_bad), data, own_split)
    layout = layout_of(run)
    network.to(memory_format=layout)
    with reproducible(0, threads or available_cores()), exact_float32():
        loader = Loader(images, preprocessing, batch_size_of(preprocessing), here, memory_format=layout)
        network.to(here)
        synchronize(here)
        started = time.perf_counter()
        result = evaluate(
            network, loader, len(run.classes), precision=PRECISIONS[precision], views=views, keep=True,
            temperature=temperature, keep_logits=keep_logits,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    source = data if isinstance(data, str) else f"{MEMORY}{type(data).__name__}" if other else run.recipe.data
    evaluation = RunEvaluation(
        run, split, file, result, False, images, source, other, views=views, precision=precision, seconds=seconds,
        temperature=temperature, threshold=threshold,
    )  # fmt: skip
    large = len(run.classes) > _RECORDED  # its confusion matrix would take megabytes per line
    left_out = ("run", "classes", *["confusion"] * large)
    record = {k: v for k, v in evaluation.to_dict().items() if k not in left_out}
    return replace(evaluation, recorded=runs.record_evaluation(run, record))
