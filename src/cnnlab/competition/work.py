"""A competition's work folder: prepare its images, open it, show an overview of the images."""

from __future__ import annotations

import glob
import shlex
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from cnnlab.competition.layout import Layout
from cnnlab.competition.prepare_store import prepare_store
from cnnlab.data import data_folder
from cnnlab.data.imageset import sample_rows
from cnnlab.data.loader import Preprocessing
from cnnlab.data.store import Store, open_store
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import read_json, write_atomic, write_json
from cnnlab.io.schema import check
from cnnlab.training import runs
from cnnlab.training.display import reporting
from cnnlab.training.folders import check_name
from cnnlab.training.runs import Run
from cnnlab.training.series import is_series, member_folders

_FORMAT = "cnnlab competition 1"
_SCHEMA = {
    "format": _FORMAT, "folder": str, "store": str, "fingerprint": str,
    "layout": {field.name: type(field.default) for field in fields(Layout)},
}  # fmt: skip
NAME = "cifar-10"


@dataclass(frozen=True)
class Competition:
    """A competition's work folder.

    folder: the competition's files; store: the prepared images; fingerprint: a hash of the store's images, ids and
    labels.
    """

    path: Path
    folder: Path
    store: Path
    layout: Layout
    fingerprint: str

    def open_store(self) -> Store:
        """Return the prepared images. Raise CnnlabError if they are gone or have been replaced by others."""
        if not (self.store / "store.json").is_file():
            raise CnnlabError(
                f"the store {self.store} of {self.path} is gone; prepare it again: cnnlab kaggle prepare "
                f"{shlex.join([str(self.folder), '--name', self.path.name])}, with the same options"
            )
        store = open_store(self.store)
        if store.info["fingerprint"] != self.fingerprint:
            raise CnnlabError(
                f"{self.store} no longer holds the images of {self.path}; prepare them again under another --name"
            )
        return store

    def runs(self) -> list[Run]:
        """Return the finished runs of both trainings, those on all images first."""
        found = []
        for part in ("retrain", "train"):
            path = self.path / part
            folders = member_folders(path) if is_series(path) else [path]
            found += [runs.open_run(f) for f in folders if (f / "summary.json").exists()]
        return found


@dataclass(frozen=True)
class Overview:
    """A summary of the images.

    counts: images per class; mean, std: per channel, of pixels scaled to 0..1; figure: file with sample images.
    """

    store: Store
    counts: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    figure: Path

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
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
    """Decode the competition's files in `folder` (or its zip) into a store, unless that has been done.

    folder: Default: `name` in the folder of the datasets. The other arguments are those of `prepare_store`. Raise
    CnnlabError, also if `name` has runs on other images.
    """
    check_name(name)
    place = _files((expand(folder) if folder else data_folder(data_dir) / name).absolute(), name, layout)
    with reporting(progress) as report:
        prepared = prepare_store(
            place,
            store=expand(store) if store else None,
            layout=layout,
            workers=workers,
            skip_bad=skip_bad,
            report=report,
        )
    path = Path(runs_dir) / name
    found = Competition(path, place, prepared.path.absolute(), layout, prepared.info["fingerprint"])
    if (path / "competition.json").exists():
        earlier = open_competition(name, runs_dir)
        trained = any(has_started(path / part) for part in ("train", "retrain"))
        if trained and earlier.fingerprint != found.fingerprint:
            other = [
                f"{option}={value!r} instead of {getattr(earlier.layout, option)!r}"
                for option, value in asdict(layout).items()
                if value != getattr(earlier.layout, option)
            ]
            cause = f"other options: {'; '.join(other)}" if other else f"other files ({earlier.folder})"
            raise CnnlabError(f"{path} was started with {cause}; choose another --name")
        if trained and earlier.store != found.store:  # the same images; the runs know the first store
            earlier.open_store()
            found = replace(found, store=earlier.store)
    elif path.exists() and any(path.iterdir()):
        raise CnnlabError(f"{path} exists and is not a competition's folder; choose another --name")
    try:
        path.mkdir(parents=True, exist_ok=True)
        values = {"folder": str(place), "store": str(found.store), "fingerprint": found.fingerprint}
        write_json(path / "competition.json", {"format": _FORMAT, **values, "layout": asdict(layout)})
    except OSError as error:
        raise CnnlabError(f"cannot write into {path}: {reason(error)}; name another folder with --runs-dir") from error
    return found


def open_competition(name: str = NAME, runs_dir: str | Path = "runs") -> Competition:
    """Return the prepared competition `name`. Raise CnnlabError if there is none."""
    check_name(name)
    path = Path(runs_dir) / name / "competition.json"
    if not path.exists():
        raise CnnlabError(
            f"{path.parent} has no prepared competition; start with: cnnlab kaggle prepare FOLDER --name {name}"
        )
    values = read_json(path)
    check(path, values, _SCHEMA, "restore it from a copy, or choose another --name")
    layout = Layout(**{field.name: values["layout"][field.name] for field in fields(Layout)})
    return Competition(path.parent, Path(values["folder"]), Path(values["store"]), layout, values["fingerprint"])


def show(competition: Competition) -> Overview:
    """Count the classes, measure the pixels and draw sample images of each class: figure 1.8."""
    store = competition.open_store()
    train = store.train
    counts = torch.bincount(train.labels, minlength=len(train.classes)).tolist()
    moments = Preprocessing.of(train.images, image_size=0, fit="pad", normalize=True)
    rows = sample_rows(train.images, train.labels, len(train.classes))
    figure = competition.path / "figure-1.8.png"
    write_atomic(figure, plots.png(plots.samples(rows, train.classes)))
    return Overview(store, dict(zip(train.classes, counts, strict=True)), moments.mean, moments.std, figure)


def _files(place: Path, name: str, layout: Layout) -> Path:
    """Return the folder with a competition's files, or their zip: beside the folder, or in it, as the client does."""
    zips = [place.with_name(f"{place.name}.zip"), place / f"{place.name}.zip", place / f"{name}.zip"]
    whole = next((path for path in zips if path.is_file()), None)
    stem = Path(layout.train).name.split(".")[0]
    if place.exists() and not (place.is_dir() and whole and not any(place.glob(f"{glob.escape(stem)}*"))):
        return place
    if whole is None:
        raise CnnlabError(
            f"{place} does not exist; name the folder with the competition's files, or download them: cnnlab kaggle get"
        )
    return whole


def has_started(path: Path) -> bool:
    """Return whether a training has started in the folder `path`."""
    return (path / "recipe.json").exists() or is_series(path)
