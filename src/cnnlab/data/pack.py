"""`pack:STORE`: a source as `cnnlab data pack` stores it, read from the disk during training (docs/data.md).

STORE/pack.json            what the set holds, and size and checksum of each shard
STORE/images-00000.bin     pixels (C, H, W) uint8 or image files, one after the other; no image spans two shards
STORE/starts.npy           (N + 1,) int64: offset of each image in the concatenated shards; image files only
STORE/labels.npy           (N,) int64: indices into the list of classes
STORE/digests.npy          (N, 16) uint8: blake2b of each image's bytes
STORE/ids.json             N strings
STORE/groups.json          N strings, where the source has groups
STORE/weights.npy          (N,) float32, where the source has weights

Rows come in the order train, validation, test; within a split, in the source's order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnlab.data.files import Sizes, fitting_note, fixed_fit_note, side_for
from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.data.packed import PackedImages, Shards
from cnnlab.data.store import STORE_LIMIT, mapped
from cnnlab.io.decode import FITS, Decoding
from cnnlab.io.errors import CnnlabError, SourceMissing, reason
from cnnlab.io.files import read_json, read_limited
from cnnlab.io.schema import COUNT, NUMBER, Number, check
from cnnlab.io.text import truncate
from cnnlab.recipe import LARGEST_SIDE

FORMAT = "cnnlab pack 1"
DIGEST = 16  # bytes of an image's hash
_LIMIT = 1 << 32  # bytes of ids.json
_REMEDY = "pack the set again, or restore it from a copy"
_PAIR = [COUNT]
_INFO = {
    "format": FORMAT, "source": str, "classes": [str],
    "splits": {"train": COUNT, "validation?": COUNT, "test?": COUNT},
    "shape": (None, [Number(1, LARGEST_SIDE, whole=True)]),
    "sizes": (None, {"smallest": _PAIR, "largest": _PAIR, "middle": COUNT, "square": bool}),
    "channels": Number(1, 4096, whole=True), "background": ("black", "white"), "low": NUMBER, "high": NUMBER,
    "lows": [NUMBER], "highs": [NUMBER], "fit": (None, *FITS), "groups": bool, "weights": bool,
    "skipped": [str], "passed_over": dict, "notes": [str],
    "warnings": {"train": [str], "validation?": [str], "test?": [str]},
    "shards": [{"file": str, "images": COUNT, "bytes": COUNT, "blake2b": str}],
}  # fmt: skip


@dataclass(frozen=True)
class Pack:
    """A packed set. info: the content of pack.json; labels: (N,) int64; sizes: None for a source without files."""

    path: Path
    info: dict[str, Any]
    shards: Shards
    labels: NDArray[np.int64]
    groups: list[str] | None
    weights: NDArray[np.float32] | None
    sizes: Sizes | None

    @property
    def decoding(self) -> Decoding:
        """How the images are decoded to their usual size."""
        info = self.info
        return Decoding(
            info["channels"], info["shape"][1] if info["shape"] else 0, info["fit"] or "pad", info["background"],
            info["low"], info["high"], lows=tuple(info["lows"]), highs=tuple(info["highs"]),
        )  # fmt: skip


def load(path: Path, split: str, options: SourceOptions) -> ImageSet | None:
    """Return one split of `pack:PATH` without reading its pixels; None if there is no such split.

    Raise CnnlabError if `options` ask for a decoding that the packed pixels do not allow.
    """
    pack = open_pack(path)
    info = pack.info
    if split not in info["splits"]:
        return None
    how, notes = options.decoding or _decoding(pack, options), []
    if info["shape"] is not None:
        _check_pixels(pack, how, options)
    if options.decoding is None and pack.sizes is not None:
        notes = list(fitting_note(pack.sizes, how))
    elif options.decoding is None and info["fit"] not in (None, options.fit):
        notes = [fixed_fit_note(path, info["fit"], options.fit)]
    counts = info["splits"]
    first = sum(count for name, count in counts.items() if _ORDER[name] < _ORDER[split])
    groups = pack.groups[first : first + counts[split]] if pack.groups else []
    rows = np.arange(first, first + counts[split])
    return ImageSet(
        PackedImages(pack.shards, rows, how),
        torch.from_numpy(pack.labels[rows]),
        list(pack.shards.ids[first : first + len(rows)]),
        list(info["classes"]),
        tuple(info["skipped"]) if split == "train" else (),
        info["passed_over"],
        how if pack.sizes is not None or info["fit"] else None,
        tuple(info["warnings"].get(split, ())),
        groups if any(groups) else None,  # all are "" in a split without groups
        None if pack.weights is None else torch.from_numpy(pack.weights[rows]),
        (*info["notes"], *notes),
    )


_ORDER = {"train": 0, "validation": 1, "test": 2}


def open_pack(path: Path) -> Pack:
    """Open a packed set. Raise CnnlabError if `path` is not a complete one. The images are not checked."""
    path = path.absolute()
    if not (path / "pack.json").is_file():
        begun = partial_folder(path)
        remedy = f"{begun} is unfinished: run its command again" if begun.exists() else "cnnlab data pack writes one"
        raise SourceMissing(f"{path} is not a packed set: no pack.json; {remedy}")
    return _opened_once(path, (path / "pack.json").stat().st_mtime_ns)


@lru_cache(2)  # for the splits of one set, and for two runs that are compared
def _opened_once(path: Path, _changed: int) -> Pack:
    info = read_json(path / "pack.json", STORE_LIMIT)
    if info.get("format") != FORMAT:
        format_ = truncate(repr(info.get("format")), 60)
        raise CnnlabError(f"{path / 'pack.json'} has format {format_}, not {FORMAT!r}; pack the set again")
    check(path / "pack.json", info, _INFO, _REMEDY)
    try:
        return _opened(path, info)
    except (KeyError, TypeError, ValueError, OSError, OverflowError, RecursionError) as error:
        raise CnnlabError(f"{path} is damaged: {reason(error, 200)}; {_REMEDY}") from error


def _opened(path: Path, info: dict[str, Any]) -> Pack:
    count = sum(info["splits"].values())
    sizes = [shard["bytes"] for shard in info["shards"]]
    paths = [path / shard["file"] for shard in info["shards"]]
    for shard, file in zip(info["shards"], paths, strict=True):
        if Path(shard["file"]).name != shard["file"]:
            raise ValueError(f"the shard {shard['file']!r} is not a file's name")
        if file.stat().st_size != shard["bytes"]:
            raise ValueError(f"{file.name} is incomplete")
    starts = None
    if info["shape"] is None:
        starts = mapped(path / "starts.npy", (count + 1,), "<i8")
        if starts[0] != 0 or starts[-1] != sum(sizes) or (np.diff(starts) < 0).any():
            raise ValueError("starts.npy does not fit the shards")
    elif len(info["shape"]) != 3 or int(np.prod(info["shape"])) * count != sum(sizes):
        raise ValueError("the shards do not hold all images")
    labels = np.array(mapped(path / "labels.npy", (count,), "<i8"))
    if count and not 0 <= labels.min() <= labels.max() < len(info["classes"]):
        raise ValueError("a label is not among the classes")
    found = info["sizes"]
    known = found and Sizes(tuple(found["smallest"]), tuple(found["largest"]), found["middle"], found["square"])
    shards = Shards(
        paths,
        [0, *accumulate(sizes)],
        starts,
        tuple(info["shape"]) if info["shape"] else None,
        _texts(path / "ids.json", count),
        mapped(path / "digests.npy", (count, DIGEST)),
        known.middle if known else info["shape"][1],
    )
    weights = np.array(mapped(path / "weights.npy", (count,), "<f4")) if info["weights"] else None
    groups = _texts(path / "groups.json", count) if info["groups"] else None
    return Pack(path, info, shards, labels, groups, weights, known)


def damage(path: Path) -> Iterator[str]:
    """Yield a line for each shard of a packed set that has changed since it was written. This reads all of them."""
    pack = open_pack(path)
    for shard in pack.info["shards"]:
        with (path / shard["file"]).open("rb") as file:
            if hashlib.file_digest(file, hashlib.blake2b).hexdigest() != shard["blake2b"]:
                yield f"{path / shard['file']} has changed since it was packed; {_REMEDY}"


def _decoding(pack: Pack, options: SourceOptions) -> Decoding:
    """Choose the size of the images and how they are fitted, as for a folder of the same files."""
    how = pack.decoding
    if pack.sizes is None:
        return how
    side = side_for(pack.sizes, options, str(pack.path))
    background = how.background if options.background == "auto" else options.background
    return replace(how, size=side, fit=options.fit, background=background, interpolation=options.interpolation)


def _check_pixels(pack: Pack, how: Decoding, options: SourceOptions) -> None:
    """Raise CnnlabError if the background or the range of values is not that of the packed pixels."""
    own = pack.decoding
    background = options.background if options.decoding is None else how.background
    if background not in ("auto", own.background):
        raise CnnlabError(
            f"{pack.path} has {own.background} behind transparent pixels, not {background}; pack the set again with "
            f"--background {background}, or leave it at auto"
        )
    if own.high > own.low and how.high > how.low and (own.low, own.high) != (how.low, how.high):
        raise CnnlabError(
            f"{pack.path}: its values {own.low:g} to {own.high:g} became 0 to 255, but the run was trained with "
            f"{how.low:g} to {how.high:g}; give the image files themselves"
        )


def partial_folder(path: Path) -> Path:
    """Return the folder in which a set is written, and which is renamed to `path` when it is complete."""
    return path.with_name(f"{path.name}.partial")


def _texts(path: Path, count: int) -> list[str]:
    texts = json.loads(read_limited(path, _LIMIT))
    if not isinstance(texts, list) or len(texts) != count or not all(type(text) is str for text in texts):
        raise ValueError(f"{path.name} does not hold {count:,} texts")
    return texts
