"""Curves show every point: limits, ticks, outliers, equal lines, and texts inside the picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from cnnlab.recipes import RECIPES
from cnnlab.training.curves import comparison, curves
from pictures import check_texts, pixels

RECIPE = RECIPES["digits"]


def rows(
    loss: list[float], acc: list[float], val_loss: list[float] = (), val_acc: list[float] = ()
) -> list[dict[str, Any]]:  # type: ignore[assignment]
    val_loss, val_acc = val_loss or loss, val_acc or acc
    return [
        {"epoch": i + 1, "loss": a, "train_acc": b, "val_loss": c, "val_acc": d, "test_loss": c, "test_acc": d}
        for i, (a, b, c, d) in enumerate(zip(loss, acc, val_loss, val_acc, strict=True))
    ]


def falling(count: int) -> list[dict[str, Any]]:
    loss = [2.3 * 0.97**i for i in range(count)]
    return rows(loss, [1 - x / 2.4 for x in loss], [x + 0.1 for x in loss], [0.97 - x / 2.6 for x in loss])


def ticks(axes: Any) -> list[float]:
    low, high = axes.get_xlim()
    return [t for t in axes.get_xticks() if low <= t <= high]


def test_a_flat_run_does_not_touch_the_frame() -> None:
    for value in (2.303, 0.0, 1e-9):
        loss, acc = curves(rows([value] * 30, [0.1] * 30), RECIPE).axes
        low, high = loss.get_ylim()
        assert low < 0
        assert high > value * 1.04
        assert high > 0
        assert acc.get_ylim()[0] < 0
        assert 1 < acc.get_ylim()[1] < 1.1
        assert max(acc.get_yticks()) == 1


@pytest.mark.parametrize("count", [1, 2, 20, 30, 200, 1000])
def test_ticks_are_epochs_of_the_run(count: int) -> None:
    for axes in curves(falling(count), RECIPE).axes:
        at = ticks(axes)
        assert all(t == round(t) and 1 <= t <= count for t in at)
        assert at[0] == 1
        assert 1 <= len(at) <= 11
        assert at[-1] > count * 0.85
        assert axes.get_xlim()[0] < 1
        assert axes.get_xlim()[1] > count


@pytest.mark.parametrize(("epochs", "spikes"), [(3, [98.0]), (10, [98.0]), (30, [1e6, 98.0, 97.0]), (200, [12.0] * 9)])
def test_outliers_do_not_flatten_the_rest(epochs: int, spikes: list[float]) -> None:
    run = falling(epochs)
    for i, value in enumerate(spikes):
        run[1 + i]["val_loss"] = value
    axes = curves(run, RECIPE).axes[0]
    assert 2.3 < axes.get_ylim()[1] < 3
    assert "epoch 2" in axes.get_title()
    assert f"{spikes[0]:.3g}" in axes.get_title()


def test_the_usual_drop_in_the_first_epochs_fits_the_axis() -> None:
    for loss in ([2.3, 0.4, 0.2, 0.1], [4.6, 1.5, 0.5], [2.3] + [0.001] * 99, [98.0], [98.0, 90.0, 80.0, 70.0, 3.0]):
        axes = curves(rows(loss, [0.5] * len(loss)), RECIPE).axes[0]
        assert axes.get_ylim()[1] > max(loss)
        assert axes.get_title() == ""


def test_nan_and_infinite_losses_do_not_hide_the_others() -> None:
    run = falling(5)
    run[2]["val_loss"] = float("nan")
    run[3]["loss"] = float("inf")
    assert 2.3 < curves(run, RECIPE).axes[0].get_ylim()[1] < 3


def visible(figure: Figure, *colours: tuple[int, int, int]) -> bool:
    """Return whether each colour, up to antialiasing, has several pixels above the legend."""
    image = pixels(figure).astype(int)
    image = image[: int(len(image) * 0.75)]
    return all((np.abs(image - colour).max(2) < 60).sum() > 10 for colour in colours)


BLUE, RED = (59, 111, 182), (209, 73, 91)


def test_single_points_are_visible() -> None:
    assert visible(curves(falling(1), RECIPE), BLUE, RED)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_equal_lines_stay_visible(count: int) -> None:
    run = rows([0.5] * count, [0.5] * count)
    assert visible(curves(run, RECIPE), BLUE, RED)
    figure = comparison([(name, "validation", run) for name in "abc"])
    assert visible(figure, (31, 119, 180), (255, 127, 14), (44, 160, 44))
    # Equal from the second epoch on
    if count > 3:
        first, second = ([{**run[0], "val_acc": acc}, *run[1:]] for acc in (0.2, 0.7))
        figure = comparison([("a", "validation", first), ("b", "validation", second)])
        widths = [line.get_linewidth() for line in figure.axes[0].lines]
        assert widths[0] > widths[1]


def legend(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.legends[0].get_texts())


def test_the_best_epoch_is_marked_only_if_validation_images_chose_it() -> None:
    run = rows([3.0, 2.0, 1.0], [0.1, 0.2, 0.3], [1.0, 0.9, 0.8], [0.5, 0.7, 0.6])
    figure = curves(run, RECIPE)
    rings = [line for line in figure.axes[1].lines if line.get_fillstyle() == "none"]
    assert [(float(r.get_xdata()[0]), float(r.get_ydata()[0])) for r in rings] == [(2, 0.7)]
    assert "best epoch: 2" in legend(figure)
    assert "best" not in legend(curves(run, replace(RECIPE, eval_split="test")))


def test_a_loss_of_changed_labels_is_not_called_cross_entropy() -> None:
    assert "cross-entropy" in curves(falling(3), RECIPE).axes[0].get_ylabel()
    for changes in ({"label_smoothing": 0.1}, {"mixup": 0.2}, {"cutmix": 1.0}, {"balance": "weights"}):
        figure = curves(falling(3), replace(RECIPE, **changes))
        assert "cross-entropy" not in figure.axes[0].get_ylabel()
        name = {"label_smoothing": "label smoothing 0.1", "cutmix": "CutMix", "balance": "class weights"}.get(
            next(iter(changes)), "mixup"
        )
        assert name in legend(figure)


@pytest.mark.parametrize("title", ["W" * 500, "a_very_long_name " * 40, "手写数字" * 60, "$x$ \\ {} \n y"])
def test_titles_fit(title: str) -> None:
    check_texts(curves(falling(7), RECIPE, title))


@pytest.mark.parametrize(("name", "count"), [("runs/a", 30), ("runs/" + "very-long-name-" * 20, 2), ("W" * 300, 12)])
def test_comparisons_of_many_runs_with_long_names_fit(name: str, count: int) -> None:
    figure = comparison([(f"{name}{i}", "validation", falling(3)) for i in range(count)])
    check_texts(figure)
    axes = figure.axes[0].get_window_extent()
    assert axes.height > 2 * figure.dpi, "the legend must not take the lines' room"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(set(names)) == count


def test_curves_without_epochs_can_be_drawn() -> None:
    check_texts(curves([], RECIPE))
