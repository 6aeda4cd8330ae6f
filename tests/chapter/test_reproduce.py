"""`cnnlab reproduce`: the chapter's table, on few images."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from cnnlab.chapter import reproduce as reproduction
from cnnlab.chapter.experiments import EXPERIMENTS
from cnnlab.chapter.reproduce import Plan, reproduce, resume_reproduction
from cnnlab.device.hardware import available_cores
from cnnlab.io.errors import CnnlabError, TrainingInterrupted
from cnnlab.recipes import RECIPES
from cnnlab.training import train as training
from cnnlab.training.runs import open_run
from conftest import Command, one_line_error

pytestmark = pytest.mark.usefixtures("no_curves")
SMALL = {"limit": 300, "epochs": 1, "progress": "none", "threads": min(2, available_cores())}


def test_the_nine_experiments_are_the_manuals() -> None:
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
        assert (recipe.init, recipe.normalize) == ("xavier-uniform", False)
        assert (recipe.eval_split, recipe.val_fraction) == ("test", 0)


def test_limited_rows_say_so_and_all_runs_are_saved(fashion_folder: Path) -> None:
    plans: list[Plan] = []

    def confirm(plan: Plan) -> bool:
        plans.append(plan)
        return True

    found = reproduce(["lenet-bn-scratch", "lenet"], seeds=2, confirm=confirm, data_dir=fashion_folder, **SMALL)
    assert found is not None
    assert [row["name"] for row in found.rows] == ["lenet", "lenet-bn-scratch"]  # in the chapter's order
    (plan,) = plans
    assert plan.total == sum(plan.seconds.values()) > 0
    for row in found.rows:
        assert row["limited"] == "1 of 10 epochs, 300 training and 300 test images"
        assert row["images"] == {"train": 300, "test": 300}
        assert row["loss"]["n"] == 2
        runs = [open_run(found.path / row["name"] / f"seed-{seed}") for seed in (0, 1)]
        for key in ("loss", "train_acc", "test_acc"):  # the mean is that of the runs on the disk
            values = [run.metrics()[-1][key] for run in runs]
            assert row[key]["mean"] == pytest.approx(sum(values) / 2)
        assert runs[0].recipe.limit == 300
    scratch = found.rows[1]
    assert len(scratch["gamma"]) == len(scratch["beta"]) == 6
    assert json.loads((found.path / "results.json").read_text())["rows"] == found.rows
    table = (found.path / "table.md").read_text()
    assert "| LeNet + batch norm, from scratch | 1 of 10 epochs, 300 training and 300 test images, 2 seeds |" in table
    assert "| | | printed | 0.267 | 0.900 | 0.860 | 40,878 | |" in table
    # Resuming a finished reproduction trains nothing.
    before = (found.path / "lenet" / "seed-0" / "last.safetensors").stat().st_mtime_ns
    again = resume_reproduction(found.path, progress="none")
    assert again.rows == found.rows
    assert (found.path / "lenet" / "seed-0" / "last.safetensors").stat().st_mtime_ns == before


def test_a_limited_set_is_the_same_share_of_each_class(fashion_folder: Path) -> None:
    from cnnlab.data import SourceOptions
    from cnnlab.data.splits import load_splits

    recipe = RECIPES["manual/lenet"].changed(limit=205)
    train, test = load_splits(recipe, SourceOptions(data_dir=fashion_folder))
    for images in (train, test):
        assert len(images) == 205
        counts = images.labels.bincount().tolist()
        assert len(counts) == 10
        assert max(counts) - min(counts) <= 1
    again, _ = load_splits(recipe, SourceOptions(data_dir=fashion_folder))
    assert again.fingerprint() == train.fingerprint()
    other, _ = load_splits(recipe.changed(split_seed=1), SourceOptions(data_dir=fashion_folder))
    assert other.fingerprint() != train.fingerprint()


def test_a_refused_plan_trains_and_writes_nothing(fashion_folder: Path, tmp_path: Path) -> None:
    assert reproduce(["lenet"], confirm=lambda _: False, data_dir=fashion_folder, **SMALL) is None
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_reproduction_resumes(fashion_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.train_seeds

    def stops(recipe, *args, **kwargs):  # type: ignore[no-untyped-def]
        if recipe.model == "lenet-bn":
            raise TrainingInterrupted("stopped")
        return real(recipe, *args, **kwargs)

    monkeypatch.setattr(training, "train_seeds", stops)
    with pytest.raises(
        TrainingInterrupted, match=r"stopped at lenet-bn, 2 of 2 .* cnnlab reproduce --resume runs/mine"
    ):
        reproduce(["lenet", "lenet-bn"], name="mine", data_dir=fashion_folder, **SMALL)
    assert len(json.loads(Path("runs/mine/results.json").read_text())["rows"]) == 1
    monkeypatch.setattr(training, "train_seeds", real)
    found = resume_reproduction("mine", progress="none")
    whole = reproduce(["lenet", "lenet-bn"], name="whole", data_dir=fashion_folder, **SMALL)
    assert whole is not None
    for row, other in zip(found.rows, whole.rows, strict=True):
        assert row["loss"] == other["loss"]
        assert row["test_acc"] == other["test_acc"]


def test_an_experiment_that_fails_does_not_stop_the_others(
    fashion_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.train_seeds

    def fails(recipe, *args, **kwargs):  # type: ignore[no-untyped-def]
        if recipe.model == "lenet":
            raise CnnlabError("the loss became nan")
        return real(recipe, *args, **kwargs)

    monkeypatch.setattr(training, "train_seeds", fails)
    found = reproduce(["lenet", "lenet-bn"], data_dir=fashion_folder, **SMALL)
    assert found is not None
    assert found.rows[0]["failed"] == "the loss became nan"
    assert "loss" in found.rows[1]
    assert "failed: the loss became nan" in (found.path / "table.md").read_text()


def test_the_command(cnnlab: Command, fashion_folder: Path) -> None:
    options = ("--limit", 200, "--epochs", 1, "--data-dir", fashion_folder)
    refused = cnnlab("reproduce", "lenet-bn", *options)  # the plan, then an error: there is no terminal
    assert refused.returncode == 2
    assert "--yes" in refused.stderr.splitlines()[-1]
    answer = cnnlab("reproduce", "lenet-bn", *options, "--yes")
    assert answer.returncode == 0, answer.stderr
    assert "in all on this machine" in answer.stderr
    assert "LeNet + batch norm, framework layer was limited: 1 of 10 epochs" in answer.stdout
    assert "in full" not in answer.stdout
    assert "first layer's gamma" in answer.stdout
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert ["printed", "0.263", "0.902", "0.862", "71,481"] in lines
    again = cnnlab("reproduce", "--resume", "reproduce-001", "--json")
    assert json.loads(again.stdout)["rows"][0]["name"] == "lenet-bn"


def test_a_bad_resume_loses_nothing(cnnlab: Command, fashion_folder: Path, tmp_path: Path) -> None:
    reproduce(["lenet"], name="one", data_dir=fashion_folder, **{**SMALL, "threads": 1})  # type: ignore[arg-type]
    before = {p: p.read_bytes() for p in Path("runs/one").rglob("*") if p.is_file()}
    for options in (["--threads", "99"], ["--threads", "-1"], ["--device", "gpu"], ["--progress", "much"]):
        one_line_error(cnnlab("reproduce", "--resume", "one", *options))
    answer = cnnlab("reproduce", "--resume", "one", "--data-dir", tmp_path / "nothing")  # nothing is left to train
    assert answer.returncode == 0, answer.stderr
    assert {p: p.read_bytes() for p in Path("runs/one").rglob("*") if p.is_file()} == before
    sessions = json.loads(Path("runs/one/lenet/seed-0/environment.json").read_text())["sessions"]
    assert [s["threads"] for s in sessions] == [1]
    assert "one" in cnnlab("runs").stdout  # its runs are listed with the others
    assert "cnnlab reproduce --resume runs/one" in one_line_error(cnnlab("reproduce", "--name", "one"))


def test_a_resume_keeps_the_number_of_threads(fashion_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnlab.training import loop

    real = loop.train_step
    calls = 0

    def stops(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls > 4:  # in the third epoch of the first seed
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(reproduction, "_seconds_per_image", lambda recipe, device, threads: 1.0)
    monkeypatch.setattr(loop, "train_step", stops)
    with pytest.raises(TrainingInterrupted):
        reproduce(["lenet"], seeds=2, name="one", data_dir=fashion_folder, **{**SMALL, "threads": 1, "epochs": 4})  # type: ignore[arg-type]
    monkeypatch.setattr(loop, "train_step", real)
    resume_reproduction("one", progress="none")
    for seed in (0, 1):
        sessions = json.loads(Path(f"runs/one/lenet/seed-{seed}/environment.json").read_text())["sessions"]
        assert {s["threads"] for s in sessions} == {1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lenett"], "unknown experiment 'lenett'; did you mean lenet"),
        (["--seeds", "0"], "seeds=0"),
        (["--epochs", "0"], "epochs=0"),
        (["--limit", "-1"], "limit=-1"),
        (["--resume", "nowhere"], "nowhere has no reproduction.json"),
        (["--resume", "x", "--seeds", "2"], "leave out"),
    ],
)
def test_bad_input_is_one_line(cnnlab: Command, arguments: list[str], says: str) -> None:
    assert says in one_line_error(cnnlab("reproduce", *arguments))


def test_a_damaged_plan_is_named(cnnlab: Command, tmp_path: Path) -> None:
    for content in (
        "{",
        "{}",
        '{"format": "cnnlab reproduction 1", "recipes": {"lenet": {}}, "seeds": 1, "data_dir": ""}',
    ):
        (tmp_path / "runs" / "r").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "r" / "reproduction.json").write_text(content)
        assert "reproduction.json is damaged" in one_line_error(cnnlab("reproduce", "--resume", "r"))


def test_the_estimate_counts_what_will_be_done(fashion_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduction, "_seconds_per_image", lambda recipe, device, threads: 1.5)

    def total(*names: str, **changes: int) -> float:
        plans: list[Plan] = []
        reproduce(names, confirm=lambda p: bool(plans.append(p)), data_dir=fashion_folder, **changes)  # type: ignore[arg-type,func-returns-value]
        return plans[0].total

    assert total("lenet") == 10 * (60_000 * 1.5 + 10_000 * 0.5)
    assert total("lenet", "nin", epochs=3, limit=20_000, seeds=4) == 2 * 4 * 3 * (20_000 * 1.5 + 10_000 * 0.5)


def test_named_experiments_are_in_the_help(cnnlab: Command) -> None:
    text = cnnlab("reproduce", "--help").stdout
    words = set(re.findall(r"[\w-]+", text))
    assert EXPERIMENTS.keys() <= words
    assert EXPERIMENTS.keys() == {r.removeprefix("manual/") for r in RECIPES if RECIPES[r].eval_split == "test"}


def test_the_classical_baseline_is_a_row_of_the_same_table(cnnlab: Command, fashion_folder: Path) -> None:
    options = ("--limit", 200, "--epochs", 1, "--data-dir", fashion_folder, "--yes")
    answer = cnnlab("reproduce", "hog-linear", "lenet", *options)
    assert answer.returncode == 0, answer.stderr
    assert "not estimated" in answer.stderr
    classical, network = json.loads(Path("runs/reproduce-001/results.json").read_text())["rows"]
    assert classical["name"] == "hog-linear"
    assert classical["test_acc"]["mean"] > network["test_acc"]["mean"]  # one epoch of 200 images teaches LeNet nothing
    assert classical["limited"] == "200 training and 200 test images"
    assert [line.split("  ")[0] for line in answer.stdout.splitlines()[1:3]] == ["HOG, linear SVM", "LeNet"]
    assert (
        "| start | HOG, linear SVM | 200 training and 200 test images, 1 seed |  |"
        in Path("runs/reproduce-001/table.md").read_text()
    )
    file = Path("runs/reproduce-001/hog-linear.json")
    file.write_text("{}")
    assert cnnlab("reproduce", "--resume", "reproduce-001").returncode == 0  # its row is already there
    Path("runs/reproduce-001/results.json").unlink()
    again = cnnlab("reproduce", "--resume", "reproduce-001")
    assert again.returncode == 1
    assert "hog-linear.json is damaged" in again.stdout


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["n", "y"])
def test_a_terminal_is_asked_for_confirmation(
    answer: str, cnnlab: Command, fashion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    result = cnnlab("reproduce", "lenet", "--limit", 200, "--epochs", 1, "--data-dir", fashion_folder)
    trained = answer == "y"
    assert result.returncode == 0, result.stderr
    assert "[y/N]" in result.stderr
    assert ("printed" in result.stdout) == (tmp_path / "runs").exists() == trained
    assert trained or result.stdout.strip() == "nothing was trained"
