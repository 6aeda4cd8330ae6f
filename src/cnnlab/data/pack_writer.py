"""Write a packed set (`cnnlab.data.pack`): one pass over a source, shard by shard, resumable after a kill.

The set is written into STORE.partial. Each finished shard is flushed to the disk and then gets a line in journal.jsonl;
a new process continues after the last line, and whatever lies beyond it is written again. The folder is renamed when it
is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnlab.data import PACK
from cnnlab.data.files import DecodedStats, Sizes, in_order, refused
from cnnlab.data.imageset import SourceOptions
from cnnlab.data.pack import DIGEST, FORMAT, partial_folder
from cnnlab.data.pack_rows import Row, Rows, rows_of
from cnnlab.device.hardware import available_cores
from cnnlab.io.decode import bombs_refused
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import remove_torn, write_atomic, write_json
from cnnlab.io.lock import file_lock
from cnnlab.io.text import plural

_SHARD = 1 << 30  # a shard with this many bytes is full


@dataclass(frozen=True)
class Packed:
    """A summary of a packed set. counts: images in each split; bytes: of all shards; notes, warnings: on the source."""

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
        """Return a few lines: its content, remarks on it, and how to train on it."""
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

    size: largest shorter side in pixels, to which larger image files are reduced; quality: of the resulting JPEGs, 1 to
    100. With either, files become JPEGs where possible; with 0 for both, files keep their bytes. Raise CnnlabError if
    `store` exists, for a damaged image unless `options.skip_bad`, and for anything else that is wrong with the source
    or the disk.
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
            return _Writer(path, rows_of(source, options, size, quality), options, shard_bytes).write()
    except OSError as error:
        raise CnnlabError(
            f"cannot pack {path}: {reason(error)}; make room or correct the path, then run the same command again: it "
            "continues"
        ) from error


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise CnnlabError(f"{path} exists; name another folder, or remove it first")


@dataclass
class _Shard:
    """The shard that is being written, and the content of its line in the journal. rows: number read so far."""

    number: int
    folder: Path
    bytes: int = 0
    rows: int = 0
    lengths: list[int] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)
    ends: bytearray = field(default_factory=bytearray)  # of each image: low, high, whether it is uniform
    skipped: dict[str, str] = field(default_factory=dict)
    remarks: list[tuple[int, str]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._file = (self.folder / self.name).open("wb")
        self._hash = hashlib.blake2b()

    @property
    def name(self) -> str:
        return f"images-{self.number:05}.bin"

    def add(self, number: int, row: Row) -> None:
        self._file.write(row.content)
        self._hash.update(row.content)
        self.bytes += len(row.content)
        self.lengths.append(len(row.content))
        self.digests += hashlib.blake2b(row.content, digest_size=DIGEST).digest()
        self.ends += bytes((row.low, row.high, row.uniform))
        self.remarks += [(number, remark) for remark in row.remarks]
        self.sizes += [row.size] if row.size else []

    def seal(self) -> dict[str, Any]:
        """Flush the file to the disk; return the line for the journal."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {
            "file": self.name, "images": len(self.lengths), "bytes": self.bytes, "blake2b": self._hash.hexdigest(),
            "rows": self.rows, "lengths": self.lengths, "digests": self.digests.hex(), "ends": self.ends.hex(),
            "skipped": self.skipped, "remarks": self.remarks, "sizes": self.sizes,
        }  # fmt: skip

    def close(self) -> None:
        self._file.close()


class _Writer:
    """The writer of one set. done: the journal's lines, one for each finished shard."""

    def __init__(self, path: Path, rows: Rows, options: SourceOptions, shard_bytes: int) -> None:
        self.path, self.rows, self.options, self.shard_bytes = path, rows, options, shard_bytes
        self.work = partial_folder(path)
        self.journal = self.work / "journal.jsonl"
        self.done: list[dict[str, Any]] = []

    def write(self) -> Packed:
        """Write the rest of the set, then rename the folder."""
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
                    if isinstance(row, Row):
                        shard.add(number, row)
                    elif self.options.skip_bad:
                        shard.skipped[str(number)] = str(row)
                    else:
                        raise refused(row)
                    if shard.bytes >= self.shard_bytes or number + 1 == total:
                        self.done.append(shard.seal())
                        self._append(self.done[-1])
                        shard = None
                    self.options.report(f"packing {self.rows.source}", number + 1, total)
        finally:
            if shard is not None:
                shard.close()
        return self._finish()

    def _continue(self) -> None:
        """Read the journal of a stopped process, or start one. Raise CnnlabError if it is that of another set."""
        lines = self.journal.read_bytes().split(b"\n") if self.journal.is_file() else []
        key, whole = self.rows.key(), []
        try:
            for text in lines[:-1]:  # what follows the last newline may be a torn line
                whole.append(json.loads(text))
        except ValueError as error:
            raise CnnlabError(f"{self.journal} is damaged; remove {self.work} and start again") from error
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
        ends = np.frombuffer(bytes.fromhex("".join(line["ends"] for line in done)), np.uint8).reshape(-1, 3)
        for place, split in enumerate(rows.counts):
            here = split_of[good] == place
            if emptied := sorted(set(rows.labels[split_of == place].tolist()) - set(labels[here].tolist())):
                first = next(t for i, t in skipped.items() if split_of[i] == place and rows.labels[i] == emptied[0])
                raise CnnlabError(
                    f"no {split} image of class {rows.classes[emptied[0]]} could be read; the first: {first}; correct "
                    f"the files, remove {work}, and run again"
                )
            remarks = [(i, r) for line in done for i, r in line["remarks"] if split_of[i] == place]
            odd = {r: (n, rows.ids[next(i for i, o in remarks if o == r)])
                   for r, n in Counter(remark for _, remark in remarks).items()}  # fmt: skip
            few = ends[here]
            seen = DecodedStats(int(few[:, 0].min()), int(few[:, 1].max()), few[:, 2].astype(bool), odd)
            splits[split] = int(here.sum())
            warnings[split] = list(rows.warnings(split, seen, labels[here]))
        changed = [tuple(size) for line in done for size in line["sizes"]]
        sizes = (Sizes.of(changed) if changed else None) or rows.sizes
        _write_array(work / "labels.npy", labels)
        digests = bytes.fromhex("".join(line["digests"] for line in done))
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
        all_warnings = [text for texts in warnings.values() for text in texts]
        return Packed(self.path, splits, len(rows.classes), rows.shape, sum(line["bytes"] for line in done), len(done),
                      list(skipped.values()), list(rows.info["notes"]), all_warnings)  # fmt: skip


def _write_array(path: Path, values: NDArray[Any]) -> None:
    file = io.BytesIO()
    np.save(file, values)
    write_atomic(path, file.getvalue())


def _write_texts(path: Path, texts: Sequence[str]) -> None:
    write_atomic(path, json.dumps(list(texts), ensure_ascii=False))
