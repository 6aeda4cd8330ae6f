"""95% intervals: against SciPy, and their coverage in simulated evaluations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from cnnlab.training.intervals import balanced_interval, f1_interval, macro_f1_interval, wilson
from cnnlab.training.scores import Scores


@pytest.mark.parametrize(
    ("count", "n"), [(0, 1), (1, 1), (0, 5), (5, 5), (3, 10), (499, 511), (1, 10**6), (10**6, 10**6)]
)
def test_wilson_matches_scipy(count: int, n: int) -> None:
    theirs = binomtest(count, n).proportion_ci(method="wilson")
    assert wilson(count, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=4, max_size=4).filter(
        lambda m: any(map(any, m))
    )
)
def test_every_interval_contains_its_figure_within_0_and_1(matrix: list[list[int]]) -> None:
    confusion = np.array(matrix)
    scores = Scores(confusion.diagonal().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist())
    found = [(getattr(scores, name), *interval) for name, interval in scores.intervals.items()]
    for c in scores.per_class:
        for value, interval in (
            (c.precision, c.precision_interval),
            (c.recall, c.recall_interval),
            (c.f1, c.f1_interval),
        ):
            assert (value is None) == (interval is None)
            found += [(value, *interval)] if value is not None and interval is not None else []
    for value, low, high in found:
        assert 0 <= low <= value <= high <= 1
        assert high - low > 0.001


@pytest.mark.parametrize(
    ("support", "recall"),
    [
        ([20] * 10, [0.9] * 10),
        ([50] * 10, [0.99] * 10),
        ([200] * 5 + [10] * 5, [0.95] * 5 + [0.5] * 5),
        ([60, 20], [0.9, 0.7]),
    ],
)
def test_intervals_contain_the_true_figure_in_about_95_of_100_evaluations(
    support: list[int], recall: list[float]
) -> None:
    rng, k, n = np.random.default_rng(0), len(support), sum(support)
    errors = rng.random((k, k)) * (1 - np.eye(k))
    true = np.diag(recall) + errors / errors.sum(1, keepdims=True) * (1 - np.array(recall))[:, None]
    true *= np.array(support)[:, None] / n  # the probability of each cell of the confusion matrix
    correct, of_class, as_class = true.diagonal(), true.sum(1), true.sum(0)
    f1 = 2 * correct / (of_class + as_class)
    figures = (correct.sum(), (correct / of_class).mean(), f1.mean(), correct[0] / of_class[0], f1[0])
    held = np.zeros(len(figures))
    for matrix in rng.multinomial(n, true.ravel(), size=400).reshape(-1, k, k):
        c, s, p = matrix.diagonal().tolist(), matrix.sum(1).tolist(), matrix.sum(0).tolist()
        intervals = (wilson(sum(c), n), balanced_interval(c, s), macro_f1_interval(c, s, p), wilson(c[0], s[0]),
                     f1_interval(c[0], s[0], p[0]))  # fmt: skip
        held += [low <= value <= high for value, (low, high) in zip(figures, intervals, strict=True)]
    assert (held / 400 >= 0.91).all(), held / 400
    assert held.mean() / 400 < 0.99


@pytest.mark.parametrize(
    "counts", [([3], [2], [3]), ([1, 0], [1, 1], [1, 0]), ([0], [0], [0]), ([-1], [1], [1]), ([1], [1, 2], [3])]
)
def test_impossible_counts_are_refused(counts: tuple[list[int], ...]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Scores(*counts)
