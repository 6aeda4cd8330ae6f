"""A competition's archives -> the store that `cnnlab.data.store` maps: found again, made once, never half."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from cnnlab.competition.layout import Layout, Place
from cnnlab.competition.preparation import Parts, Preparation
from cnnlab.data.images import FITS
from cnnlab.data.imageset import Report, no_report
from cnnlab.data.store import Store, open_store, read_info
from cnnlab.device.hardware import available_cores
from cnnlab.io.errors import CnnlabError, expand, reason


def prepare_store(
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
    if not (path / "store.json").is_file() or not str(read_info(path).get("format")).startswith("cnnlab store"):
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
