"""Classify an image that is dropped on the page: probabilities, activation map, the nearest training images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cnnlab.app.listing import Runs, signature
from cnnlab.data.imageset import viewable
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores
from cnnlab.device.precision import exact_float32
from cnnlab.inference import Classifier, load_model, run_splits
from cnnlab.inspect.activation import class_activation
from cnnlab.inspect.inspection import gallery_of
from cnnlab.inspect.neighbours import Gallery, features
from cnnlab.inspect.pictures import overlay
from cnnlab.inspect.report.thumbnails import data_uri
from cnnlab.io.decode import BadImage, bombs_refused, decode
from cnnlab.io.errors import CnnlabError
from cnnlab.training.runs import Run

_KEPT = 2  # networks in memory, each with the features of its training images
_TOP, _NEAREST = 5, 6


class LoadedRun:
    """A run's classifier. Its training images and their features are loaded when first needed."""

    def __init__(self, run: Run, data_dir: Path | None, threads: int | None) -> None:
        self.run, self.data_dir, self.threads = run, data_dir, threads
        self.classifier: Classifier = load_model(run)
        self._gallery: Gallery | None = None

    def classify(self, image: np.ndarray) -> dict[str, Any]:
        """Return what the page shows for an image (C, H, W) uint8 of the native size."""
        found = self.classifier.predict_batch(image[None], threads=self.threads)
        best = int(found.logits.argmax())
        return {
            "top": found.top(_TOP)[0],
            "none_of_these": found.none_of_these[0],
            "threshold": found.threshold,
            "picture": data_uri(viewable(torch.from_numpy(image))),
            "map": self._map(image, best),
        }

    def nearest(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Return the training images nearest to an image. Raise CnnlabError if the training images are gone."""
        gallery = self.gallery()
        found = features(self.classifier.network, self._preprocessed(image[None]))
        return [
            {**one.to_dict(), "picture": data_uri(viewable(gallery.images.images[one.index]))}
            for one in gallery.nearest(found, _NEAREST)[0]
        ]

    def gallery(self) -> Gallery:
        """Return the run's training images with their features. The first call computes the features."""
        if self._gallery is None:
            images, _ = run_splits(self.run, data_dir=self.data_dir)
            self._gallery = gallery_of(self.classifier, images)
        return self._gallery

    def _preprocessed(self, batch: np.ndarray) -> torch.Tensor:
        return self.classifier.preprocessing(torch.from_numpy(np.ascontiguousarray(batch)))

    def _map(self, image: np.ndarray, k: int) -> str | None:
        """Return the image with the activation map of class `k` over it; None if the network has no such map."""
        x = self._preprocessed(image[None])
        try:
            cam = class_activation(self.classifier.network, x, torch.tensor([k]))[0]
        except CnnlabError:
            return None
        picture = overlay(F.interpolate(torch.from_numpy(image)[None].float() / 255, cam.shape)[0], cam)
        return data_uri((picture * 255).round().astype(np.uint8))


class ImageTester:
    """The runs on which images are tried, one request at a time: PyTorch's settings are global to the process."""

    def __init__(self, runs: Runs, data_dir: Path | None, threads: int | None = None) -> None:
        self.runs, self.data_dir, self.threads = runs, data_dir, threads
        self.lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], LoadedRun] = OrderedDict()

    def classify(self, name: str, content: bytes, *, nearest: bool) -> dict[str, Any]:
        """Classify the image file `content` with a run, or find its `nearest` training images. Raise CnnlabError."""
        with self.lock:
            loaded = self._loaded(name)
            image = _decoded(loaded, content)
            with reproducible(0, self.threads or available_cores()), exact_float32():
                return {"nearest": loaded.nearest(image)} if nearest else loaded.classify(image)

    def _loaded(self, name: str) -> LoadedRun:
        run = self.runs.open(name)
        key = (name, signature(run.path))
        if key not in self._kept:
            self._kept[key] = LoadedRun(run, self.data_dir, self.threads)
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


def _decoded(loaded: LoadedRun, content: bytes) -> np.ndarray:
    with bombs_refused():
        try:
            return decode("the image", loaded.classifier.preprocessing.decoding, content).copy()  # writable
        except BadImage as error:
            raise CnnlabError(str(error)) from error
