"""The split of a run as a table, and the same split read from it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab import CnnlabError, ImageSet, Recipe, Run, train
from cnnlab.data import SourceOptions
from cnnlab.data.splits import load_splits
from cnnlab.inference import split_table
from cnnlab.training.series import Series
from conftest import Command

OPTIONS = SourceOptions(data_dir=Path())


def write_photographs(folder: Path, patients: int = 4) -> None:
    """Write images of two classes, a folder per patient. `=a.png` and `-b.png` look like formulas."""
    draw = np.random.default_rng(len(str(folder.name)))
    for name in ("cat", "=dog"):
        for patient in range(patients):
            place = folder / name / f"p{patient}"
            place.mkdir(parents=True)
            for file in ("=a.png", "-b.png"):
                Image.fromarray(draw.integers(0, 255, (16, 16)).astype(np.uint8)).save(place / file)


def train_one_epoch(source: str, name: str, **settings: object) -> Run:
    """Train for one epoch."""
    recipe = Recipe(data=source, epochs=1, batch_size=8, compile="off", memory_format="contiguous", save_seconds=0)
    return train(recipe.changed(**settings), name=name, threads=1, progress="none").run


def test_a_saved_split_is_used_again(tmp_path: Path, cnnlab: Command) -> None:
    write_photographs(tmp_path / "pets")
    run = train_one_epoch("folder:pets", "mine", group="parent", val_fraction=0.3)
    printed = cnnlab("data", "split", "mine").stdout
    answer = cnnlab("data", "split", "mine", "--output", "pets/split.csv")
    assert answer.returncode == 0, answer.stderr
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert sorted(row["path"] for row in rows) == sorted(str(p) for p in Path("pets").rglob("*.png"))
    assert sum(row["split"] == "validation" for row in rows) == run.info["data"]["validation"]
    assert all(row["group"] == row["path"].split("/")[2] for row in rows)
    sides = [{row["group"] for row in rows if row["split"] == part} for part in ("train", "validation")]
    assert not set.intersection(*sides)

    # A class name that looks like a formula gets an apostrophe. All else is the same.
    again = load_splits(Recipe(data="csv:pets/split.csv"), OPTIONS)
    own = load_splits(run.recipe, OPTIONS)
    for part, there in zip(again, own, strict=True):
        assert sorted(part.ids) == sorted(there.ids)
    assert again[0].classes == ["'=dog", "cat"]
    assert torch.equal(again[0].images, own[0].images)
    assert torch.equal(again[1].images, own[1].images)
    with pytest.raises(CnnlabError, match="folds=2.*columns=split="):
        load_splits(Recipe(data="csv:pets/split.csv", folds=2, fold=1), OPTIONS)

    for arguments in (["mine", "--output", "pets/split.csv"], ["mine", "--output", "x.txt"], ["nothing"]):
        answer = cnnlab("data", "split", *arguments)
        assert answer.returncode == 2, arguments
    (tmp_path / "pets/cat/p0/=a.png").unlink()
    with pytest.raises(CnnlabError, match="/pets .*runs/mine"):
        split_table("mine")


def test_sources_without_files_and_sources_with_splits_are_tabulated(tmp_path: Path) -> None:
    train_one_epoch("digits", "digits", limit=64, image_size=16)
    table = split_table("digits")
    assert [table.root, table.column, len(table.rows)] == [None, "split", 128]
    assert table.to_csv(Path()).startswith("path,label,split\ndigits/")
    write_photographs(tmp_path / "pets/train", 2)
    write_photographs(tmp_path / "pets/validation", 1)
    train_one_epoch("folder:pets", "pets", group="parent")
    rows = split_table("pets").rows
    assert {(row.part, row.group) for row in rows} == {("train", "p0"), ("train", "p1"), ("validation", "p0")}
    table = [*csv.reader(io.StringIO(split_table("pets").to_csv(Path())))]
    lines = [[*row, weight] for row, weight in zip(table, ["weight", *["0.1", "2.5"] * len(table)], strict=False)]
    Path("pets.csv").write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")
    train_one_epoch("csv:pets.csv", "limited", limit=3)
    rows = split_table("limited").rows
    assert len(rows) == 6
    assert {row.group for row in rows if row.part == "validation"} == {"p0"}
    assert {row.weight for row in rows} == {"0.1", "2.5"}


def test_folds_are_tabulated_and_the_users_own_images_are_refused(tmp_path: Path) -> None:
    write_photographs(tmp_path / "pets")
    Path("runs/cv").mkdir(parents=True)
    Series(Path("runs/cv"), "folds", Recipe(data="folder:pets", folds=2), [1, 2]).save()
    with pytest.raises(CnnlabError, match="runs/cv.*--resume"):
        split_table("cv")
    train_one_epoch("folder:pets", "fold-1", group="parent", folds=2, fold=1).path.rename("runs/cv/fold-1")
    table = split_table("cv")
    assert table.column == "fold"
    assert len(table.rows) == 16
    assert {row.part for row in table.rows} == {"1", "2"}
    assert len({(row.group, row.part) for row in table.rows}) == 4
    images = ImageSet(
        torch.arange(2048).view(8, 1, 16, 16).to(torch.uint8), torch.arange(8) % 2, [*"abcdefgh"], ["x", "y"]
    )
    train(data=images, epochs=1, batch_size=4, name="own", threads=1, progress="none")
    with pytest.raises(CnnlabError, match="runs/own.*data="):
        split_table("own")
