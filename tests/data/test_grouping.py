"""Splits by group: no group on both sides, each image in one fold, class proportions kept."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from torch import Tensor

from cnnlab import CnnlabError, ImageSet, Recipe, load_images
from cnnlab.data import SourceOptions, stratified_split
from cnnlab.data.grouping import deal, group_names, grouping_of, share_difference, stratified_folds
from cnnlab.data.own import OwnImages
from cnnlab.data.splits import divide, fold_of, load_pool, load_splits

OPTIONS = SourceOptions(data_dir=Path())


def image_set(labels: list[int], groups: list[str] | None = None, ids: list[str] | None = None) -> ImageSet:
    """Return images of noise."""
    noise = torch.randint(0, 256, (len(labels), 1, 16, 16), generator=torch.Generator().manual_seed(0))
    classes = [f"class {k}" for k in range(max(labels) + 1)]
    ids = ids or [f"{i}.png" for i in range(len(labels))]
    return ImageSet(noise.to(torch.uint8), torch.tensor(labels), ids, classes, groups=groups)


def split(images: ImageSet, **changes: Any) -> Any:
    """Split the images with a recipe with these settings."""
    recipe = Recipe(data="memory:x", **changes)
    return divide(load_pool(recipe, OPTIONS, OwnImages("memory:x", images)), recipe)


def folds(images: ImageSet, count: int, **changes: Any) -> Tensor:
    """Return the fold of each image."""
    recipe = Recipe(data="memory:x", folds=count, **changes)
    return fold_of(load_pool(recipe, OPTIONS, OwnImages("memory:x", images)), recipe)


@st.composite
def labels_and_units(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw the label and the unit (group) of each image, in any distribution."""
    pairs = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 11)), min_size=2, max_size=60))
    labels, units = torch.tensor(pairs).unbind(1)
    return labels.unique(return_inverse=True)[1], units.unique(return_inverse=True)[1]


@settings(max_examples=60, deadline=None)
@given(labels_and_units(), st.floats(0.05, 0.9), st.integers(0, 100))
def test_no_group_is_in_both_training_and_validation(data: tuple[Tensor, Tensor], fraction: float, seed: int) -> None:
    labels, units = data
    held_out = deal(labels, units, [1 - fraction, fraction], seed) == 1
    assert not set(units[held_out].tolist()) & set(units[~held_out].tolist())
    assert set(labels[~held_out].tolist()) == set(labels.tolist())  # no class in validation only
    for k in labels.unique().tolist():
        if len(units[labels == k].unique()) == 1:
            assert not held_out[labels == k].any()


@settings(max_examples=60, deadline=None)
@given(labels_and_units(), st.integers(2, 6), st.integers(0, 100))
def test_folds_cover_each_image_once_and_split_no_group(data: tuple[Tensor, Tensor], count: int, seed: int) -> None:
    labels, units = data
    images = image_set(labels.tolist(), [str(u) for u in units.tolist()])
    each = [len(units[labels == k].unique()) for k in range(int(labels.max()) + 1)]
    try:
        fold = folds(images, count, split_seed=seed)
    except CnnlabError:
        # More folds than groups, or a class with fewer groups than folds.
        assert count > len(units.unique()) or min(each) < count
        return
    assert fold.shape == labels.shape
    assert set(fold.tolist()) <= set(range(1, count + 1))
    for unit in units.unique():
        assert len(fold[units == unit].unique()) == 1
    for f in range(1, count + 1):
        divided = split(images, folds=count, fold=f, split_seed=seed) if (fold == f).any() else None
        assert divided is None or divided.evaluated.ids == [f"{i}.png" for i in (fold == f).nonzero().flatten()]
        assert set(labels[fold != f].tolist()) == set(labels.tolist())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(2, 6), st.integers(0, 100))
def test_ungrouped_folds_differ_by_at_most_one_image_in_total_and_per_class(
    numbers: list[int], count: int, seed: int
) -> None:
    labels = torch.tensor(numbers)
    fold = stratified_folds(labels, count, seed)
    for part in (fold, *(fold[labels == k] for k in labels.unique())):
        sizes = torch.bincount(part, minlength=count)
        assert sizes.sum() == len(part)
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folds_are_at_least_as_even_as_scikit_learns(seed: int) -> None:
    draw = np.random.default_rng(seed)
    units = np.repeat(np.arange(40), draw.integers(1, 40, 40))
    labels = np.where(draw.random(len(units)) < 0.7, units % 3, draw.integers(0, 3, len(units)))
    ours = deal(torch.tensor(labels), torch.tensor(units), [0.2] * 5, seed)

    def unevenness(parts: list[np.ndarray]) -> float:
        counts = np.stack([np.bincount(labels[part], minlength=3) for part in parts])
        return float((counts / counts.sum(0)).std(0).mean())

    mine = [np.flatnonzero(ours.numpy() == f) for f in range(5)]
    peer = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    assert unevenness(mine) <= unevenness([test for _, test in peer.split(labels, labels, units)])
    assert unevenness(mine) <= unevenness([test for _, test in GroupKFold(5).split(labels, labels, units)])


def test_validation_by_group_keeps_the_class_proportions() -> None:
    labels = [k for unit in range(60) for k in [unit % 5] * (5 + unit % 7)]
    groups = [f"patient {unit}" for unit in range(60) for _ in range(5 + unit % 7)]
    images = image_set(labels, groups)
    divided = split(images, val_fraction=0.2)
    assert 0.17 < len(divided.evaluated) / len(images) < 0.23
    assert share_difference(images.labels, divided.evaluated.labels) < 0.03
    assert set(divided.evaluated.groups or ()).isdisjoint(divided.train.groups or ())
    assert divided.info["groups"] == 60
    assert f"{divided.info['held_out']} of 60 groups" in divided.notes[0]
    assert split(images, val_fraction=0.2).evaluated.ids == divided.evaluated.ids
    assert split(images, val_fraction=0.2, split_seed=1).evaluated.ids != divided.evaluated.ids
    assert set(split(images, val_fraction=0.2, group="none").evaluated.groups or ()) & set(divided.train.groups or ())


def test_ungrouped_images_are_split_as_before() -> None:
    digits = load_images("digits", "train")
    assert digits is not None
    train, held_out = load_splits(Recipe(), OPTIONS)
    indices = stratified_split(digits.labels, 0.1, 0)
    assert [train.ids, held_out.ids] == [digits.take(index).ids for index in indices]
    assert divide(load_pool(Recipe(), OPTIONS), Recipe()).info == {}


def test_parent_names_the_folder_below_the_class() -> None:
    ids = ["train/class 0/a/1.png", "class 0/b/left/2.png", "CLASS 1/a/3.png", "scans/a/4.png"]
    images = image_set([0, 0, 1, 1], ids=ids)
    assert group_names(images, "parent") == (["a", "b/left", "a", "scans/a"], "the parent folder")


def test_a_regular_expression_names_the_group_by_its_first_group_or_whole_match() -> None:
    images = image_set([0, 1], ids=["x/patient7_2.png", "y/patient12_1.png"])
    for expression, names in ((r"(patient\d+)_", ["patient7", "patient12"]), (r"\d+", ["7", "12"])):
        assert (group_names(images, expression) or ())[0] == names


@pytest.mark.parametrize(
    ("groups", "changes", "words"),
    [
        (["a", "", "b", "c"], {}, r"group=auto.*\b1 of 4 images.*'1\.png'"),
        (None, {"group": "parent"}, r"group=parent.*\b4 of 4 images.*'0\.png'"),
        (None, {"group": r"patient(\d*)"}, "4 of 4 images"),
        (None, {"group": "x*"}, "4 of 4 images"),  # an empty match is not a group
        (["a", None, "b", math.nan], {}, r"2 of 4 images.*'1\.png'"),  # missing values
        (["a", "a", "b", "b"], {}, "validation.*group=none"),
        (["a"] * 4, {}, "validation.*group=none"),
        (["a", "b", "a", "b"], {"folds": 3, "fold": 1}, "folds=3.*2 groups"),
        (None, {"folds": 5, "fold": 1}, "folds=5.*4 images"),
        (["a", "a", "b", "c"], {"folds": 2, "fold": 1}, "folds=2.*'class 0'.*group"),
        (None, {"folds": 2}, "folds=2.*train_folds"),
    ],
)
def test_an_impossible_split_is_an_error(groups: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CnnlabError) as caught:
        split(image_set([0, 0, 1, 1], groups), **changes)
    assert re.search(words, str(caught.value))


def test_groups_may_be_numbers() -> None:
    images = image_set([0, 1, 0, 1], [7, 7, 8, 8])  # type: ignore[list-item]
    assert set(split(images).evaluated.groups) in ({7}, {8})


def test_a_class_only_in_validation_is_an_error() -> None:
    train = replace(image_set([0, 1, 0]), classes=["a", "b", "c"])
    held_out = replace(image_set([0, 2, 2]), classes=["a", "b", "c"])
    recipe = Recipe(data="memory:x")
    with pytest.raises(CnnlabError, match="'c'.*2 validation images"):
        divide(load_pool(recipe, OPTIONS, OwnImages("memory:x", train, held_out)), recipe)


def test_a_class_of_one_image_is_not_cross_validated() -> None:
    with pytest.raises(CnnlabError, match="folds=2.*'class 2'.*image"):
        folds(image_set([0, 0, 1, 1, 2]), 2)


def test_a_class_of_one_group_stays_in_training() -> None:
    images = image_set([0] * 12 + [1] * 12 + [2] * 3, [*"aabbccddeeff" * 2, *"ggg"])
    divided = split(images, val_fraction=0.3)
    assert 2 not in divided.evaluated.labels
    assert any(re.search("class 2 .*group", note) for note in divided.notes)


def test_a_group_on_both_sides_of_the_sources_own_split_is_reported() -> None:
    train, held_out = image_set([0, 1], ["a", "b"]), image_set([0, 1], ["b", "c"])
    recipe = Recipe(data="memory:x")
    pool = load_pool(recipe, OPTIONS, OwnImages("memory:x", train, held_out))
    assert "1 group ('b') " in divide(pool, recipe).notes[0]
    with pytest.raises(CnnlabError, match="folds=2.*memory:x.*validation"):
        load_pool(replace(recipe, folds=2), OPTIONS, OwnImages("memory:x", train, held_out))


def test_near_duplicates_stay_on_one_side() -> None:
    images = image_set([i % 2 for i in range(40)], [str(i // 2) for i in range(40)])
    copies = images.images.clone()
    copies[0] = copies[39]  # a copy
    copies[4] = (copies[20].int() + 3).clamp(max=255).to(torch.uint8)  # a near copy
    images = replace(images, images=copies)
    for group, units in (("auto", 18), ("none", 38)):
        found = grouping_of(images, group, duplicates=True)
        assert found is not None
        assert found.count == units
        assert found.tied == 4
        assert found.units[0] == found.units[39]
        assert found.units[4] == found.units[20]
        notes = split(images, group=group, group_duplicates=True).notes
        assert any("4 of 40 images" in note for note in notes)


@pytest.mark.parametrize(
    "changes",
    [{"folds": 1}, {"fold": 1}, {"folds": 3, "fold": 4}, {"folds": 2, "eval_split": "test"}, {"group": "("}],
)
def test_settings_that_contradict_each_other_are_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(CnnlabError):
        Recipe(**changes)
