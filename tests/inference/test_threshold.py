"""The threshold for "none of these": what it accepts, how it is saved, and how predict and eval use it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cnnlab as lab
from cnnlab import CnnlabError, Run, Threshold, evaluate_run, load_model, set_threshold, train
from cnnlab.inference.suspects import find_suspects
from cnnlab.inference.threshold import choose
from cnnlab.recipes import RECIPES
from cnnlab.training.runs import THRESHOLD
from conftest import Command, one_line_error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = RECIPES["digits"].changed(epochs=1, limit=300, val_fraction=0.3)
    return train(recipe, runs_dir=tmp_path_factory.mktemp("runs"), name="run", progress="none", threads=1).run


@pytest.mark.parametrize("seed", range(6))
def test_a_threshold_matches_a_slow_search(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(40, generator=generator)
    p = (p * 10).round() / 10 if seed % 2 else p  # ties
    correct = torch.rand(40, generator=generator) < p
    for wanted in ("coverage", "precision"):
        for value in (0.5, 0.7, 0.8, 1.0):
            options = []
            for t in sorted({0.0, *p.tolist()}):
                kept = [i for i in range(40) if p[i] >= t]
                right = sum(bool(correct[i]) for i in kept)
                share = len(kept) / 40 if wanted == "coverage" else right / len(kept)
                if share >= value:
                    options.append((len(kept), right))
            if not options:
                with pytest.raises(CnnlabError, match=f"{wanted} {value:g}"):
                    choose(p, correct, wanted, value)
                continue
            expected = min(options) if wanted == "coverage" else max(options)
            threshold, accepted, right = choose(p, correct, wanted, value)
            assert (accepted, right) == expected
            assert int((p.double() >= threshold).sum()) == accepted


def test_predict_and_eval_use_the_threshold(run: Run, cnnlab: Command, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in run.path.glob("*.safetensors")}
    assert load_model(run).threshold == 0
    answer = cnnlab("calibrate", run.path, "--coverage", 0.6, "--json")
    found = json.loads(answer.stdout)
    assert found["coverage"] == found["accepted"] / found["images"] >= 0.6
    low, high = found["intervals"]["precision"]
    assert low <= found["precision"] <= high
    assert {p.name: p.read_bytes() for p in run.path.glob("*.safetensors")} == before

    evaluation = evaluate_run(run, split="validation", threads=1)
    assert evaluation.accepted == (found["accepted"], found["correct"])
    answer = cnnlab("eval", run.path, "--split", "val")
    assert f"{found['images'] - found['accepted']} of {found['images']}; acc {found['precision']:.4f}" in answer.stdout
    assert evaluate_run(run, split="validation", weights="last").threshold == 0

    images = lab.load_images("digits", "test")
    assert images is not None
    for i in range(30):
        Image.fromarray(images.images[i, 0].numpy()).save(tmp_path / f"{i:02d}.png")
    rows = list(csv.DictReader(io.StringIO(cnnlab("predict", run.path, tmp_path, "--format", "csv").stdout)))
    expected = [float(row["probability_1"]) < found["threshold"] for row in rows]
    assert [row["none_of_these"] == "true" for row in rows] == expected
    assert {True, False} == set(expected)
    plain = json.loads(cnnlab("predict", run.path, tmp_path, "--format", "json").stdout)
    assert [row["none_of_these"] for row in plain] == expected
    lines = cnnlab("predict", run.path, tmp_path, "--top", 1).stdout.splitlines()[1:]
    assert [f"none of these ({row['label_1']} " in line for row, line in zip(rows, lines, strict=True)] == expected
    assert load_model(run).predict(tmp_path).none_of_these == expected

    assert set_threshold(run, coverage=1, threads=1).threshold == 0
    assert not any(load_model(run).predict(tmp_path).none_of_these)


def test_invalid_choices_leave_the_threshold_unchanged(run: Run, cnnlab: Command) -> None:
    chosen = set_threshold(run, precision=0.5)
    assert isinstance(chosen, Threshold)
    assert chosen.precision >= 0.5
    file = run.path / THRESHOLD
    before = file.read_bytes()
    for options in ([], ["--precision", 0.9, "--coverage", 0.9], ["--precision", 0], ["--precision", 1.01],
                    ["--coverage", "nan"], ["--coverage", -1]):  # fmt: skip
        one_line_error(cnnlab("calibrate", run.path, *options))
    with pytest.raises(CnnlabError, match=f"memory:.*{run.path}"):
        set_threshold(run, coverage=0.9, data=(np.zeros((10, 8, 8), np.uint8), np.arange(10)))
    assert file.read_bytes() == before

    file.write_text(json.dumps({**json.loads(before), "threshold": 0.1}))
    assert "cnnlab calibrate" in one_line_error(cnnlab("eval", run.path))
    assert set_threshold(run, precision=0.5, threads=1) == chosen  # the remedy that the error names
    assert file.read_bytes() == before
    file.unlink()
    assert load_model(run).threshold == 0


def test_a_run_without_validation_images_has_no_threshold(cnnlab: Command) -> None:
    train(RECIPES["digits"].changed(epochs=1, limit=64, eval_split="test"), name="run", progress="none")
    assert "eval_split=validation" in one_line_error(cnnlab("calibrate", "run", "--coverage", 0.9))
    with pytest.raises(CnnlabError, match="eval_split=validation"):
        find_suspects("run")
