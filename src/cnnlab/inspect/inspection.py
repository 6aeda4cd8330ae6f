"""Look inside a finished run: its layers in numbers, and what it sees in some images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.imageset import ImageSet, stratified_subset
from cnnlab.data.loader import Preprocessing
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores, check_threads, pick_device
from cnnlab.device.precision import exact_float32
from cnnlab.inference.classifier import Classifier, load_model, weights_file
from cnnlab.inference.run_images import run_splits
from cnnlab.inspect.activation import class_activation
from cnnlab.inspect.chosen import Chosen, of_all_classes, read
from cnnlab.inspect.layers import SpatialLayer, activation_layer, feature_maps, first_convolution, stages
from cnnlab.inspect.neighbours import Gallery, Neighbour, features
from cnnlab.inspect.occlusion import occlusion
from cnnlab.inspect.statistics import LayerStatistics, layer_statistics
from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.runs import Run

STATISTICS_IMAGES = 256
SEARCHED = 5000  # training images among which neighbours are searched
SHOWN = 12  # images in a picture
_VALUES = 1 << 23  # pixel values in a batch


@dataclass(frozen=True)
class ImageInspection:
    """What the network sees in one image.

    id: its file; label: its true class, "" if unknown; top: the most probable classes with their probabilities;
    none_of_these: whether the first is less probable than the run's threshold; explained: the class whose evidence is
    shown, the most probable one unless another was named; neighbours: the nearest training images.
    """

    id: str
    label: str
    top: list[tuple[str, float]]
    none_of_these: bool
    explained: str
    neighbours: list[Neighbour] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "image": self.id,
            "label": self.label or None,
            "top": [{"label": label, "probability": p} for label, p in self.top],
            "none_of_these": self.none_of_these,
            "explained": self.explained,
            "neighbours": [n.to_dict() for n in self.neighbours],
        }


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect_run`. `str` gives the text that the command prints; a notebook also shows the pictures.

    split: origin of the images, validation or train; "" for the caller's images. statistics: of each layer, on
    `statistics_images` images of `statistics_split`. prototypes: for each class, the training image nearest to the mean
    of its features. searched, training_images: how many training images were searched for neighbours, and how many
    there are. missing: reasons why parts are missing. skipped: errors of the skipped images.
    """

    run: Run
    weights: Path
    classifier: Classifier
    split: str
    statistics: list[LayerStatistics]
    statistics_images: int
    statistics_split: str
    images: list[ImageInspection]
    prototypes: list[Neighbour | None]
    searched: int
    training_images: int
    missing: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    layer: str | None = None
    pixels: Tensor = field(default_factory=lambda: torch.zeros(0, 1, 1, 1), repr=False)  # (N, C, H, W) uint8
    gallery: Gallery | None = field(default=None, repr=False)
    threads: int | None = None

    @cached_property
    def shown(self) -> Tensor:
        """The first images as the network gets them, but scaled to 0..1: (n, C, S, S) float32, at most 12."""
        return self.classifier.preprocessing.resized(self.pixels[:SHOWN])

    @cached_property
    def activation_layer(self) -> SpatialLayer:
        """The layer of the class-activation maps. Raise CnnlabError for a network without one."""
        with self._computing():
            return activation_layer(self.classifier.network, self._x[:1], self.layer)

    @property
    def without_activation(self) -> str:
        """The reason why the network has no class-activation maps; "" if it has them."""
        try:
            _ = self.activation_layer
        except CnnlabError as error:
            return str(error)
        return ""

    @property
    def left_out(self) -> list[str]:
        """The pictures that the network does not allow, with the reasons."""
        filters = "" if first_convolution(self.classifier.network) else "the network has no convolution"
        activation = self.without_activation if self.images else ""
        reasons = {"filters": filters, "class-activation": activation}
        return [f"{name}: {why}" for name, why in reasons.items() if why]

    @cached_property
    def activation(self) -> Tensor:
        """The class-activation maps of the shown images, (n, S, S) float32 in 0..1. Raise CnnlabError without any."""
        layer = self.activation_layer.path
        return self._by_parts(lambda x, k: class_activation(self.classifier.network, x, k, layer))

    @cached_property
    def occlusion(self) -> Tensor:
        """How much hiding each pixel of the shown images lowers the class's probability, (n, S, S) float32."""
        temperature = self.classifier.temperature
        return self._by_parts(lambda x, k: occlusion(self.classifier.network, x, k, temperature=temperature))

    def feature_maps(self, image: int = 0) -> list[tuple[SpatialLayer, Tensor]]:
        """Return layers from first to last, each with its feature maps (C, H, W) of one of the shown images."""
        with self._computing():
            x = self._x[image : image + 1]
            layers = stages(self.classifier.network, x)
            maps = feature_maps(self.classifier.network, x, layers)
        return [(layer, m[0].cpu()) for layer, m in zip(layers, maps, strict=True)]

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The pictures by name, as matplotlib figures; those that the network or the images do not allow are left out.

        filters, feature-maps, class-activation, occlusion, neighbours, prototypes.
        """
        from cnnlab.inspect.pictures import all_figures

        return all_figures(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write the pictures into a folder as PNG; return the files. Raise CnnlabError if one of them exists."""
        from cnnlab.inspect.pictures import save_figures

        return save_figures(self.figures, Path(folder))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run": str(self.run.path),
            "weights": self.weights.name,
            "split": self.split or None,
            "statistics": {
                "split": self.statistics_split or None,
                "images": self.statistics_images,
                "layers": [layer.to_dict() for layer in self.statistics],
            },
            "images": [image.to_dict() for image in self.images],
            "searched": self.searched,
            "training_images": self.training_images,
            "prototypes": [p.to_dict() if p else None for p in self.prototypes],
            "missing": list(self.missing),
            "skipped": list(self.skipped),
        }

    def __str__(self) -> str:
        from cnnlab.inspect.text import inspection_text

        return inspection_text(self)

    def _repr_html_(self) -> str:
        """Show text and pictures in a notebook."""
        from cnnlab.inspect.pictures import as_html

        return as_html(self)

    @property
    def _x(self) -> Tensor:
        """The shown images, preprocessed, on the network's device."""
        device = next((p.device for p in self.classifier.parameters()), torch.device("cpu"))
        return self.classifier.preprocessing(self.pixels[:SHOWN].to(device))

    def _by_parts(self, compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the maps (n, S, S) of the shown images, computed a few at a time."""
        names = self.classifier.classes
        classes = torch.tensor([names.index(image.explained) for image in self.images[:SHOWN]], dtype=torch.int64)
        with self._computing():
            x = self._x
            step = _step(self.classifier.preprocessing)
            parts = zip(x.split(step), classes.to(x.device).split(step), strict=True)
            return torch.cat([compute(some, k).cpu() for some, k in parts])

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with reproducible(0, self.threads or available_cores()), exact_float32():
            yield


def inspect_run(
    name: Run | str | Path,
    images: Any = None,
    *,
    model: Network | None = None,
    data: Any = None,
    weights: str | None = None,
    class_name: str | None = None,
    layer: str | None = None,
    count: int = 6,
    neighbours: int = 5,
    search: int = SEARCHED,
    invert: bool = False,
    skip_bad: bool = False,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    data_dir: str | Path | None = None,
    threads: int | None = None,
) -> Inspection:
    """Look inside a run's network: statistics of its layers, and what it sees in images.

    images: as `Classifier.predict` takes them. Default: the first `count` validation images, of different classes; if
    the run has none, training images. model, data: your own network and images, if the run was trained on them; data
    may also say where its images are now. weights: best or last. Default: see `evaluate_run`. class_name: the class
    whose evidence is shown. Default: the most probable one of each image. layer: path of the layer for class-activation
    maps. Default: see `activation_layer`. neighbours: number of nearest training images per image. search: number of
    training images to search for them, the same fraction of each class; 0 for all. invert: swap black and white of
    `images` first. skip_bad: skip damaged images. If the run's images are gone, what needs them is left out. Raise
    CnnlabError.
    """
    for key, value in (("count", count), ("neighbours", neighbours), ("search", search)):
        if value < 0:
            raise CnnlabError(f"{key}={value}: must be at least 0")
    check_threads(threads)
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    file = weights_file(run, weights)
    classifier = load_model(run, model=model, weights=weights).to(pick_device(device))
    if class_name is not None and class_name not in run.classes:
        raise unknown("class", class_name, run.classes)
    train_set, held_out, missing = _sets(run, data, data_dir, skip_bad)
    source, split = (train_set, "train") if held_out is None else (held_out, "validation")
    with reproducible(0, threads or available_cores()), exact_float32():
        if images is None:
            chosen = of_all_classes(source, count, classifier.preprocessing)
        else:
            chosen = read(images, classifier.preprocessing, invert, skip_bad)
        if layer is not None and chosen.ids:
            activation_layer(classifier.network, _preprocessed(classifier, chosen.pixels[:1]), layer)
        statistics, measured = _statistics(classifier, source)
        gallery: Gallery | None = None
        near: list[list[Neighbour]] = [[] for _ in chosen.ids]
        if train_set is not None:
            try:
                gallery = gallery_of(classifier, train_set, search)
                near = _nearest(classifier, gallery, chosen, neighbours)
            except CnnlabError as error:
                missing.append(f"nearest training images: {error}")
        inspected = _inspected(classifier, chosen, near, class_name, threads)
    return Inspection(
        run=run,
        weights=file,
        classifier=classifier,
        split="" if images is not None or not chosen.ids else split,
        statistics=statistics,
        statistics_images=measured,
        statistics_split=split if measured else "",
        images=inspected,
        prototypes=gallery.prototypes() if gallery else [],
        searched=len(gallery.images) if gallery else 0,
        training_images=len(train_set) if train_set is not None else 0,
        missing=tuple(missing),
        skipped=tuple(chosen.skipped),
        layer=layer,
        pixels=chosen.pixels,
        gallery=gallery,
        threads=threads,
    )


def _sets(
    run: Run, data: Any, data_dir: str | Path | None, skip_bad: bool
) -> tuple[ImageSet | None, ImageSet | None, list[str]]:
    """Return training and validation images, and why they are missing. With `data`, raise CnnlabError if they are."""
    try:
        return *run_splits(run, data, data_dir=data_dir, skip_bad=skip_bad), []
    except CnnlabError as error:
        if data is not None:
            raise
        return None, None, [f"statistics and nearest training images: {error}"]


def _step(p: Preprocessing) -> int:
    """Return the batch size."""
    return max(1, min(256, _VALUES // (p.channels * max(p.image_size, p.native_size) ** 2)))


def _preprocessed(classifier: Classifier, images: Tensor) -> Tensor:
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    return classifier.preprocessing(images.to(device))


def _batches(classifier: Classifier, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    step = _step(classifier.preprocessing)
    for x, y in zip(images.images.split(step), images.labels.split(step), strict=True):
        x = _preprocessed(classifier, x)
        yield x, y.to(x.device)


def _statistics(classifier: Classifier, images: ImageSet | None) -> tuple[list[LayerStatistics], int]:
    if images is None:
        return [], 0
    some = images.take(stratified_subset(images.labels, STATISTICS_IMAGES, 0))
    return layer_statistics(classifier.network, _batches(classifier, some)), len(some)


def gallery_of(classifier: Classifier, images: ImageSet, search: int = SEARCHED) -> Gallery:
    """Return images with their features: `search` of them, the same fraction of each class; 0 for all."""
    if search and search < len(images):
        images = images.take(stratified_subset(images.labels, search, 0))
    return Gallery.of(images, (features(classifier.network, x) for x, _ in _batches(classifier, images)))


def _nearest(classifier: Classifier, gallery: Gallery, chosen: Chosen, count: int) -> list[list[Neighbour]]:
    """Return the training images nearest to each image, without the image itself."""
    if not chosen.ids or not count:
        return [[] for _ in chosen.ids]
    parts = chosen.pixels.split(_step(classifier.preprocessing))
    found = torch.cat([features(classifier.network, _preprocessed(classifier, x)) for x in parts])
    near = gallery.nearest(found, count + 1)
    return [[n for n in row if n.id != own][:count] for own, row in zip(chosen.ids, near, strict=True)]


def _inspected(
    classifier: Classifier, chosen: Chosen, near: list[list[Neighbour]], class_name: str | None, threads: int | None
) -> list[ImageInspection]:
    step = _step(classifier.preprocessing)
    parts = [classifier.predict_batch(x.numpy(), threads=threads) for x in chosen.pixels.split(step) if len(x)]
    top = [row for part in parts for row in part.top(3)]
    none = [value for part in parts for value in part.none_of_these]
    rows = zip(chosen.ids, chosen.labels, top, none, near, strict=True)
    return [
        ImageInspection(id_, label, best, rejected, class_name or best[0][0], close)
        for id_, label, best, rejected, close in rows
    ]
