"""Prepare a competition's archives as a store, which `cnnlab.data.store` maps. A store is either complete or absent."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_dir

from cnnlab.competition.layout import Layout, Place
from cnnlab.competition.store_writer import Parts, StoreWriter
from cnnlab.data.imageset import Report, no_report
from cnnlab.data.store import STORE_LIMIT, Store, open_store
from cnnlab.device.hardware import available_cores
from cnnlab.io.decode import BACKGROUNDS, FITS
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import read_json
from cnnlab.io.lock import file_lock


def prepare_store(
    folder: Path,
    *,
    store: Path | None = None,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    workers: int | None = None,
    skip_bad: bool = False,
    report: Report = no_report,
) -> Store:
    """Decode a competition's archives into a store, or open the store if it exists already.

    folder: the competition's files, or its zip. store: the folder to create. Default: one in the user's cache. workers:
    number of decoding processes. Default: one per core, or a single one for few images. skip_bad: leave out damaged
    training images and list them in `info["skipped"]`; store damaged test images as black ones and list them in
    `info["unreadable_test"]`.

    The store gets its name only when it is complete. Harmless oddities of the files are described in `info["report"]`
    and listed in full in `info["lists"]`; ids of the sample submission without a test image are in
    `info["sample_without_image"]`. Stores of the same images, ids and labels have the same `info["fingerprint"]`.

    Raise CnnlabError for invalid arguments, faulty files, or a store that cannot be written.
    """
    folder = expand(folder)
    if workers is not None and workers < 1:
        raise CnnlabError(f"workers={workers}: choose at least 1, the number of processes")
    if layout.fit not in FITS:
        raise CnnlabError(f"fit={layout.fit!r}: choose {', '.join(FITS)}")
    if layout.background not in BACKGROUNDS:
        raise CnnlabError(f"background={layout.background!r}: choose {', '.join(BACKGROUNDS)}")
    if layout.image_size < 0:
        raise CnnlabError(f"image_size={layout.image_size}: choose the pixels of a side, or 0 for that of the images")
    try:
        with Place(folder, layout) as place:
            parts = Parts.find(place, layout)
            key = parts.key(skip_bad)
            # Resolve symlinks and `..`: the folder is replaced as a whole.
            path = Path(os.path.realpath(expand(store))) if store else _default(folder, key)
            # Before taking the lock, since the store may be read-only.
            if found := _existing(path, key, place.path):
                return found
            path.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(path, report):
                found = _existing(path, key, place.path)
                if not found:
                    with _work_folder(path) as work:
                        processes = min(workers, available_cores()) if workers else None
                        StoreWriter(parts, work, processes, skip_bad, report).write(key)
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
    """Return the store at `path` if it is complete and has that key; None if it must be written.

    Raise CnnlabError if it would replace a folder of something else, or the store of another source.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    file = path / "store.json"
    if not file.is_file() or not str(read_json(file, STORE_LIMIT).get("format")).startswith("cnnlab store"):
        raise CnnlabError(f"{path} exists and is not a cnnlab store; name another folder with --store")
    try:
        store = open_store(path)
    except CnnlabError:
        return None
    if store.info["key"] == key:
        return store
    before = str(store.info.get("source"))
    if len({os.path.normcase(os.path.realpath(place)) for place in (before, source)}) == 2:
        raise CnnlabError(f"{path} was prepared from {before}; name another folder with --store, or delete it first")
    return None


@contextmanager
def _work_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, then rename it to `path`, or remove it after an error. The caller holds the lock."""
    own = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    for entry in path.parent.iterdir():
        if own.fullmatch(entry.name):  # left by a killed process, since we hold the lock
            shutil.rmtree(entry, ignore_errors=True)
    work, old = (path.with_name(f".{path.name}.{number}.tmp") for number in (os.getpid(), 0))
    work.mkdir()
    try:
        yield work
        if path.exists():
            path.rename(old)  # as a whole: readers without the lock see a complete store or none
        work.rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
