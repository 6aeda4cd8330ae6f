"""Linear support vector machines, and the map that makes them work with a Gaussian kernel.

C. Cortes, V. Vapnik, Support-Vector Networks, 1995. C. Williams, M. Seeger, Using the Nystroem Method to Speed Up
Kernel Machines, NIPS 2001. O. Chapelle, Training a Support Vector Machine in the Primal, 2007.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]

_CHUNK = 4096  # rows at a time: some tens of megabytes
_STEPS = 30  # of Newton at most; five to ten are usual
_JITTER = 1e-5  # on the diagonal of the landmarks' kernel matrix, whose eigenvalues fall below what float32 can tell


@dataclass(frozen=True)
class Nystroem:
    """A map z with z(a) . z(b) near k(a, b) = exp(-gamma |a - b|^2); exact where a or b is a landmark.

    landmarks: (M, D) float32, some of the training features; whiten: (M, M) float32, the inverse of the Cholesky
    factor of k(landmarks, landmarks).
    """

    landmarks: Floats
    gamma: float
    whiten: Floats

    @classmethod
    def of(cls, features: Floats, count: int, gamma: float, seed: int) -> Nystroem:
        """With `count` rows of `features` (N, D), drawn by `seed`, as landmarks."""
        from scipy.linalg import cholesky, solve_triangular  # type: ignore[import-untyped]

        drawn = np.random.default_rng(seed).choice(len(features), min(count, len(features)), replace=False)
        landmarks = features[np.sort(drawn)]
        kernel = gaussian(landmarks, landmarks, gamma).astype(np.float64)
        kernel[np.diag_indices(len(kernel))] += _JITTER
        factor = cholesky(kernel, lower=True, overwrite_a=True, check_finite=False)
        inverse = solve_triangular(factor, np.eye(len(factor)), lower=True, overwrite_b=True, check_finite=False)
        return cls(landmarks, gamma, inverse.astype(np.float32))

    def __call__(self, features: Floats) -> Floats:
        """(N, D) -> (N, M) float32."""
        mapped = np.empty((len(features), len(self.landmarks)), np.float32)
        for i in range(0, len(features), _CHUNK):
            mapped[i : i + _CHUNK] = gaussian(features[i : i + _CHUNK], self.landmarks, self.gamma) @ self.whiten.T
        return mapped


def gaussian(a: Floats, b: Floats, gamma: float) -> Floats:
    """exp(-gamma |a_i - b_j|^2): (N, D), (M, D) -> (N, M)."""
    distance: Floats = a @ b.T
    distance *= -2
    distance += (a**2).sum(1)[:, None]
    distance += (b**2).sum(1)
    np.maximum(distance, 0, out=distance)  # rounding
    distance *= -gamma
    np.exp(distance, out=distance)
    return distance


def spread(features: Floats, seed: int) -> float:
    """The mean squared distance between two of the rows of `features` (N, D): the unit that gamma is chosen in."""
    some = features[np.random.default_rng(seed).permutation(len(features))[:2000]].astype(np.float64)
    return float(2 * ((some - some.mean(0)) ** 2).sum(1).mean()) or 1.0


class SVM:
    """One linear classifier per class, each against the rest, with squared hinge loss: scikit-learn's LinearSVC.

    Minimises |w|^2 / 2 + C sum_i max(0, 1 - y_i (w . x_i + b))^2 with b counted in |w|, as LinearSVC does, and ends
    at the same weights, by Newton's method (Chapelle 2007): each step solves the least-squares problem of the
    examples that miss their margin. That is matrix products, which use all cores; LinearSVC uses one.

    weights: (K, D + 1) float32, the last column b.
    """

    def __init__(self, weights: Floats) -> None:
        self.weights = weights

    @classmethod
    def fit(
        cls, features: Floats, labels: Labels, classes: int, c: float, tick: Callable[[int], None] | None = None
    ) -> SVM:
        """From `features` (N, D) and `labels` (N,); `tick` gets the number of classes done."""
        # The least-squares start leaves half of the examples short of their margin, which makes the first step the
        # dearest: a quarter of the examples takes it, and all of them go on from there.
        order = np.random.default_rng(0).permutation(len(features))
        few = features[np.sort(order[: len(features) // 4])] if len(features) > 10_000 else None
        few_labels = labels[np.sort(order[: len(features) // 4])]
        weights = np.empty((classes, features.shape[1] + 1), np.float32)
        for k in range(classes):
            start = np.zeros(features.shape[1] + 1)
            if few is not None:
                start = _newton(few, np.where(few_labels == k, 1, -1).astype(np.float32), 4 * c, start)
            weights[k] = _newton(features, np.where(labels == k, 1, -1).astype(np.float32), c, start)
            if tick is not None:
                tick(k + 1)
        return cls(weights)

    def predict(self, features: Floats) -> Labels:
        """(N, D) -> (N,) the class whose classifier is surest."""
        scores = features @ self.weights[:, :-1].T + self.weights[:, -1]
        return np.asarray(scores.argmax(1), np.int64)


def _newton(x: Floats, y: Floats, c: float, w: Doubles) -> Doubles:
    """The minimum for one class from `w` (D + 1,), to a thousandth of a thousandth of the objective."""
    from scipy.linalg import cho_factor, cho_solve

    d = x.shape[1]

    def scores(weights: Doubles) -> Doubles:
        return np.asarray(x @ weights[:d].astype(np.float32) + weights[d], np.float64)

    def objective(weights: Doubles, out: Doubles) -> float:
        return 0.5 * float(weights @ weights) + c * float((np.maximum(0, 1 - y * out) ** 2).sum())

    out = scores(w)
    value = objective(w, out)
    for _ in range(_STEPS):
        short = np.flatnonzero(y * out < 1)
        part = np.column_stack([x[short], np.ones(len(short), np.float32)])
        # (1 / 2C + X^T X) w = X^T y or, the same w, X^T (1 / 2C + X X^T)^-1 y: whichever system is smaller.
        dual = len(part) <= d
        system = ((part @ part.T) if dual else (part.T @ part)).astype(np.float64)
        system[np.diag_indices(len(system))] += 1 / (2 * c)
        target = (y[short] if dual else part.T @ y[short]).astype(np.float64)
        factor = cho_factor(system, overwrite_a=True, check_finite=False)
        goal = cho_solve(factor, target, overwrite_b=True, check_finite=False)
        if dual:
            goal = part.T.astype(np.float64) @ goal
        goal_out = scores(goal)
        # The whole step, unless it leads too far: then the best of its halves.
        for share in (1.0, 0.5, 0.25, 0.125, 0.0625):
            new_w, new_out = w + share * (goal - w), out + share * (goal_out - out)
            new = objective(new_w, new_out)
            if new < value:
                break
        gain = value - new
        if gain <= 0:
            break
        w, out, value = new_w, new_out, new
        if gain < 1e-6 * value:
            break
    return w
