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


def load(split: str, options: SourceOptions) -> ImageSet | None:
    """Return the `train` (60,000) or `test` (10,000) split: (N, 1, 28, 28) uint8; there is no `validation` split.

    Missing files are downloaded into `options.data_dir`. Raises: CnnlabError for a file with a wrong checksum, and if
    nothing can be downloaded.
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
    return all(path.exists() for path in _paths(data_dir))


def files(data_dir: Path) -> dict[Path, str]:
    """Return the four files in that folder of datasets, each with what is wrong with it, or ""."""
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import check_integrity

    checksums = dict(FashionMNIST.resources)
    found = {}
    for path in _paths(data_dir):
        if not path.exists():
            found[path] = "is not there; cnnlab train --data fashion-mnist downloads it"
        else:
            whole = check_integrity(str(path), checksums[path.name])
            found[path] = "" if whole else "is not the official file; delete it, and the next training downloads it"
    return found


def _paths(data_dir: Path) -> list[Path]:
    return [data_dir / "FashionMNIST" / "raw" / name for pair in _FILES.values() for name in pair]


def _find(folder: Path, name: str, options: SourceOptions) -> Path:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import check_integrity

    checksums = dict(FashionMNIST.resources)
    path = folder / name
    if not path.exists():
        # A school without internet access can put the four files on a server of its own.
        own = os.environ.get("CNNLAB_FASHION_MNIST_URL")
        mirrors = [own] if own else list(FashionMNIST.mirrors)
        urls = [mirror.rstrip("/") + "/" + name for mirror in mirrors]
        download(urls, path, md5=checksums[name], report=options.report)
    elif not check_integrity(str(path), checksums[name]):
        raise CnnlabError(
            f"{path} ({path.stat().st_size} bytes) is not the official file: its MD5 sum is not {checksums[name]}. "
            "It is truncated or damaged; delete it, and the next run downloads it again"
        )
    return path


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a file whose checksum is right: four bytes, each dimension as an int32, then one byte per value."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
