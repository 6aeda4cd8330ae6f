"""A linear support vector machine, and the map that makes it work with a Gaussian kernel; both are scikit-learn's.

C. Cortes, V. Vapnik, Support-Vector Networks, 1995. C. Williams, M. Seeger, Using the Nystroem Method to Speed Up
Kernel Machines, NIPS 2001. L. Bottou, Large-Scale Machine Learning with Stochastic Gradient Descent, 2010 (the
averaged steps).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

_PASSES = 20, 100  # over the images, at least and at most; between, as many as make a million steps
_STEPS = 1_000_000


def svm(features: Floats, labels: Labels, c: float, seed: int, threads: int) -> Any:
    """A fitted SVM of `features` (N, D) and `labels` (N,), each class against the rest, with `predict`.

    Minimises |w|^2 / 2 + c sum_i max(0, 1 - y_i (w . x_i + b)) by averaged stochastic gradients: on 60,000 images with
    thousands of features scikit-learn's exact solvers take an hour, this takes a minute.
    """
    from sklearn.linear_model import SGDClassifier

    passes = min(_PASSES[1], max(_PASSES[0], math.ceil(_STEPS / len(features))))
    model = SGDClassifier(
        loss="hinge", alpha=1 / (c * len(features)), max_iter=passes, tol=None, average=True, n_jobs=threads,
        random_state=seed,
    )  # fmt: skip
    return model.fit(features, labels)


class KernelMap:
    """z with z(a) . z(b) near k(a, b) = exp(-gamma |a - b|^2): the nearer, the more of the images are landmarks."""

    def __init__(self, features: Floats, landmarks: int, gamma: float, seed: int) -> None:
        from sklearn.kernel_approximation import Nystroem

        self.landmarks = min(landmarks, len(features))
        self._map = Nystroem(gamma=gamma, n_components=self.landmarks, random_state=seed).fit(features)

    def __call__(self, features: Floats) -> Floats:
        """(N, D) -> (N, M) float32, some thousand rows at a time: in one piece the kernel would need memory twice."""
        mapped = np.empty((len(features), self.landmarks), np.float32)
        for i in range(0, len(features), 4096):
            mapped[i : i + 4096] = self._map.transform(features[i : i + 4096])
        return mapped


def spread(features: Floats, seed: int) -> float:
    """The mean squared distance between two of the rows of `features` (N, D): the unit that gamma is chosen in."""
    some = features[np.random.default_rng(seed).permutation(len(features))[:2000]].astype(np.float64)
    return float(2 * ((some - some.mean(0)) ** 2).sum(1).mean()) or 1.0
