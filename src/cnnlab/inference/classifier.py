"""Load the network of a run and classify images with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnlab.data.images import flatten, pixels
from cnnlab.data.imageset import Report, no_report
from cnnlab.data.loader import Preprocessing, in_layout
from cnnlab.data.packed import Pixels
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores, check_threads, pick_device
from cnnlab.device.precision import exact_float32
from cnnlab.io.decode import bombs_refused
from cnnlab.io.errors import CnnlabError, reason, unknown
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.evaluate import VIEWS, logits
from cnnlab.training.evaluate import probabilities as probabilities_of
from cnnlab.training.results import layout_of, trained_model
from cnnlab.training.runs import Run

_PIXELS = 1 << 20  # in a batch: 64 feature maps of that size take 256 MiB


@dataclass(frozen=True)
class Predictions:
    """The result of `Classifier.predict`. logits: (N, K) float32 on the CPU; classes: K names.

    temperature: divisor of the logits, see training/calibration.py. Classes are ordered by their logits, since small
    probabilities may round to equal values. threshold: see `none_of_these`.
    """

    logits: Tensor
    classes: list[str]
    temperature: float = 1.0
    threshold: float = 0.0

    @cached_property
    def probabilities(self) -> Tensor:
        """The probabilities (N, K) float32 of the classes."""
        return probabilities_of(self.logits, self.temperature)

    @property
    def labels(self) -> list[str]:
        """The name of the most probable class of each of the N images."""
        return [self.classes[k] for k in self.logits.argmax(1).tolist()]

    @property
    def none_of_these(self) -> list[bool]:
        """Whether the top probability of each of the N images is below the threshold."""
        return [p < self.threshold for p in self.probabilities.amax(1).tolist()]

    def __len__(self) -> int:
        return len(self.logits)

    def top(self, k: int = 3) -> list[list[tuple[str, float]]]:
        """Return the `k` most probable classes of each image with their probabilities, most probable first."""
        order = self.logits.topk(min(k, len(self.classes))).indices
        values = self.probabilities.gather(1, order)
        return [
            [(self.classes[i], p) for i, p in zip(row, ps, strict=True)]
            for row, ps in zip(order.tolist(), values.tolist(), strict=True)
        ]


class Classifier(nn.Module):
    """A trained network with the names of its classes and the preprocessing of its images.

    `forward` takes preprocessed batches (B, C, H, W) float32 and returns logits (B, K); `predict` takes images as they
    are. network: the module that was trained; classes: K names; preprocessing: (B, C, H, W) uint8 -> float32;
    temperature: divisor of the logits for the probabilities of `predict`; threshold: see `Predictions`.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: list[str],
        preprocessing: Preprocessing,
        temperature: float = 1.0,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.preprocessing = preprocessing
        self.temperature = temperature
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, C, image_size, image_size) float32 -> (B, K)."""
        logits: Tensor = self.network(x)
        return logits

    def predict(self, images: Any, *, invert: bool = False, views: str = "none") -> Predictions:
        """Classify images, with the same preprocessing as in training.

        images: a path, a folder, a PIL image, a NumPy array or a tensor of one image or of a batch, or a list of these.
        Arrays and tensors hold uint8 in 0..255 or floating point in 0..1; tensors are (C, H, W) or (B, C, H, W), arrays
        may also be (H, W, C), as PIL gives them, or (H, W). Images may have any size. invert: swap black and white
        first. views: test-time augmentation, a key of VIEWS. Raise CnnlabError.
        """
        check_views(views)
        p = self.preprocessing
        flat = flatten(images)
        if not flat:
            raise CnnlabError("no images to classify")
        step = batch_size_of(p)
        with bombs_refused():
            parts = [
                self._logits(np.stack([pixels(i, p.decoding, invert=invert) for i in flat[at : at + step]]), views)
                for at in range(0, len(flat), step)
            ]
        return self._predictions(torch.cat(parts))

    def predict_batch(self, batch: np.ndarray, views: str = "none", threads: int | None = None) -> Predictions:
        """Classify images (B, C, H, W) uint8 of the native size.

        views: test-time augmentation, a key of VIEWS. threads: CPU threads. Default: one per available core.
        """
        return self._predictions(self._logits(batch, views, threads))

    def _predictions(self, found: Tensor) -> Predictions:
        return Predictions(found, self.classes, self.temperature, self.threshold)

    def _logits(self, batch: np.ndarray, views: str, threads: int | None = None) -> Tensor:
        """Return logits (B, K) float32, on the CPU."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        was_training = self.training
        self.eval()
        try:
            with reproducible(0, threads or available_cores()), exact_float32(), torch.inference_mode():
                # Contiguous, since convolutions in another memory layout round differently.
                x = self.preprocessing(torch.from_numpy(np.ascontiguousarray(batch)).to(device))
                return logits(self, x, views).cpu()
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

    run: a run's folder, its name in `runs_dir`, or the `run` of a training's result. model: your own network, if the
    run trained one; the weights are loaded into a copy. weights: best or last. Default: best if it was chosen on
    validation images, else last. Raise CnnlabError.
    """
    run = run if isinstance(run, Run) else runs.open_run(run, runs_dir)
    file = weights_file(run, weights)
    network = load_network(run, file, model)
    preprocessing = preprocessing_of(run)
    return Classifier(network, run.classes, preprocessing, run.temperature(file), run.threshold(file)).eval()


def load_network(run: Run, weights: Path | None = None, model: Network | None = None) -> nn.Module:
    """Return the bare network of `run` in eval mode, on the CPU.

    weights: the file of the weights. Default: see `Run.weights`. model: see `load_model`. Raise CnnlabError.
    """
    return trained_model(run, weights or run.weights(), model)


@torch.inference_mode()
def probabilities(
    models: Sequence[Run],
    images: Pixels,
    *,
    views: str = "none",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 0,
    report: Report = no_report,
) -> Tensor:
    """Return the mean probabilities (N, K) float32, on the CPU, of `models` for `images` (N, C, H, W) uint8.

    Logits are averaged over the views of an image (half the weight on the centred ones, half on the shifted ones), then
    uncalibrated probabilities over the models. Everything is computed in float32 and eval mode, so the result does not
    depend on the batches. views: test-time augmentation, a key of VIEWS. batch_size: Default (0): see `batch_size_of`.
    Raise CnnlabError.
    """
    check_views(views)
    check_threads(threads)
    here = pick_device(device)
    total: Tensor | None = None
    with reproducible(0, threads or available_cores()), exact_float32():
        for number, run in enumerate(models):
            preprocessing = preprocessing_of(run)
            if tuple(images.shape[1:]) != (preprocessing.channels, *[preprocessing.native_size] * 2):
                shape = f"{preprocessing.channels} x {preprocessing.native_size} x {preprocessing.native_size}"
                raise CnnlabError(
                    f"{run.path} was trained on images of {shape}, and these are "
                    f"{' x '.join(map(str, images.shape[1:]))}; prepare them as for that run"
                )
            layout = layout_of(run)
            model = load_network(run).to(here).to(memory_format=layout)
            parts = []
            for batch in images.split(batch_size or batch_size_of(preprocessing)):
                x = in_layout(preprocessing(batch.to(here)), layout)
                parts.append(logits(model, x, views).softmax(1).cpu())
                done = sum(map(len, parts)) + number * len(images)
                report("predicting", done, len(models) * len(images))
            p = torch.cat(parts)
            total = p if total is None else total + p
    assert total is not None
    return total / len(models)


def check_views(views: str) -> None:
    """Raise CnnlabError unless `views` is a key of VIEWS."""
    if views not in VIEWS:
        raise unknown("test-time augmentation", views, VIEWS)


def preprocessing_of(run: Run) -> Preprocessing:
    """Return the preprocessing from decoded images to the network's input. Raise CnnlabError if it is damaged."""
    try:
        return Preprocessing.from_dict(run.info["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise CnnlabError(f"{run.path / 'run.json'} is damaged: its preprocessing entry: {reason(error)}") from error


def weights_file(run: Run, which: str | None) -> Path:
    """Return the file of the `best` or `last` weights. Default: see `Run.weights`. Raise CnnlabError."""
    if which is not None and which not in runs.WEIGHTS:
        raise unknown("weights", which, runs.WEIGHTS)
    return run.weights(which)


def batch_size_of(preprocessing: Preprocessing) -> int:
    """Return the batch size for inference: at most 1000, and smaller for large images."""
    side = max(preprocessing.image_size, preprocessing.native_size)
    return max(1, min(1000, _PIXELS // side**2))
