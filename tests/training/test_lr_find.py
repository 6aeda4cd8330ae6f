"""The learning rate range test: the training's steps at rising rates, a suggestion; no run and no test images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnlab import CnnlabError, Recipe, list_runs, lr_find, train
from cnnlab.data import SourceOptions, data_folder, splits
from cnnlab.data.augment import Augmentation
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.device.determinism import reproducible
from cnnlab.models import build_model
from cnnlab.recipes import RECIPES
from cnnlab.training.lr_find import _result
from cnnlab.training.optim import make_optimizer
from cnnlab.training.step import train_step
from conftest import Command, one_line_error

QUICK: Recipe = replace(RECIPES["digits"], name="quick", limit=200, memory_format="contiguous")
MUON: dict[str, Any] = {"optimizer": "muon", "momentum": 0.6, "nesterov": False, "learning_rate": 0.1}


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "nesterov": False}, MUON])
def test_losses_match_training_steps(changes: dict[str, Any]) -> None:
    recipe = QUICK.changed(**changes)
    found = lr_find(recipe, low=1e-4, high=0.5, steps=12, threads=1, progress="none")
    assert found.rates == pytest.approx([1e-4 * 5000 ** (i / 11) for i in range(12)])

    images, _ = splits.load_splits(recipe, SourceOptions(data_dir=data_folder()))
    size = {"image_size": recipe.image_size}
    pre = Preprocessing.of(images.images, fit="pad", normalize=True, **size)
    loader = Loader(images, pre, recipe.batch_size, torch.device("cpu"), augmentation=Augmentation.of(recipe))
    with reproducible(recipe.seed, 1):
        net = build_model(recipe.model, num_classes=10, in_channels=1, **size).train()
        optimizer = make_optimizer(net, recipe)
        batches = [batch for epoch in range(3) for batch in loader.shuffled(recipe.seed, epoch)]
        for (x, y), rate, loss in zip(batches, found.rates, found.losses, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            assert train_step(net, optimizer, x, y)[0].item() == pytest.approx(loss, rel=1e-4)


def test_the_suggestion_is_a_third_of_where_the_smoothed_loss_is_lowest() -> None:
    rates = [10 ** (i / 10 - 4) for i in range(40)]  # 1e-4 to 0.8
    losses = [2.3 - 0.05 * i if i <= 30 else 0.8 + 0.2 * (i - 30) for i in range(40)]
    losses[5] = 0.1  # a single low loss does not count
    found = _result(QUICK, rates, losses, 40)
    assert found.lowest == pytest.approx(0.08, rel=0.3)
    assert found.suggestion == {"learning_rate": pytest.approx(found.lowest / 3, rel=0.05)}
    assert found.steepest < found.lowest
    muon = _result(QUICK.changed(**MUON, other_learning_rate=0.02), rates, losses, 40)
    assert muon.suggestion["other_learning_rate"] == pytest.approx(0.2 * muon.suggestion["learning_rate"], rel=0.05)
    assert "falling" not in str(found)
    assert "falling" in str(_result(QUICK, rates[:20], losses[:20], 20))
    flat = _result(QUICK, rates, [2.3] * 40, 40)
    assert flat.suggestion == {}
    assert "no suggestion" in str(flat)


def test_the_search_ends_where_the_loss_diverges() -> None:
    found = lr_find(QUICK, low=1e-3, high=1000, steps=60, threads=1, progress="none", normalize=False)
    assert len(found.rates) < 60
    assert "diverged" in found.why
    assert found.suggestion["learning_rate"] < 10
    with pytest.raises(CnnlabError, match="lower"):
        lr_find(QUICK, low=900, high=1000, steps=60, threads=1, progress="none", optimizer="adamw", nesterov=False)


def test_no_test_image_is_read_and_no_run_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], splits.load_images
    monkeypatch.setattr(splits, "load_images", lambda name, split, how: read.append(split) or real(name, split, how))
    recipe = replace(RECIPES["manual/lenet-bn"], data="digits", limit=256, image_size=28)
    assert recipe.eval_split == "test"
    lr_find(recipe, steps=10, progress="none")
    assert set(read) == {"train"}
    assert list_runs() == []


def test_the_command_saves_its_result_and_prints_how_to_train(cnnlab: Command) -> None:
    given = (
        "lr-find",
        "--skip-bad",
        "--set",
        "limit=200",
        "--set",
        "learning_rate=0.5",
        "--steps",
        "25",
        "--low",
        "0.001",
    )
    answer = cnnlab(*given)
    assert answer.returncode == 0, answer.stderr
    assert "suggestion: learning_rate=" in answer.stdout
    command = answer.stdout.splitlines()[-1].removeprefix("next: cnnlab ").split()
    assert command[:4] == ["train", "--skip-bad", "--set", "limit=200"]
    assert sum("learning_rate" in word for word in command) == 1
    answer = cnnlab(*given, "--json", "--out", "found")
    found = json.loads(answer.stdout)
    assert found == json.loads(Path("found/lr-find.json").read_text())
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) <= 25
    assert Path("runs/lr-find-001/lr-find.png").read_bytes()[:4] == b"\x89PNG"
    assert "found" in one_line_error(cnnlab(*given, "--out", "found"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--low", "0"),
        ("--low", "2", "--high", "1"),
        ("--high", "nan"),
        ("--steps", "3"),
        ("--set", "lr=1"),
        ("nonet",),
        ("lenet", "--set", "model=alexnet"),
        ("--set", "name=mine"),
    ],
)
def test_wrong_arguments_are_one_line_and_create_nothing(cnnlab: Command, arguments: tuple[str, ...]) -> None:
    one_line_error(cnnlab("lr-find", *arguments))
    assert not list(Path().glob("runs/*"))


def test_new_settings_can_be_combined_with_another_runs_weights() -> None:
    settings: dict[str, Any] = {"rotation": 10, "vertical_flip": True, "clip_norm": 1.0, "epochs": 1}
    first = train(QUICK, name="first", progress="none", threads=1, **settings)
    second = train(init_from=first.run, name="second", progress="none", threads=1, limit=200, overfit=1, **settings)
    assert second.run.info["from"]["run"].endswith("first")
    assert second.run.recipe.overfit == 1
    fresh = lr_find(QUICK, steps=10, high=1e-5, progress="none", threads=1, **settings)
    found = lr_find(init_from=first.run, steps=10, high=1e-5, progress="none", threads=1, limit=200, **settings)
    assert found.losses[0] < fresh.losses[0] - 0.1  # starts from the trained weights
