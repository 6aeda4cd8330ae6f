"""`cnnlab reproduce`: the chapter's table, on few images."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cnnlab.chapter import reproduce as reproduction
from cnnlab.chapter.experiments import EXPERIMENTS
from cnnlab.chapter.reproduce import Plan, Reproduction, reproduce, resume_reproduction
from cnnlab.data import SourceOptions, load_images
from cnnlab.data.splits import load_splits
from cnnlab.io.errors import CnnlabError, TrainingInterrupted
from cnnlab.recipes import RECIPES
from cnnlab.training import loop
from cnnlab.training import train_series as training
from cnnlab.training.runs import open_run
from conftest import Command, one_line_error

SMALL = {"limit": 300, "epochs": 1, "progress": "none", "threads": 1}
TWO = ["lenet", "lenet-bn-scratch"]
LIMITED = "1 of 10 epochs, 300 training and 300 test images"


@pytest.fixture(scope="module")
def quick(fashion_folder: Path) -> Iterator[None]:
    """Read Fashion-MNIST once for all tests, and keep 600 images of each split."""
    options = SourceOptions(data_dir=fashion_folder)
    few = {s: load_images("fashion-mnist", s, options).take(torch.arange(600)) for s in ("train", "test")}  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnnlab.chapter.classical.classifiers._PASSES", (10, 10))
        for module in ("chapter.reproduce", "chapter.classical", "data.splits"):
            patch.setattr(f"cnnlab.{module}.load_images", lambda source, split, options: few.get(split))
        yield


@pytest.fixture
def no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduction, "_seconds_per_image", lambda recipe, device, threads: 1.5)


@pytest.fixture(scope="module")
def finished(quick: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Reproduction]:
    """A reproduction of two networks with two seeds. No test may change it."""
    plans: list[Plan] = []
    done = reproduce(
        list(reversed(TWO)), seeds=2, confirm=lambda plan: plans.append(plan) or True,  # type: ignore[func-returns-value]
        runs_dir=tmp_path_factory.mktemp("runs"), **SMALL,  # type: ignore[arg-type]
    )  # fmt: skip
    assert done is not None
    return plans[0], done


def test_the_nine_experiments_match_the_manual() -> None:
    assert len(EXPERIMENTS) == 9
    printed = {
        "alexnet": (0.01, 128, 224), "vgg11": (0.05, 128, 224), "nin": (0.1, 128, 224), "lenet-bn-scratch": (1.0, 256, 0),
        "lenet-bn": (1.0, 256, 0), "resnet18": (0.05, 256, 96), "lenet": (0.9, 256, 0), "googlenet": (0.1, 128, 96),
        "densenet": (0.1, 256, 96),
    }  # fmt: skip
    for name, experiment in EXPERIMENTS.items():
        recipe = RECIPES[experiment.recipe]
        assert (recipe.learning_rate, recipe.batch_size, recipe.image_size) == printed[name]
        assert (recipe.epochs, recipe.optimizer, recipe.momentum, recipe.schedule) == (10, "sgd", 0, "constant")
        assert (recipe.init, recipe.normalize, recipe.label_smoothing) == ("xavier-uniform", False, 0)
        assert (recipe.weight_decay, recipe.flip, recipe.shift) == (0, False, 0)
        assert (recipe.eval_split, recipe.val_fraction) == ("test", 0)


def test_rows_state_their_limits_and_every_run_is_saved(finished: tuple[Plan, Reproduction]) -> None:
    plan, done = finished
    assert plan.total == sum(plan.seconds.values()) > 0
    assert [row["name"] for row in done.rows] == TWO  # in the chapter's order
    for row in done.rows:
        assert row["limited"] == LIMITED
        assert row["images"] == {"train": 300, "test": 300}
        assert row["loss"]["n"] == 2
        runs = [open_run(done.path / row["name"] / f"seed-{seed}") for seed in (0, 1)]
        for key in ("loss", "train_acc", "test_acc"):  # the mean over the runs on the disk
            assert row[key]["mean"] == pytest.approx(sum(run.metrics()[-1][key] for run in runs) / 2)
        assert runs[0].recipe.limit == 300
    assert len(done.rows[1]["gamma"]) == len(done.rows[1]["beta"]) == 6
    assert json.loads((done.path / "results.json").read_text())["rows"] == done.rows
    table = (done.path / "table.md").read_text()
    assert f"| LeNet + batch norm, from scratch | {LIMITED}, 2 seeds |" in table
    assert "| | | printed | 0.267 | 0.900 | 0.860 | 40,878 | |" in table


@pytest.mark.usefixtures("quick")
def test_a_limited_set_is_stratified() -> None:
    recipe = RECIPES["manual/lenet"].changed(limit=205)
    options = SourceOptions(data_dir=Path("nowhere"))
    parts = load_splits(recipe, options)
    for images, whole in zip(parts, load_splits(recipe.changed(limit=0), options), strict=True):
        assert len(images) == 205
        share = whole.labels.bincount() * 205 / len(whole)
        assert (images.labels.bincount() - share).abs().max() <= 1
    assert load_splits(recipe, options)[0].fingerprint() == parts[0].fingerprint()
    assert load_splits(recipe.changed(split_seed=1), options)[0].fingerprint() != parts[0].fingerprint()


@pytest.mark.usefixtures("quick", "no_estimate")
def test_an_interrupted_reproduction_resumes_to_the_same_figures(
    finished: tuple[Plan, Reproduction], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def stops(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) > 5:  # in the first seed of the second network
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    real = loop.train_step
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stops)
        with pytest.raises(TrainingInterrupted, match="cnnlab reproduce --resume runs/mine"):
            reproduce(TWO, seeds=2, name="mine", **SMALL)  # type: ignore[arg-type]
    assert len(json.loads(Path("runs/mine/results.json").read_text())["rows"]) == 1
    resumed = resume_reproduction("mine", progress="none")
    for row, other in zip(resumed.rows, finished[1].rows, strict=True):
        assert (row["loss"], row["test_acc"]) == (other["loss"], other["test_acc"])
        for seed in (0, 1):
            sessions = json.loads(Path(f"runs/mine/{row['name']}/seed-{seed}/environment.json").read_text())["sessions"]
            assert {session["threads"] for session in sessions} == {1}


@pytest.mark.usefixtures("quick", "no_estimate")
def test_an_experiment_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.train_seeds

    def fails(recipe, *args, **kwargs):  # type: ignore[no-untyped-def]
        if recipe.model == "lenet":
            raise CnnlabError("the loss became nan")
        return real(recipe, *args, **kwargs)

    monkeypatch.setattr(training, "train_seeds", fails)
    done = reproduce(["lenet", "lenet-bn"], **SMALL)  # type: ignore[arg-type]
    assert done is not None
    assert "nan" in done.rows[0]["failed"]
    assert "loss" in done.rows[1]
    assert f"failed: {done.rows[0]['failed']}" in (done.path / "table.md").read_text()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("quick", "no_estimate")
def test_the_command(cnnlab: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ("--limit", 300, "--epochs", 1)
    refused = cnnlab("reproduce", "lenet-bn", *options)  # shows the plan, then fails: there is no terminal to ask
    assert refused.returncode == 2
    assert "--yes" in refused.stderr.splitlines()[-1]
    monkeypatch.setattr(sys, "stdin", Terminal("n\ny\n"))
    declined = cnnlab("reproduce", "lenet-bn", *options)
    assert declined.returncode == 0
    assert "nothing" in declined.stdout
    assert not Path("runs").exists()
    answer = cnnlab("reproduce", "hog-linear", "lenet-bn", *options)
    assert answer.returncode == 0, answer.stderr
    for text in ("in all", "not estimated", "[y/N]"):
        assert text in answer.stderr
    assert "LeNet + batch norm, framework layer was limited: 1 of 10 epochs" in answer.stdout
    assert "as printed" not in answer.stdout
    assert "first layer's gamma" in answer.stdout
    lines = answer.stdout.splitlines()
    assert ["printed", "0.263", "0.902", "0.862", "71,481"] in [line.split() for line in lines]
    assert lines[1].startswith("HOG, linear SVM")
    classical, network = json.loads(Path("runs/reproduce-001/results.json").read_text())["rows"]
    assert classical["limited"] == "300 training and 300 test images"
    assert classical["test_acc"]["mean"] > network["test_acc"]["mean"]  # one epoch teaches LeNet nothing
    assert (
        "| start | HOG, linear SVM | 300 training and 300 test images, 1 seed |  |"
        in Path("runs/reproduce-001/table.md").read_text()
    )


def test_resuming_a_finished_reproduction_changes_nothing(cnnlab: Command, finished: tuple[Plan, Reproduction]) -> None:
    one = Path("runs/one")
    shutil.copytree(finished[1].path, one)
    before = {p: p.read_bytes() for p in one.rglob("*") if p.is_file()}
    for options in (["--threads", "99"], ["--threads", "-1"], ["--device", "gpu"], ["--progress", "much"]):
        one_line_error(cnnlab("reproduce", "--resume", "one", *options))
    answer = cnnlab("reproduce", "--resume", "one", "--data-dir", "nothing", "--json")  # nothing is left to train
    assert json.loads(answer.stdout)["rows"] == finished[1].rows
    assert {p: p.read_bytes() for p in one.rglob("*") if p.is_file()} == before
    assert "one" in cnnlab("runs").stdout  # its runs are listed with the others
    assert "cnnlab reproduce --resume runs/one" in one_line_error(cnnlab("reproduce", "--name", "one"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lenett"], r"'lenett'.*lenet\b"),
        (["--seeds", "0"], "seeds=0"),
        (["--epochs", "0"], "epochs=0"),
        (["--limit", "-1"], "limit=-1"),
        (["--resume", "nowhere"], r"nowhere.*reproduction\.json"),
        (["--resume", "x", "--seeds", "2"], "--resume.*--seeds"),
    ],
)
def test_bad_input_is_one_line(cnnlab: Command, arguments: list[str], says: str) -> None:
    assert re.search(says, one_line_error(cnnlab("reproduce", *arguments)))


def test_a_damaged_plan_is_reported(cnnlab: Command, tmp_path: Path) -> None:
    for content in (
        "{",
        "{}",
        '{"format": "cnnlab reproduction 1", "recipes": {"lenet": {}}, "seeds": 1, "data_dir": ""}',
    ):
        (tmp_path / "runs" / "r").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "r" / "reproduction.json").write_text(content)
        assert one_line_error(cnnlab("reproduce", "--resume", "r")).count("reproduction.json") == 1


@pytest.mark.usefixtures("quick", "no_estimate")
def test_the_estimate_counts_epochs_seeds_and_images() -> None:
    def total_seconds(*names: str, **changes: int) -> float:
        plans: list[Plan] = []
        assert reproduce(names, confirm=lambda p: bool(plans.append(p)), **changes) is None  # type: ignore[arg-type,func-returns-value]
        return plans[0].total

    assert total_seconds("lenet") == 10 * (600 * 1.5 + 600 * 0.5)
    assert total_seconds("lenet", "nin", epochs=3, limit=200, seeds=4) == 2 * 4 * 3 * (200 * 1.5 + 200 * 0.5)
    assert not Path("runs").exists()


def test_named_experiments_are_in_the_help(cnnlab: Command) -> None:
    text = cnnlab("reproduce", "--help").stdout
    words = set(re.findall(r"[\w-]+", text))
    assert EXPERIMENTS.keys() <= words
    assert EXPERIMENTS.keys() == {r.removeprefix("manual/") for r in RECIPES if RECIPES[r].eval_split == "test"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_experiment_trains_on_a_gpu_and_repeats_to_the_bit(fashion_folder: Path) -> None:
    small = {**SMALL, "device": "cuda", "data_dir": fashion_folder}
    one, two = reproduce(**small), reproduce(**small)  # type: ignore[arg-type]
    assert one is not None
    assert two is not None
    for row, other in zip(one.rows, two.rows, strict=True):
        assert "failed" not in row, row["failed"]
        assert row["loss"] == other["loss"]
        files = [r.path / row["name"] / "seed-0" / "last.safetensors" for r in (one, two)]
        assert files[0].read_bytes() == files[1].read_bytes()
