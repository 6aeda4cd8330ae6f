"""Public image sets by name: MNIST and its kin, CIFAR-10 and CIFAR-100, SVHN, STL-10.

Addresses, checksums and places in the data folder are torchvision's, and so are the readers that read no more than is
needed. The download is ours (`cnnlab.data.download`). Each set is an entry of NAMED.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnlab.data.download import checksum, download
from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_atomic

_DIGITS = tuple("0123456789")
_EMNIST = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
# MD5 of the files as other programs leave them, unpacked and without `.gz`.
_UNPACKED = {
    "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_SEPARATORS = str.maketrans("", "", "-_ ")
_LARGEST_IDX = 1 << 26  # bytes unpacked; the training images have 47 million

Pixels = tuple[np.ndarray, np.ndarray, Sequence[str]]
"""images (N, C, H, W) uint8, labels (N,) of any integer type, names of the classes"""


@dataclass(frozen=True)
class File:
    """A file that is read, and the download that it comes from. Paths are relative to the data folder.

    path, md5: the file that is read; md5 is "" if the publisher gives none. packed, packed_md5, urls: the download,
    which is the file itself, the file with `.gz`, or an archive in which it is called `member`. idx: whether the file
    is of MNIST or its kin. Other programs leave these in other places and under other names, so they are recognized by
    their content.
    """

    path: str
    md5: str
    packed: str
    packed_md5: str
    urls: tuple[str, ...]
    member: str = ""
    idx: bool = False


@dataclass(frozen=True)
class Named:
    """A public set. files: split -> its files, images and labels first; read: (files, data folder, split) -> pixels."""

    description: str
    files: Callable[[str], list[File]]
    read: Callable[[list[Path], Path, str], Pixels]


def load(name: str, split: str, options: SourceOptions) -> ImageSet | None:
    """Return the `train` or `test` split of a set in NAMED; None for `validation`, which none of them has.

    Missing files are downloaded into `options.data_dir`. Raise CnnlabError if a file has a wrong checksum, or
    cannot be downloaded.
    """
    if split == "validation":
        return None
    paths = [_get(name, file, options) for file in NAMED[name].files(split)]
    try:
        images, labels, classes = NAMED[name].read(paths, options.data_dir, split)
    except CnnlabError:
        raise
    except Exception as error:  # a reader may raise anything for a file without a checksum
        raise _damaged(paths[0], reason(error, 100)) from error
    labels = labels.astype(np.int64)
    if len(images) != len(labels) or not len(labels) or labels.min() < 0 or labels.max() >= len(classes):
        raise _damaged(paths[1 if len(paths) > 1 else 0], f"its {len(labels):,} labels do not fit")
    return ImageSet(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        [f"{split}/{i}" for i in range(len(labels))],
        list(classes),
    )


def is_there(name: str, data_dir: Path) -> bool:
    """Return whether all files of the set are in `data_dir`, so that nothing has to be downloaded."""
    return all(_on_disk(file, data_dir) for file in _all_files(name))


def files(name: str, data_dir: Path) -> dict[Path, str]:
    """Return the set's files in `data_dir`, each with what is wrong with it, or ""."""
    found = {}
    for file in _all_files(name):
        path = _on_disk(file, data_dir)
        if path is None:
            found[data_dir / file.packed] = f"is not there; cnnlab train --data {name} downloads it"
        elif path not in found:
            whole = _matches(path, file, data_dir)
            found[path] = "" if whole else "is not the official file; delete it, and the next training downloads it"
    return found


def _all_files(name: str) -> Iterator[File]:
    return iter(dict.fromkeys(file for split in ("train", "test") for file in NAMED[name].files(split)))


def _on_disk(file: File, data_dir: Path) -> Path | None:
    """Return the path of the file, packed or not; None if it is missing. Prefer an unpacked member to its archive."""
    order = (file.path, file.packed) if file.member else (file.packed, file.path)
    usual = (data_dir / path for path in order if (data_dir / path).is_file())
    return next(usual, next(_elsewhere(file, data_dir), None))


def _elsewhere(file: File, data_dir: Path) -> Iterator[Path]:
    """Yield the file in other usual places: in a folder with the set's name or, if its MD5 matches, outside of one.

    All sets of this kind use the same four file names, so only the MD5 tells them apart. Kaggle writes
    `train-images.idx3-ubyte`, or puts the file into a folder of the same name.
    """
    if not file.idx or not data_dir.is_dir():
        return
    dataset, name = Path(file.path).parts[0].casefold(), Path(file.path).name
    spellings = [name, name.replace("-idx", ".idx")]
    spellings += [f"{spelling}.gz" for spelling in spellings]
    own = [
        path
        for path in sorted(data_dir.iterdir())
        if path.name.casefold().translate(_SEPARATORS) in (dataset, dataset.removesuffix("mnist") or dataset)
    ]
    for folder in (*own, data_dir):
        for place in (folder / "raw", folder):
            for path in (p for spelling in spellings for p in (place / spelling, place / spelling / spelling)):
                if path.is_file() and (folder != data_dir or _is_official(path, file)):
                    yield path


def _matches(path: Path, file: File, data_dir: Path) -> bool:
    if file.idx:
        return _is_official(path, file) or (not file.md5 and not _is_gzip(path))
    wanted = file.packed_md5 if path == data_dir / file.packed else file.md5
    return not wanted or checksum(path, "md5") == wanted


def _is_official(path: Path, file: File) -> bool:
    """Return whether a file has the official content, packed or not, under any name."""
    if checksum(path, "md5") in (file.packed_md5, file.md5):
        return True
    if not file.md5 or not _is_gzip(path):
        return False
    md5, size = hashlib.md5(usedforsecurity=False), 0
    try:
        with gzip.open(path) as unpacked:
            while (chunk := unpacked.read(1 << 20)) and (size := size + len(chunk)) <= _LARGEST_IDX:
                md5.update(chunk)
    except (OSError, EOFError, zlib.error):  # damaged
        return False
    return md5.hexdigest() == file.md5


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(2) == b"\x1f\x8b"


def _get(name: str, file: File, options: SourceOptions) -> Path:
    """Return the file, downloaded and unpacked if it is missing. Raise CnnlabError."""
    packed, path = options.data_dir / file.packed, _on_disk(file, options.data_dir)
    if path is None:
        own = os.environ.get(f"CNNLAB_{name.partition(':')[0].upper().replace('-', '_')}_URL")
        urls = [f"{own.rstrip('/')}/{packed.name}"] if own else file.urls
        download(urls, packed, md5=file.packed_md5, report=options.report)
        path = packed
    elif not _matches(path, file, options.data_dir):
        wanted = file.packed_md5 if path == packed else file.md5 or file.packed_md5
        raise _damaged(path, f"its MD5 sum is not {wanted}")
    if not file.member or path != packed:
        return path
    options.report(f"unpacking {packed.name}", 0, 0)
    try:
        _unpack(packed, [f for f in _all_files(name) if f.packed == file.packed], options.data_dir)
    except OSError as error:
        raise CnnlabError(f"cannot unpack {packed}: {reason(error)}; free some space, or name another folder with "
                          "--data-dir") from error  # fmt: skip
    return options.data_dir / file.path


def _damaged(path: Path, why: str) -> CnnlabError:
    size = path.stat().st_size if path.exists() else 0
    return CnnlabError(
        f"{path} ({size} bytes) is not the official file: {why}. It is truncated or damaged; delete it, and the next "
        "run downloads it again"
    )


def _unpack(packed: Path, wanted: Sequence[File], data_dir: Path) -> None:
    """Write the missing members of a verified archive, each completely or not at all."""
    left = {file.member: data_dir / file.path for file in wanted if not (data_dir / file.path).exists()}
    for path in left.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    if packed.suffix == ".zip":
        with zipfile.ZipFile(packed) as archive:
            for member, path in left.items():
                write_atomic(path, gzip.decompress(archive.read(member)))
        return
    with tarfile.open(packed, "r|gz") as archive:  # in one pass: seeking in gigabytes of gzip is too slow
        for entry in archive:
            if entry.name in left and (stream := archive.extractfile(entry)) is not None:
                write_atomic(left.pop(entry.name), iter(partial(stream.read, 1 << 20), b""))
            if not left:
                return
    raise _damaged(packed, f"it has no {next(iter(left))}")


# The formats


def _idx_files(dataset: str, split: str) -> list[File]:
    """Return the files of images and labels of a split, in MNIST's format, as torchvision lists them."""
    from torchvision import datasets  # slow to import, so only here and below

    listed = getattr(datasets, dataset)
    found = []
    for kind in ("images-idx3", "labels-idx1"):
        path = f"{dataset}/raw/{'train' if split == 'train' else 't10k'}-{kind}-ubyte"
        name = Path(path).name + ".gz"
        urls = tuple(mirror.rstrip("/") + "/" + name for mirror in listed.mirrors)
        found.append(File(path, _UNPACKED.get(path, ""), path + ".gz", dict(listed.resources)[name], urls, idx=True))
    return found


def _read_idx(path: Path, sides: int) -> np.ndarray:
    """Read an IDX file of (N, H, W) or (N,) uint8, whose shape must account for every byte. sides: its dimensions."""
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    start = 4 + 4 * sides
    if content[:4] != bytes((0, 0, 8, sides)) or len(content) < start:
        raise _damaged(path, "it does not begin as an IDX file")
    shape = np.frombuffer(content, ">u4", sides, 4).tolist()
    if len(content) - start != np.prod(shape, dtype=object):
        raise _damaged(path, f"it lacks bytes for {' x '.join(map(str, shape))} values, or has more")
    return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(shape)


def _read_mnist(paths: list[Path], data_dir: Path, split: str, classes: Sequence[str] = _DIGITS) -> Pixels:  # noqa: ARG001
    return _read_idx(paths[0], 3)[:, None], _read_idx(paths[1], 1), classes


def _read_titled(dataset: str, paths: list[Path], data_dir: Path, split: str) -> Pixels:
    from torchvision import datasets

    return _read_mnist(paths, data_dir, split, getattr(datasets, dataset).classes)


def _emnist_files(part: str, split: str) -> list[File]:
    from torchvision.datasets import EMNIST

    names = [f"emnist-{part}-{split}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    return [
        File(f"EMNIST/raw/{n}", "", "EMNIST/raw/gzip.zip", EMNIST.md5, (EMNIST.url,), f"gzip/{n}.gz") for n in names
    ]


def _read_emnist(part: str, paths: list[Path], data_dir: Path, split: str) -> Pixels:
    """Read EMNIST. Turn the images upright, since they are stored on their side; drop the class N/A of the letters."""
    from torchvision.datasets import EMNIST

    images, labels, classes = _read_mnist(paths, data_dir, split, EMNIST.classes_split_dict[part])
    images = np.ascontiguousarray(images.swapaxes(2, 3))
    return (images, labels.astype(np.int64) - 1, classes[1:]) if classes[0] == "N/A" else (images, labels, classes)


def _listed(listed: Any, names: Mapping[str, str]) -> list[File]:
    """Return members of the single archive of a torchvision dataset. names: file -> MD5."""
    base, packed = listed.base_folder, listed.filename
    return [
        File(f"{base}/{name}", md5, packed, listed.tgz_md5, (listed.url,), f"{base}/{name}")
        for name, md5 in names.items()
    ]


def _cifar_files(dataset: str, split: str) -> list[File]:  # noqa: ARG001 - torchvision's reader checks all files
    from torchvision import datasets

    listed = getattr(datasets, dataset)
    return _listed(listed, {**dict(listed.train_list + listed.test_list), listed.meta["filename"]: listed.meta["md5"]})


def _read_cifar(dataset: str, paths: list[Path], data_dir: Path, split: str) -> Pixels:  # noqa: ARG001
    from torchvision import datasets

    found = getattr(datasets, dataset)(str(data_dir), train=split == "train")  # unpickles files of a known checksum
    return np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)), np.array(found.targets), found.classes


def _svhn_files(split: str) -> list[File]:
    from torchvision.datasets import SVHN

    url, name, md5 = SVHN.split_list[split]
    return [File(name, md5, name, md5, (url,))]


def _read_svhn(paths: list[Path], data_dir: Path, split: str) -> Pixels:  # noqa: ARG001
    from torchvision.datasets import SVHN

    found = SVHN(str(data_dir), split=split)
    return np.ascontiguousarray(found.data), found.labels, _DIGITS


def _stl10_files(split: str) -> list[File]:
    """Return the labelled files; torchvision's reader would want the 2.7 GB of unlabelled images as well."""
    from torchvision.datasets import STL10

    md5 = dict(STL10.train_list + STL10.test_list)
    names = (f"{split}_X.bin", f"{split}_y.bin", STL10.class_names_file)
    return _listed(STL10, {name: md5.get(name, "") for name in names})


def _read_stl10(paths: list[Path], data_dir: Path, split: str) -> Pixels:  # noqa: ARG001
    images = (
        np.frombuffer(paths[0].read_bytes(), np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
    )  # stored column by column
    return (
        np.ascontiguousarray(images),
        np.frombuffer(paths[1].read_bytes(), np.uint8).astype(int) - 1,
        paths[2].read_text().split(),
    )


NAMED: dict[str, Named] = {
    "fashion-mnist": Named("70,000 grey 28x28 images of clothes",
                           partial(_idx_files, "FashionMNIST"), partial(_read_titled, "FashionMNIST")),
    "mnist": Named("70,000 grey 28x28 handwritten digits", partial(_idx_files, "MNIST"), _read_mnist),
    "kmnist": Named("70,000 grey 28x28 images of ten hiragana",
                    partial(_idx_files, "KMNIST"), partial(_read_titled, "KMNIST")),
    **{f"emnist:{part}": Named(f"grey 28x28 handwritten characters; SPLIT: {', '.join(_EMNIST)}",
                               partial(_emnist_files, part), partial(_read_emnist, part)) for part in _EMNIST},
    "cifar10": Named("60,000 colour 32x32 photos of ten classes",
                     partial(_cifar_files, "CIFAR10"), partial(_read_cifar, "CIFAR10")),
    "cifar100": Named("60,000 colour 32x32 photos of 100 classes",
                      partial(_cifar_files, "CIFAR100"), partial(_read_cifar, "CIFAR100")),
    "svhn": Named("99,289 colour 32x32 digits of house numbers", _svhn_files, _read_svhn),
    "stl10": Named("13,000 colour 96x96 photos of ten classes, the labelled part", _stl10_files, _read_stl10),
}  # fmt: skip
