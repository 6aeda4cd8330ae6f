"""Use a finished run: evaluate it on a split, classify images, load its network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnlab.data import ImageSet, SourceOptions, data_folder, load_images
from cnnlab.data.images import flatten, pixels
from cnnlab.data.imageset import Report, no_report
from cnnlab.data.loader import Loader, Preprocessing, laid_out
from cnnlab.data.own import OwnImages, own_images
from cnnlab.data.splits import load_splits
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores, check_threads, pick_device
from cnnlab.device.precision import PRECISIONS, exact_float32
from cnnlab.device.timing import synchronize
from cnnlab.io.decode import BadImage, bombs_refused, decode
from cnnlab.io.errors import CnnlabError, reason, unknown
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.evaluate import VIEWS, Evaluation, evaluate, logits
from cnnlab.training.plan import FORMATS
from cnnlab.training.results import trained_model
from cnnlab.training.runs import Run

SPLITS = ("test", "validation", "train")
_MOST_VALUES = 1 << 26  # in a batch of large images


@dataclass(frozen=True)
class RunEvaluation:
    """The result of `evaluate_run`. seconds: of the evaluation only, with images and weights in memory."""

    run: Run
    split: str
    weights: Path
    result: Evaluation
    recorded: bool
    skipped: tuple[str, ...] = ()
    views: str = "none"
    precision: str = "float32"
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as plain values."""
        result = self.result
        return {
            "run": str(self.run.path),
            "weights": self.weights.name,
            "split": self.split,
            "views": self.views,
            "precision": self.precision,
            "seconds": self.seconds,
            "images": result.count,
            "correct": result.correct,
            "accuracy": result.accuracy,
            "loss": result.loss,
            "classes": self.run.classes,
            "class_accuracy": result.class_accuracy,
            "confusion": result.confusion.tolist(),
            "skipped": list(self.skipped),
        }


@dataclass(frozen=True)
class Prediction:
    """The classes of one image file with their probabilities, most probable first."""

    path: Path
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Predictions:
    """What `Classifier.predict` returns. probabilities: (N, K) float32 on the CPU; classes: K names."""

    probabilities: Tensor
    classes: list[str]

    @property
    def labels(self) -> list[str]:
        """The name of the most probable class of each of the N images."""
        return [self.classes[k] for k in self.probabilities.argmax(1).tolist()]

    def __len__(self) -> int:
        return len(self.probabilities)

    def top(self, k: int = 3) -> list[list[tuple[str, float]]]:
        """Return the `k` most probable classes of each image with their probabilities, most probable first."""
        values, order = self.probabilities.topk(min(k, len(self.classes)))
        return [
            [(self.classes[i], p) for i, p in zip(row, ps, strict=True)]
            for row, ps in zip(order.tolist(), values.tolist(), strict=True)
        ]


class Classifier(nn.Module):
    """A trained network with the names of its classes and the preprocessing of its images.

    `forward` takes preprocessed batches (B, C, H, W) float32 and returns logits (B, K); `predict` takes images as they
    are. network: the module that was trained; classes: K names; preprocessing: (B, C, H, W) uint8 -> float32.
    """

    def __init__(self, network: nn.Module, classes: list[str], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.preprocessing = preprocessing

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, image_size, image_size) float32 -> logits (B, K)."""
        logits: Tensor = self.network(x)
        return logits

    def predict(self, images: Any, *, invert: bool = False) -> Predictions:
        """Classify images, which go through the same steps as in training.

        images: a path, a folder, a PIL image, a NumPy array or a tensor of one image or of a batch, or a list of these.
        Arrays and tensors hold uint8 in 0..255 or floating point in 0..1; tensors are (C, H, W) or (B, C, H, W), arrays
        may also be (H, W, C), as PIL gives them, or (H, W). Any size is fitted. invert: exchange black and white first.
        Raise CnnlabError.
        """
        p = self.preprocessing
        flat = flatten(images)
        if not flat:
            raise CnnlabError("no images to classify")
        step = _batch_size(p)
        with bombs_refused():
            parts = [
                self.probabilities(np.stack([pixels(i, p.decoding, invert=invert) for i in flat[at : at + step]]))
                for at in range(0, len(flat), step)
            ]
        return Predictions(torch.cat(parts), self.classes)

    def probabilities(self, batch: np.ndarray) -> Tensor:
        """Return the probabilities (B, K) float32, on the CPU, of images (B, C, H, W) uint8 of the native size."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        was_training = self.training
        self.eval()
        try:
            with reproducible(0, available_cores()), exact_float32(), torch.inference_mode():
                logits: Tensor = self(self.preprocessing(torch.from_numpy(batch).to(device)))
                return logits.softmax(1).cpu()
        finally:
            self.train(was_training)


def load_model(
    run: Run | str | Path,
    *,
    model: Network | None = None,
    weights: str | None = None,
    runs_dir: str | Path = "runs",
) -> Classifier:
    """Return the trained network of a run, in eval mode and on the CPU, with its classes and its preprocessing.

    run: a run's folder, its name in `runs_dir`, or the `run` of a training's result. model: the network of your own
    that was trained, if it was one; a copy of it gets the weights. weights: best or last. Default: best where it was
    chosen on validation images, else last. Raise CnnlabError.
    """
    run = run if isinstance(run, Run) else runs.open_run(run, runs_dir)
    network = load_network(run, _weights_file(run, weights), model)
    return Classifier(network, run.classes, _preprocessing(run)).eval()


def load_network(run: Run, weights: Path | None = None, model: Network | None = None) -> nn.Module:
    """Return the bare network of `run` in eval mode, on the CPU.

    weights: a file. Default: see `Run.weights`. model: see `load_model`. Raise CnnlabError.
    """
    return trained_model(run, weights or run.weights(), model)


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
) -> RunEvaluation:
    """Evaluate a run's model on all images of a split, and record that in the run's folder.

    model: the network of your own that was trained, if it was one. data: the images of your own that it was trained on,
    of which a split is evaluated; or, with split="test", any other images with the same classes, as `train` takes them.
    split: test, validation or train. Default: test if the data has one, else validation. weights: best or last.
    Default: best where it was chosen on validation images, else last. views: test-time augmentation, a key of VIEWS.
    precision: of convolutions and matrix products; with 16 bits the logits of an image may depend on the rest of its
    batch. Raise CnnlabError.
    """
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    if views not in VIEWS:
        raise unknown("views", views, VIEWS)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    file = _weights_file(run, weights)
    check_threads(threads)
    here = pick_device(device)
    network = load_network(run, file, model)
    preprocessing = _preprocessing(run)
    options = SourceOptions(
        data_dir=data_folder(data_dir or runs.data_dir(run)),
        decoding=preprocessing.decoding,
        skip_bad=skip_bad,
    )
    own = own_images(data, run.classes) if data is not None else None
    images, split = _run_images(run, split, options, own)
    layout = _layout(run)
    network.to(memory_format=layout)
    with reproducible(0, threads or available_cores()), exact_float32():
        loader = Loader(images, preprocessing, _batch_size(preprocessing), here, memory_format=layout)
        network.to(here)
        synchronize(here)
        started = time.perf_counter()
        result = evaluate(network, loader, len(run.classes), precision=PRECISIONS[precision], views=views)
        seconds = time.perf_counter() - started
    evaluation = RunEvaluation(
        run,
        split,
        file,
        result,
        recorded=False,
        skipped=images.skipped,
        views=views,
        precision=precision,
        seconds=seconds,
    )
    record = {k: v for k, v in evaluation.to_dict().items() if k not in ("run", "classes")}
    return replace(evaluation, recorded=runs.record_evaluation(run, record))


def _run_images(
    run: Run, split: str | None, options: SourceOptions, own: OwnImages | None = None
) -> tuple[ImageSet, str]:
    """Return the images of a split of the run's data, and its name. Default: test if there is one, else validation."""
    images = None
    if own is not None and split == "test":
        images = own.held_out or own.train
    else:
        runs.check_own(run.path, run.recipe, data=own)
        split = split or ("validation" if own is not None else None)
    if images is None and split in (None, "test"):
        images = load_images(run.recipe.data, "test", options)
        if images is None and split == "test":
            raise CnnlabError(f"{run.recipe.data} has no test set; evaluate --split validation")
        split = "test" if images is not None else "validation"
    if images is None:
        train_set, eval_set = load_splits(run.recipe, options, own)
        if split == "validation" and run.recipe.eval_split != "validation":
            raise CnnlabError(f"{run.path} held no images out for validation; evaluate --split test or train")
        if train_set.fingerprint() != run.info["data"]["fingerprint"]:
            raise CnnlabError(
                f"the images of {run.recipe.data} are not those that {run.path} was trained on: its splits are unknown"
            )
        images = train_set if split == "train" else eval_set
    if images.classes != run.classes or images.images.shape[1] != run.info["preprocessing"]["channels"]:
        raise CnnlabError(f"{run.recipe.data} no longer has the classes and channels that {run.path} was trained on")
    if own is not None and images.images.shape[2] != run.info["preprocessing"]["native_size"]:
        size = run.info["preprocessing"]["native_size"]
        raise CnnlabError(f"{run.path} was trained on images of {size}x{size} pixels; resize these to that")
    assert split is not None
    return images, split


def predict(
    name: Run | str | Path,
    paths: Sequence[str | Path] | str | Path,
    *,
    model: Network | None = None,
    top: int = 3,
    weights: str | None = None,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    skip_bad: bool = False,
    invert: bool = False,
) -> tuple[list[Prediction], list[str]]:
    """Return the `top` most probable classes of each image in `paths` (files, or folders that are searched).

    The images go through the same steps as in training. model: see `load_model`. invert: exchange black and white
    first, for dark writing on light paper where the network learned light on dark. Returns: predictions in the order
    of the paths, and one line for each damaged image that `skip_bad` left out. Raise CnnlabError.
    """
    if top < 1:
        raise CnnlabError(f"top={top}: must be at least 1")
    here = pick_device(device)
    classifier = load_model(name, model=model, weights=weights, runs_dir=runs_dir).to(here)
    p = classifier.preprocessing
    files: list[Path] = flatten([paths] if isinstance(paths, str | Path) else list(paths))
    predictions: list[Prediction] = []
    skipped: list[str] = []
    step = _batch_size(p)
    with bombs_refused():
        for at in range(0, len(files), step):
            good, batch = [], []
            for file in files[at : at + step]:
                try:
                    batch.append(decode(file, p.decoding, invert=invert))
                    good.append(file)
                except BadImage as error:
                    if not skip_bad:
                        raise CnnlabError(f"{error}; leave such files out with --skip-bad") from error
                    skipped.append(str(error))
            if good:
                answers = Predictions(classifier.probabilities(np.stack(batch)), classifier.classes)
                predictions += map(Prediction, good, answers.top(top))
    if not predictions:
        raise CnnlabError(f"none of the {len(files)} images could be read; the first: {skipped[0]}")
    return predictions, skipped


@torch.inference_mode()
def probabilities(
    models: Sequence[Run],
    images: Tensor,
    *,
    views: str = "none",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 0,
    report: Report = no_report,
) -> Tensor:
    """Return the mean probabilities (N, K) float32, on the CPU, of `models` for `images` (N, C, H, W) uint8.

    views: test-time augmentation, a key of VIEWS: logits are averaged over the views of an image (half the weight on
    the centred ones, half on the shifted ones), then probabilities over the models. Computed in float32 and eval mode,
    so that the result does not depend on the batches. batch_size: 0 for the default. Raise CnnlabError.
    """
    if views not in VIEWS:
        raise unknown("views", views, VIEWS)
    check_threads(threads)
    here = pick_device(device)
    total: Tensor | None = None
    with reproducible(0, threads or available_cores()), exact_float32():
        for number, run in enumerate(models):
            preprocessing = _preprocessing(run)
            if tuple(images.shape[1:]) != (preprocessing.channels, *[preprocessing.native_size] * 2):
                raise CnnlabError(f"{run.path} expects images of a different size or number of channels")
            layout = _layout(run)
            model = load_network(run).to(here).to(memory_format=layout)
            parts = []
            for batch in images.split(batch_size or _batch_size(preprocessing)):
                x = laid_out(preprocessing(batch.to(here)), layout)
                parts.append(logits(model, x, views).softmax(1).cpu())
                done = sum(map(len, parts)) + number * len(images)
                report("predicting", done, len(models) * len(images))
            p = torch.cat(parts)
            total = p if total is None else total + p
    assert total is not None
    return total / len(models)


def validation_images(run: Run) -> ImageSet:
    """Return the run's validation images. Raise CnnlabError if it has none, or the data have changed."""
    return _run_images(run, "validation", SourceOptions(data_dir=data_folder(runs.data_dir(run))))[0]


def _layout(run: Run) -> torch.memory_format:
    """Return the memory format in which the run was trained."""
    trained: str = runs.first_session(run).get("memory_format", run.recipe.memory_format)
    return FORMATS.get(trained, torch.contiguous_format)


def _preprocessing(run: Run) -> Preprocessing:
    try:
        return Preprocessing.from_dict(run.info["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise CnnlabError(f"{run.path / 'run.json'} is damaged: its preprocessing entry: {reason(error)}") from error


def _weights_file(run: Run, which: str | None) -> Path:
    if which is not None and which not in runs.WEIGHTS:
        raise unknown("weights", which, runs.WEIGHTS)
    return run.weights(which)


def _batch_size(preprocessing: Preprocessing) -> int:
    side = max(preprocessing.image_size, preprocessing.native_size)
    if side <= 64:
        return 1000
    return max(1, min(64, _MOST_VALUES // (preprocessing.channels * side**2)))
