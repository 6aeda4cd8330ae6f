"""Several runs side by side: figures, settings that differ, images on which they disagree, McNemar's test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from cnnlab.data.imageset import ImageSet
from cnnlab.inspect.report.payload import Measured
from cnnlab.inspect.report.thumbnails import Thumbnails

_MOST = 300  # images on which they disagree


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two classifiers on the same images.

    first_only, second_only: number of images that only the first, or only the second, classifies correctly. p: the
    two-sided p-value of the exact test, which takes them for heads and tails of a fair coin; 1.0 if both are 0.
    """

    first_only: int
    second_only: int

    @property
    def p(self) -> float:
        """The probability of a difference at least as large if both were equally good."""
        n, k = self.first_only + self.second_only, min(self.first_only, self.second_only)
        term = total = 1  # n choose 0
        for i in range(k):
            term = term * (n - i) // (i + 1)
            total += term
        return min(1.0, float(2 * total / 2**n))


def compare(measured: Sequence[Measured], thumbnails: Thumbnails) -> dict[str, Any]:
    """Return what a report says about several runs together."""
    settings = [m.run.recipe.to_dict() for m in measured]
    differ = [[key, [s[key] for s in settings]] for key in settings[0]
              if key != "name" and any(s[key] != settings[0][key] for s in settings)]  # fmt: skip
    why = _not_the_same(measured)
    return {
        "settings": differ,
        "not_the_same": why,
        "tests": [] if why else _tests(measured),
        "disagreements": None if why else _disagreements(measured, thumbnails),
    }


def _not_the_same(measured: Sequence[Measured]) -> str:
    """Return why the runs cannot be compared image by image: `missing`, `split` or `images`; "" if they can."""
    evaluations = [m.evaluation for m in measured if m.evaluation is not None]
    if len(evaluations) < len(measured):
        return "missing"
    if len({e.split for e in evaluations}) > 1:
        return "split"
    images = [e.images for e in evaluations if e.images is not None]
    return "" if len({_key(i) for i in images}) == 1 else "images"


def _key(images: ImageSet) -> tuple[Any, ...]:
    """Return what identifies the images: names, labels and classes. Runs may read them at different sizes."""
    return tuple(images.ids), tuple(images.labels.tolist()), tuple(images.classes)


def _tests(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    correct = [_predicted(m).eq(_images(m).labels) for m in measured]
    tests = []
    for i, j in combinations(range(len(measured)), 2):
        test = McNemar(int((correct[i] & ~correct[j]).sum()), int((~correct[i] & correct[j]).sum()))
        both, neither = int((correct[i] & correct[j]).sum()), int((~correct[i] & ~correct[j]).sum())
        tests.append({"runs": [i, j], "first_only": test.first_only, "second_only": test.second_only, "both": both,
                      "neither": neither, "p": test.p})  # fmt: skip
    return tests


def _disagreements(measured: Sequence[Measured], thumbnails: Thumbnails) -> dict[str, Any]:
    """Return the images on which the runs disagree, first those that at least one run classifies correctly."""
    images = _images(measured[0])
    predicted = torch.stack([_predicted(m) for m in measured])  # (R, N)
    confidence = torch.stack([m.probabilities.amax(1) for m in measured])
    differ = (predicted != predicted[0]).any(0)
    solved = (predicted == images.labels).any(0)
    order = (differ.int() * (1 + solved.int())).argsort(descending=True, stable=True)[: int(differ.sum())]
    chosen = order[:_MOST].tolist()
    return {
        "all": int(differ.sum()),
        "solved": int((differ & solved).sum()),
        "id": [images.ids[i] for i in chosen],
        "label": images.labels[chosen].tolist(),
        "predicted": predicted[:, chosen].T.tolist(),
        "p": confidence[:, chosen].T.tolist(),
        "picture": [thumbnails.add(images.images[i]) for i in chosen],
    }


def _images(measured: Measured) -> ImageSet:
    assert measured.evaluation is not None
    assert measured.evaluation.images is not None
    return measured.evaluation.images


def _predicted(measured: Measured) -> torch.Tensor:
    assert measured.evaluation is not None
    assert measured.evaluation.result.predicted is not None
    return measured.evaluation.result.predicted
