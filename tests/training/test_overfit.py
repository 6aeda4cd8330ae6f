"""`overfit`: training and evaluating on a few batches shows whether a network can learn at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparing import assert_same_run, interrupted

from cnnlab import CnnlabError, Recipe, resume, train
from cnnlab.data import ImageSet, SourceOptions, splits
from cnnlab.recipes import RECIPES
from conftest import Command, one_line_error

RECIPE: Recipe = RECIPES["digits"].changed(
    name="few", epochs=4, batch_size=16, overfit=2, shift=3, rotation=90, mixup=0.5
)


def test_a_network_learns_a_few_images_and_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = splits.load_images
    monkeypatch.setattr(splits, "load_images", lambda name, split, how: read.append(split) or real(name, split, how))
    result = train(RECIPE, progress="none", threads=1, augment=lambda images: images * 0)  # overfit does not augment
    assert RECIPE.passes == 25
    assert {row["images"] for row in result.history} == {25 * 32}
    assert len(result.history) < 4
    assert result.summary["stopped_by"] == "overfit"  # stopped, since the question is answered
    assert result.summary["images"] == {"train": 32}
    assert result.summary["train_subset_acc"] == 1.0
    assert "overfit: yes" in str(result)
    assert "next:" not in str(result)
    assert set(read) == {"train"}  # the test images are not read
    train_set, eval_set = splits.load_splits(RECIPE, SourceOptions(data_dir=Path()))
    assert train_set is eval_set
    assert len(torch.bincount(train_set.labels)) == 10


def test_images_of_weight_0_are_left_out() -> None:
    weights = torch.ones(100)
    weights[:40] = 0
    pixels, labels = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), torch.arange(100) % 2
    images = ImageSet(pixels, labels, [*map(str, range(100))], ["a", "b"], weights=weights)
    found = splits.divide(splits.Pool(images, None, None), RECIPE.changed(eval_split="train"))
    assert len(found.train) == 32
    assert found.train.images.min() >= 40


def test_a_network_that_cannot_learn_is_reported_with_remedies() -> None:
    result = train(RECIPE, progress="none", threads=1, learning_rate=0.0, schedule="constant")
    assert result.summary["train_subset_acc"] < 0.5
    assert "overfit: no" in str(result)
    assert "lr-find" in str(result)


def test_an_interrupted_overfit_run_is_resumed_to_the_same_bits() -> None:
    recipe = RECIPE.changed(epochs=1, save_steps=60)
    whole = train(recipe, name="whole", threads=1, progress="none")
    stopped = interrupted(recipe, 70, progress="none")
    resume(stopped, progress="none")
    assert_same_run(whole.run.path, stopped)


def test_more_batches_than_available_is_an_error(cnnlab: Command) -> None:
    line = one_line_error(cnnlab("train", "--set", "overfit=3", "--set", "limit=100", "--set", "batch_size=64"))
    assert "overfit=3" in line
    assert "overfit=2" in line
    with pytest.raises(CnnlabError, match="overfit"):
        RECIPE.changed(overfit=-1)
