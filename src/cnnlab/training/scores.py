"""Accuracy, precision, recall and F1 from counts per class, with 95% intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cnnlab.training.intervals import Interval, balanced_interval, f1_interval, macro_f1_interval, wilson


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class. None where a figure is undefined: no image of the class, or none predicted as it."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None
    f1_interval: Interval | None = None


@dataclass(frozen=True)
class Scores:
    """Counts of each of K classes: images (`support`), predictions as the class (`predicted`), and correct ones.

    Raise ValueError for counts that no evaluation gives.
    """

    correct: Sequence[int]
    support: Sequence[int]
    predicted: Sequence[int]

    def __post_init__(self) -> None:
        counts = list(zip(self.correct, self.support, self.predicted, strict=True))
        if any(not 0 <= c <= min(s, p) for c, s, p in counts) or not 0 < sum(self.support) == sum(self.predicted):
            raise ValueError("the counts of the classes do not fit together")

    @property
    def accuracy(self) -> float:
        """The fraction of images predicted correctly (micro average)."""
        return sum(self.correct) / sum(self.support)

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images."""
        recalls = [c / s for c, s in zip(self.correct, self.support, strict=True) if s]
        return sum(recalls) / len(recalls)

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have images or predictions."""
        counts = zip(self.correct, self.support, self.predicted, strict=True)
        scores = [2 * c / (s + p) for c, s, p in counts if s + p]
        return sum(scores) / len(scores)

    @property
    def intervals(self) -> dict[str, Interval]:
        """The 95% intervals of accuracy, balanced accuracy and macro F1."""
        counts = list(zip(self.correct, self.support, self.predicted, strict=True))
        with_images = [(c, s) for c, s, _ in counts if s]
        named = [(c, s, p) for c, s, p in counts if s + p]
        return {
            "accuracy": wilson(sum(self.correct), sum(self.support)),
            "balanced_accuracy": balanced_interval(*map(list, zip(*with_images, strict=True))),
            "macro_f1": macro_f1_interval(*map(list, zip(*named, strict=True))),
        }

    @property
    def per_class(self) -> list[ClassFigures]:
        """Precision, recall, F1 and number of images of each of the K classes, with intervals."""
        return [
            ClassFigures(
                c / p if p else None,
                c / s if s else None,
                2 * c / (s + p) if s + p else None,
                s,
                wilson(c, p) if p else None,
                wilson(c, s) if s else None,
                f1_interval(c, s, p) if s + p else None,
            )
            for c, s, p in zip(self.correct, self.support, self.predicted, strict=True)
        ]

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return all figures as plain values for JSON. classes: K names."""
        per_class = zip(classes, self.per_class, strict=True)
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "classes": [
                {"class": name, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(figures).items()}}
                for name, figures in per_class
            ],
        }
