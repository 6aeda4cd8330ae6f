"""A competition's images, decoded once into one folder of plain arrays that every later step maps into memory.

PATH/train.npy, PATH/test.npy    (N, C, H, W) uint8
PATH/sample.csv                  the sample submission as it was, if there is one
PATH/store.json                  ids, labels, classes, and what was noticed on the way
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from platformdirs import user_cache_dir
from torch import Tensor

from cnnlab.data.competition import Layout, Place
from cnnlab.data.images import FITS
from cnnlab.data.imageset import ImageSet, Report, SourceOptions, no_report
from cnnlab.data.preparation import FORMAT, Parts, Preparation, fingerprint
from cnnlab.device import available_cores
from cnnlab.errors import CnnlabError, expand, reason
from cnnlab.files import read_json
from cnnlab.forms import COUNT, Number, check
from cnnlab.recipe import LARGEST_SIDE
from cnnlab.safety import clipped

__all__ = ["Layout", "Store", "intact", "load", "open_store", "prepare"]

STORE_LIMIT = 1 << 28  # bytes of store.json: five million images have less
_INFO = {
    "key": str, "fingerprint": str, "channels": (1, 3), "image_size": Number(1, LARGEST_SIDE, whole=True),
    "classes": [str], "labels": [COUNT], "train_ids": [str], "test_ids": [str], "sample_ids": (None, [str]),
    "skipped": [str], "unreadable_test": [str], "sample_without_image": [str], "report": [str], "lists?": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Store:
    """A prepared competition.

    info: what store.json holds; train: images (N, C, H, W) mapped from the disk, in the order of the labels file;
    test_images: (M, C, H, W), in the order of the sample submission, those that it does not name behind; M may be 0;
    test_ids: M texts, as the sample submission writes them; sample_ids: all of the sample submission's; sample: its
    file, in the store; both are None where there was none.
    """

    path: Path
    info: dict[str, Any]
    train: ImageSet
    test_images: Tensor
    test_ids: list[str]
    sample_ids: list[str] | None
    sample: Path | None


def load(path: Path, split: str, options: SourceOptions) -> ImageSet | None:  # noqa: ARG001 - as every source
    """The source `store:PATH`: its training images; None for the other parts, as the test images have no labels."""
    return open_store(path).train if split == "train" else None


def open_store(path: Path) -> Store:
    """Map a prepared store into memory. Raises CnnlabError where `path` is none, or an incomplete one."""
    path = expand(path)
    if not (path / "store.json").is_file():
        raise CnnlabError(f"{path} is no prepared store: it has no store.json; make one with cnnlab kaggle prepare")
    info = _about(path)
    if info.get("format") != FORMAT:
        told = clipped(repr(info.get("format")), 60)
        raise CnnlabError(f"{path / 'store.json'} says format {told}, not {FORMAT!r}; prepare it again")
    check(path / "store.json", info, _INFO, "delete it and prepare it again")
    try:
        ids, labels = info["train_ids"], torch.tensor(info["labels"], dtype=torch.int64)
        train, test = (
            _map(path / f"{part}.npy", (len(info[f"{part}_ids"]), info["channels"], *[info["image_size"]] * 2))
            for part in ("train", "test")
        )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(info["classes"]):
            raise ValueError("a label is no class")
        images = ImageSet(train, labels, ids, info["classes"], tuple(info["skipped"]))
        sample = None if info["sample_ids"] is None else path / "sample.csv"
        if sample and not sample.is_file():
            raise ValueError("it has no sample.csv")
        return Store(path, info, images, test, info["test_ids"], info["sample_ids"], sample)
    except (KeyError, TypeError, ValueError, OSError, OverflowError, RuntimeError) as error:
        raise CnnlabError(f"{path} is damaged: {reason(error)[:200]}; delete it and prepare it again") from error


def intact(store: Store) -> bool:
    """Are its images, ids and labels those that were prepared? Reads all of them."""
    info = store.info
    about = [info["train_ids"], info["labels"], info["classes"], info["test_ids"]]
    return fingerprint(store.path, about) == info.get("fingerprint")


def prepare(
    folder: Path,
    *,
    store: Path | None = None,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    workers: int | None = None,
    skip_bad: bool = False,
    report: Report = no_report,
) -> Store:
    """Decode a competition's archives into a store, or open the one that holds just this already.

    folder: where the files lie, or the competition's zip; store: the folder to make, unsaid one in the user's cache;
    workers: processes in all, unsaid one for each core; skip_bad: leave damaged training images out and list them in
    `info["skipped"]`, and show damaged test images black and list them in `info["unreadable_test"]`.

    The store has its name only when it is complete. Raises: CnnlabError, in one line, for whatever is wrong with the
    files. What is odd but does no harm is told in lines, `info["report"]`, and in full in `info["lists"]`; ids of the
    sample submission that the test part has no image for are in `info["sample_without_image"]`. Stores of the same
    images, ids and labels have the same `info["fingerprint"]`, wherever these came from.
    """
    folder = expand(folder)
    if workers is not None and workers < 1:
        raise CnnlabError(f"workers={workers}: choose at least 1, the number of processes")
    if layout.fit not in FITS:
        raise CnnlabError(f"fit={layout.fit!r}: choose {', '.join(FITS)}")
    if layout.image_size < 0:
        raise CnnlabError(f"image_size={layout.image_size}: choose the pixels of a side, or 0 for that of the images")
    try:
        with Place(folder, layout) as place:
            parts = Parts.find(place, layout)
            key = parts.key(skip_bad)
            # Without links and `..`: the folder is replaced as a whole.
            path = Path(os.path.realpath(expand(store))) if store else _default(folder, key)
            # Perhaps in a place where nothing can be written, not even a lock.
            if found := _existing(path, key, place.path):
                return found
            if Path.cwd().is_relative_to(path):
                raise CnnlabError(
                    f"{path} holds the folder you are in; name a folder to be made: --store {path / 'store'}"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path.with_name(path.name + ".lock"), report):
                found = _existing(path, key, place.path)
                if not found:
                    with _making(path) as work:
                        processes = min(workers or available_cores(), available_cores())
                        Preparation(parts, work, processes, workers is not None, skip_bad, report).run(key)
            return found or open_store(path)
    except OSError as error:
        raise CnnlabError(
            f"cannot prepare {folder}: {reason(error)}{f' ({error.filename})' if error.filename else ''}; check that "
            "it can be read, and that the store can be written, or name another folder with --store"
        ) from error


def _default(folder: Path, key: str) -> Path:
    name = folder.absolute().name.removesuffix(".zip") or "competition"
    return Path(user_cache_dir("cnnlab")) / "stores" / f"{name}-{key}"


def _existing(path: Path, key: str, source: Path) -> Store | None:
    """The store at `path` if it is complete and of that key; None where it must be made, if of the same source anew."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / "store.json").is_file() or not str(_about(path).get("format")).startswith("cnnlab store"):
        raise CnnlabError(f"{path} exists and is no store of ours; name another folder with --store")
    try:
        store = open_store(path)
    except CnnlabError:
        return None
    if store.info["key"] == key:
        return store
    before = str(store.info.get("source"))
    if len({os.path.normcase(os.path.realpath(place)) for place in (before, source)}) == 2:
        raise CnnlabError(
            f"{path} holds what was prepared of {before}; name another folder with --store, or delete it first"
        )
    return None


@contextmanager
def _alone(path: Path, report: Report) -> Iterator[None]:
    """Hold the lock `path`; tell it where that takes another process's end."""
    path.touch()  # where no file can be made: an error at once, which filelock would wait for
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report("waiting for another process that prepares this store", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _making(path: Path) -> Iterator[Path]:
    """A folder to work in, which becomes `path` in the end, or is removed. The caller holds the lock."""
    own = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    for entry in path.parent.iterdir():
        if own.fullmatch(entry.name):  # of a process that was killed: we hold the lock
            shutil.rmtree(entry, ignore_errors=True)
    work, old = (path.with_name(f".{path.name}.{number}.tmp") for number in (os.getpid(), 0))
    work.mkdir()
    try:
        yield work
        if path.exists():
            path.rename(old)  # as a whole: whoever looks without the lock sees an entire store, or none
        work.rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _about(path: Path) -> dict[str, Any]:
    return read_json(path / "store.json", STORE_LIMIT)


def mapped(path: Path, shape: tuple[int, ...], kind: str = "|u1") -> NDArray[Any]:
    """The array of just that shape and kind that the file `path` holds, in .npy format, mapped from the disk.

    What is written to it does not reach the file. The header is compared, not read: numpy's way to read one is Python's
    own for source code. Raises: ValueError, OSError.
    """
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
    wanted = head.getvalue()
    with path.open("rb") as file:
        if file.read(len(wanted)) != wanted:
            raise ValueError(f"{path.name} does not hold {' x '.join(map(str, shape))} numbers of the kind {kind}")
    dtype = np.dtype(kind)
    if path.stat().st_size != len(wanted) + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path.name} is not whole")
    if math.prod(shape) == 0:  # nothing to map
        return np.empty(shape, dtype)
    # Copy-on-write: torch knows no arrays that cannot be written.
    return np.memmap(path, dtype, "c", len(wanted), shape)


def _map(path: Path, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(mapped(path, shape))
