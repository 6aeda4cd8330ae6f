"""Downloads, the labels of the competition, and the folders that its images are sorted into."""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cnnlab.d2l.data import OLD_FOLDER
from cnnlab.data import data_folder
from cnnlab.data.archives.zip import ZIP_ERRORS
from cnnlab.data.download import checksum
from cnnlab.data.download import download as fetch
from cnnlab.io.csv import first, quoted, read_header, read_table
from cnnlab.io.errors import CnnlabError, expand, reason, unknown
from cnnlab.io.text import plural

DATA_URL = "http://d2l-data.s3-accelerate.amazonaws.com/"
"""The address of the book's files. It is not https, but every download is checked against its SHA-1."""

DATA_HUB: dict[str, tuple[str, str]] = {
    "cifar10_tiny": (DATA_URL + "kaggle_cifar10_tiny.zip", "2068874e4b9a9f0fb07ebe0ad2b29754449ccacd"),
}
"""The files that `download` knows: name -> (address, SHA-1). Add your own as the listings do."""


def download(name: str, cache_dir: str | Path | None = None) -> str:
    """Return the path of a file named in DATA_HUB; download it if it is missing.

    cache_dir: the file's folder. Default: ../data, the original's folder, if the file is already there; else the folder
    that CNNLAB_DATA names, or the user's cache folder. Unlike the original, check the file after the download too, and
    resume an interrupted download.

    Raise CnnlabError for an unknown name, a damaged file, or a failed download.
    """
    if name not in DATA_HUB:
        raise unknown("name in DATA_HUB", name, DATA_HUB)
    entry = DATA_HUB[name]
    if not isinstance(entry, tuple | list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise CnnlabError(f"DATA_HUB[{name!r}] is {quoted(str(entry))}; set it to a pair (address, SHA-1)")
    url, sha1 = entry
    file_name = url.rpartition("/")[2]
    if not file_name:
        raise CnnlabError(f"DATA_HUB[{name!r}]: the URL {quoted(url)} does not name a file")
    folder = data_folder(cache_dir)
    if cache_dir is None and (OLD_FOLDER / file_name).is_file():
        folder = OLD_FOLDER
    path = folder / file_name
    if not path.exists():
        print(f"Downloading {path} from {url}...")
        fetch([url], path, sha1=sha1.lower())
    elif checksum(path, "sha1") != sha1.lower():
        raise CnnlabError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged: its SHA-1 is not {sha1}, the one in "
            f"DATA_HUB[{name!r}]; delete it and call again to download it"
        )
    return str(path)


def download_extract(name: str, folder: str | None = None) -> str:
    """Download a zip or tar file named in DATA_HUB if needed, unpack it beside itself, and return its folder.

    folder: the name of that folder. Default: the file's name without its extension. Raise CnnlabError as in `download`,
    and for a file that is not such an archive, is damaged or too large, or has members that lead outside.
    """
    path = Path(download(name))
    stem = path.name.lower()
    ending = next((e for e in (".zip", ".tar.gz", ".tgz", ".tar") if stem.endswith(e)), "")
    if not ending:
        raise CnnlabError(f"cannot unpack {path}; use a .zip, .tar, .tar.gz or .tgz file")
    extract(path, path.parent)
    return str(path.parent / (folder if folder is not None else path.name[: len(path.name) - len(ending)]))


def extract(path: Path, folder: Path) -> None:
    """Unpack a zip or tar file into `folder`. Existing files are replaced.

    A DATA_HUB file has a known checksum. Still, refuse paths and links that lead outside, devices, all links in a zip,
    and an archive that unpacks to over 1 GiB and over a hundred times its size. Raise CnnlabError.
    """
    limit = max(1 << 30, 100 * path.stat().st_size)
    too_large = CnnlabError(f"{path} would unpack to more than {limit:,} bytes; it was not unpacked")
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as packed:
                for info in packed.infolist():
                    parts = re.split(r"[/\\]", info.orig_filename)
                    if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in info.orig_filename:
                        raise CnnlabError(f"{path}: {info.orig_filename!a} leads outside the folder")
                    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                        raise CnnlabError(f"{path}: {info.orig_filename!a} is a link or a device")
                if sum(info.file_size for info in packed.infolist()) > limit:
                    raise too_large
                for info in packed.infolist():
                    packed.extract(info, folder)
        else:
            with tarfile.open(path) as tar:
                total = 0
                for member in tar:
                    total += member.size
                    if total > limit:
                        raise too_large
                    tar.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise CnnlabError(f"{path} has a member that leads outside or is a device: {reason(error)}") from error
    except OSError as error:
        raise CnnlabError(f"cannot unpack {path} into {folder}: {reason(error)}") from error
    except (tarfile.TarError, OverflowError, *ZIP_ERRORS) as error:
        raise CnnlabError(f"{path} is damaged: {reason(error)}; delete it, and the next call downloads it") from error


def read_csv_labels(fname: str | Path) -> dict[str, str]:
    """Read a CSV file with a header and two columns; return {file name without extension: label}.

    Unlike the original, it reads quoted fields and rejects a name that occurs twice.
    Raise CnnlabError naming the file, the line and the remedy.
    """
    path = expand(fname)
    try:
        header = read_header(path.open("rb"), str(path))
        if len(header) != 2:
            raise CnnlabError(
                f"{path}: the first line has {len(header)} columns; use a header of two, such as id,label"
            )
        table = read_table(path.open("rb"), str(path), header[0], header[1])
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}") from error
    return dict(zip(table.ids, table.values, strict=True))


def copyfile(filename: str | Path, target_dir: str | Path) -> None:
    """Copy a file into a folder; create the folder if it is missing."""
    try:
        folder = expand(target_dir)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(filename, folder)
    except shutil.SameFileError:
        pass  # the folder already has a hard link to the file, made by `reorg_train_valid`
    except OSError as error:
        raise CnnlabError(f"cannot copy {filename} into {target_dir}: {reason(error)}") from error


def reorg_train_valid(
    data_dir: str | Path, labels: Mapping[str, str], valid_ratio: float, *, copy: bool = False
) -> int:
    """Sort the images of data_dir/train by class into data_dir/train_valid_test; return the validation size per class.

    Every class has the same number of validation images, in valid/CLASS: `valid_ratio` of the rarest class, rounded
    down, at least one. The others go to train/CLASS, and all images go to train_valid/CLASS. labels: as returned by
    `read_csv_labels`.

    Unlike the original, it creates hard links where the file system supports them (copy=True: always copies). The split
    does not depend on the order in which the system lists files: each class's first images by number, then by name, are
    held out. A second call with another ratio moves the images of the first, so none is in both train and valid.

    Raise CnnlabError for a ratio that leaves nothing to train on, or an image without a label.
    """
    source = expand(data_dir) / "train"
    target = expand(data_dir) / "train_valid_test"
    files = _images(source)
    if not labels:
        raise CnnlabError("labels is empty; read them with read_csv_labels")
    rarest, fewest = Counter(labels.values()).most_common()[-1]
    if not 0 <= valid_ratio < 1:
        raise CnnlabError(f"valid_ratio={valid_ratio!r}: choose at least 0 and below 1, such as 0.1")
    each = max(1, math.floor(fewest * valid_ratio))
    if each >= fewest:
        raise CnnlabError(
            f"the class {rarest!r} has {plural(fewest, 'image')}, all of which would be held out; add images, or "
            "remove it"
        )
    wanted: dict[Path, str] = {}  # destination -> file name in `source`
    held_out: Counter[str] = Counter()
    for name in files:
        label = labels.get(name.partition(".")[0])
        if label is None:
            raise CnnlabError(f"{source / name} has no label; there are labels for {first(list(labels))}")
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
    """Link the images of data_dir/test into data_dir/train_valid_test/test/unknown, for readers that expect classes.

    copy: always copy, even where the file system has hard links.
    """
    source = expand(data_dir) / "test"
    target = expand(data_dir) / "train_valid_test" / "test" / "unknown"
    try:
        _place(source, {target / name: name for name in _images(source)}, copy)
    except OSError as error:
        raise CnnlabError(f"cannot copy the images of {source} to {target}: {reason(error)}") from error


def _images(folder: Path) -> list[str]:
    """Return the names of the files in `folder` except hidden ones, 2.png before 10.png."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_file()]
    except OSError as error:
        raise CnnlabError(f"cannot read {folder}: {reason(error)}; unpack the competition's archives there") from error
    if not names:
        raise CnnlabError(f"{folder} has no images; unpack the competition's archives there")

    def order(name: str) -> tuple[bool, int, str]:
        stem = name.partition(".")[0]
        number = stem.isascii() and stem.isdigit()
        return not number, int(stem) if number else 0, name

    return sorted(names, key=order)


def _remove_others(target: Path, names: set[str], wanted: Mapping[Path, str]) -> None:
    """Remove the images `names` from folders where an earlier call put them but this one does not; keep other files."""
    for part in ("train", "valid", "train_valid"):
        for path in (target / part).glob("*/*"):
            if path.name in names and path not in wanted:
                path.unlink()


def _place(source: Path, wanted: Mapping[Path, str], copy: bool) -> None:
    """Link or copy files from `source` to the paths in `wanted`; keep existing links to them."""
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
            except OSError:  # another file system, or one without hard links
                pass
        shutil.copy(original, path)
