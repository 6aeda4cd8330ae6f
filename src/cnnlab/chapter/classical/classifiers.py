"""A linear support vector machine and an approximation of the Gaussian kernel, both from scikit-learn.

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

_PASSES = 20, 100  # fewest and most; in between, as many as take a million steps
_STEPS = 1_000_000


def svm(features: Floats, labels: Labels, c: float, seed: int, threads: int) -> Any:
    """Fit a one-versus-rest SVM to `features` (N, D) and `labels` (N,); return the scikit-learn model.

    Minimizes |w|^2 / 2 + c sum_i max(0, 1 - y_i (w . x_i + b)) by averaged SGD. On 60,000 images with thousands of
    features it takes a minute, scikit-learn's exact solvers an hour.
    """
    from sklearn.linear_model import SGDClassifier

    passes = min(_PASSES[1], max(_PASSES[0], math.ceil(_STEPS / len(features))))
    model = SGDClassifier(
        loss="hinge", alpha=1 / (c * len(features)), max_iter=passes, tol=None, average=True, n_jobs=threads,
        random_state=seed,
    )  # fmt: skip
    return model.fit(features, labels)


class KernelMap:
    """A map z with z(a) . z(b) ≈ exp(-gamma |a - b|^2); more landmarks make it more accurate."""

    def __init__(self, features: Floats, landmarks: int, gamma: float, seed: int) -> None:
        from sklearn.kernel_approximation import Nystroem

        self.landmarks = min(landmarks, len(features))
        self._map = Nystroem(gamma=gamma, n_components=self.landmarks, random_state=seed).fit(features)

    def __call__(self, features: Floats) -> Floats:
        """Map (N, D) -> (N, M) float32, 4096 rows at a time to save memory."""
        mapped = np.empty((len(features), self.landmarks), np.float32)
        for i in range(0, len(features), 4096):
            mapped[i : i + 4096] = self._map.transform(features[i : i + 4096])
        return mapped


def spread(features: Floats, seed: int) -> float:
    """Return the mean squared distance between two rows of `features` (N, D): gamma is chosen relative to it."""
    some = features[np.random.default_rng(seed).permutation(len(features))[:2000]].astype(np.float64)
    return float(2 * ((some - some.mean(0)) ** 2).sum(1).mean()) or 1.0
