"""A competition from its files to a submission: on a made-up one with another image size, and on Kaggle's files."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss

from cnnlab import competition as steps
from cnnlab import inference, train
from cnnlab.cli.kaggle import _upload_to
from cnnlab.competition import Competition, client
from cnnlab.competition.answers import _best_views
from cnnlab.competition.layout import Layout
from cnnlab.competition.submission import read_pairs
from cnnlab.data.imageset import ImageSet, sample_rows
from cnnlab.data.loader import Preprocessing
from cnnlab.data.store import open_store
from cnnlab.inference import probabilities
from cnnlab.io.errors import CnnlabError
from cnnlab.recipes import RECIPES
from cnnlab.training.evaluate import VIEWS
from conftest import Command, one_line_error

SIDE, TRAIN, TEST = 20, 120, 30
SPECIES = ("ash", "birch", "oak")
LAYOUT = Layout(
    train="pictures",
    test="unseen",
    labels="species.csv",
    sample="example.csv",
    id_column="file",
    label_column="species",
)
OPTIONS = [
    "--train", "pictures", "--test", "unseen", "--labels", "species.csv", "--sample", "example.csv",
    "--id-column", "file", "--label-column", "species",
]  # fmt: skip
QUICK = ["--set", "model=lenet-bn", "--set", "epochs=4", "--set", "batch_size=20", "--set", "val_fraction=0.2"]


def png(species: int, rng: np.random.Generator) -> bytes:
    """Return a leaf of one of three species. Brightness and stripes differ, so a few epochs tell them apart."""
    pixels = rng.normal(60 + 60 * species, 10, (SIDE, SIDE, 3))
    pixels[:: species + 2] += 30
    buffer = BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up competition's files, and `answers.csv`, which only the teacher has."""
    folder = tmp_path_factory.mktemp("forest")
    rng = np.random.default_rng(0)
    species = {f"leaf-{i:03d}": int(rng.integers(3)) for i in rng.permutation(TRAIN + TEST)}
    ids = list(species)
    for name, members in (("pictures", ids[:TRAIN]), ("unseen", ids[TRAIN:])):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for i in sorted(members):
                archive.writestr(f"{name}/{i}.png", png(species[i], rng))
    for name, members in (("species", ids[:TRAIN]), ("answers", ids[TRAIN:])):
        rows = [f"{i},{SPECIES[species[i]]}" for i in members]
        (folder / f"{name}.csv").write_text("\n".join(["file,species", *rows]) + "\n")
    shuffled = [ids[TRAIN:][i] for i in rng.permutation(TEST)]
    (folder / "example.csv").write_text("file,species\n" + "".join(f"{i},oak\n" for i in shuffled))
    return folder


@pytest.fixture(scope="module")
def finished(forest: Path, tmp_path_factory: pytest.TempPathFactory) -> Competition:
    """The competition after all steps, run with the Python functions."""
    work = tmp_path_factory.mktemp("work")
    made = steps.prepare(forest, name="forest", runs_dir=work / "runs", store=work / "store", layout=LAYOUT, workers=1)
    steps.train(made, settings=[s for s in QUICK if s != "--set"], threads=1)
    steps.retrain(made, threads=1)
    steps.submit(made, threads=1)
    return made


def test_one_command_leads_from_files_to_a_submission_that_scores(
    forest: Path, cnnlab: Command, tmp_path: Path
) -> None:
    before = {p: p.read_bytes() for p in forest.iterdir()}
    command = ["kaggle", "all", forest, "--name", "forest", "--store", tmp_path / "store", *OPTIONS, *QUICK]
    command += ["--set", "epochs=12", "--threads", "1"]
    answer = cnnlab(*command)
    assert answer.returncode == 0, answer.stderr
    assert f"{TRAIN} labelled images of 3 classes, {TEST} test images, 3 x 20 x 20" in answer.stdout
    for told in (
        "pixel mean",
        "val acc",
        "true \\ predicted",
        "6 views",
        "train_subset acc",
        "submission.csv: 30 rows",
    ):
        assert told in answer.stdout, told
    work = tmp_path / "runs" / "forest"
    ids, labels = read_pairs(work / "submission.csv", "file", "species")
    assert ids == read_pairs(forest / "example.csv", "file", "species")[0]
    true = dict(zip(*read_pairs(forest / "answers.csv", "file", "species"), strict=True))
    right = sum(true[i] == label for i, label in zip(ids, labels, strict=True))
    assert right >= 0.8 * TEST  # a third would be chance
    told = cnnlab("kaggle", "score", work / "submission.csv", "--labels", forest / "answers.csv", *OPTIONS[8:])
    assert f"({right} of {TEST} images)" in told.stdout
    assert {p: p.read_bytes() for p in forest.iterdir()} == before

    # A second run trains nothing and changes nothing.
    stamps = {p: p.stat().st_mtime_ns for p in work.rglob("*.safetensors")}
    assert len(stamps) == 6
    again = cnnlab(*command)
    assert again.returncode == 0
    assert "submission.csv: 30 rows, unchanged" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*.safetensors")} == stamps
    assert "forest/train" in cnnlab("runs").stdout

    # Other settings need another name; this training stays as it is.
    line = one_line_error(cnnlab("kaggle", "train", "--name", "forest", "--set", "epochs=9"))
    assert re.search("forest/train.*epochs=12.*--name", line)
    line = one_line_error(
        cnnlab(*[*command[:5], "--store", tmp_path / "other", *OPTIONS, "--image-size", "16", *QUICK])
    )
    assert "image_size=16" in line


def test_the_report_counts_every_image(finished: Competition) -> None:
    report = json.loads((finished.path / "report.json").read_text())
    (run,) = report["runs"]
    assert np.sum(run["train"]["confusion"]) + np.sum(run["validation"]["confusion"]) == TRAIN
    assert run["validation"]["images"] == pytest.approx(0.2 * TRAIN, abs=2)
    store = finished.open_store()
    (model,) = [r for r in finished.runs() if r.path.name == "train"]
    held_out = inference.validation_images(model)
    p = probabilities([model], held_out.images)
    assert report["validation_accuracy_by_views"]["none"] == (p.argmax(1) == held_out.labels).double().mean()
    assert run["validation"]["accuracy"] == report["validation_accuracy_by_views"]["none"]
    assert set(held_out.ids) < set(store.train.ids)


def test_retraining_uses_the_settings_and_all_images(finished: Competition) -> None:
    everything, held_out = finished.runs()
    assert (everything.path.name, held_out.path.name) == ("retrain", "train")
    assert everything.info["data"]["train"] == TRAIN
    changed = {k for k, v in everything.recipe.to_dict().items() if held_out.recipe.to_dict()[k] != v}
    assert changed == {"name", "eval_split", "val_fraction"}
    assert everything.metrics()[-1]["images"] == TRAIN
    assert (everything.path / "curves.png").exists()


def test_predictions_depend_on_the_image_alone(finished: Competition) -> None:
    """For all kinds of views, not on batch size, order, number of threads or the other images."""
    store, models = finished.open_store(), finished.runs()
    images = store.test_images
    for views in VIEWS:
        expected = probabilities(models, images, views=views, threads=1)
        assert expected.sum(1).sub(1).abs().max() < 1e-5
        for batch_size in (1, 7, TEST):
            found = probabilities(models, images, views=views, batch_size=batch_size, threads=1)
            assert torch.equal(found.argmax(1), expected.argmax(1))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        order = torch.randperm(TEST, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(probabilities(models, images[order], views=views, threads=1), expected[order])
        black = torch.cat((torch.zeros_like(images), images))
        torch.testing.assert_close(probabilities(models, black, views=views)[TEST:], expected, rtol=1e-4, atol=1e-6)


def test_views_and_ensembles_are_plain_averages(finished: Competition) -> None:
    models, images = finished.runs(), finished.open_store().test_images
    x = torch.stack([Preprocessing.from_dict(m.info["preprocessing"])(images) for m in models])
    expected = torch.zeros(TEST, 3)
    for run, inputs in zip(models, x, strict=True):
        model = inference.load_network(run)
        padded = torch.from_numpy(np.pad(inputs.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"))
        with torch.inference_mode():
            logits = torch.zeros(TEST, 3)
            for share, top, left in ((0.25, 1, 1), (0.125, 0, 0), (0.125, 2, 2)):
                seen = padded[:, :, top : top + SIDE, left : left + SIDE]
                logits += share * (model(seen) + model(seen.flip(3)))
        expected += logits.softmax(1) / 2
    torch.testing.assert_close(probabilities(models, images, views="shift"), expected, rtol=1e-4, atol=1e-6)


def test_a_submission_follows_the_samples_order(finished: Competition, forest: Path) -> None:
    found = steps.submit(finished, out=finished.path / "one.csv", chosen=["train"], views="none")
    assert [run.path.name for run in found.runs] == ["train"]
    ids, labels = read_pairs(found.written.path, "file", "species")
    p = probabilities(found.runs, finished.open_store().test_images)
    by_id = dict(zip(finished.open_store().test_ids, p.argmax(1).tolist(), strict=True))
    assert labels == [SPECIES[by_id[i]] for i in ids]
    with (forest / "example.csv").open() as file:
        assert ids == [row["file"] for row in csv.DictReader(file)]


def test_probabilities_are_submitted_and_scored(
    finished: Competition, forest: Path, tmp_path: Path, cnnlab: Command
) -> None:
    options: dict[str, Any] = {"chosen": ["train"], "views": "none", "threads": 1}
    found = steps.submit(finished, out=tmp_path / "p.csv", probabilities=True, **options)
    with found.written.path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", *SPECIES]
    assert [row["file"] for row in rows] == read_pairs(forest / "example.csv", "file", "species")[0]
    p = probabilities(found.runs, finished.open_store().test_images, threads=1)
    by_id = dict(zip(finished.open_store().test_ids, p.tolist(), strict=True))
    np.testing.assert_allclose([[float(r[s]) for s in SPECIES] for r in rows], [by_id[r["file"]] for r in rows], 1e-5)
    told = cnnlab("kaggle", "score", found.written.path, "--labels", forest / "answers.csv", *OPTIONS[8:], "--json")
    scored = json.loads(told.stdout)
    true = dict(zip(*read_pairs(forest / "answers.csv", "file", "species"), strict=True))
    exact = np.array([by_id[r["file"]] for r in rows], np.float64)
    expected = log_loss([true[r["file"]] for r in rows], exact / exact.sum(1, keepdims=True), labels=SPECIES)
    assert scored["log_loss"] == pytest.approx(expected, rel=1e-4)
    labels = steps.submit(finished, out=tmp_path / "l.csv", **options)
    as_labels = cnnlab(
        "kaggle", "score", labels.written.path, "--labels", forest / "answers.csv", *OPTIONS[8:], "--json"
    )
    assert json.loads(as_labels.stdout)["accuracy"] == scored["accuracy"]


def test_a_submission_of_probabilities_follows_the_samples_columns(
    finished: Competition, forest: Path, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    shutil.copytree(forest, files)
    ids = read_pairs(files / "example.csv", "file", "species")[0]
    (files / "example.csv").write_text("file,oak,ash,birch\n" + "".join(f"{i},0,0,1\n" for i in ids))
    work = steps.prepare(files, name="w", store=tmp_path / "store", layout=LAYOUT, workers=1)
    shutil.copytree(finished.path / "train", work.path / "train")
    found = steps.submit(work, views="none", threads=1)
    lines = found.written.path.read_text().splitlines()
    assert lines[0] == "file,oak,ash,birch"
    assert [line.split(",")[0] for line in lines[1:]] == ids


def test_an_earlier_submission_is_renamed(finished: Competition) -> None:
    out = finished.path / "kept.csv"
    out.write_text("mine\n")
    found = steps.submit(finished, out=out, views="none")
    assert found.written.backup is not None
    assert found.written.backup.read_text() == "mine\n"


def test_seeds_make_an_ensemble(forest: Path, tmp_path: Path) -> None:
    work = steps.prepare(forest, name="f", layout=LAYOUT, store=tmp_path / "store", workers=1)
    trained = steps.train(work, settings=[*[s for s in QUICK if s != "--set"], "epochs=1"], seeds=2, threads=1)
    assert [r.run.recipe.seed for r in trained.result.results] == [0, 1]
    assert len(trained.validation) == 2
    held_out = inference.validation_images(trained.result.results[0].run)
    p = probabilities([r.run for r in trained.result.results], held_out.images)
    assert trained.views["none"] == (p.argmax(1) == held_out.labels).double().mean()
    steps.retrain(work, seeds=2, threads=1)
    assert [f"{r.path.parent.name}/{r.path.name}" for r in steps.submit(work, views="none").runs] == [
        "retrain/seed-0", "retrain/seed-1", "train/seed-0", "train/seed-1",
    ]  # fmt: skip


def test_evaluations_and_probabilities_are_reused(
    forest: Path, tmp_path: Path, finished: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = replace(finished, path=tmp_path / "copy")
    shutil.copytree(finished.path, work.path)
    first = steps.submit(work, views="none", threads=1)

    def measure_again(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(inference, "evaluate_run", measure_again)
        patch.setattr(inference, "probabilities", measure_again)
        trained = steps.train(work)
        assert steps.submit(work, views="none").written.changed is False
    report = json.loads((work.path / "report.json").read_text())
    assert trained.views == report["validation_accuracy_by_views"]
    assert trained.train[0].result.count + trained.validation[0].result.count == TRAIN
    assert trained.train[0].result.confusion.tolist() == report["runs"][0]["train"]["confusion"]
    # A truncated file of cached probabilities is not used.
    for path in work.path.glob("*/answers-none-*.npy"):
        path.write_bytes(path.read_bytes()[:200])
    assert steps.submit(work, views="none").written.changed is False
    # The retrained run gets the weights of the other run, so its cached probabilities are outdated.
    shutil.copy(work.path / "train/best.safetensors", work.path / "retrain/last.safetensors")
    total = sum(probabilities([run], work.open_store().test_images) for run in (work.runs()[1], work.runs()[1]))
    labels = read_pairs(steps.submit(work, views="none", out=work.path / "other.csv").written.path, "file", "species")[
        1
    ]
    by_id = dict(zip(work.open_store().test_ids, total.argmax(1).tolist(), strict=True))  # type: ignore[union-attr]
    assert labels == [SPECIES[by_id[i]] for i in work.open_store().sample_ids or ()]
    assert first.views == "none"


def test_default_views_are_the_best_on_validation(finished: Competition, tmp_path: Path) -> None:
    work = replace(finished, path=tmp_path / "copy")
    shutil.copytree(finished.path, work.path)
    report = json.loads((work.path / "report.json").read_text())
    for accuracy, best in (((0.5, 0.6, 0.6), "flip"), ((0.6, 0.5, 0.6), "none"), ((0.1, 0.2, 0.3), "shift")):
        views = dict(zip(VIEWS, accuracy, strict=True))
        (work.path / "report.json").write_text(json.dumps(report | {"validation_accuracy_by_views": views}))
        assert steps.submit(work).views == best
    (work.path / "report.json").unlink()
    assert steps.submit(work).views == "shift"  # nothing was measured, but training mirrored images, too
    models = [replace(run, recipe=run.recipe.changed(flip=False, alternating_flip=False)) for run in work.runs()]
    assert _best_views(work, models) == "none"


def test_a_submission_is_uploaded_only_once(
    finished: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = replace(finished, path=tmp_path / "copy")
    shutil.copytree(finished.path, work.path)
    calls: list[tuple[str, Path, str]] = []

    def upload(to: str, path: Path, message: str) -> str:
        calls.append((to, path, message))
        return "Successfully submitted"

    with monkeypatch.context() as patch:
        patch.setattr(client, "find_client", lambda: None)
        with pytest.raises(CnnlabError, match="pip install kaggle"):
            steps.submit(work, upload_to="forest")
    monkeypatch.setattr(client, "check_ready", lambda to: None)
    monkeypatch.setattr(client, "upload", upload)
    assert steps.submit(work, upload_to="forest", message="first").answer == "Successfully submitted"
    again = steps.submit(work, upload_to="forest").answer
    assert again is not None
    assert "again" in again
    assert calls == [("forest", work.path / "submission.csv", "first")]
    steps.submit(work, upload_to="forest", chosen=["train"], out=work.path / "two.csv")
    answers = [read_pairs(path, "file", "species")[1] for path in (work.path / "submission.csv", work.path / "two.csv")]
    assert len(calls) == (1 if answers[0] == answers[1] else 2)


def test_an_upload_succeeds_even_if_it_cannot_be_recorded(
    finished: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = replace(finished, path=tmp_path / "copy")
    shutil.copytree(finished.path, work.path)
    monkeypatch.setattr(client, "check_ready", lambda to: None)

    def upload(to: str, path: Path, message: str) -> str:
        (work.path / "uploads.jsonl").mkdir()  # the record cannot be written
        return "Successfully submitted"

    monkeypatch.setattr(client, "upload", upload)
    answer = steps.submit(work, upload_to="forest").answer
    assert answer is not None
    assert answer.startswith("Successfully submitted")
    assert "uploads.jsonl" in answer


def test_an_impossible_submission_is_an_error_before_training(forest: Path, tmp_path: Path, cnnlab: Command) -> None:
    def broken_copy(name: str) -> tuple[Path, list[object]]:
        folder = tmp_path / name
        shutil.copytree(forest, folder)
        return folder, [
            "kaggle",
            "all",
            folder,
            "--name",
            name,
            "--store",
            tmp_path / f"{name}-store",
            *OPTIONS,
            *QUICK,
        ]

    folder, command = broken_copy("testless")
    (folder / "unseen.zip").unlink()
    assert "--test" in one_line_error(cnnlab(*command))
    folder, command = broken_copy("lacking")
    with (folder / "example.csv").open("a") as file:
        file.write("leaf-999,oak\n")
    assert "leaf-999" in one_line_error(cnnlab(*command))
    folder, command = broken_copy("uploading")
    assert "No Name" in one_line_error(cnnlab(*command, "--upload", "--competition", "No Name"))
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_upload_needs_the_name_of_the_competition_on_kaggle(forest: Path, tmp_path: Path, cnnlab: Command) -> None:
    command = ["kaggle", "all", forest, "--store", tmp_path / "store", *OPTIONS, *QUICK, "--upload"]
    assert "--competition" in one_line_error(cnnlab(*command, "--name", "quick"))
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    work = steps.open_competition("quick", tmp_path / "runs")
    for name in ("cifar-10", "quick"):  # the first is the default name
        with pytest.raises(CnnlabError, match=f"'{name}'.*--competition"):
            _upload_to(replace(work, path=Path("runs") / name), None)
    assert _upload_to(replace(work, path=Path("runs") / forest.name), None) == forest.name
    zipped = replace(work, path=Path("runs/cifar-10"), folder=Path("downloads/cifar-10.zip"))
    assert _upload_to(zipped, None) == "cifar-10"
    assert _upload_to(work, "leaves") == "leaves"


def test_a_damaged_competition_file_is_an_error(finished: Competition, tmp_path: Path) -> None:
    work = replace(finished, path=tmp_path / "forest")
    shutil.copytree(finished.path, work.path)
    (work.path / "competition.json").write_text('{"format": 1}')
    with pytest.raises(CnnlabError, match=r"competition\.json.*damaged"):
        steps.open_competition("forest", tmp_path)


def test_the_zip_downloaded_by_kaggles_client_is_found(forest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "forest"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "forest.zip", "w") as archive:
        for path in sorted(forest.iterdir()):
            archive.write(path, path.name)
    for place in (folder, None):
        found = steps.prepare(
            place, name="forest", data_dir=tmp_path / "data", layout=LAYOUT, store=tmp_path / "store", workers=1
        )
        assert found.folder == folder / "forest.zip"
        assert len(found.open_store().train) == TRAIN
    # a submission is checked against the sample inside the zip
    steps.train(found, settings=[*[s for s in QUICK if s != "--set"], "epochs=1"], threads=1)
    written = steps.submit(found, views="none").written.path
    assert read_pairs(written, "file", "species")[0] == read_pairs(forest / "example.csv", "file", "species")[0]


def test_the_empty_folder_of_a_killed_training_is_used(finished: Competition, tmp_path: Path) -> None:
    work = replace(finished, path=tmp_path / "runs" / "f")
    (work.path / "train").mkdir(parents=True)
    trained = steps.train(work, settings=[*[s for s in QUICK if s != "--set"], "epochs=1"], threads=1)
    assert trained.result.run.path == work.path / "train"


def test_the_number_of_seeds_cannot_change(finished: Competition) -> None:
    with pytest.raises(CnnlabError, match=r"\b1 seed\b.*\b3\b"):
        steps.train(finished, seeds=3)
    with pytest.raises(CnnlabError, match=r"\b1 seed\b.*\b2\b"):
        steps.retrain(finished, seeds=2)
    assert steps.retrain(finished).run.path == finished.path / "retrain"  # type: ignore[union-attr]


def test_retraining_needs_a_finished_training_and_applies_its_limit(finished: Competition, tmp_path: Path) -> None:
    work = replace(finished, path=tmp_path / "runs" / "f")
    work.path.mkdir(parents=True)
    chosen = [*[s for s in QUICK if s != "--set"], "epochs=1", "limit=40"]
    with pytest.raises(CnnlabError, match="data=digits"):
        steps.train(work, settings=[*chosen, "data=digits"])
    steps.train(work, settings=chosen, threads=1)
    (work.path / "train/summary.json").rename(work.path / "kept")
    with pytest.raises(CnnlabError, match="finished.*cnnlab kaggle train --name f"):
        steps.retrain(work, threads=1)
    (work.path / "kept").rename(work.path / "train/summary.json")
    result = steps.retrain(work, threads=1)
    assert result.summary["images"]["train"] == 40
    assert "40 labelled images" in str(result)


def test_a_training_with_folds_is_retrained_on_all_images(finished: Competition, tmp_path: Path) -> None:
    work = replace(finished, path=tmp_path / "runs" / "f")
    work.path.mkdir(parents=True)
    kept = [s for s in QUICK if s not in ("--set", "val_fraction=0.2")]
    steps.train(work, settings=[*kept, "epochs=1", "folds=3", "fold=2"], threads=1)
    assert steps.retrain(work, threads=1).summary["images"]["train"] == TRAIN  # type: ignore[union-attr]


def test_changed_images_are_detected(forest: Path, finished: Competition, tmp_path: Path) -> None:
    folder, runs_dir = tmp_path / "files", tmp_path / "runs"
    shutil.copytree(forest, folder)

    def prepare(store: str) -> Competition:
        return steps.prepare(folder, name="f", runs_dir=runs_dir, layout=LAYOUT, store=tmp_path / store, workers=1)

    work = prepare("store")
    steps.train(work, settings=[*[s for s in QUICK if s != "--set"], "epochs=1"], threads=1)
    moved = prepare("elsewhere")  # the same images: the runs remember where the first store is
    assert moved.store == work.store
    rows = (folder / "species.csv").read_text().splitlines()
    (folder / "species.csv").write_text("\n".join(rows[:-20]) + "\n")
    with pytest.raises(CnnlabError, match="files.*--name"):
        prepare("third")
    with pytest.raises(CnnlabError, match="files.*--name"):
        prepare("store")  # prepared again, from the changed files
    for step in (steps.train, steps.retrain, steps.submit, steps.show):
        with pytest.raises(CnnlabError, match=f"{work.store}.*images.*{work.path}.*--name"):
            step(work)


def test_a_relative_store_is_found_from_elsewhere(
    finished: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.store.parent)
    recipe = RECIPES["images"].changed(model="lenet", data=f"store:{finished.store.name}", epochs=1, batch_size=40)
    result = train(recipe, runs_dir=tmp_path / "runs", name="here")
    monkeypatch.chdir(tmp_path)
    assert inference.evaluate_run(result.run.path).result.count == pytest.approx(0.2 * TRAIN, abs=2)


def test_probabilities_of_a_wide_network_depend_on_the_image_alone(finished: Competition, tmp_path: Path) -> None:
    """On random images, for which no prediction is certain."""
    recipe = replace(RECIPES["cifar/10min"], data=f"store:{finished.store}", epochs=1, batch_size=40)
    run = train(recipe, runs_dir=tmp_path / "runs", threads=1).run
    images = torch.randint(0, 256, (60, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = probabilities([run], images, views="shift")
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for batch_size in (1, 16, 60):
        found = torch.empty_like(expected)
        found[order] = probabilities([run], images[order], views="shift", batch_size=batch_size)
        assert torch.equal(found.argmax(1), expected.argmax(1))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_interrupted_training_is_resumed(
    forest: Path, tmp_path: Path, finished: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnlab.io.errors import TrainingInterrupted
    from cnnlab.training import loop as training

    work = steps.prepare(forest, name="f", layout=LAYOUT, store=finished.store, workers=1)
    real, calls = training.train_step, []

    def stop_in_the_second_epoch(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    chosen = [s for s in QUICK if s != "--set"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", stop_in_the_second_epoch)
        with pytest.raises(TrainingInterrupted):
            steps.train(work, settings=chosen, threads=1)
    assert work.runs() == []
    with pytest.raises(CnnlabError, match="finished.*cnnlab kaggle train"):
        steps.submit(work)
    steps.train(work, threads=1)  # continues with the recipe it started with
    name = "train/last.safetensors"
    assert (work.path / name).read_bytes() == (finished.path / name).read_bytes()


def test_show_draws_samples_and_measures_pixels(finished: Competition, cnnlab: Command) -> None:
    found = json.loads(
        cnnlab("kaggle", "show", "--name", "forest", "--runs-dir", finished.path.parent, "--json").stdout
    )
    store = open_store(finished.store)
    assert found["classes"] == {s: int((store.train.labels == k).sum()) for k, s in enumerate(SPECIES)}
    pixels = store.train.images.double() / 255
    assert found["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert found["std"] == pytest.approx(pixels.transpose(0, 1).flatten(1).std(1, correction=0).tolist())
    with Image.open(found["figure"]) as figure:
        assert figure.size[0] > 300
    rows = sample_rows(store.train.images, store.train.labels, len(SPECIES), each=3)
    for k, row in enumerate(rows):
        assert len(row) == 3
        members = store.train.images[store.train.labels == k]
        assert all(np.array_equal(image, members[i].permute(1, 2, 0)) for i, image in enumerate(row))


def test_a_step_out_of_order_names_the_missing_step(forest: Path, cnnlab: Command, tmp_path: Path) -> None:
    for step in ("show", "train", "retrain", "submit"):
        assert "cnnlab kaggle prepare" in one_line_error(cnnlab("kaggle", step))
    steps.prepare(forest, name="cifar-10", layout=LAYOUT, store=tmp_path / "store", workers=1)
    assert "cnnlab kaggle train" in one_line_error(cnnlab("kaggle", "retrain"))
    assert "cnnlab kaggle train" in one_line_error(cnnlab("kaggle", "submit"))
    assert not (tmp_path / "runs" / "cifar-10" / "submission.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["prepare", "nowhere"], "nowhere.*cnnlab kaggle get"),
        (["prepare", "--name", "../up"], r"'\.\./up'"),
        (["train", "--name", "a/b"], "'a/b'"),
        (["submit", "--name", "nothing"], "cnnlab kaggle prepare.*nothing"),
        (["score", "nothing.csv", "--labels", "x.csv"], r"nothing\.csv"),
        (["get", "what; rm"], "what; rm"),
        (["all", "nowhere", "--tta", "flop"], "flop"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], told: str, cnnlab: Command) -> None:
    assert re.search(told, one_line_error(cnnlab("kaggle", *arguments)))


def test_bad_choices_are_one_line(finished: Competition, cnnlab: Command) -> None:
    at = ["--name", "forest", "--runs-dir", str(finished.path.parent)]
    for arguments, told in (
        (["submit", *at, "--tta", "many"], "'many'.*flip, none, shift"),
        (["submit", *at, "--run", "lost"], "lost"),
        (["submit", *at, "--threads", "99"], "threads=99"),
        (["train", *at, "--seeds", "0"], "seeds=0"),
        (["train", *at, "--set", "name=mine"], "--name"),
        (["train", *at, "--set", "eval_split=test"], "eval_split=test"),
        (["train", *at, "--recipe", "cifar/10mins"], r"'cifar/10mins'.*cifar/10min\b"),
    ):
        assert re.search(told, one_line_error(cnnlab("kaggle", *arguments))), arguments


def test_a_store_can_be_trained_on(finished: Competition, cnnlab: Command) -> None:
    answer = cnnlab("train", "lenet", "--data", f"store:{finished.store}", "--recipe", "images", "--set", "epochs=1")
    assert answer.returncode == 0, answer.stderr
    line = one_line_error(cnnlab("train", "--recipe", "cifar/1h"))
    assert "--data store:PATH" in line
    assert "cnnlab kaggle prepare" in one_line_error(cnnlab("train", "--data", "store:nowhere"))


def test_images_of_another_size_are_refused(finished: Competition) -> None:
    with pytest.raises(CnnlabError, match=f"{finished.runs()[0].path}.*3 x 32 x 32"):
        probabilities(finished.runs(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


LESSON = Path(__file__).resolve().parents[2] / "docs" / "competition.md"


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_lesson_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up competition with Kaggle's names."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "cifar-10"
    folder.mkdir(parents=True)
    for part, count in (("train", 140), ("test", 20)):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for i in range(count):
                buffer = BytesIO()
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
                archive.writestr(f"{part}/{i + 1}.png", buffer.getvalue())
    (folder / "trainLabels.csv").write_text("id,label\n" + "".join(f"{i + 1},class{i % 10}\n" for i in range(140)))
    (folder / "sampleSubmission.csv").write_text("id,label\n" + "".join(f"{i + 1},class3\n" for i in range(20)))
    monkeypatch.setenv("CNNLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(RECIPES, "cifar/10min", replace(RECIPES["cifar/10min"], epochs=1))
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{i + 1},class{i % 10}\n" for i in range(20)))
    leaves = tmp_path / "downloads" / "leaves"
    for part in ("train", "test"):
        (leaves / part).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (70 + i, 90), (40 * i, 0, 0)).save(leaves / part / f"{part}{i}.jpg")
    (leaves / "train.csv").write_text("image,species\n" + "".join(f"train{i}.jpg,{SPECIES[i % 3]}\n" for i in range(6)))
    room: dict[str, object] = {}
    for block in code_blocks(LESSON):
        exec(block, room)
    ids, labels = read_pairs(tmp_path / "runs" / "cifar-10" / "submission.csv")
    assert ids == [str(i + 1) for i in range(20)]
    assert set(labels) <= {f"class{k}" for k in range(10)}
    made = room["leaves"]
    assert isinstance(made, Competition)
    assert made.open_store().train.images.shape == (6, 3, 64, 64)


def test_both_languages_have_the_same_lesson() -> None:
    def code_without_comments(page: Path) -> list[str]:
        return [re.sub(r"#.*", "", block) for block in code_blocks(page)]

    chinese = LESSON.with_name("competition.zh.md")
    assert code_without_comments(LESSON) == code_without_comments(chinese)
    headings = [
        re.findall(r"^## (\d)\.", page.read_text(encoding="utf-8"), flags=re.MULTILINE) for page in (LESSON, chinese)
    ]
    assert headings[0] == headings[1] == list("12345678")


def test_labels_stay_with_their_images(finished: Competition, forest: Path) -> None:
    store: ImageSet = finished.open_store().train
    true = dict(zip(*read_pairs(forest / "species.csv", "file", "species"), strict=True))
    with zipfile.ZipFile(forest / "pictures.zip") as archive:
        for i, (image, label) in enumerate(zip(store.images, store.labels.tolist(), strict=True)):
            assert store.classes[label] == true[store.ids[i]]
            pixels = np.asarray(Image.open(BytesIO(archive.read(f"pictures/{store.ids[i]}.png"))))
            assert np.array_equal(image.permute(1, 2, 0), pixels)


def test_ctrl_c_prints_what_is_saved_and_how_to_continue(
    finished: Competition, cnnlab: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnlab.io.errors import TrainingInterrupted

    def stop(error: BaseException) -> Callable[..., None]:
        def raises(*args: object, **kwargs: object) -> None:
            raise error

        return raises

    at = ["--name", "forest", "--runs-dir", str(finished.path.parent)]
    monkeypatch.setattr(steps, "prepare", stop(KeyboardInterrupt()))
    answer = cnnlab("kaggle", "prepare")
    assert (answer.returncode, answer.stderr) == (130, "stopped\n")
    text = "stopped in epoch 2 of 9; 1 finished epoch is saved. Continue with: cnnlab train --resume x"
    monkeypatch.setattr(steps, "train", stop(TrainingInterrupted(text)))
    answer = cnnlab("kaggle", "train", *at)
    assert answer.returncode == 130
    (line,) = answer.stderr.splitlines()
    assert line.startswith("stopped in epoch 2 of 9; 1 finished epoch is saved. ")
    assert "again" in line
