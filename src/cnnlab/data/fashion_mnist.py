"""`fashion-mnist`: 70,000 grey 28x28 images of clothes, from the publisher's four files.

Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017. Names, addresses and checksums of the
files are torchvision's, and so is their place: DATA/FashionMNIST/raw.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch

from cnnlab.data.download import download
from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.io.errors import CnnlabError

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_COUNT = {"train": 60_000, "test": 10_000}
# MD5 of the files as other programs leave them, unpacked and without `.gz`.
_UNPACKED = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def load(split: str, options: SourceOptions) -> ImageSet | None:
    """Return the `train` (60,000) or `test` (10,000) split: (N, 1, 28, 28) uint8; there is no `validation` split.

    The files may be unpacked. Missing ones are downloaded into `options.data_dir`.

    Raises: CnnlabError for a file with a wrong checksum, and if nothing can be downloaded.
    """
    if split == "validation":
        return None
    from torchvision.datasets import FashionMNIST  # slow to import, so only here and below

    folder = options.data_dir / "FashionMNIST" / "raw"
    image_file, label_file = (_find(folder, name, options) for name in _FILES[split])
    count = _COUNT[split]
    images = _read_idx(image_file, (count, 28, 28))
    labels = _read_idx(label_file, (count,))
    return ImageSet(
        torch.from_numpy(images).unsqueeze(1),
        torch.from_numpy(labels.astype(np.int64)),
        [f"{split}/{i}" for i in range(count)],
        list(FashionMNIST.classes),
    )


def is_there(data_dir: Path) -> bool:
    """Return whether all four files are in that folder of datasets, so that nothing would be downloaded."""
    return all(_on_disk(path) for path in _paths(data_dir))


def files(data_dir: Path) -> dict[Path, str]:
    """Return the four files in that folder of datasets, each with what is wrong with it, or ""."""
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import check_integrity

    checksums = dict(FashionMNIST.resources) | _UNPACKED
    found = {}
    for packed in _paths(data_dir):
        path = _on_disk(packed) or packed
        if not path.exists():
            found[path] = "is not there; cnnlab train --data fashion-mnist downloads it"
        else:
            whole = check_integrity(str(path), checksums[path.name])
            found[path] = "" if whole else "is not the official file; delete it, and the next training downloads it"
    return found


def _paths(data_dir: Path) -> list[Path]:
    return [data_dir / "FashionMNIST" / "raw" / name for pair in _FILES.values() for name in pair]


def _on_disk(packed: Path) -> Path | None:
    """Return the file as downloaded, else unpacked; None if neither exists."""
    return next((path for path in (packed, packed.with_suffix("")) if path.exists()), None)


def _find(folder: Path, name: str, options: SourceOptions) -> Path:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import check_integrity

    checksums = dict(FashionMNIST.resources) | _UNPACKED
    path = _on_disk(folder / name) or folder / name
    if not path.exists():
        # A school without internet access can put the four files on a server of its own.
        own = os.environ.get("CNNLAB_FASHION_MNIST_URL")
        mirrors = [own] if own else list(FashionMNIST.mirrors)
        urls = [mirror.rstrip("/") + "/" + name for mirror in mirrors]
        download(urls, path, md5=checksums[name], report=options.report)
    elif not check_integrity(str(path), checksums[path.name]):
        raise CnnlabError(
            f"{path} ({path.stat().st_size} bytes) is not the official file: its MD5 sum is not "
            f"{checksums[path.name]}. It is truncated or damaged; delete it, and the next run downloads it again"
        )
    return path


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a file whose checksum is right: four bytes, each dimension as an int32, then one byte per value."""
    content = bytearray(path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes()))
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
