"""Cross-validation: a run per fold in one folder, resumed to the same bits, and the out-of-fold predictions."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from comparing import Interrupt, assert_same_run
from PIL import Image

from cnnlab import (
    CnnlabError,
    FoldsResult,
    ImageSet,
    Recipe,
    TrainingInterrupted,
    evaluate_run,
    resume,
    train,
    train_folds,
    train_seeds,
)
from cnnlab.training import loop
from cnnlab.training.start import note_seen_images
from conftest import Command


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Two classes, dark and bright, with three images of each of five patients."""
    draw = np.random.default_rng(0)
    for name, level in (("bright", 120), ("dark", 0)):
        for patient in range(5):
            folder = tmp_path / "patients" / name / f"patient{patient}"
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = draw.integers(level, level + 100, (16, 16)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "patients"


@pytest.fixture
def recipe(patients: Path) -> Recipe:
    return Recipe(
        data=f"folder:{patients}", model="lenet-bn", batch_size=8, epochs=2, group="parent", compile="off",
        memory_format="contiguous", save_seconds=0,
    )  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    """Return the table of out-of-fold predictions."""
    with (path / "out_of_fold.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_folds_are_resumed_to_the_same_bits_and_predict_each_image_once(recipe: Recipe, patients: Path) -> None:
    whole = train_folds(recipe, 2, name="whole", threads=1, progress="none")
    with Interrupt(3).patched(loop, "evaluate"), pytest.raises(TrainingInterrupted, match="fold 2"):
        train_folds(recipe, 2, name="cut", threads=1, progress="none")
    assert not Path("runs/cut/summary.json").exists()
    again = resume("runs/cut", threads=1, progress="none")
    assert isinstance(again, FoldsResult)
    for fold in (1, 2):
        assert_same_run(Path(f"runs/whole/fold-{fold}"), Path(f"runs/cut/fold-{fold}"))
    assert whole.predictions.read_bytes() == again.predictions.read_bytes()

    table = rows(whole.path)
    assert sorted(row["path"] for row in table) == sorted(
        path.relative_to(patients).as_posix() for path in patients.rglob("*.png")
    )
    folds = {row["path"].split("/")[1]: row["fold"] for row in table}
    assert all(folds[row["path"].split("/")[1]] == row["fold"] for row in table)  # one fold per patient
    for row in table:
        probabilities = {"bright": float(row["p_bright"]), "dark": float(row["p_dark"])}
        assert sum(probabilities.values()) == pytest.approx(1, abs=2e-6)
        assert row["predicted"] == max(probabilities, key=lambda name: probabilities[name])
    figures = whole.summary["out_of_fold"]
    correct = sum(row["label"] == row["predicted"] for row in table)
    assert (figures["images"], figures["correct"], figures["accuracy"]) == (30, correct, correct / 30)
    assert f"acc {correct / 30:.4f} ({correct} of 30 images)" in str(whole)
    each = [evaluate_run(r.run, split="validation", threads=1).result.accuracy for r in whole.results]
    assert figures["per_fold"]["mean"] == pytest.approx(sum(each) / 2)
    info = json.loads(Path("runs/whole/fold-2/run.json").read_text(encoding="utf-8"))["data"]["split"]
    assert (info["fold"], info["folds"], info["groups"]) == (2, 2, 5)

    # A fold trained alone gives the same run. Resuming a finished series changes nothing.
    train(recipe.changed(folds=2, fold=2), name="alone", threads=1, progress="none")
    assert_same_run(Path("runs/whole/fold-2"), Path("runs/alone"))
    assert str(resume("runs/whole", threads=1, progress="none")) == str(whole)

    # The first fold's folder is gone: only that fold is trained again.
    shutil.rmtree("runs/cut/fold-1")
    Path("runs/cut/summary.json").unlink()
    resume("runs/cut", threads=1, progress="none")
    assert_same_run(Path("runs/whole/fold-1"), Path("runs/cut/fold-1"))
    assert whole.predictions.read_bytes() == again.predictions.read_bytes()

    # A warning is due if the weights have seen the held-out images.
    one = whole.results[0].run
    one_recipe = one.recipe
    for changed, data, folds, warned in (
        (one_recipe, one_recipe.data, False, False),
        (one_recipe, one_recipe.data, True, True),
        (one_recipe.changed(fold=2), one_recipe.data, False, True),
        (one_recipe.changed(fold=0, folds=0, eval_split="test"), one_recipe.data, False, False),
        (one_recipe.changed(fold=2), "folder:others", False, False),
    ):
        session = MagicMock(origin={"run": str(one.path)}, fingerprint=str(changed.fold))
        session.train_set.classes = one.classes
        note_seen_images(session, changed.changed(data=data), folds=folds)
        assert session.display.message.called == warned


def test_the_commands_take_folds(recipe: Recipe, cnnlab: Command) -> None:
    quick = ["train", "--data", recipe.data, "--epochs", 1, "--progress", "none"]
    answer = cnnlab(*quick, "--set", "folds=2", "--group-duplicates", "--set", "group=parent", "--name", "two")
    assert answer.returncode == 0, answer.stderr
    assert "out of fold, best.safetensors of each: acc" in answer.stdout
    assert "two/fold-2" in cnnlab("runs").stdout
    for command in (["eval", "two"], ["predict", "two", "x.png"]):
        answer = cnnlab(*command)
        assert answer.returncode == 2
        assert "fold-1" in answer.stderr
    for options in (["--folds", 1], ["--folds", 0], ["--folds", 31], ["--folds", 2, "--seeds", 2], ["--folds", -1],
                    ["--folds", 2, "--set", "eval_split=test"], ["--resume", "two", "--folds", 2]):  # fmt: skip
        answer = cnnlab(*quick, *options)
        assert answer.returncode == 2, options
        assert answer.stderr.count("\n") == 1, answer.stderr
    assert "batch_size" in cnnlab(*quick, "--set", "folds=0", "--set", "batch_size=0").stderr  # a single training
    assert [path.name for path in Path("runs").iterdir()] == ["two"]


@pytest.mark.parametrize("call", [train, train_seeds])
def test_folds_of_a_single_run_are_an_error(call: Any) -> None:
    images = ImageSet(torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.arange(8) % 2, list("abcdefgh"), ["a", "b"])
    with pytest.raises(CnnlabError, match="folds=2.*train_folds"):
        call(data=images, folds=2, progress="none")
