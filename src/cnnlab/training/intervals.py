"""95% confidence intervals of figures that are measured on a sample of images.

They account for the choice of the images alone: another seed gives another network. Their coverage is simulated in
tests/training/test_intervals.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

Interval = tuple[float, float]
_Z = NormalDist().inv_cdf(0.975)


def wilson(count: int, n: int) -> Interval:
    """Return the score interval of a fraction, `count` of `n` (above 0).

    E. B. Wilson, JASA 22 (1927). It also holds for few images, and its width is not 0 at the fractions 0 and 1.
    """
    p, z = count / n, _Z**2 / n
    centre, half = (p + z / 2) / (1 + z), math.sqrt(z * (p * (1 - p) + z / 4)) / (1 + z)
    return 0.0 if count == 0 else centre - half, 1.0 if count == n else centre + half


def f1_interval(correct: int, support: int, predicted: int) -> Interval:
    """Return the interval of a class's F1, for `support` images of it and `predicted` predictions, not both 0.

    F1 = 2 J / (1 + J), where J is the fraction of correct ones among the images that are of the class or predicted as
    it. The interval is Wilson's interval of J, transformed.
    """
    low, high = wilson(correct, support + predicted - correct)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def balanced_interval(correct: Sequence[int], support: Sequence[int]) -> Interval:
    """Return the interval of balanced accuracy, the mean of `correct` / `support` over K classes, (K,) each.

    The normal approximation after A. Agresti and B. A. Coull, American Statistician 52 (1998): two images that are
    right and two that are wrong are added, here spread over the classes.
    """
    value = sum(c / n for c, n in zip(correct, support, strict=True)) / len(support)
    fractions = _smoothed(correct, support)
    variance = sum(p * (1 - p) / n for p, n in fractions)
    return _around(value, [p for p, _ in fractions], variance)


def macro_f1_interval(correct: Sequence[int], support: Sequence[int], predicted: Sequence[int]) -> Interval:
    """Return the interval of macro F1, the mean over K classes, (K,) each; see `f1_interval` and `balanced_interval`.

    The variances of the classes are those of 2 J / (1 + J), and their sum is doubled, because an error lowers the F1
    of two classes. With fewer than ten images per class, macro F1 itself is a few hundredths too low.
    """
    involved = [s + p - c for c, s, p in zip(correct, support, predicted, strict=True)]
    value = sum(2 * c / (c + n) for c, n in zip(correct, involved, strict=True)) / len(correct)
    fractions = _smoothed(correct, involved)
    variance = 2 * sum(4 / (1 + j) ** 4 * j * (1 - j) / n for j, n in fractions)
    return _around(value, [2 * j / (1 + j) for j, _ in fractions], variance)


def _smoothed(counts: Sequence[int], sizes: Sequence[int]) -> list[tuple[float, float]]:
    """Return the fractions and their sizes after z² images, about four, are added, half of them right."""
    more = _Z**2 / len(sizes)
    return [((c + more / 2) / (n + more), n + more) for c, n in zip(counts, sizes, strict=True)]


def _around(value: float, values: Sequence[float], variance: float) -> Interval:
    centre, half = sum(values) / len(values), _Z * math.sqrt(variance) / len(values)
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))
