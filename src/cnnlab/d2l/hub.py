"""Files: what the manual's code downloads, the labels of its competition, and its folders of images."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cnnlab.d2l.data import OLD_FOLDER
from cnnlab.data import data_folder
from cnnlab.data.archives import unpack
from cnnlab.data.download import checksum
from cnnlab.data.download import download as fetch
from cnnlab.io.csv import first, quoted, read_header, read_table
from cnnlab.io.errors import CnnlabError, expand, reason, unknown

DATA_URL = "http://d2l-data.s3-accelerate.amazonaws.com/"
"""Where the book keeps its files. Every download is checked, so that it matters little that this is not https."""

DATA_HUB: dict[str, tuple[str, str]] = {
    "cifar10_tiny": (DATA_URL + "kaggle_cifar10_tiny.zip", "2068874e4b9a9f0fb07ebe0ad2b29754449ccacd"),
}
"""Files that `download` knows, by name: (address, SHA-1). Add your own as the listings do."""


def download(name: str, cache_dir: str | Path | None = None) -> str:
    """The path of a file named in DATA_HUB, which is downloaded if it is not there.

    cache_dir: the folder it lies in; unsaid, the one that CNNLAB_DATA names, or the user's cache folder, or ../data if
    the file is there already, where the original puts it. Unlike the original, it is checked after the download too,
    and an interrupted one goes on. Raises: CnnlabError for an unknown name, a file that is damaged, and where it cannot
    be downloaded.
    """
    if name not in DATA_HUB:
        raise unknown("name in DATA_HUB", name, DATA_HUB)
    entry = DATA_HUB[name]
    if not isinstance(entry, tuple | list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise CnnlabError(f"DATA_HUB[{name!r}] is {quoted(str(entry))}; it should be a pair (address, SHA-1)")
    url, sha1 = entry
    file_name = url.rpartition("/")[2]
    if not file_name:
        raise CnnlabError(f"DATA_HUB[{name!r}]: the address {quoted(url)} names no file")
    folder = data_folder(cache_dir)
    if cache_dir is None and (OLD_FOLDER / file_name).is_file():
        folder = OLD_FOLDER
    path = folder / file_name
    if not path.exists():
        print(f"Downloading {path} from {url}...")
        fetch([url], path, sha1=sha1.lower())
    elif checksum(path, "sha1") != sha1.lower():
        raise CnnlabError(
            f"{path} ({path.stat().st_size} bytes) is not the file that DATA_HUB[{name!r}] names: its SHA-1 sum is not "
            f"{sha1}. It is truncated or damaged; delete it, and the next call downloads it again"
        )
    return str(path)


def download_extract(name: str, folder: str | None = None) -> str:
    """The folder that a zip or tar file named in DATA_HUB unpacks to, beside the file; it is downloaded if need be.

    folder: its name; unsaid, the file's without its ending. An archive with members that would land elsewhere, links
    or devices is refused. Raises: CnnlabError as `download`, and for a file that is no such archive, or a damaged one.
    """
    path = Path(download(name))
    base = path.parent
    stem = path.name.lower()
    ending = next((e for e in (".zip", ".tar.gz", ".tgz", ".tar", ".gz") if stem.endswith(e)), "")
    if not ending:
        raise CnnlabError(f"{path} cannot be unpacked: only .zip, .tar, .tar.gz and .tgz can")
    try:
        unpack(path, base)
    except OSError as error:
        raise CnnlabError(f"cannot unpack {path} into {base}: {reason(error)}") from error
    return str(base / (folder if folder is not None else path.name[: len(path.name) - len(ending)]))


def read_csv_labels(fname: str | Path) -> dict[str, str]:
    """The labels in a CSV file of two columns with a header: {file name without its ending: label}.

    Unlike the original, which splits lines at commas, it reads quoted fields, and refuses a name that is there twice.
    Raises: CnnlabError naming the file, the line and the remedy.
    """
    path = expand(fname)
    try:
        header = read_header(path.open("rb"), str(path))
        if len(header) != 2:
            raise CnnlabError(
                f"{path}: its first line has {len(header)} columns; it should be a header of two, as id,label"
            )
        table = read_table(path.open("rb"), str(path), header[0], header[1])
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}") from error
    return dict(zip(table.ids, table.values, strict=True))


def copyfile(filename: str | Path, target_dir: str | Path) -> None:
    """Copy a file into a folder, which is made if need be."""
    try:
        folder = expand(target_dir)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(filename, folder)
    except shutil.SameFileError:
        pass  # a link to it, as `reorg_train_valid` makes them: there already
    except OSError as error:
        raise CnnlabError(f"cannot copy {filename} into {target_dir}: {reason(error)}") from error


def reorg_train_valid(
    data_dir: str | Path, labels: Mapping[str, str], valid_ratio: float, *, copy: bool = False
) -> int:
    """Sort the images in data_dir/train by class into data_dir/train_valid_test; returns how many of each are held out.

    Of each class the same number goes to valid/CLASS: `valid_ratio` of the rarest class, rounded down, at least one.
    The others go to train/CLASS, and all of them to train_valid/CLASS. labels: what `read_csv_labels` gave.

    Unlike the original: the images are links to the same bytes, where the file system has such links, and no copies
    (copy: copies all the same); which are held out does not depend on the order in which the system lists files (they
    are the first by number, or by name); and what an earlier call with another ratio held out is put right, where the
    original would leave images in both train and valid. Raises: CnnlabError for a ratio that leaves nothing to train
    on, and for an image without a label.
    """
    source = expand(data_dir) / "train"
    target = expand(data_dir) / "train_valid_test"
    files = _images(source)
    if not labels:
        raise CnnlabError("there are no labels; read them with read_csv_labels")
    rarest, fewest = Counter(labels.values()).most_common()[-1]
    if not 0 <= valid_ratio < 1:
        raise CnnlabError(f"valid_ratio={valid_ratio!r}: choose a share from 0 to below 1, as 0.1")
    each = max(1, math.floor(fewest * valid_ratio))
    if each >= fewest:
        raise CnnlabError(f"{rarest!r} has {fewest} image: none would be left to train on; add images or leave it out")
    wanted: dict[Path, str] = {}  # where each image goes -> its file's name
    held_out: Counter[str] = Counter()
    for name in files:
        label = labels.get(name.partition(".")[0])
        if label is None:
            raise CnnlabError(f"{source / name} has no label; the labels are of {first(list(labels))}")
        if label in (".", "..") or Path(label).name != label:
            raise CnnlabError(f"{name}: the label {quoted(label)} cannot be a folder's name")
        part = "valid" if held_out[label] < each else "train"
        held_out[label] += part == "valid"
        wanted[target / "train_valid" / label / name] = name
        wanted[target / part / label / name] = name
    try:
        _remove_others(target, set(files), wanted)
        _place(source, wanted, copy)
    except OSError as error:
        raise CnnlabError(f"cannot sort the images of {source} into {target}: {reason(error)}") from error
    return each


def reorg_test(data_dir: str | Path, *, copy: bool = False) -> None:
    """Put the images in data_dir/test into data_dir/train_valid_test/test/unknown, for a reader that wants classes.

    As links to the same bytes, where the file system has such links; copy: copies all the same.
    """
    source = expand(data_dir) / "test"
    target = expand(data_dir) / "train_valid_test" / "test" / "unknown"
    try:
        _place(source, {target / name: name for name in _images(source)}, copy)
    except OSError as error:
        raise CnnlabError(f"cannot put the images of {source} into {target}: {reason(error)}") from error


def _images(folder: Path) -> list[str]:
    """The names of the files there, 2.png before 10.png; hidden ones are left out."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_file()]
    except OSError as error:
        raise CnnlabError(f"cannot read {folder}: {reason(error)}; unpack the competition's archives there") from error
    if not names:
        raise CnnlabError(f"{folder} holds no images; unpack the competition's archives there")

    def place(name: str) -> tuple[bool, int, str]:
        stem = name.partition(".")[0]
        number = stem.isascii() and stem.isdigit()
        return not number, int(stem) if number else 0, name

    return sorted(names, key=place)


def _remove_others(target: Path, names: set[str], wanted: Mapping[Path, str]) -> None:
    """Of these images, remove what an earlier call has put where it is no longer wanted; other files stay."""
    for part in ("train", "valid", "train_valid"):
        for path in (target / part).glob("*/*"):
            if path.name in names and path not in wanted:
                path.unlink()


def _place(source: Path, wanted: Mapping[Path, str], copy: bool) -> None:
    """Link or copy each file of `source` to its places. A link to it that is there is right already."""
    for folder in {path.parent for path in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
    for path, name in wanted.items():
        original = source / name
        if path.exists():
            same = path.samefile(original)
            if same and not copy:
                continue
            path.unlink()
        if not copy:
            try:
                os.link(original, path)
                continue
            except OSError:  # another file system, or one without links
                pass
        shutil.copy(original, path)
