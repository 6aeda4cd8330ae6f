"""`torchvision:NAME`: the labelled image sets of torchvision, read with its classes. The download is ours."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnlab.data.download import download
from cnnlab.data.files import Listing, Part
from cnnlab.data.imageset import Report, SourceOptions
from cnnlab.data.named import NAMED
from cnnlab.io.decode import Item
from cnnlab.io.errors import CnnlabError, reason, unknown
from cnnlab.io.lock import file_lock

_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
_LIMIT = 1 << 37  # bytes of a download: SUN397 and Places365 are tens of gigabytes
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}
_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
# The sets of labelled images: split -> arguments. Others hold boxes, masks, captions, pairs or videos.
SETS: dict[str, Mapping[str, dict[str, Any]]] = {
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "CLEVRClassification": {split: _THREE[split] for split in ("train", "validation")},  # the test set has no labels
    "Country211": {**_THREE, "validation": {"split": "valid"}},
    "DTD": _THREE,
    "EuroSAT": _WHOLE,
    "FakeData": _WHOLE,
    "FER2013": _TRAIN_TEST,
    "FGVCAircraft": _THREE,
    "Flowers102": _THREE,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "ImageNet": {split: _THREE[split] for split in ("train", "validation")},
    "Imagenette": {split: _THREE[split] for split in ("train", "validation")},
    "LFWPeople": _TRAIN_TEST,
    "Omniglot": _WHOLE,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "PCAM": _THREE,
    "Places365": {"train": {"split": "train-standard", "small": True}, "validation": {"split": "val", "small": True}},
    "QMNIST": _BY_FLAG,
    "RenderedSST2": _THREE,
    "SEMEION": _WHOLE,
    "StanfordCars": _TRAIN_TEST,
    "SUN397": _WHOLE,
    "USPS": _BY_FLAG,
}


def named_alike(name: str) -> str:
    """Return the source in `NAMED` that is the same as torchvision's set `name`, or ""."""
    plain = {"FashionMNIST": "fashion-mnist"}.get(name, name.casefold())
    return plain if plain in NAMED else ""


def listing(name: str, options: SourceOptions) -> Listing:
    """Return the images of all splits of a set in SETS, downloaded into `options.data_dir` if they are not there.

    Raise CnnlabError for an unknown name, a set without labelled images, or a failed download.
    """
    from torchvision import datasets  # slow to import, so only here

    if name not in SETS:
        if name == "EMNIST":
            raise CnnlabError("torchvision:EMNIST is read as emnist:SPLIT; write emnist:balanced")
        if inspect.isclass(getattr(datasets, name, None)):
            raise CnnlabError(f"torchvision:{name} is not a set of labelled images; known: {', '.join(SETS)}")
        raise unknown("set of torchvision", name, [*SETS, "MNIST", "CIFAR10", "CIFAR100", "SVHN", "STL10"])
    built = _build(getattr(datasets, name), name, options)
    labels = {split: _labels(dataset) for split, dataset in built.items()}
    if labels["train"] is None:
        raise CnnlabError(f"torchvision:{name}: its training images have no labels; choose another set")
    parts = {split: Part(_files(built[split], f"{name} {split}"), found) for split, found in labels.items() if found}
    notes = [f"the {split} images have no labels and are left out" for split in labels if split not in parts]
    count = max(max(part.labels) for part in parts.values()) + 1
    source = f"torchvision:{name}"
    return Listing(options.data_dir, source, _classes(built["train"], count), parts, notes=tuple(notes))


def _build(cls: type, name: str, options: SourceOptions) -> dict[str, Any]:
    """Return the dataset of each split, from torchvision's or our place in the data folder. Download it if missing."""
    here, own = options.data_dir, options.data_dir / "torchvision" / name
    try:
        return _datasets(cls, name, own if own.is_dir() else here)
    except ImportError as error:
        raise CnnlabError(f"torchvision:{name} needs another package: {reason(error)}; install it") from error
    except Exception as error:  # torchvision raises several kinds for what is not there
        if own.is_dir():
            raise CnnlabError(f"torchvision:{name}: {reason(error, 200)}; delete {own} to download it again") from error
        if "download" not in inspect.signature(cls).parameters:
            raise CnnlabError(f"torchvision:{name}: {reason(error, 200)}; put its files into {here}") from error
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(own, options.report):
            if not own.is_dir():
                _download(cls, name, own, options.report)
    except OSError as error:
        raise CnnlabError(f"cannot write {own}: {reason(error)}; name another folder with --data-dir") from error
    return _datasets(cls, name, own)


def _datasets(cls: type, name: str, root: Path, **more: Any) -> dict[str, Any]:
    if name == "FakeData":
        return {"train": cls(size=50, image_size=(3, 32, 32))}
    return {split: cls(root=str(root), **arguments, **more) for split, arguments in SETS[name].items()}


def _download(cls: type, name: str, own: Path, report: Report) -> None:
    """Download and unpack a set beside `own`, then rename it, so that a folder of that name is complete."""
    part, archives = own.with_name(f"{name}.unpacking"), own.with_name(f"{name}.downloads")
    shutil.rmtree(part, ignore_errors=True)  # an interrupted unpacking looks like a complete one
    part.mkdir()
    try:
        with _our_download(cls, archives, report):
            _datasets(cls, name, part, download=True)
        part.rename(own)
    except CnnlabError:
        raise
    except Exception as error:
        raise CnnlabError(f"cannot get torchvision:{name}: {reason(error, 200)}; check the network and run again, or "
                          f"put its files into {own}") from error  # fmt: skip
    shutil.rmtree(archives, ignore_errors=True)


@contextmanager
def _our_download(cls: type, archives: Path, report: Report) -> Iterator[None]:
    """Replace torchvision's `download_url` with our download, which resumes and verifies.

    The function is defined in `utils` and imported into other modules. PCAM does not use it: torchvision gets its files
    from Google Drive, and an interrupted download starts again.
    """
    from torchvision.datasets import utils

    def download_url(
        url: str, root: str, filename: str | None = None, md5: str | None = None, max_redirect_hops: int = 3
    ) -> None:
        del max_redirect_hops  # urllib follows ten
        file = filename or os.path.basename(url)  # noqa: PTH119 - an address
        download([url], archives / file, md5=md5 or "", report=report, limit=_LIMIT)
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / file).unlink(missing_ok=True)
        try:
            os.link(archives / file, Path(root) / file)
        except OSError:  # exFAT and some shares have no links
            shutil.copyfile(archives / file, Path(root) / file)

    modules = [utils, sys.modules[cls.__module__]]
    before = [module.__dict__.get("download_url") for module in modules]
    for module, original in zip(modules, before, strict=True):
        if original is not None:
            module.__dict__["download_url"] = download_url
    try:
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            if original is not None:
                module.__dict__["download_url"] = original


def _first(dataset: Any, *names: str) -> Any:
    return next((getattr(dataset, name) for name in names if getattr(dataset, name, None) is not None), None)


def _files(dataset: Any, title: str) -> Sequence[Path | Item]:
    """Return the image files of a dataset or, if it does not name them, an item for each image."""
    listed = _first(dataset, "_image_files", "_images", "_samples", "samples", "imgs") or []
    files = [entry[0] if isinstance(entry, tuple) else entry for entry in listed]
    if len(files) == len(dataset) and all(isinstance(file, str | Path) for file in files):
        return [Path(file) for file in files]

    one = threading.Lock()  # FakeData draws from the global generator, which it seeds

    def read(i: int) -> Image.Image:
        with one:
            image: Image.Image = dataset[i][0]
        return image

    return [Item(f"{title} {i}", partial(read, i)) for i in range(len(dataset))]


def _labels(dataset: Any) -> list[int] | None:
    """Return the class indices; None if images have no label, as in FER2013's test.csv."""
    found = _first(dataset, "_labels", "targets", "labels", "y")
    if found is None and (samples := _first(dataset, "_samples", "samples", "imgs")):
        found = [entry[1] for entry in samples]
    if found is None or len(found) != len(dataset):
        found = [dataset[i][1] for i in range(len(dataset))]
    if any(label is None for label in found):
        return None
    array = np.asarray(found)
    return [int(label) for label in (array[:, 0] if array.ndim == 2 else array)]


def _classes(dataset: Any, count: int) -> list[str]:
    """Return the class names; numbers if the dataset has fewer than `count` names."""
    given = _first(dataset, "classes", "categories") or []
    if not given and (numbers := getattr(dataset, "class_to_idx", None)):
        given = sorted(numbers, key=numbers.__getitem__)
    names = [name[0] if isinstance(name, tuple) else str(name) for name in given]
    if len(set(names)) < len(names):  # two classes of ImageNet share their first name
        names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in given]
    return names if len(names) >= count else [str(k) for k in range(count)]
