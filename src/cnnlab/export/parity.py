"""Compare an exported network with its run, image by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab.data.imageset import ImageSet
from cnnlab.export.description import utf8
from cnnlab.inference import Classifier, Predictions
from cnnlab.inference.classifier import batch_size_of
from cnnlab.inference.split_table import image_root
from cnnlab.io.decode import bombs_refused, decode
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.text import plural

TIE = 1e-5
"""Two classes whose probabilities differ by at most this are a tie: the order of summation decides which is first."""
TOLERANCE = 1e-3
"""The most that a probability may change in float32. Sums in another order change it by 1e-6 or so."""
_FILES = 32  # image files that are compared at their own size
_BATCH = 256

Answers = Callable[[np.ndarray], tuple[np.ndarray, list[str]]]
"""Images (B, C, H, W) uint8 -> probabilities (B, K) and the names of the classes (B), from the exported file."""


@dataclass(frozen=True)
class Parity:
    """How an exported network's answers differ from the run's on `images` images of a split.

    correct_before, correct: images that the run and the export predict correctly. changed: images that get another
    class, without ties; ties: images whose two classes are a tie, see TIE. largest: the largest difference of a
    probability. files: images that were also compared as files of their own size. first_changed: the first changed
    image with both answers. If none changed, the image that differs most, if by more than TOLERANCE.
    """

    split: str
    images: int
    correct_before: int
    correct: int
    changed: int
    ties: int
    largest: float
    files: int = 0
    first_changed: str = ""

    @property
    def loss(self) -> float:
        """The lost accuracy in percentage points; negative for a gain."""
        return 100 * (self.correct_before - self.correct) / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        text = (
            f"checked on {plural(self.images, f'{self.split} image')}: {_changed(self.changed)}, largest "
            f"difference of a probability {self.largest:.1g}"
        )
        text += f"; {plural(self.ties, 'tie')} within {TIE:g} not counted" if self.ties else ""
        return text + (f"; {plural(self.files, 'file')} also at their own size" if self.files else "")


def _changed(count: int) -> str:
    return f"the class of {plural(count, 'image')} changed" if count else "no classes changed"


def compare(classifier: Classifier, images: ImageSet, split: str, exported: Answers, threads: int | None) -> Parity:
    """Return how the answers of `exported` differ from the classifier's on all images."""
    step = min(_BATCH, batch_size_of(classifier.preprocessing))
    parts = []
    for at, batch in enumerate(images.images.split(step)):
        pixels = batch.numpy()
        names = images.ids[at * step : at * step + len(pixels)]
        labels = images.labels[at * step : at * step + len(pixels)]
        want = classifier.predict_batch(pixels, threads=threads)
        parts.append(_compared(want, *_answers(exported, pixels), names, split, labels))
    return total(parts)


def compare_files(
    classifier: Classifier, source: str, images: ImageSet, exported: Answers, threads: int | None
) -> Parity | None:
    """Compare some of the image files of a source, decoded at their own size: the export resizes them itself.

    Return None if the source has no image files.
    """
    root = image_root(source)
    if root is None:
        return None
    files = [(root / name, k) for k, name in enumerate(images.ids)]
    step = max(1, len(files) // _FILES)
    chosen = [(file, k) for file, k in files[::step][:_FILES] if file.is_file()]
    how = classifier.preprocessing.decoding
    parts = []
    with bombs_refused():
        for file, k in chosen:
            fitted, whole = (np.stack([decode(file, one)]) for one in (how, replace(how, size=0)))
            want = classifier.predict_batch(fitted, threads=threads)
            parts.append(_compared(want, *_answers(exported, whole), [str(file)], "file", images.labels[k : k + 1]))
    return total(parts) if parts else None


def with_files(parity: Parity, files: Parity) -> Parity:
    """Return the parity of a split, with that of its files merged in."""
    return replace(parity, files=files.images, largest=max(parity.largest, files.largest))


def total(parts: list[Parity]) -> Parity:
    """Return the parity of a whole split from those of its parts."""
    sums = {
        key: sum(getattr(part, key) for part in parts)
        for key in ("images", "correct_before", "correct", "changed", "ties")
    }
    largest = max(part.largest for part in parts)
    first = next((part.first_changed for part in parts if part.changed), "")
    first = first or next(part.first_changed for part in parts if part.largest == largest)
    return Parity(split=parts[0].split, largest=largest, first_changed=first, **sums)


def _answers(exported: Answers, pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    try:
        return exported(pixels)
    except Exception as error:  # runtimes have many exception classes; a network may take one batch size only
        what = f"the export is refused: it fails on images of shape {pixels.shape}: {reason(error, 200)}"
        raise CnnlabError(f"{what}; nothing was written") from error


def _compared(
    want: Predictions, p: np.ndarray, names: list[str], images: list[str], split: str, labels: Tensor
) -> Parity:
    number = {utf8(name): k for k, name in enumerate(want.classes)}
    before, now = want.logits.argmax(1), torch.tensor([number.get(utf8(name), -1) for name in names])
    q, found = want.probabilities, torch.from_numpy(np.asarray(p, np.float32))
    if found.shape != q.shape or bool((now < 0).any()):
        raise CnnlabError(
            f"the export returns probabilities of shape {tuple(found.shape)}, or of other classes; this is a bug: "
            "please report it"
        )
    differences = (found - q).abs().nan_to_num(nan=float("inf"))
    other = before != now
    gap = (q.gather(1, before[:, None]) - q.gather(1, now[:, None]))[:, 0]
    tie = other & (gap <= TIE)
    changed = (other & ~tie).nonzero().flatten().tolist()
    worst = int(differences.amax(1).argmax())
    at = changed[0] if changed else worst
    text = (
        f"{images[at]}: {want.classes[before[at]]} ({q[at, before[at]]:.6f}) by the run, {names[at]} "
        f"({found[at, now[at]]:.6f}) by the export"
    )
    return Parity(
        split, len(q), int((before == labels).sum()), int((now == labels).sum()), len(changed), int(tie.sum()),
        float(differences.max()), first_changed=text if changed or not float(differences.max()) <= TOLERANCE else "",
    )  # fmt: skip


def check_same(parity: Parity, what: str) -> None:
    """Raise CnnlabError if a class changed, or a probability by more than TOLERANCE. what: names the file."""
    if parity.changed:
        raise CnnlabError(
            f"{what} is refused: {parity.changed} of {plural(parity.images, f'{parity.split} image')} get another "
            f"class, first {parity.first_changed}; nothing was written"
        )
    if not parity.largest <= TOLERANCE:
        raise CnnlabError(
            f"{what} is refused: a probability differs by {parity.largest:.2g}, over {TOLERANCE:g}, on "
            f"{parity.first_changed}; nothing was written"
        )


def check_loss(parity: Parity, most: float, what: str) -> None:
    """Raise CnnlabError if more than `most` percentage points of accuracy were lost, or if an answer is NaN."""
    if parity.largest == float("inf"):
        raise CnnlabError(
            f"{what} is refused: it returns NaN or Inf for {parity.first_changed}; nothing was written; export without "
            "--int8 or --fp16"
        )
    if not parity.loss <= most:
        raise CnnlabError(
            f"{what} is refused: of {plural(parity.images, f'{parity.split} image')} it predicts {parity.correct} "
            f"correctly, and the run {parity.correct_before}: a loss of {parity.loss:.2f} points, {most:g} allowed; "
            "nothing was written; --max-loss allows more"
        )
