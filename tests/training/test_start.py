"""Starting points of a training: a finished run with more epochs, another run's weights, a network in a file."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from comparing import Interrupt, interrupted
from safetensors.torch import load_file
from torch import nn

import cnnlab
from cnnlab import CnnlabError, ImageSet, Recipe, Run, open_run, resume, train
from cnnlab.io.schema import validation_error
from cnnlab.models import MODELS, build_model
from cnnlab.models.own import builder_source, load_builder
from cnnlab.recipes import RECIPES
from cnnlab.training import loop
from cnnlab.training.series import FROM
from conftest import Command, one_line_error

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels, width=4):
        super().__init__(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))
"""
QUICK = {"epochs": 1, "limit": 64, "save_seconds": 0.0, "schedule": "constant"}


@pytest.mark.parametrize(
    ("origin", "valid"),
    [
        ({"kind": "continued", "run": "a", "epochs": 3}, True),
        ({"kind": "weights", "run": "a", "weights": "best.safetensors"}, True),
        ({"kind": "continued", "run": "a"}, False),
        ({"kind": "weights", "run": "a", "epochs": 3}, False),
        ({"kind": "other", "run": "a", "epochs": 3}, False),
        ({"kind": "weights", "run": "a", "weights": "../../x"}, False),
    ],
)
def test_the_record_of_a_runs_origin_must_be_complete(origin: dict[str, object], valid: bool) -> None:
    assert (validation_error({"from": origin}, {"from?": FROM}) == "") is valid


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one epoch on the digits. No test may change it."""
    folder = tmp_path_factory.mktemp("start")
    return train(model="lenet-bn", runs_dir=folder, name="short", progress="none", **QUICK).run


def test_more_epochs_match_one_longer_training(short: Run) -> None:
    whole = train(model="lenet-bn", runs_dir="runs", name="whole", progress="none", **{**QUICK, "epochs": 2})
    before = {p: p.read_bytes() for p in short.path.rglob("*") if p.is_file()}
    more = resume(short.path, runs_dir="runs", name="more", progress="none", epochs=2)
    assert {p: p.read_bytes() for p in short.path.rglob("*") if p.is_file()} == before
    for name in ("last", "best"):
        a, b = (load_file(r.run.path / f"{name}.safetensors") for r in (whole, more))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert more.run.info["from"] == {"kind": "continued", "run": str(short.path.absolute()), "epochs": 1}
    assert [row["epoch"] for row in more.history] == [1, 2]
    assert "epochs=2" in more.run.recipe.name
    assert resume(more.run.path, progress="none").summary == more.summary  # finished: left as it is


def test_a_continued_run_whose_start_was_killed_starts_from_the_same_state(short: Run, tmp_path: Path) -> None:
    more = resume(short.path, runs_dir="runs", name="more", progress="none", epochs=2)
    killed = tmp_path / "runs" / "killed"
    killed.mkdir()
    for name in ("run.json", "recipe.json"):  # the only files that existed
        shutil.copy(more.run.path / name, killed / name)
    again = resume(killed, progress="none")
    a, b = (load_file(r.run.path / "last.safetensors") for r in (more, again))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_command_trains_a_finished_run_for_more_epochs(short: Run, cnnlab: Command) -> None:
    line = one_line_error(cnnlab("train", "--resume", short.path, "--epochs", 1))
    assert re.search(rf"{short.path}.*\b1 epoch\b", line)
    line = one_line_error(cnnlab("train", "--resume", short.path, "--epochs", 3, "--batch-size", 8))
    assert "batch_size" in line
    assert "--init-from" in line
    answer = cnnlab("train", "--resume", short.path, "--set", "epochs=2", "--lr", 0.01, "--name", "longer")
    assert answer.returncode == 0, answer.stderr
    rows = json.loads(cnnlab("runs", "longer", "--json").stdout)
    assert rows[0]["epochs"] == 2


def test_a_run_that_stopped_early_can_be_trained_further(tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 3}
    early = train(model="lenet-bn", name="early", progress="none", on_epoch=lambda row: False, **settings)
    assert early.summary["stopped"]
    more = resume("early", name="more", progress="none", epochs=4)
    assert more.summary["epochs"] == 4
    assert not more.summary["stopped"]


# Weights of another run


def test_init_from_copies_all_but_the_head_for_other_classes(short: Run, shapes: Path) -> None:
    result = train(
        data=f"folder:{shapes}", init_from=short.path, name="tuned", progress="lines", **{**QUICK, "learning_rate": 0.0}
    )
    assert result.run.recipe.model == "lenet-bn"
    before, after = load_file(short.weights()), load_file(result.run.path / "last.safetensors")
    same = {key for key in before if before[key].shape == after[key].shape and torch.equal(before[key], after[key])}
    weights = {key for key in before if key.endswith("weight") and before[key].ndim > 1}
    first, *others = sorted(weights, key=lambda key: int(key.partition(".")[0]))
    assert first not in same  # the images have three channels
    assert set(others[:-1]) <= same
    assert others[-1] not in same
    assert result.run.info["from"]["weights"] == "best.safetensors"


def test_init_from_leaves_out_the_head_of_a_module_of_ones_own(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = [
        ImageSet(images, torch.arange(40) % 2, [str(i) for i in range(40)], names) for names in (["a", "b"], ["c", "d"])
    ]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2))
    more = {**QUICK, "learning_rate": 0.0, "progress": "none"}
    before = train(net, sets[0], name="before", **more)
    torch.nn.init.zeros_(net[3].weight)
    after = train(net, sets[1], init_from=before.run.path, name="after", **more)
    first, second = (load_file(result.run.path / "last.safetensors") for result in (before, after))
    assert torch.equal(first["1.weight"], second["1.weight"])
    assert first["3.weight"].any()
    assert not second["3.weight"].any()


def test_init_from_copies_everything_for_the_same_classes(short: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(init_from=short, name="again", progress="lines", **{**QUICK, "learning_rate": 0.0})
    before, after = load_file(short.weights()), load_file(result.run.path / "last.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before if "running" not in k and "num_batches" not in k)
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("init: "))
    assert "new" not in said


def test_init_from_reports_what_was_copied_and_refuses_unsuitable_weights(
    short: Run, cnnlab: Command, shapes: Path
) -> None:
    quick = ("--epochs", 1, "--set", "limit=32")
    answer = cnnlab("train", "--init-from", short.path, "--data", f"folder:{shapes}", *quick, "--progress", "lines")
    assert answer.returncode == 0, answer.stderr
    said = next(line for line in answer.stderr.splitlines() if line.startswith("init: "))
    assert str(short.path) in said
    assert "new: " in said
    answer = cnnlab("train", "airbench-small", "--init-from", short.path, *quick)
    assert answer.returncode == 2
    assert re.search(f"{short.path}.*airbench-small", answer.stderr)
    assert "nowhere" in one_line_error(cnnlab("train", "--init-from", "nowhere"))


# Networks in a Python file


def test_a_network_in_a_file_is_trained_evaluated_resumed_and_used(
    cnnlab: Command, shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET)
    data, quick = f"folder:{shapes}", ("--epochs", 1, "--batch-size", 8, "--optimizer", "adamw", "--seed", 3)
    answer = cnnlab("train", "--model", "net.py:Net", "--data", data, "--name", "mine", *quick)
    assert answer.returncode == 0, answer.stderr
    run = cnnlab_run("mine")
    assert (run.recipe.batch_size, run.recipe.optimizer, run.recipe.seed) == (8, "adamw", 3)
    assert cnnlab("eval", "mine", "--model", "net.py:Net").returncode == 0
    line = one_line_error(cnnlab("eval", "mine"))
    assert f"--model {tmp_path / 'net.py'}:Net" in line
    assert cnnlab("predict", "mine", shapes / "dark", "--model", "net.py:Net").returncode == 0
    assert cnnlab("train", "--resume", "mine", "--model", "net.py:Net").returncode == 0
    assert cnnlab("train", "net.py:Net", "--data", data, *quick, "--seeds", 2).returncode == 0


def cnnlab_run(name: str) -> Run:
    return cnnlab.open_run(name)


def test_a_network_added_to_models_names_its_file(
    cnnlab: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "zoo.py").write_text(
        "from cnnlab.models import build_model\ndef mine(**k): return build_model('lenet', **k)\n"
    )
    with monkeypatch.context() as patch:
        patch.setitem(MODELS, "mine", load_builder("zoo.py:mine"))
        train(Recipe(**{**RECIPES["digits"].to_dict(), **QUICK, "model": "mine"}), name="added", progress="none")
    line = one_line_error(cnnlab("eval", "added"))
    assert f"--model {tmp_path / 'zoo.py'}:mine" in line
    assert cnnlab("eval", "added", "--model", "zoo.py:mine").returncode == 0
    assert cnnlab("eval", "added", "--model", "zoo.py:mine", "--split", "val").returncode == 0


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (NET, "net.py:Nett", r"'Nett'.*\bNet\b"),
        (NET, "other.py:Net", r"other\.py"),
        (NET, "net.py:", r"FILE\.py:BUILDER"),
        ("1 / 0", "net.py:Net", "ZeroDivisionError"),
        ("import sys; sys.exit()", "net.py:Net", "SystemExit"),
        ("def Net(: pass", "net.py:Net", "SyntaxError"),
        ("Net = 3", "net.py:Net", "Net"),
    ],
)
def test_a_bad_file_is_one_line(cnnlab: Command, tmp_path: Path, content: str, name: str, message: str) -> None:
    (tmp_path / "net.py").write_text(content)
    assert re.search(message, one_line_error(cnnlab("train", "--model", name)))
    with pytest.raises(CnnlabError):
        build_model(name)


def test_an_interrupted_run_resumes_with_moved_images(shapes: Path, cnnlab: Command) -> None:
    recipe = RECIPES["digits"].changed(data=f"folder:{shapes}", model="lenet", image_size=28, epochs=2, batch_size=8,
                                       save_seconds=0.0)  # fmt: skip
    whole = train(recipe, name="whole", threads=1, progress="none").run
    path = interrupted(recipe, 6, progress="none")
    moved = shapes.rename(shapes.parent / "moved")
    assert "--data" in one_line_error(cnnlab("train", "--resume", path))
    shutil.copytree(moved, "other")
    (Path("other") / "dark" / "00.png").unlink()
    assert cnnlab("train", "--resume", path, "--data", "folder:other").returncode == 2  # other images
    answer = cnnlab("train", "--resume", path, "--data", f"folder:{moved}", "--threads", 1)
    assert answer.returncode == 0, answer.stderr
    for name in ("last", "best"):
        assert (path / f"{name}.safetensors").read_bytes() == (whole.path / f"{name}.safetensors").read_bytes()
    assert json.loads(cnnlab("eval", path, "--split", "val", "--json").stdout)["data"] == f"folder:{moved}"


def test_interrupted_seeds_all_start_from_the_same_weights(short: Run) -> None:
    options = {**QUICK, "epochs": 2, "init_from": short.path, "count": 2, "progress": "none", "threads": 1}
    whole = cnnlab.train_seeds(name="whole", **options)
    with Interrupt(3).patched(loop, "train_step"), pytest.raises(cnnlab.TrainingInterrupted):
        cnnlab.train_seeds(name="cut", **options)
    again = resume("cut", progress="none")
    assert isinstance(again, cnnlab.SeedsResult)
    for a, b in zip(whole.results, again.results, strict=True):
        assert b.run.info["from"]["run"] == str(short.path.absolute())
        assert (a.run.path / "last.safetensors").read_bytes() == (b.run.path / "last.safetensors").read_bytes()


def test_init_from_also_takes_the_runs_network_and_data(short: Run, cnnlab: Command, shapes: Path) -> None:
    first = train(RECIPES["digits"].changed(data=f"folder:{shapes}", model="lenet", image_size=28, epochs=1),
                  name="first", progress="none").run  # fmt: skip
    answer = cnnlab("train", "--init-from", first.path, "--epochs", 1, "--name", "second", "--lr", 0.01)
    assert answer.returncode == 0, answer.stderr
    second = open_run("second")
    for key in ("model", "data", "image_size"):
        assert getattr(second.recipe, key) == getattr(first.recipe, key)
    assert "fits" in one_line_error(cnnlab("train", "nin", "--init-from", first.path, "--name", "none",
                                           "--set", "image_size=67"))  # fmt: skip
    assert not Path("runs/none").exists()


def test_networks_that_a_file_cannot_rebuild_name_no_file() -> None:
    class Net(nn.Linear):
        pass

    assert builder_source(Net(1, 1)) == ""
    assert builder_source(partial(build_model, "lenet")) == ""
    Net.__module__ = "__main__"  # from a script, a console or a notebook
    assert builder_source(Net) == ""
    assert builder_source(build_model).endswith(":build_model")


def test_files_that_build_nothing_are_one_line(cnnlab: Command, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.replace("width=4", "width"))
    assert "FILE.py:BUILDER" in one_line_error(cnnlab("train", "--model", "net.py"))
    (tmp_path / "paths.py").write_text("import sys\nsys.path.insert(0, 'elsewhere')\njoin = str.join\n")
    before = list(sys.path)
    with pytest.raises(CnnlabError, match="Net"):
        load_builder("paths.py:Net")  # str.join has no __module__
    assert sys.path == ["elsewhere", *before]
    sys.path.remove("elsewhere")
    assert "width" in one_line_error(cnnlab("train", "--model", "net.py:Net", "--set", "limit=32"))
    assert "twice" in one_line_error(cnnlab("train", "--epochs", 3, "--set", "epochs=5"))
