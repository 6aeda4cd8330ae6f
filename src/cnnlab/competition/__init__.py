"""An image competition, from its archives to a submission: one function a step, each of which can be repeated.

A competition has a work folder, RUNS/NAME, where the steps leave what they make:

    competition.json     which files it is about, and where their store is
    figure-1.8.png       sample images
    train/               the run (or the runs of several seeds) with images held out
    retrain/             the same on every labelled image
    report.json          training and validation figures, confusion matrix
    submission.csv       what to hand in

A step that is finished is not done again; one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cnnlab import inference, plots, runs, training
from cnnlab.competition import client
from cnnlab.competition.submission import Score, Written, score, write_submission
from cnnlab.data import data_folder
from cnnlab.data.imageset import sample_rows
from cnnlab.data.loader import Preprocessing
from cnnlab.data.store import Layout, Store, open_store
from cnnlab.data.store import prepare as make_store
from cnnlab.device import check_threads
from cnnlab.display import make_display
from cnnlab.errors import CnnlabError, expand, reason
from cnnlab.files import read_json, write_atomic, write_json
from cnnlab.inference import RunEvaluation
from cnnlab.recipe import Recipe
from cnnlab.recipes import choose_recipe
from cnnlab.results import Result, SeedsResult
from cnnlab.runs import Run

__all__ = [
    "Competition",
    "Layout",
    "Overview",
    "Score",
    "Submitted",
    "Trained",
    "get",
    "open_competition",
    "prepare",
    "retrain",
    "score",
    "show",
    "submit",
    "train",
]

_FORMAT = "cnnlab competition 1"
NAME = "cifar-10"


@dataclass(frozen=True)
class Competition:
    """A competition's work folder. folder: where its files were; store: what `prepare` made of them."""

    path: Path
    folder: Path
    store: Path
    layout: Layout

    def images(self) -> Store:
        """Its prepared images."""
        return open_store(self.store)

    def runs(self) -> list[Run]:
        """The finished runs of both trainings, those on every image first."""
        found = []
        for part in ("retrain", "train"):
            path = self.path / part
            folders = runs.seed_folders(path) if (path / "seeds.json").exists() else [path]
            found += [runs.open_run(f) for f in folders if (f / "summary.json").exists()]
        return found


@dataclass(frozen=True)
class Overview:
    """What the images are: how many of each class, mean and deviation of the pixels, scaled to 0..1."""

    store: Store
    counts: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    figure: Path

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        images = self.store.train.images
        return {
            "store": str(self.store.path),
            "train": len(images),
            "test": len(self.store.test_ids),
            "shape": list(images.shape[1:]),
            "classes": self.counts,
            "mean": list(self.mean),
            "std": list(self.std),
            "notes": self.store.info["report"],
            "figure": str(self.figure),
        }


@dataclass(frozen=True)
class Trained:
    """A training of `train` with its figures on every image.

    validation, train: of each seed's run; views: validation accuracy of all runs together, by the number of views of
    each image (see `cnnlab.inference.VIEWS`).
    """

    result: Result | SeedsResult
    validation: list[RunEvaluation]
    train: list[RunEvaluation]
    views: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "recipe": self.validation[0].run.recipe.to_dict(),
            "runs": [
                {"validation": v.to_dict(), "train": t.to_dict()}
                for v, t in zip(self.validation, self.train, strict=True)
            ],
            "validation_accuracy_by_views": self.views,
        }


@dataclass(frozen=True)
class Submitted:
    """A submission: the file, the runs whose probabilities were averaged, and Kaggle's answer, if it was uploaded."""

    written: Written
    runs: list[Run]
    views: str
    answer: str | None = None


def get(
    competition: str = NAME,
    folder: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    progress: str = "auto",
) -> list[Path]:
    """Download the competition's files with the official client, unless they are there.

    folder: unsaid, that of the datasets. Raises: CnnlabError, which says what to download by hand, and where to put
    it, where the client or its token is missing.
    """
    display = make_display(progress)
    try:
        return client.get(
            competition, expand(folder) if folder else data_folder(data_dir) / competition, report=display.read
        )
    finally:
        display.end()


def prepare(
    folder: str | Path | None = None,
    *,
    name: str = NAME,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    store: str | Path | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    progress: str = "auto",
) -> Competition:
    """Decode the competition's files in `folder` (or its zip) into a store, unless that is done, and note it.

    folder: unsaid, `name` in the folder of the datasets. See `cnnlab.data.store.prepare` for the rest. Raises:
    CnnlabError, also where `name` has runs on other images.
    """
    runs.check_name(name)
    place = (expand(folder) if folder else data_folder(data_dir) / name).absolute()
    if not place.exists() and (place.parent / f"{place.name}.zip").exists():
        place = place.parent / f"{place.name}.zip"
    if not place.exists():
        raise CnnlabError(
            f"{place} does not exist; name the folder with the competition's files, or fetch them: cnnlab kaggle get"
        )
    display = make_display(progress)
    try:
        made = make_store(
            place,
            store=expand(store) if store else None,
            layout=layout,
            workers=workers,
            skip_bad=skip_bad,
            report=display.read,
        )
    finally:
        display.end()
    path = Path(runs_dir) / name
    found = Competition(path, place, made.path.absolute(), layout)
    if (path / "competition.json").exists():
        earlier = open_competition(name, runs_dir)
        begun = [p for p in ("train", "retrain") if (path / p).exists()]
        if earlier.store != found.store and begun:
            raise CnnlabError(
                f"{path} was begun with other files ({earlier.folder}); choose another --name for those in {place}"
            )
    elif path.exists() and any(path.iterdir()):
        raise CnnlabError(f"{path} exists and is no competition's folder; choose another --name")
    try:
        path.mkdir(parents=True, exist_ok=True)
        values = {"folder": str(place), "store": str(found.store), "layout": asdict(layout)}
        write_json(path / "competition.json", {"format": _FORMAT, **values})
    except OSError as error:
        raise CnnlabError(f"cannot write into {path}: {reason(error)}; name another folder with --runs-dir") from error
    return found


def open_competition(name: str = NAME, runs_dir: str | Path = "runs") -> Competition:
    """The competition that `prepare` noted under `name`. Raises: CnnlabError where there is none."""
    runs.check_name(name)
    path = Path(runs_dir) / name
    if not (path / "competition.json").exists():
        raise CnnlabError(f"{path} has no prepared competition; begin with: cnnlab kaggle prepare FOLDER --name {name}")
    values = read_json(path / "competition.json")
    try:
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']!r}")
        return Competition(path, Path(values["folder"]), Path(values["store"]), Layout(**values["layout"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CnnlabError(
            f"{path / 'competition.json'} is damaged: {reason(error)}; write it again: cnnlab kaggle prepare"
        ) from error


def show(competition: Competition) -> Overview:
    """Count the classes, measure the pixels, and draw some images of each class: figure 1.8."""
    store = competition.images()
    train = store.train
    counts = torch.bincount(train.labels, minlength=len(train.classes)).tolist()
    moments = Preprocessing.of(train.images, image_size=0, fit="pad", normalize=True)
    rows = sample_rows(train.images, train.labels, len(train.classes))
    figure = competition.path / "figure-1.8.png"
    write_atomic(figure, plots.png(plots.samples(rows, train.classes)))
    return Overview(store, dict(zip(train.classes, counts, strict=True)), moments.mean, moments.std, figure)


def train(
    competition: Competition,
    recipe: Recipe | str | None = None,
    *,
    settings: Sequence[str] = (),
    seeds: int = 1,
    device: str = "auto",
    threads: int | None = None,
    progress: str = "auto",
) -> Trained:
    """Train with images held out, by a recipe (unsaid: `cifar/10min`), and measure every image of both parts.

    settings: `key=value` texts that change the recipe; seeds: train that many networks. What is finished already is
    only measured; what was interrupted goes on. Raises: CnnlabError, also where another recipe was begun.
    """
    chosen = None
    if recipe is not None or settings or not (competition.path / "train").exists():
        source = f"store:{competition.store}"
        if isinstance(recipe, Recipe):
            chosen = replace(recipe, data=source).with_settings(settings)
        else:
            chosen = choose_recipe(data=source, recipe=recipe, settings=settings)
        if chosen.watch != "validation":
            raise CnnlabError(f"watch={chosen.watch}: this step holds images out; set watch=validation")
    result = _train_or_go_on(competition.path / "train", chosen, seeds, device, threads, progress)
    results = result.results if isinstance(result, SeedsResult) else [result]
    check_threads(threads)
    measured = {
        split: [inference.evaluate_run(r.run.path, split=split, device=device) for r in results]
        for split in ("validation", "train")
    }
    views = _by_views([r.run for r in results], device, threads, progress)
    trained = Trained(result, measured["validation"], measured["train"], views)
    write_json(competition.path / "report.json", trained.to_dict())
    return trained


def retrain(
    competition: Competition,
    *,
    seeds: int = 1,
    device: str = "auto",
    threads: int | None = None,
    progress: str = "auto",
) -> Result | SeedsResult:
    """Train on every labelled image with the settings of `train`; several seeds make an ensemble."""
    path = competition.path / "train"
    if not (path / "recipe.json").exists() and not (path / "seeds.json").exists():
        raise CnnlabError(
            f"{path} does not exist: its settings are those to train with; first: cnnlab kaggle train --name "
            f"{competition.path.name}"
        )
    recipe = runs.open_seeds(path)[0] if (path / "seeds.json").exists() else runs.open_run(path).recipe
    everything = recipe.changed(watch="train", val_fraction=0.0)
    return _train_or_go_on(competition.path / "retrain", everything, seeds, device, threads, progress)


def submit(
    competition: Competition,
    *,
    chosen: Sequence[str | Path] = (),
    views: str = "shift",
    out: str | Path | None = None,
    upload_to: str | None = None,
    message: str = "cnnlab",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 0,
    progress: str = "auto",
) -> Submitted:
    """Name every test image and write the submission, in the order of the competition's sample.

    chosen: runs; unsaid, all that are finished. Their probabilities are averaged, over `views` of each image. out:
    the file, unsaid submission.csv in the work folder; one that is there and differs is kept under another name.
    upload_to: hand it in to that competition with the official client. Raises: CnnlabError.
    """
    store = competition.images()
    if not store.test_ids:
        raise CnnlabError(f"{competition.folder} has no test images to answer; prepare it with its test part")
    models = [runs.open_run(name, competition.path) for name in chosen] if chosen else competition.runs()
    if not models:
        raise CnnlabError(f"{competition.path} has no finished run; first: cnnlab kaggle train")
    for run in models:
        if run.classes != store.train.classes:
            raise CnnlabError(f"{run.path} tells other classes apart than {competition.folder} has")
    display = make_display(progress)
    try:
        p = inference.probabilities(
            models, store.test_images, views=views, device=device, threads=threads, batch_size=batch_size,
            report=display.read,
        )  # (M, K)  # fmt: skip
    finally:
        display.end()
    answers = dict(zip(store.test_ids, p.argmax(1).tolist(), strict=True))
    classes, layout = store.train.classes, competition.layout
    # Test images that the sample does not name are no part of a submission.
    ids = [i for i in store.sample_ids or store.test_ids if i in answers]
    written = write_submission(
        expand(out) if out else competition.path / "submission.csv",
        ids,
        [classes[answers[i]] for i in ids],
        sample=_sample(competition, store),
        classes=classes,
        id_column=layout.id_column,
        label_column=layout.label_column,
    )
    answer = client.upload(upload_to, written.path, message) if upload_to else None
    return Submitted(written, models, views, answer)


def _sample(competition: Competition, store: Store) -> Path | None:
    """The sample submission as a file: the competition's own, or, where that is in a zip, a copy of its rows."""
    own = competition.folder / competition.layout.sample
    if own.is_file() or store.sample_ids is None:
        return own if own.is_file() else None
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([competition.layout.id_column, competition.layout.label_column])
    rows.writerows([i, store.train.classes[0]] for i in store.sample_ids)
    path = competition.path / "sampleSubmission.csv"
    write_atomic(path, text.getvalue())
    return path


def _train_or_go_on(
    path: Path, recipe: Recipe | None, seeds: int, device: str, threads: int | None, progress: str
) -> Result | SeedsResult:
    """Train into the folder `path`, or go on with what it holds, if that is of the same recipe."""
    if seeds < 1:
        raise CnnlabError(f"seeds={seeds}: must be at least 1")
    common: dict[str, Any] = {"device": device, "threads": threads, "progress": progress}
    if (path / "recipe.json").exists() or (path / "seeds.json").exists():
        several = (path / "seeds.json").exists()
        there, numbers = runs.open_seeds(path) if several else (runs.open_run(path).recipe, [0])
        if recipe is not None and (there != recipe or len(numbers) != seeds):
            what = f"{there.name} with {len(numbers)} seed{'s' if len(numbers) > 1 else ''}"
            raise CnnlabError(f"{path} was begun by {what} and is kept; choose another --name for another training")
        summary = None if several else runs.open_run(path).summary()
        if summary is not None:
            return Result(runs.open_run(path), summary)
        return training.resume(path, **common)
    assert recipe is not None
    if seeds == 1:
        return training.train(recipe, runs_dir=path.parent, name=path.name, **common)
    return training.train_seeds(recipe, seeds, runs_dir=path.parent, name=path.name, **common)


def _by_views(models: list[Run], device: str, threads: int | None, progress: str) -> dict[str, float]:
    """Accuracy of the averaged probabilities on the validation images, for each kind of views."""
    images = inference.validation_images(models[0])
    found = {}
    display = make_display(progress)
    try:
        for views in inference.VIEWS:
            p = inference.probabilities(
                models, images.images, views=views, device=device, threads=threads, report=display.read
            )
            found[views] = float((p.argmax(1) == images.labels).double().mean())
    finally:
        display.end()
    return found
