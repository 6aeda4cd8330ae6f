"""A competition's work folder: preparing its images, opening it, showing what the images are."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from cnnlab.competition.layout import Layout
from cnnlab.competition.prepare_store import prepare_store
from cnnlab.data import data_folder
from cnnlab.data.imageset import SourceOptions, sample_rows
from cnnlab.data.loader import Preprocessing
from cnnlab.data.store import Store, open_store
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import read_json, write_atomic, write_json
from cnnlab.io.schema import validation_error
from cnnlab.io.text import truncate
from cnnlab.training import runs
from cnnlab.training.display import make_display
from cnnlab.training.folders import check_name
from cnnlab.training.runs import Run

_FORMAT = "cnnlab competition 1"
NAME = "cifar-10"


@dataclass(frozen=True)
class Competition:
    """A competition's work folder. folder: where its files were; store: what `prepare` made of them.

    fingerprint: a hash of the store's images, ids and labels.
    """

    path: Path
    folder: Path
    store: Path
    layout: Layout
    fingerprint: str

    def images(self) -> Store:
        """Its prepared images. Raises: CnnlabError where they are no longer those of this competition."""
        if not (self.store / "store.json").is_file():
            raise CnnlabError(
                f"the store {self.store} of {self.path} is gone; make it again: cnnlab kaggle prepare {self.folder} "
                f"--name {self.path.name}, with the options of before"
            )
        store = open_store(self.store)
        if store.info["fingerprint"] != self.fingerprint:
            raise CnnlabError(
                f"{self.store} no longer holds the images of {self.path}; prepare them again under another --name"
            )
        return store

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

    folder: unsaid, `name` in the folder of the datasets. See `prepare_store` for the rest. Raises:
    CnnlabError, also where `name` has runs on other images.
    """
    check_name(name)
    place = _files((expand(folder) if folder else data_folder(data_dir) / name).absolute(), name, layout)
    display = make_display(progress)
    try:
        made = prepare_store(
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
    found = Competition(path, place, made.path.absolute(), layout, made.info["fingerprint"])
    trainings = [path / part for part in ("train", "retrain") if begun(path / part)]
    if (path / "competition.json").exists():
        try:
            earlier = open_competition(name, runs_dir)
        except CnnlabError:  # written again, as it says; what was trained knows its images
            _same_images(path, trainings, found)
            earlier = found
        if trainings:
            options = [
                f"{name}={value!r} in place of {getattr(earlier.layout, name)!r}"
                for name, value in asdict(layout).items()
                if value != getattr(earlier.layout, name)
            ]
            if earlier.fingerprint != found.fingerprint and options:
                raise CnnlabError(f"{path} was begun with other options: {'; '.join(options)}; choose another --name")
            if earlier.fingerprint != found.fingerprint:
                raise CnnlabError(
                    f"{path} was begun with other files ({earlier.folder}); choose another --name for those in {place}"
                )
            if earlier.store != found.store:  # the same images: the runs know them by where they were first
                earlier.images()
                found = replace(found, store=earlier.store)
    elif path.exists() and any(path.iterdir()):
        raise CnnlabError(f"{path} exists and is no competition's folder; choose another --name")
    try:
        path.mkdir(parents=True, exist_ok=True)
        values = {"folder": str(place), "store": str(found.store), "fingerprint": found.fingerprint}
        write_json(path / "competition.json", {"format": _FORMAT, **values, "layout": asdict(layout)})
    except OSError as error:
        raise CnnlabError(f"cannot write into {path}: {reason(error)}; name another folder with --runs-dir") from error
    return found


def open_competition(name: str = NAME, runs_dir: str | Path = "runs") -> Competition:
    """The competition that `prepare` noted under `name`. Raises: CnnlabError where there is none."""
    check_name(name)
    path = Path(runs_dir) / name
    if not (path / "competition.json").exists():
        raise CnnlabError(f"{path} has no prepared competition; begin with: cnnlab kaggle prepare FOLDER --name {name}")
    again = f"write it again: cnnlab kaggle prepare FOLDER --name {name}, with the options of before"
    try:
        values = read_json(path / "competition.json")
    except CnnlabError as error:
        raise CnnlabError(f"{str(error).partition('; ')[0]}; {again}") from error
    try:
        if values["format"] != _FORMAT:
            raise ValueError(f"format {truncate(repr(values['format']), 60)}")
        form = {field.name: type(field.default) for field in fields(Layout)}
        if fault := validation_error(values, {"folder": str, "store": str, "fingerprint": str, "layout": form}):
            raise ValueError(fault)
        layout = Layout(**values["layout"])
        return Competition(path, Path(values["folder"]), Path(values["store"]), layout, str(values["fingerprint"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CnnlabError(f"{path / 'competition.json'} is damaged: {reason(error)}; {again}") from error


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


def _same_images(path: Path, trainings: Sequence[Path], found: Competition) -> None:
    """Raises: CnnlabError where a training was begun on another store, or on other images."""
    from cnnlab.data.splits import load_splits

    for training in trainings:
        several = (training / "seeds.json").exists()
        for folder in runs.seed_folders(training) if several else [training]:
            if not (folder / "run.json").exists():
                continue
            run = runs.open_run(folder)
            if run.recipe.data != f"store:{found.store}":
                raise CnnlabError(
                    f"{path / 'competition.json'} is damaged, and {folder} was begun on {run.recipe.data}; prepare "
                    f"that: --store {run.recipe.data.removeprefix('store:')}"
                )
            images, _ = load_splits(run.recipe, SourceOptions(data_dir=data_folder(None)))
            if images.fingerprint() != run.info["data"]["fingerprint"]:
                raise CnnlabError(f"{folder} was begun with other images or options; choose another --name")


def _files(place: Path, name: str, layout: Layout) -> Path:
    """The folder with a competition's files, or the zip that holds them: beside it, or in it (the client does so)."""
    zips = [place.with_name(f"{place.name}.zip"), place / f"{place.name}.zip", place / f"{name}.zip"]
    found = next((path for path in zips if path.is_file()), None)
    stem = Path(layout.train).name.split(".")[0]
    if place.exists() and not (place.is_dir() and found and not any(place.glob(f"{glob.escape(stem)}*"))):
        return place
    if found is None:
        raise CnnlabError(
            f"{place} does not exist; name the folder with the competition's files, or fetch them: cnnlab kaggle get"
        )
    return found


def begun(path: Path) -> bool:
    """Has a training begun in the folder `path`?"""
    return (path / "recipe.json").exists() or (path / "seeds.json").exists()
