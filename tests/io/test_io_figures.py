"""Pictures of samples, pairs, speeds and grades: no text leaves the canvas, and no half is empty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cnnlab.io import figures
from pictures import check_texts, pixels

LONG = "a_very_long_name_" * 12


def images(count: int, each: int = 2) -> list[list[Any]]:
    return [[np.full((8, 8, 3), 90, np.uint8)] * each for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "names"),
    [(2, ["cat", "dog"]), (2, [LONG, "W" * 99]), (10, list("abcdefghij")), (100, ["a_class_name"] * 100)],
)
def test_samples_fill_the_figure_and_their_texts_fit(count: int, names: list[str]) -> None:
    figure = figures.samples(images(count), names)
    check_texts(figure)
    dark = (pixels(figure) == 90).all(2)
    rows, columns = dark.any(1).nonzero()[0], dark.any(0).nonzero()[0]
    assert dark.shape[0] - rows[-1] < 40
    assert dark.shape[1] - columns[-1] < 15, "the images reach the right side"
    notes = [text.get_text() for text in figure.texts]
    assert notes == (["the first 30 of 100 classes"] if count == 100 else [])


@pytest.mark.parametrize("count", [1, 2, 13])
def test_pairs_fill_their_rows(count: int) -> None:
    figure = figures.pairs(
        [(f"0.987! train validation test {LONG}"[: 30 + i], pair) for i, pair in enumerate(images(count))]
    )
    check_texts(figure)
    rows, columns = figure.axes[0].get_subplotspec().get_gridspec().get_geometry()
    assert 0 <= rows * columns - count < rows, "an empty place a row at most"
    assert columns <= 6


@pytest.mark.parametrize("precisions", [["float32"], ["float32", "bfloat16"]])
@pytest.mark.parametrize("names", [["lenet"], ["lenet", "torchvision:" + LONG, "W" * 60]])
def test_texts_of_the_speeds_figure_fit(precisions: list[str], names: list[str]) -> None:
    rows = [
        {
            "model": m,
            "precision": p,
            "image_size": 224,
            "batch_size": 128,
            "fraction_of_peak": 0.9,
            "images_per_second": 1e5,
        }
        for m in names
        for p in precisions
    ]
    figure = figures.speeds(rows, {p: {"flops_per_second": 1e12} for p in precisions}, "A processor " * 20)
    check_texts(figure)
    assert figure.axes[0].get_window_extent().width > figure.bbox.width / 2


@pytest.mark.parametrize("accuracies", [[], [0.9], [0.0], [1.0] * 5, [0.0, 0.91, 0.92, 0.93], [0.9] * 100])
def test_texts_of_the_grades_figure_fit(accuracies: list[float]) -> None:
    check_texts(figures.grades(accuracies, f"{LONG} {LONG}"))
