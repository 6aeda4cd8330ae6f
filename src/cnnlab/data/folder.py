"""`folder:PATH`: your own images, one sub-folder per class.

PATH/cats/1.jpg, PATH/dogs/7.png              one set; a part of it is held out for validation, no test set
PATH/train/cats/.., PATH/test/cats/..         a `train` folder makes the others (`val` or `validation`, `test`) splits
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.device.hardware import available_cores
from cnnlab.io.decode import BadImage, bombs_refused, decode, image_files, probe
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.recipe import LARGEST_SIDE

# For images of different sizes: large enough to recognise objects, small enough for a laptop.
_DEFAULT_SIZE = 64
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def load(path: Path, split: str, options: SourceOptions) -> ImageSet | None:
    """Return the images of one split: (N, C, H, W) uint8, H = W; None if the folder has no such split.

    C is 1 if all training images are grey, else 3. The side is `options.image_size`, or that of the images if all are
    square and of one size, else 64 pixels.

    Raises: CnnlabError for a folder without images, with a single class or with a damaged image; with
    `options.skip_bad`, damaged images are skipped and listed in `ImageSet.skipped`.
    """
    with bombs_refused():
        return _load(path, split, options)


def _load(path: Path, split: str, options: SourceOptions) -> ImageSet | None:
    root = _split_folder(path, split)
    if root is None:
        return None
    train_root = _split_folder(path, "train")
    assert train_root is not None
    classes = _classes(train_root)
    channels, size = _shape(train_root, classes, options)
    if root != train_root:
        extra = set(_classes(root)) - set(classes)
        if extra:
            raise CnnlabError(
                f"{root / min(extra)} is a class that {train_root} does not have; add it there or remove it"
            )
    files, labels = _listing(root, classes)
    images = np.empty((len(files), channels, size, size), np.uint8)
    good, skipped = [], []

    def read(i: int) -> BadImage | None:
        try:
            images[i] = decode(files[i], channels, size, options.fit)
        except BadImage as error:
            return error
        return None

    # Pillow releases the interpreter's lock while it decodes and resizes, so threads use all cores.
    with ThreadPoolExecutor(available_cores()) as pool:
        for i, bad in enumerate(pool.map(read, range(len(files)))):
            if bad is None:
                good.append(i)
            elif options.skip_bad:
                skipped.append(str(bad))
            else:
                pool.shutdown(cancel_futures=True)
                raise CnnlabError(f"{bad}; repair or remove it, or leave such files out with --skip-bad")
            options.report(f"reading {root.name}", i + 1, len(files))
    if not good:
        raise CnnlabError(f"none of the {len(files)} images in {root} could be read; the first: {skipped[0]}")
    index = torch.tensor(good)
    emptied = sorted(set(labels) - {labels[i] for i in good})
    if emptied:
        raise CnnlabError(
            f"none of the images of class {classes[emptied[0]]} in {root} could be read; the first: {skipped[0]}"
        )
    return ImageSet(
        torch.from_numpy(images)[index] if skipped else torch.from_numpy(images),
        torch.tensor(labels)[index],
        [files[i].relative_to(path).as_posix() for i in good],
        classes,
        tuple(skipped),
    )


def copies(path: Path, trained: Sequence[str]) -> int | None:
    """Return how many files of the test split are identical to files of the images `trained`, given by their ids.

    Return None if there is no test split. Only files of equal size are read.
    """
    root = _split_folder(path, "test")
    if root is None:
        return None
    sizes: dict[int, list[Path]] = {}
    for name in trained:
        with contextlib.suppress(OSError):  # it may be gone by now
            sizes.setdefault((path / name).stat().st_size, []).append(path / name)
    digests: dict[Path, bytes] = {}

    def digest(file: Path) -> bytes:
        if file not in digests:
            with file.open("rb") as stream:
                digests[file] = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
        return digests[file]

    count = 0
    for file in image_files(root):
        with contextlib.suppress(OSError):
            count += any(digest(file) == digest(other) for other in sizes.get(file.stat().st_size, ()))
    return count


def _split_folder(path: Path, split: str) -> Path | None:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise CnnlabError(f"folder:{path} {what}; give a folder that holds one sub-folder per class")
    folders = {p.name.lower(): p for p in sorted(path.iterdir(), reverse=True) if p.is_dir()}
    # A class may be called train, too: then its folder holds the images themselves.
    if "train" not in folders or not any(p.is_dir() for p in folders["train"].iterdir()):
        return path if split == "train" else None
    return next((folders[name] for name in _SPLITS[split] if name in folders), None)


def _classes(root: Path) -> list[str]:
    try:
        names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise CnnlabError(f"cannot read {root}: {reason(error)}") from error
    names = [name for name in names if next(image_files(root / name), None)]
    if not names:
        raise CnnlabError(f"{root} holds no images in sub-folders; make one sub-folder per class and put images in it")
    for name in names:
        if name != name.encode("utf-8", "replace").decode():
            raise CnnlabError(f"{root}: the folder name {name!a} is not UTF-8; rename it")
    return names


def _listing(root: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for k, name in enumerate(classes):
        found = sorted(image_files(root / name)) if (root / name).is_dir() else []
        files += found
        labels += [k] * len(found)
    return files, labels


def _shape(train_root: Path, classes: list[str], options: SourceOptions) -> tuple[int, int]:
    if len(classes) < 2:
        raise CnnlabError(
            f"{train_root} has one class ({classes[0]}); classification needs at least two sub-folders of images"
        )
    sizes, grey = set(), True
    for file in _listing(train_root, classes)[0]:
        try:
            size, is_grey = probe(file)
        except BadImage:
            continue  # decoding will name it
        sizes.add(size)
        grey = grey and is_grey
    if options.image_size:
        side = options.image_size
    elif len(sizes) == 1 and len(set(next(iter(sizes)))) == 1:
        side = next(iter(sizes))[0]
        if side > LARGEST_SIDE:
            raise CnnlabError(f"the images of {train_root} are {side} pixels a side; set image_size to a smaller one")
    else:
        side = _DEFAULT_SIZE
    return 1 if grey else 3, side
