"""The classical baseline: hand-crafted features and a support vector machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_dir

from cnnlab.chapter.classical import features as _features
from cnnlab.chapter.classical.classifiers import Floats, KernelMap, Labels, spread, svm
from cnnlab.data import ImageSet, SourceOptions, data_folder, load_images, stratified_split, stratified_subset
from cnnlab.data.imageset import Report, no_report
from cnnlab.device.hardware import available_cores, check_threads
from cnnlab.io.errors import CnnlabError, expand, unknown

__all__ = ["METHODS", "ClassicalResult", "classical"]

METHODS: dict[str, tuple[str, str]] = {  # name -> (features, classifier)
    "hog-linear": ("hog", "linear"),
    "hog-kernel": ("hog", "kernel"),
    "sift-linear": ("sift", "linear"),
    "sift-kernel": ("sift", "kernel"),
}
VAL_FRACTION = 0.1
LANDMARKS = 6000
_GRID_C = {"linear": (0.1, 1.0, 10.0), "kernel": (3.0, 30.0, 300.0)}
_GRID_GAMMA = (1.0, 2.0, 4.0)  # relative to 1 / mean squared distance between two images' features
_GRID_IMAGES, _GRID_LANDMARKS = 15_000, 1500  # upper limits while settings are compared


@dataclass(frozen=True, kw_only=True)
class ClassicalResult:
    """The result of one method.

    counts: images per split. settings: C and, with a kernel, gamma (relative to 1 / mean squared distance), chosen on
    the validation images; and the kernel's number of landmarks. val_acc: of a fit without the validation images.
    train_acc, test_acc: of the fit to all training images; test_acc is None without a test set. confusion: (K, K), rows
    are true classes, on the split `confusion_of` (test or validation). seconds: reading, features, choosing, fit,
    predict and all; features shared with an earlier method of the same call are counted there. images_per_second: all
    images / all seconds. notes: warnings, such as skipped files.
    """

    method: str
    data: str
    classes: list[str]
    counts: dict[str, int]
    settings: dict[str, float]
    val_acc: float
    val_source: str
    train_acc: float
    test_acc: float | None
    confusion: list[list[int]]
    confusion_of: str
    seconds: dict[str, float]
    images_per_second: float
    dimension: int
    cached: bool
    seed: int
    threads: int
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return two lines, and one per note."""
        test = "no test set" if self.test_acc is None else f"test {self.test_acc:.4f} ({self.counts['test']:,} images)"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        chosen = ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        lines = [
            f"{self.method} on {self.data}: {test}, validation {self.val_acc:.4f} ({self.val_source}), "
            f"train {self.train_acc:.4f}",
            f"  {self.dimension:,} features{' from the cache' if self.cached else ''}; {chosen}; "
            f"{self.seconds['all']:.1f} s in all on {threads}, {self.images_per_second:,.0f} images/s",
        ]
        return "\n".join([*lines, *(f"  note: {text}" for text in self.notes)])


def classical(
    data: str = "digits",
    methods: Sequence[str] | None = None,
    *,
    data_dir: str | Path | None = None,
    limit: int = 0,
    seed: int = 0,
    threads: int | None = None,
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
    report: Report = no_report,
) -> list[ClassicalResult]:
    """Train and evaluate `methods`, names in METHODS, on the source `data`. Default: all.

    C and gamma are chosen on validation images: the source's own, or a tenth of the training images, drawn with `seed`,
    on which the final model is trained too. Each method is evaluated on the test set only after that, once.

    limit: largest number of images per split, stratified; 0: all. threads: Default: all cores. cache_dir: folder for
    features. Default: one in the user's cache. The same seed on the same machine and versions gives the same
    predictions. Raise CnnlabError for invalid arguments or images, and for SIFT without OpenCV.
    """
    from threadpoolctl import threadpool_limits

    names = list(METHODS) if methods is None else list(dict.fromkeys(methods))
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    if not names:
        raise CnnlabError(f"methods is empty; choose from {', '.join(METHODS)}")
    if limit < 0:
        raise CnnlabError(f"limit={limit}: must be 0 (all images) or more")
    if not 0 <= seed < 2**32:
        raise CnnlabError(f"seed={seed}: choose an integer from 0 to {2**32 - 1}")
    check_threads(threads)
    if any(METHODS[name][0] == "sift" for name in names):
        _features.opencv()  # raises now if it is missing, not after minutes of reading
    options = SourceOptions(data_dir=data_folder(data_dir), skip_bad=skip_bad, report=report)
    folder = expand(cache_dir) if cache_dir is not None else Path(user_cache_dir("cnnlab")) / "features"
    work = _Work(data, options, limit, seed, threads or available_cores(), folder, report)
    with threadpool_limits(work.threads):
        return [work.measure(name) for name in names]


class _Work:
    """The state that the methods of one call share: the images, and the features computed so far."""

    def __init__(
        self, data: str, options: SourceOptions, limit: int, seed: int, threads: int, folder: Path, report: Report
    ) -> None:
        self.data, self.options, self.limit, self.seed = data, options, limit, seed
        self.threads, self.folder, self.report = threads, folder, report
        self.notes: list[str] = []
        self.words: Floats | None = None
        self.computed: dict[tuple[str, str], tuple[Floats, bool]] = {}
        self.sets: dict[str, ImageSet | None] = {}
        start = time.perf_counter()
        whole = self.images("train")
        assert whole is not None
        self.whole, own = whole, self.images("validation")
        self.reading = time.perf_counter() - start
        counts = np.bincount(whole.labels.numpy(), minlength=len(whole.classes))
        if counts.min() < (2 if own is None else 1):
            few = whole.classes[int(counts.argmin())]
            remedy = f"raise limit={limit}" if limit else "add images"
            raise CnnlabError(
                f"{data}: class {few} has {counts.min()} training image{'s' * int(counts.min() != 1)}; one is "
                f"needed for training{' and one for validation' if own is None else ''}; {remedy}"
            )
        self.fit_index: Labels = np.arange(len(whole))
        self.held_index: Labels | None = None
        if own is None:
            fit, held = stratified_split(whole.labels, VAL_FRACTION, seed)
            self.fit_index, self.held_index = fit.numpy(), held.numpy()

    def images(self, split: str) -> ImageSet | None:
        """Return one split of the source; the first call reads it."""
        if split not in self.sets:
            images = load_images(self.data, split, self.options)
            if images is not None:
                self.options = self.options.like(images)  # the training images are read first
                self.notes += [f"skipped: {text}" for text in images.skipped]
                if 0 < self.limit < len(images):
                    images = images.take(stratified_subset(images.labels, self.limit, self.seed))
            self.sets[split] = images
        return self.sets[split]

    def features(self, kind: str, split: str) -> tuple[Floats, bool]:
        """Return the features (N, D) of a split, computed once, and whether they came from the cache."""
        if (kind, split) in self.computed:
            return self.computed[kind, split]
        images = self.images(split)
        assert images is not None
        key: dict[str, Any] = {"features": kind, "images": images.fingerprint()}
        compute: Callable[..., Floats] = _features.hog
        if kind == "sift":
            if self.words is None:
                # Without the validation images: settings are chosen on them.
                base = self.whole.take(torch.from_numpy(self.fit_index))
                self.words, _ = _features.cached(
                    self.folder, {"features": "sift", "words_of": base.fingerprint(), "seed": self.seed},
                    self.notes.append,
                    lambda: _features.vocabulary(base, self.seed, self.threads, self.report),
                )  # fmt: skip
            key["words"] = _features.hash_of(self.words)
            compute = partial(_features.bags, words=self.words)
        task = f"{kind.upper()} of {split} images"
        features, cached = _features.cached(
            self.folder, key, self.notes.append,
            lambda: _features.in_chunks(compute, images, self.threads, self.report, task),
        )  # fmt: skip
        self.computed[kind, split] = features, cached
        return features, cached

    def measure(self, method: str) -> ClassicalResult:
        """Choose settings on the validation images, fit to all training images, then evaluate on the test set."""
        kind, start = METHODS[method][0], time.perf_counter()
        seconds = {"reading": self.reading, **dict.fromkeys(("features", "choosing", "fit", "predict"), 0.0)}
        with _timed(seconds, "features"):
            x, cached = self.features(kind, "train")
            # One factor for all features, from the training images, so that C means the same for every source.
            scale = np.float32(1 / np.sqrt((x[self.fit_index] ** 2).sum(1).mean() or 1.0))
            x, y = x * scale, self.whole.labels.numpy()
            fit_x, fit_y = x[self.fit_index], y[self.fit_index]
            if self.held_index is None:
                own = self.images("validation")
                assert own is not None
                val_x, val_y = self.features(kind, "validation")[0] * scale, own.labels.numpy()
            else:
                val_x, val_y = x[self.held_index], y[self.held_index]
        with _timed(seconds, "choosing"):
            chosen = self._choose(method, fit_x, fit_y, val_x, val_y)
            predict, settings = self._fit(method, fit_x, fit_y, chosen, "fitting without validation images")
            predicted, true = predict(val_x), val_y
        val_acc = float((predicted == true).mean())
        with _timed(seconds, "fit"):
            if self.held_index is not None:
                predict, settings = self._fit(method, x, y, chosen, "fitting all training images")
        with _timed(seconds, "predict"):
            train_acc = float((predict(x) == y).mean())
        test, test_acc = self.images("test"), None
        if test is not None:
            with _timed(seconds, "features"):
                test_x, true = self.features(kind, "test")[0] * scale, test.labels.numpy()
            with _timed(seconds, "predict"):
                predicted = predict(test_x)
            test_acc = float((predicted == true).mean())
        classes = len(self.whole.classes)
        confusion = np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
        seconds["all"] = time.perf_counter() - start + self.reading
        counts = {"train": len(x), "validation": len(val_y), "test": len(test) if test is not None else 0}
        own_part = self.held_index is None
        few = [f"settings were chosen on only {len(val_y)} images; add images"] if len(val_y) < 50 else []
        return ClassicalResult(
            method=method,
            data=self.data,
            classes=self.whole.classes,
            counts=counts,
            settings=settings,
            val_acc=val_acc,
            val_source=f"{len(val_y):,} images, " + ("the source's own" if own_part else "held out while choosing"),
            train_acc=train_acc,
            test_acc=test_acc,
            confusion=confusion.tolist(),
            confusion_of="validation" if test is None else "test",
            seconds={name: round(value, 3) for name, value in seconds.items()},
            # Validation images that are held out of the training images are not counted twice.
            images_per_second=(sum(counts.values()) - (0 if own_part else len(val_y))) / seconds["all"],
            dimension=x.shape[1],
            cached=cached,
            seed=self.seed,
            threads=self.threads,
            versions={name: version(name) for name in ("cnnlab", "numpy", "scikit-learn")},
            notes=(*self.notes, *few),
        )

    def _choose(self, method: str, x: Floats, y: Labels, val_x: Floats, val_y: Labels) -> dict[str, float]:
        """Return the best settings on the validation images. Ties go to the first, which is the smoothest."""
        kernel = METHODS[method][1] == "kernel"
        if len(x) > _GRID_IMAGES:
            some = stratified_subset(torch.from_numpy(y), _GRID_IMAGES, self.seed).numpy()
            x, y = x[some], y[some]
        grid = list(product(_GRID_GAMMA if kernel else (0.0,), _GRID_C[METHODS[method][1]]))
        best, best_acc, unit = {}, -1.0, spread(x, self.seed)
        mapped, val_mapped, last = x, val_x, 0.0
        for i, (gamma, c) in enumerate(grid):
            if gamma != last:
                kernel_map = KernelMap(x, _GRID_LANDMARKS, gamma / unit, self.seed)
                mapped, val_mapped, last = kernel_map(x), kernel_map(val_x), gamma
            acc = float((svm(mapped, y, c, self.seed, self.threads).predict(val_mapped) == val_y).mean())
            if acc > best_acc:
                best, best_acc = {"C": c, **({"gamma": gamma} if kernel else {})}, acc
            self.report(f"{method}: choosing settings", i + 1, len(grid))
        return best

    def _fit(
        self, method: str, x: Floats, y: Labels, settings: dict[str, float], task: str
    ) -> tuple[Callable[[Floats], Labels], dict[str, float]]:
        """Return a function features -> labels, and the settings with the number of landmarks, if any."""
        self.report(f"{method}: {task}", 0, 0)
        if METHODS[method][1] == "linear":
            return svm(x, y, settings["C"], self.seed, self.threads).predict, settings
        kernel_map = KernelMap(x, LANDMARKS, settings["gamma"] / spread(x, self.seed), self.seed)
        model = svm(kernel_map(x), y, settings["C"], self.seed, self.threads)

        def predict(features: Floats) -> Labels:
            # In parts: the mapped training set is a gigabyte.
            parts = [model.predict(kernel_map(features[i : i + 4096])) for i in range(0, len(features), 4096)]
            return np.concatenate(parts)

        return predict, {**settings, "landmarks": kernel_map.landmarks}


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to seconds[part]."""
    start = time.perf_counter()
    yield
    seconds[part] += time.perf_counter() - start
