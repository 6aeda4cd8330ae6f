"""`cnnlab report`: its figures, and the page in Chromium, which makes no requests."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch import nn

import cnnlab
from browser import Tab, chromium
from cnnlab import CnnlabError, Report
from cnnlab.data import load_images
from cnnlab.inspect.report import page as pages
from cnnlab.inspect.report.comparison import McNemar
from cnnlab.inspect.report.folders import shortened, without_folders
from cnnlab.inspect.report.pictures import figures, save
from cnnlab.inspect.report.settings import command
from cnnlab.inspect.report.thumbnails import Thumbnails
from cnnlab.io.text import cell
from cnnlab.recipes import RECIPES
from cnnlab.training.choice import choose
from cnnlab.training.locks import locked
from conftest import Command, one_line_error

HOSTILE = ["<script>alert(1)</script>", "a\u202egnp.exe\n", "x" * 10_000]


class Tiny(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def results(folder: Path) -> list[Any]:
    """Two trainings on the same images, one of two epochs and one of one."""
    return [
        cnnlab.train("digits", epochs=n, limit=100, seed=n, name=f"run-{n}", runs_dir=folder, progress="none")
        for n in (2, 1)
    ]


@pytest.fixture(scope="module")
def made(results: list[Any]) -> Report:
    return cnnlab.report(results[0].run)


@pytest.fixture(scope="module")
def hostile(folder: Path) -> Report:
    """A report on images whose class and file names try to break the page."""
    rng = np.random.default_rng(0)
    labels = torch.arange(90) % 3
    images = torch.from_numpy(rng.integers(0, 256, (90, 5, 12, 12), dtype=np.uint8))
    names = [f"{n} {HOSTILE[n % 3]} <img src=x onerror=alert(1)>" for n in range(90)]
    data = cnnlab.ImageSet(images=images, labels=labels, ids=names, classes=HOSTILE)
    result = cnnlab.train(
        Tiny, data=data, epochs=1, batch_size=30, name="hostile", runs_dir=folder, progress="none", balance="none"
    )
    return result.report(data=data)


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium(
        viewport={"width": 1440, "height": 900}, color_scheme="light", locale="en-US", reduced_motion="reduce"
    ) as tab:
        yield tab


def open_report(tab: Tab, report: Report, folder: Path, width: int = 1440) -> list[str]:
    """Open the page. Return a list to which its console messages will be added."""
    said: list[str] = []
    file = folder / "page.html"
    report.save(file, force=True)
    tab.page.set_viewport_size({"width": width, "height": 900})
    tab.page.on("console", lambda message: said.append(message.text))
    tab.go(file.as_uri())
    return said


def payload_rows(report: Report) -> dict[str, Any]:
    return report.payload["runs"][0]["evaluation"]["rows"]


def test_figures_match_eval_and_scikit_learn(results: list[Any], made: Report) -> None:
    e = made.payload["runs"][0]["evaluation"]
    found = cnnlab.evaluate_run(results[0].run, split="validation")
    for key, value in found.to_dict().items():
        if key in e and isinstance(value, int | float) and key not in ("seconds",):
            assert e[key] == pytest.approx(value, rel=1e-7), key
    y, guess = found.images.labels.numpy(), found.result.predicted.numpy()
    k = len(found.run.classes)
    matrix = np.zeros((k, k), int)
    for i, j, n in e["confusion"]:
        matrix[i, j] = n
    assert (matrix == confusion_matrix(y, guess, labels=range(k))).all()
    assert e["accuracy"] == pytest.approx(accuracy_score(y, guess))
    assert e["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, guess))
    precision, recall, f1, support = precision_recall_fscore_support(y, guess, zero_division=np.nan)
    for key, values in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        mine = [np.nan if row[key] is None else row[key] for row in e["classes"]]
        assert mine == pytest.approx(values, nan_ok=True)
    assert e["calibration"]["ece"] == pytest.approx(found.calibration_error)
    after = e["calibration"]["after"]
    assert sum(n for n, *_ in after) == found.result.count
    assert sum(n * abs(p - a) for n, p, a in after if n) / found.result.count == pytest.approx(e["calibration"]["ece"])


def test_listed_images_match_the_mistakes_of_eval(results: list[Any], made: Report) -> None:
    found = cnnlab.evaluate_run(results[0].run, split="validation")
    rows, names = payload_rows(made), found.run.classes
    listed = {name: (y, top[0]) for name, y, top in zip(rows["id"], rows["label"], rows["top"], strict=True)}
    assert len(listed) == len(rows["id"])
    for line in found.predictions_csv().splitlines()[1:]:
        name, true, guess, p = line.split(",")
        if true != guess:
            assert listed[name] == (names.index(true), names.index(guess))
            row = rows["id"].index(name)
            assert rows["p"][row][0] == pytest.approx(float(p), abs=1e-6)
    order = [rows["p"][row][0] for row in made.payload["runs"][0]["evaluation"]["mistakes"]]
    assert order == sorted(order, reverse=True)
    assert all(place >= 0 for place in rows["picture"])


def test_suspects_match_the_command(results: list[Any], made: Report) -> None:
    from cnnlab.inference.suspects import find_suspects

    e = made.payload["runs"][0]["evaluation"]
    expected = [(s.path, s.predicted) for s in find_suspects(results[0].run.path).suspects][: len(e["suspects"])]
    names = results[0].run.classes
    assert [(cell(e["rows"]["id"][row]), names[k]) for row, k, *_ in e["suspects"]] == expected
    assert e["suspects_from"] == "split"


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 1), (8, 8), (30, 12), (400, 300)])
def test_mcnemar_matches_scipys_exact_test(a: int, b: int) -> None:
    expected = binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert McNemar(a, b).p == pytest.approx(expected, rel=1e-9)
    assert McNemar(b, a).p == McNemar(a, b).p


def test_runs_on_the_same_images_are_compared(tab: Tab, results: list[Any], folder: Path) -> None:
    both = cnnlab.report(*(r.run for r in results))
    found = [cnnlab.evaluate_run(r.run, split="validation") for r in results]
    right = [f.result.predicted.eq(f.images.labels) for f in found]
    (test,) = both.payload["compare"]["tests"]
    assert (test["first_only"], test["second_only"]) == (
        int((right[0] & ~right[1]).sum()),
        int((~right[0] & right[1]).sum()),
    )
    assert test["both"] + test["neither"] + test["first_only"] + test["second_only"] == found[0].result.count
    said = open_report(tab, both, folder)
    assert tab.value("document.querySelectorAll('#disagreements .card').length") > 0
    tab.page.locator(".tab").nth(1).click()
    assert tab.value("[...document.querySelectorAll('h1')].map((h) => h.textContent)")[1] == "run-1"
    assert (tab.errors, said) == ([], [])
    differ = (found[0].result.predicted != found[1].result.predicted).nonzero().flatten().tolist()
    assert sorted(both.payload["compare"]["disagreements"]["id"]) == sorted(found[0].images.ids[i] for i in differ)
    assert {key for key, _ in both.payload["compare"]["settings"]} == {"epochs", "seed"}


def test_the_printed_command_repeats_the_recipe(results: list[Any]) -> None:
    run = results[0].run
    words = shlex.split(command(run))[2:]
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    assert pairs["--recipe"] == "digits"
    assert pairs["--epochs"] == "2"
    assert pairs["--set"] == "limit=100"
    again = replace(run, recipe=run.recipe.changed(flip=True, rotation=3.5))
    assert "--set flip=true --set rotation=3.5" in command(again)


@pytest.mark.parametrize("name", ["images", "finetune"])
def test_the_command_of_a_fitted_recipe_fits_nothing_again(results: list[Any], name: str) -> None:
    """The fitted settings, some of them equal to the recipe's own, are all in the command."""
    recipe = RECIPES[name].changed(name=f"{name}, data=folder:x", data="folder:x", epochs=20, freeze_epochs=5)
    words = shlex.split(command(replace(results[0].run, recipe=recipe)))[2:]
    options = list(zip(words[::2], words[1::2], strict=True))
    keys = {"--lr": "learning_rate", "--batch-size": "batch_size"}
    given = {keys.get(option, option[2:]): value for option, value in options if option != "--set"}
    settings = [value for option, value in options if option == "--set"]
    again, _, _, fitted = choose(given.pop("recipe"), given.pop("model"), given.pop("data"), {})
    again = again.with_settings([*settings, *map("=".join, given.items())])
    assert fitted is None
    assert again.changed(name=recipe.name) == recipe


def test_pictures_stay_within_their_budget_and_appear_once() -> None:
    some = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    thumbnails = Thumbnails(2500)
    places = [thumbnails.add(image) for image in (some[0], some[0], some[1], some[2])]
    assert places == [0, 0, 1, -1]
    assert sum(map(len, thumbnails.uris)) <= 2500
    assert Thumbnails().add(torch.zeros(7, 400, 300, dtype=torch.uint8)) == 0


def test_joined_modules_define_each_name_once() -> None:
    script = pages.script()
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script, re.MULTILINE)
    assert [name for name, n in Counter(names).items() if n > 1] == []
    assert {p.stem for p in pages.PAGE.glob("*.js")} == set(
        re.findall(r'from "\./(\w+)\.js"', "".join(p.read_text() for p in pages.PAGE.glob("*.js")))
    ) | {"main", "trying"}  # only pages that take an image use trying.js


def test_every_text_used_by_the_page_is_defined() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in pages.PAGE.glob("*.js"))
    known = set(re.findall(r"^  (\w+): \[", text, re.MULTILINE))
    used = set(re.findall(r'\bt\("(\w+)"', text))
    assert used <= known, used - known
    string = r'"(?:[^"\\]|\\.)+"'
    in_both_languages = set(re.findall(rf"^  (\w+): \[\s*{string},\s*{string},?\s*\]", text, re.MULTILINE))
    assert known == in_both_languages, known - in_both_languages


def test_page_functions_return_the_expected_values(tab: Tab) -> None:
    tab.go("about:blank")
    source = pages.script().partition("const payload = JSON.parse")[0]
    answers = tab.value(
        f"""() => {{ {source}
        return {{
          ticks: ticks(0, 1, 5), none: ticks(3, 3), small: ticks(0.91, 0.97, 4), whole: wholeTicks(1, 4, 8), one: wholeTicks(0.5, 1.5),
          middle: linear([2, 2], [0, 10])(2), half: linear([0, 4], [10, 0])(2),
          nearest: [nearest([1, 5, 9], 6), nearest([], 1)],
          dragged: [dragged(8, 3, [1, 6], 1), dragged(3, 3.2, [1, 6], 1)],
          closer: zoomed([0, 10], 5, 0.5, [0, 10], 1), edge: zoomed([0, 4], 0, 2, [0, 10], 1), out: zoomed([2, 8], 3, 10, [0, 10], 1),
          top: [lossTop([90, 2, 1.5, 1, 0.5]), lossTop([]), lossTop([2, 1])],
          bottom: [shareBottom([0.95, 0.99]), shareBottom([0.2, 1]), shareBottom([null])],
          sorted: sorted([{{v: 2}}, {{v: null}}, {{v: 10}}, {{v: 1}}], (r) => r.v, true).map((r) => r.v),
          natural: sorted(["a10", "a9"], (r) => r),
          pairs: frequentMistakes([[0, 0, 9], [0, 1, 2], [1, 0, 5]], 1),
          next: [nextCell((i, j) => j === 3, [0, 0], [0, 1], 5), nextCell(() => false, [2, 2], [1, 0], 5), nextCell((i, j) => i === 4 && j === 0, [0, 2], [1, 0], 5)],
          visible: visible("a\\u202egnp\\n"), short: shorten("x".repeat(10000), 11), p: [probability(0.99999), probability(1), probability(0.0001)],
          times: [59.4, 59.97, 119.7, 7199.9].map(duration),
          address: [address("../a b", "c#d/é.png"), address("x", "y?.png")],
          inks: [0, 0.1, 0.3, 0.6, 1].flatMap((s) => [true, false].flatMap((r) => ["light", "dark"].map((t) => contrast(ramp(s, r, t), ink(ramp(s, r, t)) === "#fff" ? [255, 255, 255] : [0, 0, 0])))),
        }}; }}"""
    )
    inks = answers.pop("inks")
    assert min(inks) >= 4.5
    assert answers == {
        "ticks": [0, 0.2, 0.4, 0.6, 0.8, 1], "none": [3], "small": [0.92, 0.94, 0.96], "whole": [1, 2, 3, 4], "one": [1],
        "middle": 5, "half": 5, "nearest": [1, -1], "dragged": [[3, 6], None],
        "closer": [2.5, 7.5], "edge": [0, 8], "out": [0, 10], "top": [2, 1, 2], "bottom": [0.9, 0, 0.9],
        "sorted": [10, 2, 1, None], "natural": ["a9", "a10"], "pairs": [[1, 0, 5]], "next": [[0, 3], [2, 2], [4, 0]],
        "visible": "a\\u202egnp\\u000a", "short": "xxxxxx…xxxx", "p": [">99.9%", "100.0%", "<0.1%"],
        "times": ["59.4 s", "1 min 0 s", "2 min 0 s", "2 h 0 min"],
        "address": ["../a%20b/c%23d/%C3%A9.png", "./x/y%3F.png"],
    }  # fmt: skip


def test_a_confusion_cell_opens_its_images(tab: Tab, made: Report, folder: Path) -> None:
    said = open_report(tab, made, folder)
    e = made.payload["runs"][0]["evaluation"]
    i, j, n = max((c for c in e["confusion"] if c[0] != c[1]), key=lambda c: c[2])
    tab.page.click(f'[data-cell="{i},{j}"]')
    rows = e["rows"]
    expected = [
        name for name, y, top in zip(rows["id"], rows["label"], rows["top"], strict=True) if (y, top[0]) == (i, j)
    ]
    assert len(expected) == n
    assert sorted(tab.value("[...document.querySelectorAll('dialog .file')].map((p) => p.textContent)")) == sorted(
        expected
    )
    assert tab.value("[...document.querySelectorAll('dialog img')].every((i) => i.complete && i.naturalWidth === 8)")
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("dialog", state="detached")
    tab.page.wait_for_function(f"document.activeElement.dataset.cell === '{i},{j}'")
    tab.page.keyboard.press("ArrowUp")
    tab.page.keyboard.press("Enter")
    assert tab.value("document.querySelector('dialog h2').textContent") != ""
    tab.page.keyboard.press("Escape")
    # sort the table, zoom the curves, change the language
    tab.page.click("th button:text-is('Recall')")
    recalls = tab.value("[...document.querySelectorAll('.sortable tbody tr')].map((r) => r.cells[3].textContent)")
    assert recalls == sorted(recalls)
    chart = tab.page.locator("svg.chart").first
    chart.hover(position={"x": 60, "y": 50})
    assert tab.value("document.querySelector('.legend .epoch').textContent") == "epoch 1"
    tab.page.mouse.down()
    chart.hover(position={"x": 480, "y": 50})
    assert tab.value("document.querySelector('.legend .epoch').textContent") == "epoch 2"
    tab.page.mouse.up()
    tab.page.keyboard.press("Escape")
    tab.page.click(".language")
    assert tab.value("document.querySelector('#confusion h2').textContent") == "混淆矩阵"
    assert tab.value("document.documentElement.lang") == "zh-CN"
    assert (tab.errors, said) == ([], [])
    assert [url for url in tab.requests if not url.startswith(("data:", "file:"))] == []


def test_hostile_names_do_no_harm(tab: Tab, hostile: Report, folder: Path) -> None:
    said = open_report(tab, hostile, folder)
    tab.page.locator("[data-cell]").first.click()
    assert tab.value("document.querySelectorAll('script').length") == 2
    assert tab.value("document.querySelectorAll('img[src=x]').length") == 0
    text = tab.value("document.body.innerText")
    assert "<script>alert(1)</script>"[:20] in text
    assert "\u202e" not in text
    assert (tab.errors, said) == ([], [])
    assert [url for url in tab.requests if not url.startswith(("data:", "file:"))] == []
    for width in (390, 1440):
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1440, "light")])
def test_the_page_is_accessible(
    tab: Tab, hostile: Report, folder: Path, width: int, theme: Literal["dark", "light"]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install --group dev").Axe()
    open_report(tab, hostile, folder, width)
    tab.page.emulate_media(color_scheme=theme)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
    found = axe.run(tab.page, options=rules).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")] == []
    tab.page.emulate_media(color_scheme="light")
    assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")


def test_missing_images_and_weights_are_reported(folder: Path, tmp_path: Path, shapes: Path) -> None:
    result = cnnlab.train(
        "digits", data=f"folder:{shapes}", model="lenet", image_size=20, epochs=1, name="gone", runs_dir=folder, progress="none"
    )  # fmt: skip
    rows = payload_rows(result.report(folder=tmp_path))
    assert rows["folder"] == "shapes"
    assert all(rows["file"])
    assert result.report(folder=tmp_path).payload["runs"][0]["data"] == "folder:shapes"
    shapes.rename(tmp_path / "elsewhere")
    gone = result.report()
    for text in (gone.html, gone.markdown):  # reports are shared, so they must not show this machine's folders
        assert "--data folder:shapes" in text
        assert str(tmp_path) not in text
        assert str(folder) not in text
    assert gone.payload["runs"][0]["evaluation"] is None
    assert len(gone.payload["runs"][0]["missing"]) == 1
    assert "shapes" in gone.html
    assert gone.payload["runs"][0]["recorded"]["images"] == result.summary["images"]["validation"]
    with pytest.raises(CnnlabError):
        result.report(split="test")
    moved = result.report(data=f"folder:{tmp_path / 'elsewhere'}", folder=tmp_path)
    assert payload_rows(moved)["folder"] == "elsewhere"
    (result.run.path / "summary.json").unlink()
    for name in ("best", "last"):
        (result.run.path / f"{name}.safetensors").unlink()
    unfinished = result.report().payload["runs"][0]
    assert not unfinished["finished"]
    assert unfinished["history"]["epoch"] == [1]


def test_what_a_folder_holds_besides_images_is_counted(folder: Path, shapes: Path) -> None:
    (shapes / "README.md").write_text("about")
    (shapes / "empty").mkdir()
    result = cnnlab.train(
        "digits", data=f"folder:{shapes}", model="lenet", image_size=20, epochs=1, name="besides", runs_dir=folder,
        progress="none",
    )  # fmt: skip
    checks = result.report().payload["runs"][0]["checks"]
    assert sorted(checks["passed_over"].values()) == [1, 1]


def test_other_images_are_not_taken_for_training_images(results: list[Any], tmp_path: Path) -> None:
    images = load_images("digits", "test")
    assert images is not None
    for i in range(40):
        (tmp_path / "new" / str(int(images.labels[i]))).mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[i, 0].numpy()).save(tmp_path / "new" / str(int(images.labels[i])) / f"{i}.png")
    found = results[0].report(data=f"folder:{tmp_path / 'new'}")
    e = found.payload["runs"][0]["evaluation"]
    assert (e["split"], e["other_data"], e["images"]) == ("train", True, 40)
    assert e["suspects_from"] == "split"
    assert "trained on these images" not in found.markdown
    with pytest.raises(CnnlabError, match=f"validation.*{results[0].run.path}"):
        results[0].report(data=f"folder:{tmp_path / 'new'}", split="validation")


def test_paths_are_shortened_to_their_distinct_parts() -> None:
    names = shortened(map(Path, ("/a/x/photos", "/a/y/photos", "/a/y/photos/runs/one", "/home/anna/my set")))
    texts = {"--data 'folder:/home/anna/my set'": "--data 'folder:my set'", "/a/x/photos/1.png.": "x/photos/1.png.",
             "/a/y/photos/runs/one is gone": "one is gone", "/a/y/photos2 /b/a/y/photos": "/a/y/photos2 /b/a/y/photos"}  # fmt: skip
    assert [without_folders(text, names) for text in texts] == list(texts.values())
    assert without_folders([{"rows": {"id": ["/a/x/photos"]}, "n": 1}], names) == [
        {"rows": {"id": ["/a/x/photos"]}, "n": 1}
    ]


def test_a_run_in_training_is_reported_as_running(results: list[Any], folder: Path) -> None:
    path = folder / "running"
    shutil.copytree(results[0].run.path, path)
    (path / "summary.json").unlink()
    with locked(path):
        payload = cnnlab.report(path).payload["runs"][0]
        assert (payload["finished"], payload["running"], payload["epochs"]) == (False, True, 2)
        (path / "best.safetensors").unlink()
        (missing,) = cnnlab.report(path).payload["runs"][0]["missing"]
        assert "trained" in missing
    assert not cnnlab.report(path).payload["runs"][0]["running"]


def test_folds_are_pooled(folder: Path, tab: Tab) -> None:
    """Each image is predicted by the network that has not seen it. Figures: scikit-learn's for out_of_fold.csv."""
    series = cnnlab.train_folds("digits", 2, epochs=1, name="folds", runs_dir=folder, progress="none")
    made = cnnlab.report(series.path)
    e = made.payload["pooled"]["evaluation"]
    with series.predictions.open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    y, guess = [row["label"] for row in table], [row["predicted"] for row in table]
    names = made.payload["pooled"]["classes"]
    matrix = np.zeros((10, 10), int)
    for i, j, n in e["confusion"]:
        matrix[i, j] = n
    assert (matrix == confusion_matrix(y, guess, labels=names)).all()
    assert e["accuracy"] == pytest.approx(accuracy_score(y, guess))
    assert e["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, guess))
    precision, recall, f1, _ = precision_recall_fscore_support(y, guess, labels=names, zero_division=np.nan)
    for key, values in {"precision": precision, "recall": recall, "f1": f1}.items():
        mine = [np.nan if row[key] is None else row[key] for row in e["classes"]]
        assert mine == pytest.approx(values, nan_ok=True)
    interval = binomtest(e["correct"], len(table)).proportion_ci(method="wilson")
    assert e["intervals"]["accuracy"] == pytest.approx([interval.low, interval.high])
    sure = np.array([max(float(row[f"p_{name}"]) for name in names) for row in table])
    place, right = np.ceil(sure * 15), np.array(y) == np.array(guess)
    gaps = [abs(right[place == b].sum() - sure[place == b].sum()) for b in range(1, 16)]
    assert e["calibration"]["ece"] == pytest.approx(sum(gaps) / len(table), abs=1e-4)
    listed = {name: k[0] for name, k in zip(e["rows"]["id"], e["rows"]["top"], strict=True)}
    assert all(names[listed[row["path"]]] == row["predicted"] for row in table if row["path"] in listed)
    assert e["suspects_from"] == "out_of_fold"
    assert f"{e['accuracy']:.4f}" in made.markdown
    said = open_report(tab, made, folder)
    assert tab.value("document.querySelector('.big').textContent") == f"{100 * e['accuracy']:.1f}%"
    ids = tab.value("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert [name for name, n in Counter(ids).items() if n > 1] == []
    assert tab.value("document.querySelectorAll('#pooled-confusion [data-cell]').length") == len(e["confusion"])
    assert (tab.errors, said) == ([], [])
    # Runs are pooled only if they are exactly the folds of one cross-validation.
    assert cnnlab.report(series.results[0].run).payload["pooled"] is None
    assert cnnlab.report(*(r.run for r in series.results), split="train").payload["pooled"] is None


def test_the_command_overwrites_only_by_force(cnnlab: Command, results: list[Any], tmp_path: Path) -> None:
    path = results[0].run.path
    answer = cnnlab("report", path)
    assert answer.returncode == 0, answer.stderr
    file = tmp_path / f"{path.name}.html"
    assert file.name in answer.stdout
    assert file.stat().st_size < 15e6
    assert str(file) in one_line_error(cnnlab("report", path, "--out", file)) or "exists" in answer.stderr
    assert cnnlab("report", path, "--force").returncode == 0
    one_line_error(cnnlab("report", path, "--out", "report.pdf"))
    one_line_error(cnnlab("report", path, "--out", "nowhere/report.html"))
    one_line_error(cnnlab("report", path, "--split", "test"))
    one_line_error(cnnlab("report", path, "--device", "abacus", "--out", "new.html"))
    one_line_error(cnnlab("report", path, "--threads", 0, "--out", "new.html"))
    one_line_error(cnnlab("report", "nothing"))


def test_the_card_is_written_as_markdown(cnnlab: Command, results: list[Any], hostile: Report, tmp_path: Path) -> None:
    paths = [r.run.path for r in results]
    answer = cnnlab("report", *paths, "--markdown", "card.md", "--out", "both.html")
    assert answer.returncode == 0, answer.stderr
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert f"{results[0].summary['figures']['accuracy']:.4f}" in card
    assert "McNemar" in card
    one_line_error(cnnlab("report", *paths, "--markdown", "card.md", "--out", "again.html"))
    one_line_error(cnnlab("report", *paths, "--pictures", ".", "--out", "again.html"))
    assert not (tmp_path / "again.html").exists()
    assert "<script" not in hostile.markdown
    assert "\u202e" not in hostile.markdown


def test_pictures_are_saved_as_files(hostile: Report, tmp_path: Path) -> None:
    drawn = figures(hostile.runs, hostile.payload)
    assert drawn.keys() >= {"curves", "confusion", "classes", "calibration"}
    some = {"confusion": drawn["confusion"]}  # its axes name the classes
    files = save(some, tmp_path / "pictures", force=False)
    assert {p.name for p in files} == {"confusion.png", "confusion.svg"}
    assert {p.name for p in files} == {p.name for p in (tmp_path / "pictures").iterdir()}
    with pytest.raises(CnnlabError):
        save(some, tmp_path / "pictures", force=False)


def test_pictures_of_runs_with_similar_names_are_all_kept(hostile: Report) -> None:
    (run,) = hostile.runs
    parts = [{**part, "name": name} for part in hostile.payload["runs"] for name in ("a b", "a-b")]
    drawn = figures([run, run], {**hostile.payload, "runs": parts})
    assert sum(name.endswith("curves") for name in drawn) == 2


def test_the_network_section_matches_the_inspect_package(results: list[Any], made: Report) -> None:
    from cnnlab.inspect.activation import class_activation

    inside, e = made.payload["runs"][0]["inside"], made.payload["runs"][0]["evaluation"]
    network = results[0].model
    assert [one["row"] for one in inside["maps"]] == [*e["mistakes"][:6], *e["uncertain"][:6]]
    found = cnnlab.evaluate_run(results[0].run, split="validation")
    first = found.images.ids.index(e["rows"]["id"][inside["maps"][0]["row"]])
    x = cnnlab.load_model(results[0].run).preprocessing(found.images.images[first : first + 1])
    empty = not class_activation(network, x, found.result.predicted[first : first + 1].clone()).any()
    assert (inside["maps"][0]["predicted"] is None) == empty
    assert len(inside["filters"]["pictures"]) == inside["filters"]["count"] == 6
    assert {"Conv2d", "BatchNorm2d", "Linear"} <= {layer["type"] for layer in inside["layers"]}
    assert inside["notes"] == []


def test_a_notebook_shows_the_report(results: list[Any], made: Report) -> None:
    shown = made._repr_html_()
    assert shown.startswith("<iframe")
    assert "</iframe>" in shown
    assert "<script" not in shown
    assert results[0].confusion().payload["only"] == "confusion"
    assert json.dumps(made.payload, allow_nan=False)


def test_the_size_of_thumbnails_is_bounded() -> None:
    thumbnails = Thumbnails()
    thumbnails.add(torch.randint(0, 256, (3, 500, 400), dtype=torch.uint8))
    import base64
    import io

    picture = Image.open(io.BytesIO(base64.b64decode(thumbnails.uris[0].partition(",")[2])))
    assert max(picture.size) == 96
