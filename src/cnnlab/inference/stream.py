"""Classify image files as a stream. All cores decode a bounded number ahead; predictions come in the files' order."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnlab.data.files import in_order
from cnnlab.data.images import image_paths
from cnnlab.device.hardware import available_cores, check_threads, package_version, pick_device
from cnnlab.inference.classifier import Classifier, batch_size_of, check_views, load_model, weights_file
from cnnlab.io.decode import BadImage, bombs_refused
from cnnlab.io.decode_process import FileDecoder
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import digest
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.runs import Run

_TASK = 16  # images per decoding task, at most: handing over one small image takes as long as decoding it
_MANY = 1000  # from this many files on, it pays to start decoding processes, which takes half a second


@dataclass(frozen=True)
class Prediction:
    """The classes of one image file with their probabilities, most probable first.

    none_of_these: whether the first is less probable than the run's threshold. error: why a damaged image has no
    classes; otherwise empty.
    """

    path: Path
    top: list[tuple[str, float]]
    none_of_these: bool = False
    error: str = ""


@dataclass(frozen=True)
class Stream:
    """Image files and their classifier. No file has been read yet.

    files: N paths, in the order of the predictions. others: a line for each folder that also holds other files.
    weights: the file of the weights.
    """

    classifier: Classifier
    weights: Path
    files: Sequence[Path]
    others: list[str]
    device: torch.device
    top: int
    skip_bad: bool
    invert: bool
    views: str
    threads: int | None
    _free: threading.Event = field(default_factory=threading.Event)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Prediction]:
        for batch in self.batches():
            yield from batch

    @property
    def columns(self) -> int:
        """The number of classes in each prediction."""
        return min(self.top, len(self.classifier.classes))

    def batches(self, start: int = 0) -> Generator[list[Prediction], None, None]:
        """Yield the predictions of the files from number `start` on, one batch at a time.

        The batches are the same wherever the stream starts, since the last bits of a prediction may depend on its
        batch. Raise CnnlabError for a damaged image, unless they are skipped.
        """
        if start >= len(self):
            return
        step = batch_size_of(self.classifier.preprocessing)
        threads = self.threads or available_cores()
        firsts = range(start // step * step, len(self), step)
        each = max(1, min(_TASK, step // (4 * threads)))
        tasks = (range(i, min(i + each, at + step, len(self))) for at in firsts for i in range(at, at + step, each))
        ahead = step // each + threads
        finalizing = sys.is_finalizing  # when the interpreter exits, modules are gone before generators
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode images")
        many = threads > 1 and len(self) - start >= _MANY
        decoder = FileDecoder(self.classifier.preprocessing.decoding, self.invert, processes=many)
        self._free.set()

        def decoded_task(numbers: range) -> list[np.ndarray | BadImage]:
            self._free.wait()
            return decoder.decode(self.files[numbers.start : numbers.stop])

        try:
            with bombs_refused():
                decoded = in_order(pool, decoded_task, tasks, ahead)
                for at in firsts:
                    files = self.files[at : at + step]
                    found: list[np.ndarray | BadImage] = []
                    while len(found) < len(files):
                        found += next(decoded)
                    yield self._answers(files, found)[max(0, start - at) :]
        finally:
            self._free.set()
            if not finalizing():
                pool.shutdown(cancel_futures=True)
                decoder.close()

    def _answers(self, files: Sequence[Path], found: Sequence[np.ndarray | BadImage]) -> list[Prediction]:
        bad = [image for image in found if isinstance(image, BadImage)]
        if bad and not self.skip_bad:
            raise CnnlabError(f"{bad[0]}; leave such files out with --skip-bad") from bad[0]
        images = [image for image in found if not isinstance(image, BadImage)]
        rows: Iterator[tuple[list[tuple[str, float]], bool]] = iter(())
        if images:
            # On a CPU, decoders and network take turns: each uses all threads, and together they would use too many.
            if self.device.type == "cpu":
                self._free.clear()
            try:
                answers = self.classifier.predict_batch(np.stack(images), self.views, self.threads)
            finally:
                self._free.set()
            rows = zip(answers.top(self.top), answers.none_of_these, strict=True)
        return [
            Prediction(file, [], error=str(image)) if isinstance(image, BadImage) else Prediction(file, *next(rows))
            for file, image in zip(files, found, strict=True)
        ]

    def none_readable(self, why: str) -> CnnlabError:
        """Return the error for a stream without a readable image. why: its first error, or where the errors are."""
        what = "the image could not" if len(self) == 1 else f"none of the {len(self):,} images could"
        return CnnlabError(f"{what} be read: {why}")

    def key(self) -> dict[str, Any]:
        """Return everything that the predictions depend on, except the content of the files, as plain values."""
        names = hashlib.blake2b(digest_size=16)
        for file in self.files:
            names.update(str(file).encode("utf-8", "surrogateescape") + b"\0")
        with self.weights.open("rb") as stored:
            weights = hashlib.file_digest(stored, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        c = self.classifier
        return {
            "weights": weights, "network": digest(repr(c.network)), "classes": digest(c.classes),
            "preprocessing": digest(c.preprocessing.to_dict()), "temperature": c.temperature,
            "threshold": c.threshold, "images": f"{len(self)} ({names.hexdigest()})", "top": self.columns,
            "tta": self.views, "invert": self.invert, "device": self.device.type, "threads": self.threads,
            **{name: package_version(name) for name in ("cnnlab", "torch", "pillow")},
        }  # fmt: skip


def predict_stream(
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
    views: str = "none",
    threads: int | None = None,
) -> Stream:
    """Return the predictions of the images in `paths` as a stream: `for prediction in predict_stream(run, folder)`.

    They come in the order of the paths, in bounded memory. The arguments are those of `predict`. With `skip_bad`, a
    damaged image yields a prediction with an `error` and no classes. Raise CnnlabError at once for a wrong run, path or
    option, and for a damaged image when its turn comes.
    """
    if top < 1:
        raise CnnlabError(f"top={top}: must be at least 1")
    check_views(views)
    check_threads(threads)
    here = pick_device(device)
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    classifier = load_model(run, model=model, weights=weights).to(here)
    files, others = image_paths([paths] if isinstance(paths, str | Path) else paths)
    if not files:
        raise CnnlabError("no images to classify; give image files or folders of images")
    return Stream(
        classifier, weights_file(run, weights), files, others, here, top, skip_bad, invert, views, threads
    )  # fmt: skip


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
    views: str = "none",
    threads: int | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Return the `top` most probable classes of each image in `paths` (files, or folders that are searched).

    Also return the notes: a line for each folder that holds other files, and for each damaged image that `skip_bad`
    left out. The predictions are in the order of the paths. The images are preprocessed as in training. model: see
    `load_model`. invert: swap black and white first, for dark writing on light paper if the network learned light on
    dark. views: test-time augmentation, a key of VIEWS. threads: CPU threads. Default: one per available core. Raise
    CnnlabError.
    """
    stream = predict_stream(
        name, paths, model=model, top=top, weights=weights, runs_dir=runs_dir, device=device, skip_bad=skip_bad,
        invert=invert, views=views, threads=threads,
    )  # fmt: skip
    found = list(stream)
    predictions, bad = [p for p in found if not p.error], [p.error for p in found if p.error]
    if not predictions:
        raise stream.none_readable(bad[0])
    return predictions, [*stream.others, *bad]
