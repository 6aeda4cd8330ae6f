"""Label suspects: confident learning against a slow reference, and planted label errors in handwritten digits."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from cnnlab import CnnlabError, ImageSet, load_images, train_folds
from cnnlab.inference.suspects import confident_disagreements, find_suspects
from conftest import Command, one_line_error


@pytest.mark.parametrize("seed", range(4))
def test_disagreements_match_the_papers_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, k = 60, 5
    labels = torch.randint(0, k - seed % 2, (n,), generator=generator)  # a class may have no image
    p = (2 * torch.randn(n, k, generator=generator, dtype=torch.float64)).softmax(1)
    expected = []
    for i in range(n):
        confident = {}
        for j in range(k):
            own = [p[m, j].item() for m in range(n) if labels[m] == j]
            if own and p[i, j] >= sum(own) / len(own):
                confident[j] = p[i, j].item()
        if confident:
            guess = max(confident, key=lambda j: confident[j])
            if guess != labels[i]:
                expected.append((p[i, labels[i]].item() - confident[guess], i, guess))
    assert confident_disagreements(p, labels) == [(i, guess) for _, i, guess in sorted(expected)]
    assert len(expected) > 5


def test_planted_label_errors_are_found_out_of_fold(cnnlab: Command, tmp_path: Path) -> None:
    digits = load_images("digits", "train")
    assert digits is not None
    some = digits.take(torch.arange(600))
    wrong = torch.arange(0, 600, 20)  # 30 of 600; measured: recall 0.80, precision 1.00
    labels = some.labels.clone()
    labels[wrong] = (labels[wrong] + 1 + wrong % 9) % 10
    images = ImageSet(some.images, labels, [f"{i}.png" for i in range(600)], some.classes)
    settings = {"model": "lenet-bn", "epochs": 8, "batch_size": 25, "learning_rate": 0.1, "momentum": 0.9}
    train_folds(data=images, count=2, name="folds", threads=1, progress="none", compile="off", image_size=28,
                memory_format="contiguous", save_seconds=0, schedule="one-cycle", **settings)  # fmt: skip
    found = find_suspects("folds")
    planted = {f"{i}.png" for i in wrong.tolist()}
    named = [s.path for s in found.suspects]
    recall, precision = len(planted & set(named)) / 30, len(planted & set(named)) / len(named)
    assert recall >= 0.7, (recall, precision)
    assert precision >= 0.8, (recall, precision)
    assert len(planted & set(named[:20])) >= 18  # sorted by certainty
    assert (found.images, found.out_of_fold) == (600, True)
    true = {f"{i}.png": some.classes[k] for i, k in enumerate(some.labels.tolist())}
    right = [s.predicted == true[s.path] for s in found.suspects if s.path in planted]
    assert sum(right) >= 0.9 * len(right)

    answer = cnnlab("data", "suspects", "folds", "--csv", tmp_path / "s.csv", "--most", 3)
    assert f"{len(named)} suspects among 600 images, out of fold" in answer.stdout
    with (tmp_path / "s.csv").open(encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == named
    assert "exists" in one_line_error(cnnlab("data", "suspects", "folds", "--csv", tmp_path / "s.csv"))

    # A single fold judges only the images that it held out, and says so.
    alone = find_suspects("folds/fold-1", data=images, threads=1)
    assert (alone.images, alone.out_of_fold) == (300, False)
    assert "--folds" in alone.to_text()
    assert len(set(named) & {s.path for s in alone.suspects}) >= 10
    assert "data=" in one_line_error(cnnlab("data", "suspects", "folds/fold-1"))

    table = Path("runs/folds/out_of_fold.csv")
    content = table.read_text(encoding="utf-8")
    for damaged in (content.replace("p_3", "p_33", 1), content.replace(".png,", ".png,x", 1), content.split("\n")[0],
                    content[:-20], content.replace(",0.", ",nan0.", 1), ""):  # fmt: skip
        table.write_text(damaged, encoding="utf-8")
        assert "out_of_fold.csv" in one_line_error(cnnlab("data", "suspects", "folds"))
    table.unlink()
    with pytest.raises(CnnlabError, match="--resume"):
        find_suspects("folds")
