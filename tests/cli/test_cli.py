"""The command as a new user runs it, with good input and bad."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import cnnlab as package
from conftest import Command, one_line_error

FAST = ("--set", "epochs=2", "--set", "limit=256")


@pytest.fixture(scope="module")
def run(cnnlab: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run. No test may change it."""
    folder = tmp_path_factory.mktemp("cli")
    answer = cnnlab("train", "--name", "small", *FAST, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return folder / "runs" / "small"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of `run`, for tests that damage it."""
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


# Good input


@pytest.mark.slow
def test_train_without_arguments(installed: Command, cnnlab: Command, tmp_path: Path) -> None:
    answer = installed("train")
    assert answer.returncode == 0, answer.stderr
    said = answer.stderr.splitlines()  # plain lines: this is no terminal
    for start in ("data: 1,151 train, 287 validation", "classes", "network: lenet-bn, ", "recipe: digits; ", "run: "):
        assert any(line.startswith(start) for line in said), start
    assert [line.split()[1] for line in said if line.startswith("epoch")] == [f"{i}/30" for i in range(1, 31)]
    lines = answer.stdout.splitlines()
    assert lines[0].startswith("loss ")
    assert float(lines[0].split("val acc ")[1]) > 0.98
    assert lines[1].endswith(" images/s on cpu, wall-clock including data")
    assert (tmp_path / "runs/digits-lenet-bn-001/curves.png").exists()
    answer = cnnlab("eval", "digits-lenet-bn-001")
    assert float(answer.stdout.split()[2]) > 0.97
    assert "1 time" in answer.stdout


def test_python_m_cnnlab_runs_the_command() -> None:
    answer = subprocess.run([sys.executable, "-m", "cnnlab", "--version"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, f"cnnlab {package.__version__}\n")


@pytest.mark.parametrize("command", ["", "train", "eval", "predict", "runs", "list"])
def test_help(cnnlab: Command, command: str) -> None:
    answer = cnnlab(*command.split(), "--help")
    assert answer.returncode == 0
    assert "Usage" in answer.stdout


@pytest.mark.parametrize("group", ["kaggle", "data"])
def test_a_group_without_a_command_prints_its_help(group: str, cnnlab: Command) -> None:
    answer = cnnlab(group)
    assert answer.returncode == 2
    assert "Usage" in answer.stdout
    assert f"cnnlab {group} [OPTIONS]" in answer.stdout
    assert not answer.stderr


def test_list(cnnlab: Command) -> None:
    data = json.loads(cnnlab("list", "--json").stdout)
    assert set(data["models"]) == {*package.MODELS, "timm:NAME", "torchvision:NAME"}
    assert data["models"]["resnet18-manual"].startswith("ResNet-18 as in the manual")
    assert set(data["recipes"]) == set(package.RECIPES)
    assert {"digits", "fashion-mnist", "mnist", "folder:PATH", "csv:FILE", "store:PATH"} <= set(data["data"])
    assert all(line for things in data.values() for line in things.values())
    text = cnnlab("list").stdout
    assert all(name in text for things in data.values() for name in things)
    assert "manual/lenet-bn" in cnnlab("list", "recipes").stdout
    assert re.search(r"'modles'.*models\b", one_line_error(cnnlab("list", "modles")))


def test_progress_is_printed_as_lines_for_a_log_file(cnnlab: Command) -> None:
    answer = cnnlab("train", *FAST, "--progress", "lines")
    lines = answer.stderr.splitlines()
    assert lines[0].startswith("data: 256 train")
    assert [line[:9] for line in lines[-2:]] == ["epoch 1/2", "epoch 2/2"]


def test_eval(cnnlab: Command, copy: Path) -> None:
    for split in ("validation", "train", "test"):
        assert cnnlab("eval", copy, "--split", split).stdout.startswith(f"{split} acc ")
    data = json.loads(cnnlab("eval", copy, "--json").stdout)
    assert data["split"] == "test"
    assert data["images"] == sum(map(sum, data["confusion"])) == 359
    assert len((copy / "evaluations.jsonl").read_text().splitlines()) == 4


def test_predict(cnnlab: Command, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[bold]photos, and more"
    folder.mkdir()
    for i in range(3):
        Image.new("L", (30, 20), 80 * i).save(folder / f"{i}.png")
    table = cnnlab("predict", run, folder).stdout.splitlines()
    assert table[0].split() == ["image", "1.", "2.", "3."]
    assert "/0.png  " in table[1]
    rows = list(csv.DictReader(io.StringIO(cnnlab("predict", run, folder, "--format", "csv", "--top", 1).stdout)))
    assert [row["image"] for row in rows] == [str(folder / f"{i}.png") for i in range(3)]
    data = json.loads(cnnlab("predict", run, folder / "1.png", folder, "--format", "json", "--top", 99).stdout)
    assert len(data) == 4
    for image in data:
        probabilities = [t["probability"] for t in image["top"]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
        assert {t["label"] for t in image["top"]} == set("0123456789")


def test_runs_lists_and_compares(cnnlab: Command, tmp_path: Path) -> None:
    assert "no runs" in cnnlab("runs").stdout
    cnnlab("train", "--name", "one", *FAST)
    cnnlab("train", "lenet", "--name", "two", *FAST, "--set", "learning_rate=0.1")
    cnnlab("train", "--name", "many", *FAST, "--seeds", 2)
    (tmp_path / "runs" / "notes").mkdir()
    lines = cnnlab("runs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "run",
        "many/seed-0",
        "many/seed-1",
        "one",
        "two",
    ]
    text = cnnlab("runs", "one", "two", "--plot", "both.png").stdout
    for word in ("setting that differs", "model", "lenet", "learning_rate", "0.1", "0.2"):
        assert word in text
    assert "momentum" not in text
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(cnnlab("runs", "--json").stdout)
    assert [row["seed"] for row in rows] == [0, 1, 0, 0]


def test_a_folder_of_images_works_end_to_end(cnnlab: Command, shapes: Path) -> None:
    (shapes / "dark" / "bad.png").write_bytes(b"")
    answer = cnnlab("train", "--data", f"folder:{shapes}", "--skip-bad", *FAST, "--name", "own")
    assert answer.returncode == 0, answer.stderr
    assert "1 damaged image" in answer.stdout
    assert "bad.png" in json.loads(Path("runs/own/run.json").read_text())["data"]["skipped"][0]
    answer = cnnlab("eval", "own")  # skips what the training skipped, and says so
    assert answer.stdout.startswith("validation acc")
    assert "bad.png" in answer.stdout
    assert cnnlab("predict", "own", shapes / "dark" / "00.png").returncode == 0


# Bad input: one line, exit code 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "lenett"], r"'lenett'.*lenet\b"),
        (["train", "--data", "digit"], r"'digit'.*digits\b"),
        (["train", "--set", "lr=1"], "'lr'.*learning_rate"),
        (["train", "--set", "image_size=8"], "lenet-bn: .*16x16.*8x8"),
        (["train", "--seeds", "0"], "seeds=0.*1 and 100,000"),
        (["train", "--seeds", "x"], "--seeds"),
        (["train", "--device", "gpu"], "'gpu'"),
        (["train", "--device", "cuda:99"], "'cuda:99'.*--device"),
        (["train", "--threads", "0"], "threads=0"),
        (["train", "--data", "folder:"], "folder:PATH"),
        (["train", "--data", "folder:~nobody-of-this-name/x"], "~nobody-of-this-name/x.*home directory"),
        (["train", "--set", "shift=28"], r"shift=28\b.*\b28 pixels"),
        (["train", "--seeds", "2", "--set", "seed=2147483647"], "seed=2147483648.*0 and 2147483647"),
        (["train", "--device", "cpu:7"], "'cpu:7'"),
        (["train", "--progress", "dots"], "'dots'"),
        (["train", "--name", "../x"], r"'\.\./x'"),
        (["train", "--epochs", "x"], "--epochs"),
        (["train", "--epochs", "0"], "epochs=0"),
        (["train", "--batch-size", "0"], "batch_size=0"),
        (["train", "--lr", "-1"], "learning_rate=-1"),
        (["train", "--optimizer", "adam"], "optimizer='adam'"),
        (["train", "--seed", "-1"], "seed=-1"),
        (["train", "--data", "folder:nowhere"], r"folder:\S*nowhere"),
        (["train", "--resume", "nowhere"], "nowhere.*`cnnlab runs`"),
        (["train", "lenet", "--resume", "x"], "--resume.*MODEL"),
        (["eval", "nowhere"], "nowhere.*`cnnlab runs`"),
        (["eval"], "RUN"),
        (["predict", "nowhere", "x.png"], "nowhere.*`cnnlab runs`"),
        (["runs", "nowhere"], "nowhere.*`cnnlab runs`"),
        (["trian"], "trian"),
        (["--wrong"], "--wrong"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(cnnlab: Command, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert re.search(message, one_line_error(cnnlab(*arguments)))
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing incomplete is left


def test_bad_image_folders_are_one_line(cnnlab: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert re.search("empty .*no images", one_line_error(cnnlab("train", "--data", "folder:empty")))
    (tmp_path / "one" / "cats").mkdir(parents=True)
    Image.new("L", (28, 28)).save(tmp_path / "one" / "cats" / "1.png")
    assert "(cats)" in one_line_error(cnnlab("train", "--data", "folder:one"))
    (tmp_path / "one" / "dogs").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "one" / "dogs" / "1.png")
    assert re.search("/one .*validation", one_line_error(cnnlab("train", "--data", "folder:one")))
    (tmp_path / "one" / "dogs" / "2.png").write_bytes(b"damaged")
    line = one_line_error(cnnlab("train", "--data", "folder:one"))
    assert "dogs/2.png" in line
    assert "--skip-bad" in line
    assert not (tmp_path / "runs").exists()


def test_bad_run_folders_are_one_line(cnnlab: Command, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for command in ("eval", "predict", "runs"):
        extra = ["x.png"] if command == "predict" else []
        assert "run.json" in one_line_error(cnnlab(command, "other", *extra))
    assert "run.json" in one_line_error(cnnlab("train", "--resume", "other"))
    (tmp_path / "file").write_text("x")
    assert re.search(r"\bfile\b.*\bfile\b.*`cnnlab runs`", one_line_error(cnnlab("eval", "file")))
    assert re.search(r"'bst'.*best\b", one_line_error(cnnlab("eval", copy, "--weights", "bst")))
    assert re.search(r"'tset'.*test\b", one_line_error(cnnlab("eval", copy, "--split", "tset")))
    assert "x.png" in one_line_error(cnnlab("predict", copy, "x.png"))
    assert re.search("other .*no images", one_line_error(cnnlab("predict", copy, "other")))
    assert "top=0" in one_line_error(cnnlab("predict", copy, copy / "curves.png", "--top", 0))
    assert "'xml'" in one_line_error(cnnlab("predict", copy, copy / "curves.png", "--format", "xml"))


@pytest.mark.parametrize(
    "file",
    ["run.json", "recipe.json", "best.safetensors", "metrics.jsonl", "environment.json", "summary.json"],
)
@pytest.mark.parametrize("damage", ["noise", "other json", "missing"])
def test_damaged_files_of_a_run_are_named(cnnlab: Command, copy: Path, file: str, damage: str) -> None:
    path = copy / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(os.urandom(500) if damage == "noise" else b"[1, 2]")
    for command in (["eval", copy], ["runs", copy], ["train", "--resume", copy]):
        answer = cnnlab(*command)
        assert "Traceback" not in answer.stderr
        if answer.returncode != 0:
            assert file in one_line_error(answer)
        elif command[0] == "eval":
            assert file in ("metrics.jsonl", "environment.json", "summary.json")  # the files that eval does not need


def test_damaged_weights_are_refused_and_others_offered(cnnlab: Command, copy: Path) -> None:
    path = copy / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    line = one_line_error(cnnlab("predict", copy, copy / "curves.png"))
    assert re.search(f"{path}.*damaged", line)
    assert "weights" in line
    assert cnnlab("predict", copy, copy / "curves.png", "--weights", "last").returncode == 0


def test_unwritable_output_folders_are_named(cnnlab: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert re.search(r"\bfile\b.*--runs-dir", one_line_error(cnnlab("train", "--runs-dir", "file")))
    assert "--runs-dir" in one_line_error(cnnlab("train", "--runs-dir", "file/below"))


def _without_privileges() -> list[str]:
    """Return a command prefix that makes root obey the permission bits; tests in containers run as root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root ignores read-only folders, and setpriv is not there to take that away")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


def test_a_read_only_folder_refuses_training_and_allows_evaluation(copy: Path, tmp_path: Path) -> None:
    command = [*_without_privileges(), str(Path(sys.executable).parent / "cnnlab")]
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    answer = subprocess.run([*command, "train", "--runs-dir", "closed/runs"], capture_output=True, text=True)
    assert "closed/runs" in one_line_error(answer)
    # a read-only run can still be used
    for path in (*copy.rglob("*"), copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    answer = subprocess.run([*command, "eval", str(copy)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "recorded" in answer.stdout
    for path in (copy, closed):
        path.chmod(0o755)


def test_one_damaged_run_does_not_hide_the_others(cnnlab: Command, run: Path, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        shutil.copytree(run, tmp_path / "runs" / name)
    (tmp_path / "runs" / "bad" / "run.json").write_text("{")
    answer = cnnlab("runs")
    assert answer.returncode == 0
    assert "good" in answer.stdout
    assert "runs/bad/run.json" in answer.stderr
    # a folder of the same name in the working directory does not hide a run
    (tmp_path / "good").mkdir()
    assert cnnlab("eval", "good").returncode == 0
    # a torn line in evaluations.jsonl loses only that line
    with (tmp_path / "runs/good/evaluations.jsonl").open("a") as file:
        file.write('{"split": "te')
    assert "2 times" in cnnlab("eval", "good").stdout


def test_a_plot_overwrites_nothing(cnnlab: Command, run: Path, tmp_path: Path) -> None:
    Image.new("L", (5, 5)).save(tmp_path / "mine.png")
    assert "mine.png" in one_line_error(cnnlab("runs", run, "--plot", "mine.png"))
    assert re.search(r"notes\.txt.*\.png", one_line_error(cnnlab("runs", run, "--plot", "notes.txt")))


def test_names_that_a_terminal_cannot_print_cause_no_crash(installed: Command, shapes: Path) -> None:
    odd = shapes.rename(shapes.parent / "猫 $\\foo$ [bold]")
    small = ("--model", "lenet-bn", *FAST)  # the default's fine-tuning takes longer
    answer = installed("train", "--data", f"folder:{odd}", "--name", "odd", *small, env={"PYTHONIOENCODING": "ascii"})
    assert answer.returncode == 0
    assert "bright 16 + 4, dark 16 + 4" in answer.stderr
    broken = os.fsencode(odd / "dark") + b"/caf\xe9.png"
    Path(os.fsdecode(broken)).write_bytes(b"no image")
    line = one_line_error(installed("train", "--data", f"folder:{odd}", env={"PYTHONIOENCODING": "utf-8:strict"}))
    assert "caf\\udce9.png" in line


def test_output_into_a_closed_pipe_prints_no_error(run: Path) -> None:
    for arguments in ("list", "list recipes --json", "--help"):
        command = f"{Path(sys.executable).parent / 'cnnlab'} {arguments} | true"  # `true` exits before the output comes
        answer = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
        assert answer.stderr == ""
        assert answer.returncode == 0
