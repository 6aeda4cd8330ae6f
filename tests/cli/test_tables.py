"""What the commands print of a run: tables within 80 columns, figures of each class, other data, wording."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from cnnlab.chapter.reproduce import Plan
from cnnlab.cli.bench import bench_text
from cnnlab.cli.chapter import plan_text
from cnnlab.cli.evaluate import confusion
from cnnlab.cli.kaggle import overview_text
from cnnlab.competition import Overview
from cnnlab.io.errors import reason
from cnnlab.io.figures import png
from cnnlab.io.tables import Table, shorten, wrap
from cnnlab.io.text import plural
from cnnlab.machine.bench import BenchResult
from cnnlab.recipes import RECIPES
from cnnlab.training.confusion import confusion_figure
from cnnlab.training.evaluate import Evaluation
from conftest import Command, one_line_error, within_80

CLASSES = [f"{k:02d} a class with a very long name, as people give them to folders, 猫猫" for k in range(24)]


def write_images(root: Path, classes: list[str], each: int = 3) -> Path:
    """Write `each` 16-pixel images per class, told apart by their grey level."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(rng.normal(10 * k + 10, 3, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def tables_folder(cnnlab: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of 24 long-named classes and runs on them. No test may change it."""
    folder = tmp_path_factory.mktemp("tables")
    write_images(folder / "images", CLASSES)
    settings = ("--set", "epochs=1", "--set", "limit=48", "--set", "save_seconds=0", "--set", "flip=false")
    for name in ("a-run-with-a-very-long-name-that-somebody-gave-it-and-that-never-ends-or-so-it-seems", "b"):
        answer = cnnlab("train", "--data", "folder:images", "--name", name, *settings, cwd=folder)
        assert answer.returncode == 0, answer.stderr
    handed_in = folder / "handed-in"
    handed_in.mkdir()
    table = "id,label\n" + "".join(f'{i},"{name}"\n' for i, name in enumerate(CLASSES))
    for file in ("labels.csv", "handed-in/a.csv", f"handed-in/{CLASSES[0]}.csv"):
        (folder / file).write_text(table, encoding="utf-8")
    (handed_in / "a student with a long name, Ödön von 猫, final version.csv").write_text("number,species\n1,2\n")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "runs",
        "runs b a-run-with-a-very-long-name-that-somebody-gave-it-and-that-never-ends-or-so-it-seems",
        "runs b",
        "list",
        "list models",
        "list settings",
        "show resnet18-small --depth 0",
        "show googlenet --depth 2",
        "predict b images --top 5",
        "data verify folder:images",
        "lessons list",
        "lessons list --language zh",
        "grade handed-in --labels labels.csv",
        "kaggle score handed-in/a.csv --labels labels.csv",
        "eval b --split val",
    ],
)
def test_a_table_fits_80_columns(cnnlab: Command, tables_folder: Path, command: str) -> None:
    answer = cnnlab(*command.split(), cwd=tables_folder)
    assert answer.returncode == 0, answer.stderr
    within_80(answer.stdout)


def test_the_full_reason_for_refusing_a_submission_is_shown(cnnlab: Command, tables_folder: Path) -> None:
    answer = cnnlab("grade", "handed-in", "--labels", "labels.csv", cwd=tables_folder)
    assert re.search("'id'.*'number', 'species'", " ".join(answer.stdout.split()))


def test_texts_of_results_fit_80_columns() -> None:
    """The longest texts of commands that would take too long here."""
    within_80(overview_text(Overview(Any, dict.fromkeys(CLASSES, 5000), (0.5,) * 3, (0.25,) * 3, Path("1.8.png"))))
    row = {"model": "resnet18-manual", "image_size": 224, "batch_size": 1024, "precision": "bfloat16",
           "peak_memory_bytes": 2**37, "images_per_second": 1e6, "examples_per_second": 1e6, "fraction_of_peak": 0.5,
           "compile": "max-autotune-no-cudagraphs", "first_step_seconds": 100}  # fmt: skip
    peak = {"by": "conv", "flops_per_second": 1e15, "size": 16384, "threads": 128}
    reached = {"recipe": "speed/fashion-94", "epochs": 12, "split": "validation", "accuracy": 0.9, "seconds": 1234.5}
    about = {"device_name": "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "cores": 128,
             "memory_gib": 1000, "versions": {"torch": "2.14.1+cu130"}}  # fmt: skip
    failed = {**row, "failed": "out of memory with batches of 1024; a long reason " * 3}
    found = BenchResult(
        about, "random", {"bfloat16": peak}, [row, failed], [reached], ["fashion-mnist: " + "why " * 40]
    )
    within_80(bench_text(found))
    recipes = {name: RECIPES["manual/lenet-bn-scratch"].changed(limit=1000) for name in ("lenet-bn-scratch", "vgg11")}
    within_80(plan_text(Plan(recipes, 3, dict.fromkeys(recipes, 5e4), ("sift-kernel",), 1000)))


def test_wrapping_keeps_leading_spaces() -> None:
    assert wrap("  note: " + "word " * 20, 4, 40).startswith("  note: word")
    assert "".join(wrap("猫words", 40, 40).split()) == "猫words"  # no room for even one word


def test_the_list_of_runs_is_short_and_shows_the_test_accuracy(
    cnnlab: Command, tables_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tables_folder / "runs" / "b", tmp_path / "runs" / "b")
    row = json.loads(cnnlab("runs", "--json").stdout)[0]
    assert row["test_acc"] is None
    write_images(tmp_path / "parts" / "train", CLASSES)
    write_images(tmp_path / "parts" / "test", CLASSES, each=1)
    assert cnnlab("eval", "b", "--data", f"folder:{tmp_path / 'parts'}").returncode == 0
    row = json.loads(cnnlab("runs", "--json").stdout)[0]
    assert row["test_acc"] is not None  # the run's own images, now with a test set
    write_images(tmp_path / "others" / "test", CLASSES[:2])
    for others in (tmp_path / "others", tmp_path / "others" / "test"):
        assert cnnlab("eval", "b", "--data", f"folder:{others}").returncode == 0
    assert json.loads(cnnlab("runs", "--json").stdout)[0]["test_acc"] == row["test_acc"]  # other images do not count
    text = cnnlab("runs").stdout
    assert "+4 changes" in text or "+3 changes" in text
    assert text.splitlines()[1].split()[0] == "b"
    details = cnnlab("runs", "b").stdout
    assert "limit=48" in details


def test_a_wide_terminal_gets_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("name", "value")
    table.add_row("x" * 100, "1")
    assert "..." in str(table)
    monkeypatch.setenv("COLUMNS", "200")
    assert "x" * 100 in str(table)


@pytest.mark.parametrize("columns", [2, 9, 30, 101])
@pytest.mark.parametrize("name", ["x", "a long name of a class or a run " * 4, "猫" * 60, "a\nb\x1b[31m"])
def test_a_table_always_fits(columns: int, name: str) -> None:
    table = Table(name, *(f"column {i}" for i in range(columns - 1)))
    for _ in range(3):
        table.add_row(*[name] * columns)
    within_80(str(table))
    within_80(wrap(f"{name} {name} {name}".replace("\n", " "), 12))


def test_shorten_keeps_both_ends() -> None:
    assert shorten("abc", 3) == "abc"
    short = shorten("/home/somebody/photos/2024/first.png", 20)
    assert len(short) <= 20
    assert short.startswith("/home")
    assert short.endswith("st.png")


# Figures of each class


def test_per_class_figures_match_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for k, never in ((2, ()), (7, (3,)), (30, (0, 29))):
        true = rng.integers(0, k, 500)
        guessed = np.where(rng.random(500) < 0.6, true, rng.integers(0, k, 500))
        guessed[np.isin(guessed, never)] = 1
        confusion = torch.bincount(torch.from_numpy(true * k + guessed), minlength=k * k).view(k, k)
        found = Evaluation(0.0, confusion)
        expected = precision_recall_fscore_support(true, guessed, labels=range(k), zero_division=0)
        for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
            ours = [getattr(c, name) or 0 for c in found.per_class]
            assert ours == pytest.approx(values.tolist()), name
        assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(true, guessed))
        assert found.never_predicted == list(never)


def test_eval_prints_all_classes_and_saves_predictions_and_a_plot(cnnlab: Command, tables_folder: Path) -> None:
    answer = cnnlab("eval", "b", "--split", "val", "--predictions", "p.csv", "--plot", "p.png", cwd=tables_folder)
    assert answer.returncode == 0, answer.stderr
    table = answer.stdout.split("\n\n")[1]
    assert len(within_80(table)) == 1 + len(CLASSES)
    assert table.split()[:5] == ["class", "precision", "recall", "F1", "images"]
    with (tables_folder / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "true_label", "prediction", "probability"]
    found = json.loads(cnnlab("eval", "b", "--split", "validation", "--json", cwd=tables_folder).stdout)
    assert len(rows) == found["images"]
    assert sum(row["true_label"] == row["prediction"] for row in rows) == found["correct"]
    assert all((tables_folder / "images" / row["image"]).exists() for row in rows)
    assert {row["true_label"] for row in rows} <= set(CLASSES)
    assert all(1 / 24 <= float(row["probability"]) <= 1 for row in rows)
    assert [c["class"] for c in found["classes"]] == CLASSES
    assert (tables_folder / "p.png").read_bytes().startswith(b"\x89PNG")
    for option in ("--predictions", "--plot"):  # nothing is overwritten
        line = one_line_error(
            cnnlab("eval", "b", option, "p.csv" if option == "--predictions" else "p.png", cwd=tables_folder)
        )
        assert "exists" in line
    assert ".csv" in one_line_error(cnnlab("eval", "b", "--predictions", "p.txt", cwd=tables_folder))


@pytest.mark.parametrize("count", [2, 10, 100])
def test_the_confusion_matrix_as_a_picture_names_every_class(count: int) -> None:
    names = [f"{k} a class with a rather long name" for k in range(count)]
    figure = confusion_figure(np.eye(count, dtype=int) * 12345, names, "title")
    png(figure, dpi=100)  # lays the figure out
    labels = figure.axes[0].get_yticklabels()
    assert len(labels) == count
    boxes = [label.get_window_extent() for label in labels]
    inside = figure.bbox
    assert all(box.x0 >= inside.x0 and box.y1 <= inside.y1 for box in boxes)
    assert all(not a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))


def test_a_class_that_is_never_predicted_is_a_warning(cnnlab: Command, tables_folder: Path) -> None:
    answer = cnnlab("eval", "b", "--split", "train", cwd=tables_folder)
    found = json.loads(cnnlab("eval", "b", "--split", "train", "--json", cwd=tables_folder).stdout)
    assert found["never_predicted"]  # one epoch of two updates cannot tell 24 classes apart
    assert "warning: never predicted: " in answer.stdout
    assert f"balanced acc {found['balanced_accuracy']:.4f}" in answer.stdout


# Other data


def test_eval_accepts_moved_images_and_other_images(cnnlab: Command, tables_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tables_folder / "runs" / "b", tmp_path / "b")
    shutil.copytree(tables_folder / "images", tmp_path / "moved")
    own = json.loads(cnnlab("eval", tmp_path / "b", "--split", "valid", "--json", cwd=tables_folder).stdout)
    moved = json.loads(cnnlab("eval", tmp_path / "b", "--data", "folder:moved", "--split", "val", "--json").stdout)
    assert not moved["other_data"]
    assert moved["confusion"] == own["confusion"]
    # some of the classes, other images, another split
    write_images(tmp_path / "others" / "train", CLASSES[5:7], each=2)
    write_images(tmp_path / "others" / "val", CLASSES[5:7], each=1)
    for split, count in (("train", 4), ("val", 2)):
        answer = cnnlab("eval", "b", "--data", "folder:others", "--split", split, "--json")
        other = json.loads(answer.stdout)
        assert other["other_data"]
        assert [c["support"] for c in other["classes"]] == [count // 2 if k in (5, 6) else 0 for k in range(24)]
    write_images(tmp_path / "strangers", ["cat", CLASSES[0]], each=2)
    assert "cat" in one_line_error(cnnlab("eval", "b", "--data", "folder:strangers"))
    assert "digits" in one_line_error(cnnlab("eval", "b", "--data", "digits"))
    assert "nowhere" in one_line_error(cnnlab("eval", "b", "--data", "folder:nowhere"))


def test_eval_names_the_remedy_if_the_images_have_moved(cnnlab: Command, tables_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tables_folder / "runs" / "b", tmp_path / "runs" / "b")
    (tables_folder / "images").rename(tables_folder / "elsewhere")
    try:
        assert "--data" in one_line_error(cnnlab("eval", "b"))
        assert cnnlab("eval", "b", "--data", f"folder:{tables_folder / 'elsewhere'}").returncode == 0
    finally:
        (tables_folder / "elsewhere").rename(tables_folder / "images")


def test_predict_with_views_and_threads(cnnlab: Command, tables_folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "half.png"
    Image.fromarray(np.pad(np.full((16, 8), 255, np.uint8), ((0, 0), (0, 8)))).save(image)
    answers = [
        cnnlab("predict", "b", image, "--format", "json", *more, cwd=tables_folder)
        for more in ((), ("--threads", 1), ("--tta", "flip"), ("--tta", "shift"))
    ]
    assert [a.returncode for a in answers] == [0] * 4
    assert answers[0].stdout == answers[1].stdout
    assert len({a.stdout for a in answers}) > 1
    assert re.search(r"'flp'.*flip\b", one_line_error(cnnlab("predict", "b", image, "--tta", "flp", cwd=tables_folder)))
    assert "threads=0" in one_line_error(cnnlab("predict", "b", image, "--threads", 0, cwd=tables_folder))
    assert cnnlab("eval", "b", "--threads", 1, "--split", "train", cwd=tables_folder).returncode == 0


# Words


def test_nouns_are_plural_if_their_number_is() -> None:
    assert [plural(n, "epoch") for n in (0, 1, 2, 1000)] == ["0 epochs", "1 epoch", "2 epochs", "1,000 epochs"]
    assert plural(2, "class") == "2 classes"


def test_messages_of_other_libraries_are_cut_at_a_sentence_or_a_word() -> None:
    text = "The first sentence is here. The second one goes on for a very long time and never comes to an end"
    assert reason(ValueError(text), 60) == "The first sentence is here"
    assert reason(ValueError("word " * 50), 22) == "word word word word..."
    assert reason(ValueError("short."), 60) == "short"
    assert reason(ValueError("x" * 100), 20) == "x" * 20 + "..."


def test_labels_that_are_no_class_are_among_the_mistakes() -> None:
    names = [f"c{k}" for k in range(30)]
    right = [[5 * (i == j) for j in range(30)] for i in range(30)]
    assert confusion(names, right, others=[0] * 30) == confusion(names, right)
    rows = confusion(names, right, others=[3, *[0] * 29]).splitlines()
    assert rows[-1].split() == ["c0", "other", "3"]
