"""Write a packed set (`cnnlab.data.pack`): one pass over a source, a shard at a time, continued after a kill.

The set is written into STORE.partial. Each finished shard is flushed to the disk and then gets a line in journal.jsonl;
a new process continues after the last line, and whatever lies beyond it is written again. The folder gets its name when
it is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cnnlab.data import PACK, is_listed, list_files, load_images
from cnnlab.data.files import Seen, Sizes, in_order, side_for, survey_files, warnings_of
from cnnlab.data.imageset import ImageSet, SourceOptions
from cnnlab.data.pack import DIGEST, FORMAT, partial_folder
from cnnlab.device.hardware import available_cores
from cnnlab.io.decode import LARGEST_FILE, BadImage, Decoding, Item, bombs_refused, decode_checked, probe
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import remove_torn, write_atomic, write_json
from cnnlab.io.lock import file_lock
from cnnlab.io.text import plural

_SHARD = 1 << 30  # bytes from which a shard is full
_SMALL = 128  # pixels a side up to which images of one size are stored as pixels
_QUALITY = 90  # of a JPEG that is made smaller
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Packed:
    """What was packed. counts: images of each split; bytes: of all shards; notes, warnings: on the source."""

    path: Path
    counts: dict[str, int]
    classes: int
    shape: tuple[int, int, int] | None
    bytes: int
    shards: int
    skipped: list[str]
    notes: list[str]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "path": str(self.path)}

    def to_text(self) -> str:
        """Return a few lines: what it holds, what was odd, how to train on it."""
        splits = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        kind = f"pixels, {' x '.join(map(str, self.shape))}" if self.shape else "image files"
        size = f"{self.bytes / 1e9:,.2f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:,.2f} MB"
        lines = [
            f"{self.path}: {plural(sum(self.counts.values()), 'image')} ({splits}), "
            f"{plural(self.classes, 'class')}, as {kind}: {size} in {plural(self.shards, 'shard')}"
        ]
        lines += [f"note: {text}" for text in self.notes] + [f"warning: {text}" for text in self.warnings]
        lines += [f"left out: {text}" for text in self.skipped[:3]]
        lines += [f"and {len(self.skipped) - 3:,} more"] * (len(self.skipped) > 3)
        return "\n".join([*lines, f"Train on it: cnnlab train --data {PACK}{self.path}"])


def pack(
    source: str,
    store: str | Path,
    options: SourceOptions,
    *,
    size: int = 0,
    quality: int = 0,
    shard_bytes: int = _SHARD,
) -> Packed:
    """Write the images of `source` into the new folder `store`, or continue where a killed process stopped.

    size: reduce image files whose shorter side is larger to that many pixels; quality: of the JPEGs that result, 1 to
    100. With either, files become JPEGs; 0: the files' bytes as they are. Raise CnnlabError if `store` exists, for a
    damaged image unless `options.skip_bad`, and for anything else that is wrong with the source or the disk.
    """
    path = Path(os.path.realpath(expand(store)))
    if source.startswith(PACK):
        raise CnnlabError(f"{source} is packed already; copy the folder")
    if not 0 <= size <= 1 << 14 or not 0 <= quality <= 100:
        raise CnnlabError(
            f"size={size}, quality={quality}: choose pixels from 1 to {1 << 14} and quality from 1 to 100"
        )
    _refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path, options.report), bombs_refused():
            _refuse_existing(path)
            return _Writer(path, _rows_of(source, options, size, quality), options, shard_bytes).write()
    except OSError as error:
        raise CnnlabError(
            f"cannot pack {path}: {reason(error)}; make room or correct the path, then run the same command again: it "
            "continues"
        ) from error


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise CnnlabError(f"{path} exists; name another folder, or remove it first")


@dataclass(frozen=True)
class _Row:
    """An image to be stored. size: (width, height) of a file that was made smaller; low, high: of its pixels."""

    content: bytes
    low: int
    high: int
    uniform: bool
    remarks: Sequence[str] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Rows:
    """A source as rows: those of the splits, one after the other.

    counts: images of each split; make: the row of a number; shape: of raw pixels; info: more for pack.json.
    """

    source: str
    classes: list[str]
    counts: dict[str, int]
    ids: list[str]
    labels: NDArray[np.int64]
    groups: list[str] | None
    weights: list[float] | None
    shape: tuple[int, int, int] | None
    make: Callable[[int], _Row | BadImage]
    warnings: Callable[[str, Seen, NDArray[np.int64]], Iterable[str]]
    info: dict[str, Any]
    sizes: Sizes | None = None

    def key(self) -> str:
        """Return a hash of what decides the content of the store, except for the files' own bytes."""
        about = [FORMAT, self.source, self.classes, self.counts, self.shape, self.info, self.groups, self.weights]
        digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
        digest.update("\0".join(self.ids).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def _rows_of(source: str, options: SourceOptions, size: int, quality: int) -> _Rows:
    if is_listed(source):
        return _rows_of_files(source, options, size, quality)
    if size or quality:
        raise CnnlabError(f"{source} holds pixels, which --size and --quality do not change; leave them out")
    return _rows_of_pixels(source, options)


def _rows_of_files(source: str, options: SourceOptions, size: int, quality: int) -> _Rows:
    """Return the files of a listed source: decoded, if they are small and of one size, else as they are."""
    listing = list_files(source, options)
    found = survey_files(listing, options.background)
    side = side_for(found.sizes, options, listing.name)
    sizes = found.sizes
    raw = sizes is not None and sizes.smallest == sizes.largest == (side, side) and side <= _SMALL
    raw = raw and not size and not quality
    how = Decoding(found.channels, side, "pad", found.background, found.low, found.high, lows=found.lows,
                   highs=found.highs)  # fmt: skip
    parts = {split: listing.parts[split] for split in _SPLITS if split in listing.parts}
    files = [file for part in parts.values() for file in part.files]

    def make(row: int) -> _Row | BadImage:
        file = files[row]
        try:
            content, now = _file_bytes(file), None
            if raw and (shape := probe(str(file), content).size) != (side, side):
                return BadImage(f"{file} is {shape[0]} x {shape[1]} pixels, and the others {side} x {side}")
            if size or quality:
                content, now = _smaller(content, size, quality)
            pixels, remarks = decode_checked(Item(str(file), lambda: content), how)
        except BadImage as error:
            return error
        low, high = int(pixels.min()), int(pixels.max())
        ends = [(channel.min(), channel.max()) for channel in pixels]
        uniform = all(least == most for least, most in ends)
        return _Row(pixels.tobytes() if raw else content, low, high, uniform, remarks, now)

    weights = [part.weights for part in parts.values()]
    groups = [part.groups for part in parts.values()]
    return _Rows(
        source,
        list(listing.classes),
        {split: len(part.files) for split, part in parts.items()},
        [listing.id_of(file) for file in files],
        np.array([label for part in parts.values() for label in part.labels], np.int64),
        None if any(g is None for g in groups) else [text for g in groups for text in g or ()],
        None if any(w is None for w in weights) else [w for part in weights for w in part or ()],
        (found.channels, side, side) if raw else None,
        make,
        lambda split, seen, labels: [
            *(found.warnings if split == "train" else ()), *warnings_of(listing, split, seen, labels),
        ],
        {**_info(how), "fit": None, "notes": [*listing.notes, *found.notes], "size": size, "quality": quality,
         "passed_over": {kind: list(map(str, paths)) for kind, paths in listing.passed_over.items()}},
        sizes or Sizes((side, side), (side, side), side, True),
    )  # fmt: skip


def _rows_of_pixels(source: str, options: SourceOptions) -> _Rows:
    """Return the pixels of a source that decodes its own files."""
    sets: dict[str, ImageSet] = {}
    for split in _SPLITS:
        found = load_images(source, split, options.like(sets["train"]) if "train" in sets else options)
        if found is not None:
            sets[split] = found
    if "train" not in sets:
        raise CnnlabError(f"{source} has no training images")
    train = sets["train"]
    shape = train.images.shape[1:]
    places = [(images, i) for images in sets.values() for i in range(len(images))]

    def make(row: int) -> _Row:
        images, i = places[row]
        pixels = images.images[i].numpy()
        uniform = all(channel.min() == channel.max() for channel in pixels)
        return _Row(pixels.tobytes(), int(pixels.min()), int(pixels.max()), uniform)

    how = train.decoding or Decoding(shape[0], shape[1])
    weights, groups = [s.weights for s in sets.values()], [s.groups for s in sets.values()]
    return _Rows(
        source,
        list(train.classes),
        {split: len(images) for split, images in sets.items()},
        [id_ for images in sets.values() for id_ in images.ids],
        np.concatenate([images.labels.numpy() for images in sets.values()]),
        None if any(g is None for g in groups) else [text for g in groups for text in g or ()],
        None if any(w is None for w in weights) else [v for w in weights if w is not None for v in w.tolist()],
        (shape[0], shape[1], shape[2]),
        make,
        lambda split, _seen, _labels: sets[split].warnings,
        {**_info(how), "fit": train.decoding.fit if train.decoding else None, "notes": list(train.notes),
         "passed_over": {kind: list(map(str, paths)) for kind, paths in train.passed_over.items()}},
    )  # fmt: skip


def _info(how: Decoding) -> dict[str, Any]:
    return {
        "channels": how.channels, "background": how.background, "low": how.low, "high": how.high,
        "lows": list(how.lows), "highs": list(how.highs),
    }  # fmt: skip


@dataclass
class _Shard:
    """The shard that is being written, and what its line in the journal will say. rows: numbers that it has seen."""

    number: int
    folder: Path
    bytes: int = 0
    rows: int = 0
    lengths: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    ends: list[tuple[int, int, bool]] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)
    remarks: list[tuple[int, str]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._file = (self.folder / self.name).open("wb")
        self._hash = hashlib.blake2b()

    @property
    def name(self) -> str:
        return f"images-{self.number:05}.bin"

    def add(self, number: int, row: _Row) -> None:
        self._file.write(row.content)
        self._hash.update(row.content)
        self.bytes += len(row.content)
        self.lengths.append(len(row.content))
        self.digests.append(hashlib.blake2b(row.content, digest_size=DIGEST).hexdigest())
        self.ends.append((row.low, row.high, row.uniform))
        self.remarks += [(number, remark) for remark in row.remarks]
        self.sizes += [row.size] if row.size else []

    def seal(self) -> dict[str, Any]:
        """Flush the file to the disk; return the journal's line."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {
            "file": self.name, "images": len(self.lengths), "bytes": self.bytes, "blake2b": self._hash.hexdigest(),
            "rows": self.rows, "lengths": self.lengths, "digests": self.digests, "ends": self.ends,
            "skipped": self.skipped, "remarks": self.remarks, "sizes": self.sizes,
        }  # fmt: skip

    def close(self) -> None:
        self._file.close()


class _Writer:
    """Writes one set. done: the journal's lines, one for each finished shard."""

    def __init__(self, path: Path, rows: _Rows, options: SourceOptions, shard_bytes: int) -> None:
        self.path, self.rows, self.options, self.shard_bytes = path, rows, options, shard_bytes
        self.work = partial_folder(path)
        self.journal = self.work / "journal.jsonl"
        self.done: list[dict[str, Any]] = []

    def write(self) -> Packed:
        """Write what is left of the set; give it its name."""
        self.work.mkdir(exist_ok=True)
        remove_torn(self.work)
        self._continue()
        total, cores = len(self.rows.ids), available_cores()
        first = sum(line["rows"] for line in self.done)
        shard: _Shard | None = None
        try:
            with ThreadPoolExecutor(cores) as pool:
                for number, row in enumerate(in_order(pool, self.rows.make, range(first, total), 8 * cores), first):
                    shard = shard or _Shard(len(self.done), self.work)
                    shard.rows += 1
                    if isinstance(row, _Row):
                        shard.add(number, row)
                    elif self.options.skip_bad:
                        shard.skipped[number] = str(row)
                    else:
                        raise CnnlabError(f"{row}; repair or remove it, or leave such files out with --skip-bad")
                    if shard.bytes >= self.shard_bytes or number + 1 == total:
                        self._note(shard.seal())
                        shard = None
                    self.options.report(f"packing {self.rows.source}", number + 1, total)
        finally:
            if shard is not None:
                shard.close()
        return self._finish()

    def _continue(self) -> None:
        """Read the journal of a process that was stopped. Raise CnnlabError if it wrote another set."""
        lines = self.journal.read_bytes().split(b"\n") if self.journal.is_file() else []
        key, whole = self.rows.key(), []
        for text in lines[:-1]:  # after the last newline may be part of a line
            whole.append(json.loads(text))
        if whole and whole[0] != {"key": key}:
            raise CnnlabError(
                f"{self.work} holds the beginning of another set, or of other options; remove it, or name another "
                "folder"
            )
        self.done = whole[1:]
        for line in self.done:
            if (self.work / line["file"]).stat().st_size != line["bytes"]:
                raise CnnlabError(f"{self.work / line['file']} is damaged; remove {self.work} and start again")
        size = sum(len(text) + 1 for text in lines[:-1])
        with self.journal.open("r+b" if lines else "wb") as file:
            file.truncate(size)
        if not whole:
            self._append({"key": key})

    def _note(self, line: dict[str, Any]) -> None:
        line["skipped"] = {str(number): text for number, text in line["skipped"].items()}
        self._append(line)
        self.done.append(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.journal.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _finish(self) -> Packed:
        rows, done, work = self.rows, self.done, self.work
        skipped = {int(number): text for line in done for number, text in line["skipped"].items()}
        good = np.array([i for i in range(len(rows.ids)) if i not in skipped], np.int64)
        split_of = np.repeat(np.arange(len(rows.counts)), list(rows.counts.values()))
        labels = rows.labels[good]
        splits, warnings = {}, {}
        ends = np.array([end for line in done for end in line["ends"]], np.int64).reshape(-1, 3)
        for place, split in enumerate(rows.counts):
            here = split_of[good] == place
            if emptied := sorted(set(rows.labels[split_of == place].tolist()) - set(labels[here].tolist())):
                reason_ = next(t for i, t in skipped.items() if split_of[i] == place and rows.labels[i] == emptied[0])
                raise CnnlabError(f"no {split} image of class {rows.classes[emptied[0]]} could be read: {reason_}")
            remarks = [(i, r) for line in done for i, r in line["remarks"] if split_of[i] == place]
            odd = {r: (n, rows.ids[next(i for i, o in remarks if o == r)])
                   for r, n in Counter(remark for _, remark in remarks).items()}  # fmt: skip
            few = ends[here]
            seen = Seen(int(few[:, 0].min()), int(few[:, 1].max()), few[:, 2].astype(bool), odd)
            splits[split] = int(here.sum())
            warnings[split] = list(rows.warnings(split, seen, labels[here]))
        changed = [tuple(size) for line in done for size in line["sizes"]]
        sizes = (Sizes.of(changed) if changed else None) or rows.sizes
        _write_array(work / "labels.npy", labels)
        digests = bytes.fromhex("".join(text for line in done for text in line["digests"]))
        _write_array(work / "digests.npy", np.frombuffer(digests, np.uint8).reshape(-1, DIGEST))
        if rows.shape is None:
            lengths = [length for line in done for length in line["lengths"]]
            _write_array(work / "starts.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        if rows.weights is not None:
            _write_array(work / "weights.npy", np.array(rows.weights, np.float32)[good])
        if rows.groups is not None:
            _write_texts(work / "groups.json", [rows.groups[i] for i in good])
        _write_texts(work / "ids.json", [rows.ids[i] for i in good])
        write_json(
            work / "pack.json",
            {
                "format": FORMAT, "source": rows.source, "classes": rows.classes, "splits": splits,
                "shape": rows.shape, "sizes": asdict(sizes) if sizes else None, **rows.info,
                "groups": rows.groups is not None, "weights": rows.weights is not None,
                "skipped": list(skipped.values()), "warnings": warnings,
                "shards": [{key: line[key] for key in ("file", "images", "bytes", "blake2b")} for line in done],
            },
        )  # fmt: skip
        self.journal.unlink()
        os.rename(work, self.path)  # noqa: PTH104 - through `os`, where the tests put faults
        told = [text for texts in warnings.values() for text in texts]
        return Packed(self.path, splits, len(rows.classes), rows.shape, sum(line["bytes"] for line in done), len(done),
                      list(skipped.values()), list(rows.info["notes"]), told)  # fmt: skip


def _file_bytes(file: Path | Item) -> bytes:
    """Return the bytes of an image file; of an image that a library has opened, those of a PNG. Raise BadImage."""
    try:
        if isinstance(file, Item):
            found = file.read()
            return found if isinstance(found, bytes) else _encoded(found, "PNG")
        if file.stat().st_size > LARGEST_FILE:
            raise BadImage(f"{file} is larger than the limit for an image, {LARGEST_FILE:,} bytes")
        return file.read_bytes()
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage(f"{file} does not exist") from error
    except Exception as error:  # of whatever library it comes from
        raise BadImage(f"{file} cannot be read: {reason(error, 200)}") from error


def _smaller(content: bytes, size: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """Return an image file as a JPEG whose shorter side is at most `size`, if that is not 0, and (width, height).

    What a JPEG cannot hold (more than eight bits, transparency, other than one or three channels) stays as it is.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            plain = image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") and not image.has_transparency_data
            if not plain or (not quality and min(image.size) <= size and image.format in ("JPEG", "WEBP")):
                return content, image.size
            upright = ImageOps.exif_transpose(image)
            upright = upright.convert("L" if image.mode in ("1", "L") else "RGB")
            share = size / min(upright.size)
            if size and share < 1:
                w, h = upright.size
                upright = upright.resize((max(1, round(w * share)), max(1, round(h * share))), Image.Resampling.LANCZOS)
            return _encoded(upright, "JPEG", quality=quality or _QUALITY), upright.size
    except Exception:  # Pillow does not open it; another reader may, and decoding will say so if not
        return content, (0, 0)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _write_array(path: Path, values: NDArray[Any]) -> None:
    file = io.BytesIO()
    np.save(file, values)
    write_atomic(path, file.getvalue())


def _write_texts(path: Path, texts: Sequence[str]) -> None:
    write_atomic(path, json.dumps(list(texts), ensure_ascii=False))
