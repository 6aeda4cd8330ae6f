"""Evaluate a run: on a split of its own data, or on other images of the same classes."""

from __future__ import annotations

import csv
import io
import time
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cnnlab.data import ImageSet, SourceOptions, data_folder, load_images
from cnnlab.data.loader import Loader
from cnnlab.data.own import MEMORY, OwnImages, own_images
from cnnlab.data.splits import load_splits
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
from cnnlab.io.errors import CnnlabError, SourceMissing, unknown
from cnnlab.io.files import save_new_csv
from cnnlab.io.text import cell, truncate
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.evaluate import Evaluation, calibration_error, evaluate
from cnnlab.training.own import check_own
from cnnlab.training.results import layout_of
from cnnlab.training.runs import Run

SPLITS = ("test", "validation", "train")
_RECORDED = 100  # classes up to which the confusion matrix is recorded in the run


@dataclass(frozen=True)
class RunEvaluation:
    """The result of `evaluate_run`. seconds: of the evaluation only, with images and weights in memory.

    data: the source of the images; other: whether it is another one than the run's. images: the evaluated images, with
    the files that were skipped.
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
        """The number of images at or above the run's threshold for "none of these", and of correct ones among them."""
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
        """Return the evaluation as plain values. classes: precision, recall, f1 and support (images) of each.

        intervals, and *_interval of each class: 95%, see training/intervals.py.
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
    """Evaluate a run's model on all images of a split, and record that in the run's folder.

    model: the network of your own that was trained, if it was one. data: where the run's own images are now, recognised
    by their fingerprint; or other images of the run's classes, or of some of them: a source's name, or images as
    `train` takes them. Any split of other images may be evaluated. Default: the run's source.
    split: test, validation or train, or the beginning of such a name. Default: the first that the data have.
    weights: best or last. Default: best where it was chosen on validation images, else last. views: test-time
    augmentation, a key of VIEWS. precision: of convolutions and matrix products; with 16 bits the logits of an image
    may depend on the rest of its batch. threshold: the probability below which an image is none of the classes.
    Default: the run's. skip_bad: skip damaged images; a run that was trained with it always skips those of its own
    data. keep_logits: keep the logits (N, K) in the result. Raise CnnlabError.
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
    options = SourceOptions(
        data_dir=data_folder(data_dir or runs.data_dir(run)),
        decoding=preprocessing.decoding,
        columns=run.recipe.columns,
        skip_bad=skip_bad,
    )
    images, split, other = _find_images(run, split, options, data)
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
    source = data if isinstance(data, str) else run.recipe.data if data is None else f"{MEMORY}{type(data).__name__}"
    evaluation = RunEvaluation(
        run, split, file, result, False, images, source, other, views=views, precision=precision, seconds=seconds,
        temperature=temperature, threshold=threshold,
    )  # fmt: skip
    large = len(run.classes) > _RECORDED  # megabytes a line
    left_out = ("run", "classes", *["confusion"] * large)
    record = {k: v for k, v in evaluation.to_dict().items() if k not in left_out}
    return replace(evaluation, recorded=runs.record_evaluation(run, record))


def check_held_out(run: Run) -> None:
    """Raise CnnlabError if the run has no validation images."""
    if run.recipe.eval_split != "validation":
        raise CnnlabError(
            f"{run.path} held no images out for validation (eval_split={run.recipe.eval_split}); train a run with "
            "eval_split=validation"
        )


def split_name(given: str | None) -> str | None:
    """Return the split that `given` abbreviates (val, valid) or lengthens (testing). Raise CnnlabError."""
    if given is None:
        return None
    word = given.strip().lower()
    found = [name for name in SPLITS if word and (name.startswith(word) or word.startswith(name))]
    if len(found) != 1:
        raise unknown("split", given, SPLITS)
    return found[0]


def _find_images(run: Run, split: str | None, options: SourceOptions, data: Any) -> tuple[ImageSet, str, bool]:
    """Return the images to evaluate, their split, and whether they are others than the run's."""
    in_memory = run.recipe.data.startswith(MEMORY)
    if data is None:
        if in_memory:
            check_own(run.path, run.recipe, data=None)
        return (*_run_images(run, split, options, run.recipe.data), False)
    if not isinstance(data, str):
        own = own_images(data, run.classes)
        default = "validation" if run.recipe.eval_split == "validation" else "test"
        if in_memory and (split or default) != "test":
            try:
                return (*_run_images(run, split or default, options, run.recipe.data, own), False)
            except _OtherImages:
                if split is not None:
                    raise
        return _same_classes(run, own.held_out or own.train, "these images"), split or "test", True
    try:
        return (*_run_images(run, split, options, data), False)
    except _OtherImages:
        return (*_other_images(run, split, options, data), True)


class _OtherImages(CnnlabError):
    """The images are not those that the run was trained on."""


def _run_images(
    run: Run, split: str | None, options: SourceOptions, data: str, own: OwnImages | None = None
) -> tuple[ImageSet, str]:
    """Return the images of a split of the run's data, and its name. Default: test if there is one, else validation.

    data: where the images are. Raise _OtherImages if the training images there are others.
    """
    recipe = replace(run.recipe, data=data)
    options = replace(options, skip_bad=options.skip_bad or run.info["data"].get("skip_bad", False))
    moved = data != run.recipe.data
    if split == "validation" and recipe.eval_split != "validation" and not moved:
        raise CnnlabError(f"{run.path} held no images out for validation; evaluate --split test or train")
    if own is None and not moved and split in (None, "test"):
        images = _loaded(run, data, "test", options)
        if images is None and split == "test":
            raise CnnlabError(f"{data} has no test set; evaluate --split validation")
        if images is not None:
            return _same_classes(run, images, data), "test"
    try:
        train_set, eval_set = load_splits(recipe, options, own)
    except CnnlabError as error:
        raise _OtherImages(str(error)) if moved else _with_remedy(run, error) from error
    if train_set.fingerprint() != run.info["data"]["fingerprint"]:
        raise _OtherImages(
            f"the images of {data} are not those that {run.path} was trained on, so its splits are unknown; "
            "--data evaluates on other images"
        )
    if split in (None, "test") and own is None:
        images = _loaded(run, data, "test", options)
        if images is not None:
            return _same_classes(run, images, data), "test"
        if split == "test":
            raise CnnlabError(f"{data} has no test set; evaluate --split validation")
    if split in (None, "validation") and recipe.eval_split != "validation":
        raise CnnlabError(f"{run.path} held no images out for validation; evaluate --split test or train")
    split = split or "validation"
    return _same_classes(run, train_set if split == "train" else eval_set, data), split


def _other_images(run: Run, split: str | None, options: SourceOptions, data: str) -> tuple[ImageSet, str]:
    """Return all images of a split of another source, and its name. Default: the first split that there is."""
    for name in SPLITS if split is None else (split,):
        images = load_images(data, name, options)
        if images is not None:
            return _same_classes(run, images, data), name
    if split is None:
        raise CnnlabError(f"{data} holds no labelled images; cnnlab predict classifies images without labels")
    raise CnnlabError(f"{data} has no {split} split; leave --split out")


def _loaded(run: Run, data: str, split: str, options: SourceOptions) -> ImageSet | None:
    try:
        return load_images(data, split, options)
    except CnnlabError as error:
        raise _with_remedy(run, error) from error


def _with_remedy(run: Run, error: CnnlabError) -> CnnlabError:
    """Return the error, with what to do if the images of the run have moved."""
    if isinstance(error, SourceMissing):
        return CnnlabError(f"{error}; if the images of {run.path} are elsewhere now, name the place with --data")
    return error


def _same_classes(run: Run, images: ImageSet, data: str) -> ImageSet:
    """Return the images labelled by the run's classes. They may lack some of these. Raise CnnlabError."""
    known = {unicodedata.normalize("NFC", name): k for k, name in enumerate(run.classes)}
    places = [known.get(unicodedata.normalize("NFC", name)) for name in images.classes]
    strangers = [name for name, place in zip(images.classes, places, strict=True) if place is None]
    if strangers:
        raise CnnlabError(
            f"{data} has classes that {run.path} was not trained on: {truncate(', '.join(strangers), 100)}; it knows "
            f"{truncate(', '.join(run.classes), 100)}"
        )
    expected = (run.info["preprocessing"]["channels"], *[run.info["preprocessing"]["native_size"]] * 2)
    if tuple(images.images.shape[1:]) != expected:
        sizes = [" x ".join(map(str, shape)) for shape in (images.images.shape[1:], expected)]
        raise CnnlabError(
            f"the images of {data} are {sizes[0]}, those that {run.path} was trained on {sizes[1]}; convert them"
        )
    return replace(images, labels=torch.tensor(places)[images.labels], classes=run.classes)


def validation_images(run: Run, data: Any = None) -> ImageSet:
    """Return the run's validation images. data: the run's own, or where they are now; see `evaluate_run`.

    Raise CnnlabError if it has none, or the data have changed.
    """
    check_held_out(run)
    _, held_out = run_splits(run, data)
    assert held_out is not None
    return held_out


def run_splits(
    run: Run, data: Any = None, *, data_dir: str | Path | None = None, skip_bad: bool = False
) -> tuple[ImageSet, ImageSet | None]:
    """Return the images that a run was trained on, and its validation images, None if it has none.

    No test image is read. data: the run's own images, or where they are now; see `evaluate_run`. Raise CnnlabError if
    they are gone or have changed.
    """
    source, own, recipe = run.recipe.data, None, run.recipe
    if data is None or not isinstance(data, str):
        if recipe.data.startswith(MEMORY) or data is not None:
            check_own(run.path, recipe, data=data)
        own = None if data is None else own_images(data, run.classes)
    else:
        source = data
    held_out = recipe.eval_split == "validation"
    recipe = replace(recipe, data=source, eval_split="validation" if held_out else "train")
    options = SourceOptions(
        data_dir=data_folder(data_dir or runs.data_dir(run)),
        decoding=preprocessing_of(run).decoding,
        columns=recipe.columns,
        skip_bad=skip_bad or run.info["data"].get("skip_bad", False),
    )
    try:
        train_set, evaluated = load_splits(recipe, options, own)
    except CnnlabError as error:
        raise _with_remedy(run, error) from error
    if train_set.fingerprint() != run.info["data"]["fingerprint"]:
        raise CnnlabError(
            f"the images of {source} are not those that {run.path} was trained on; name where its own are with --data"
        )
    train_set = _same_classes(run, train_set, source)
    return train_set, _same_classes(run, evaluated, source) if held_out else None
