"""Write a store: match the tables with the images, decode the images, write the arrays and store.json."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from cnnlab.competition.decoders import Decoders
from cnnlab.competition.layout import Layout, Place, match_all, member_ids, natural
from cnnlab.competition.submission import has_class_columns
from cnnlab.data.archives import Archive
from cnnlab.data.imageset import Report
from cnnlab.data.measure import background_sample, common_background, common_range, ink_level, survey
from cnnlab.data.store import FORMAT, fingerprint
from cnnlab.device.hardware import available_cores
from cnnlab.io.csv import Table, read_header, read_table
from cnnlab.io.decode import BadImage, Decoding, bombs_refused, decode, probe
from cnnlab.io.decode_jobs import Fault, Job
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import write_atomic, write_json
from cnnlab.io.text import escape
from cnnlab.recipe import LARGEST_SIDE

T = TypeVar("T")
_VERSION = 5  # increment when the same files would give another store
_FEW_IMAGES = 2000  # fewer are decoded before a second process has started
_MIN_FREE = 64 << 20  # bytes that must stay free on the disk
_BATCH, _BATCH_BYTES = 256, 4 << 20  # images, or bytes, measured at a time
_SKIP = "repair it, or leave such images out with --skip-bad"


@dataclass(frozen=True)
class Parts:
    """The competition's files that exist, by their names in `place`."""

    place: Place
    layout: Layout
    train: str
    test: str | None
    sample: str | None

    @classmethod
    def find(cls, place: Place, layout: Layout) -> Parts:
        """Find the files. Raise CnnlabError if the training images or their labels are missing."""
        train = place.find(layout.train)
        if train is None:
            raise place.missing(layout.train, "the training images, as a folder or an archive")
        if not place.has(layout.labels):
            raise place.missing(layout.labels, "the table of labels")
        return cls(place, layout, train, place.find(layout.test), layout.sample if place.has(layout.sample) else None)

    def key(self, skip_bad: bool) -> str:
        """Return a hash of everything that determines the content of the store."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(json.dumps([FORMAT, _VERSION, asdict(self.layout), skip_bad]).encode())
        self.place.digest([n for n in (self.train, self.test, self.layout.labels, self.sample) if n], digest)
        return digest.hexdigest()


@dataclass
class StoreWriter:
    """The writer of one store, into the folder `work`.

    processes: number of decoding processes, including this one; None: one per core, or one for few images. notes: lines
    about oddities of the files; lists: all ids or names that each note is about; without_image: ids of the sample
    submission without a test image; how: the decoding of all images; measured: whether `how` comes from all training
    images, not just the first; pattern: a description of the first image, whose size the others must have.
    """

    parts: Parts
    work: Path
    processes: int | None
    skip_bad: bool
    report: Report
    notes: list[str] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)
    without_image: list[str] = field(default_factory=list)
    how: Decoding = Decoding(1, 0)  # noqa: RUF009 - frozen
    measured: bool = False
    pattern: str = ""

    def write(self, key: str) -> None:
        """Write the store. key: see Parts.key. Raise CnnlabError, OSError."""
        parts, layout = self.parts, self.parts.layout
        labels = self._labels()
        sample = self._sample(set(labels.values()))
        processes = self.processes
        if processes is None:
            processes = available_cores() if len(labels) + len(sample or ()) >= _FEW_IMAGES else 1
        with Decoders(processes - 1) as decoders, bombs_refused():
            with parts.place.images(parts.train, self.work) as archive:
                rows = self._rows(archive, labels)
                order = [index for _, _, index in rows]
                self._probe(archive, set(order))
                faults = self._decode(decoders, archive, order, "train")
                if any(kind == "unmeasured" for _, kind, _ in faults):
                    self._measure(archive, order)
                    faults = self._decode(decoders, archive, order, "train")
            bad = {row: text for row, _, text in faults}
            test_ids, unreadable = self._test(decoders, sample)
        good = [row for i, row in enumerate(rows) if i not in bad]
        classes = sorted({label for _, label, _ in good})
        for _, label, _ in rows:
            if label not in classes:
                first = min(row for row in bad if rows[row][1] == label)
                raise CnnlabError(f"no image of class {label} could be read; the first: {bad[first]}")
        if bad:
            self._drop_rows(set(bad))
        number = {label: k for k, label in enumerate(classes)}
        train_ids, numbers = [text for text, _, _ in good], [number[label] for _, label, _ in good]
        write_json(
            self.work / "store.json",
            {
                "format": FORMAT,
                "key": key,
                "source": str(parts.place.path.absolute()),
                "files": {"train": parts.train, "test": parts.test, "labels": layout.labels, "sample": parts.sample},
                "layout": asdict(layout),
                "counts": {"train": len(good), "test": len(test_ids), "classes": len(classes)},
                "channels": self.how.channels,
                "image_size": self.how.size,
                "fit": self.how.fit if layout.image_size else None,
                "background": self.how.background,
                "low": self.how.low,
                "high": self.how.high,
                "classes": classes,
                "skipped": [bad[row] for row in sorted(bad)],
                "unreadable_test": unreadable,
                "report": self.notes,
                "lists": self.lists,
                "sample_without_image": self.without_image,
                "fingerprint": fingerprint(self.work, [train_ids, numbers, classes, test_ids]),
                "train_ids": train_ids,
                "labels": numbers,
                "test_ids": test_ids,
                "sample_ids": sample,
            },
        )

    def _table(self, content: bytes, name: str, *, labelled: bool, layout: Layout | None = None) -> Table:
        """Read ids and labels from a CSV file; if `labelled`, every row needs a label and ids may repeat."""
        layout = layout or self.parts.layout
        table = read_table(
            io.BytesIO(content), name, layout.id_column, layout.label_column, repeats=labelled, blanks=not labelled
        )
        if not table.ids:
            raise CnnlabError(f"{name} has a header but no rows; is it the right file?")
        return table

    def _labels(self) -> dict[str, str]:
        """Return {id: label} in the order of the table."""
        name = self.parts.layout.labels
        labels: dict[str, str] = {}
        repeated = []
        table = self._table(self.parts.place.table(name), name, labelled=True)
        for text, label in zip(table.ids, table.values, strict=True):
            if text in labels:
                repeated.append(text)
            if labels.setdefault(text, label) != label:
                raise CnnlabError(f"{name} gives {text} two labels, {labels[text]} and {label}; correct it")
        self._note(repeated, f"rows of {name} repeat an id with the same label")
        if len(set(labels.values())) < 2:
            raise CnnlabError(f"{name} has one class, {label}; classification needs at least two")
        return labels

    def _sample(self, classes: set[str]) -> list[str] | None:
        """Return the ids of the sample submission and copy the file into the store; None if there is none."""
        name = self.parts.sample
        if name is None:
            self.notes.append(f"there is no {self.parts.layout.sample}: the test images are in the order of their ids")
            return None
        content = self.parts.place.table(name)
        layout = self.parts.layout
        if has_class_columns(read_header(io.BytesIO(content), name), classes, layout.label_column):
            layout = replace(layout, label_column=layout.id_column)  # probabilities: only the ids are read
        table = self._table(content, name, labelled=False, layout=layout)
        write_atomic(self.work / "sample.csv", content)
        return table.ids

    def _rows(self, archive: Archive, labels: dict[str, str]) -> list[tuple[str, str, int]]:
        """Return (id as in the table, label, index in the archive) of each training image, in the table's order."""
        table = self.parts.layout.labels
        ids = member_ids(archive)
        self._note_archive(archive, self.parts.train)
        if not ids:
            raise CnnlabError(f"{archive.label} holds no images ({archive.ignored} other files)")
        matched, lost, again = match_all(labels, ids)
        for first, text in again:
            if labels[first] != labels[text]:
                raise CnnlabError(
                    f"{table} gives {first} and {text}, one image, the labels {labels[first]} and {labels[text]}; "
                    "correct it"
                )
        rows = [(text, labels[text], index) for index, text in matched.items()]
        if not rows:
            raise CnnlabError(
                f"no id in {table} matches an image of {archive.label}: the table begins with {lost[0]!r}, the images "
                f"with {archive.members[0].name!r}; is the id column the right one?"
            )
        self._note([text for _, text in again], f"rows of {table} refer to an image that already has a row")
        self._note(lost, f"ids in {table} have no image in {self.parts.train}")
        spare = [m.name for i, m in enumerate(archive.members) if i not in matched]
        self._note(spare, f"images of {self.parts.train} have no label in {table} and are left out")
        if len({label for _, label, _ in rows}) < 2:
            raise CnnlabError(f"all images of {archive.label} are of one class, {rows[0][1]}; at least two are needed")
        return rows

    def _test(self, decoders: Decoders, sample: list[str] | None) -> tuple[list[str], list[str]]:
        """Write test.npy. Return (ids of its rows, errors of the images that could not be read)."""
        name = self.parts.test
        if name is None:
            self.notes.append(f"there is no {self.parts.layout.test}: the store has no test images")
            self._new_file("test", 0)
            return [], []
        with self.parts.place.images(name, self.work) as archive:
            ids = member_ids(archive)
            self._note_archive(archive, name)
            rows, self.without_image, again = match_all(sample or (), ids)
            for first, text in again:
                raise CnnlabError(f"{self.parts.sample} lists one image twice, as {first} and {text}; remove one")
            spare = sorted(((t, i) for t, i in ids.items() if i not in rows), key=lambda pair: natural(pair[0]))
            if sample is not None:
                self._note(self.without_image, f"ids in {self.parts.sample} have no image in {name}")
                self._note([t for t, _ in spare], f"images of {name} are not in {self.parts.sample} and come last")
            rows |= {i: text for text, i in spare}
            faults = self._decode(decoders, archive, list(rows), "test")
        return list(rows.values()), [text for _, _, text in faults]

    def _probe(self, archive: Archive, wanted: set[int]) -> None:
        """Set `how` from the first image that can be decoded, assuming that the others are alike."""
        layout = self.parts.layout
        background = "white" if layout.background == "white" else "black"
        first = None
        for index, content in archive.read(wanted):
            try:
                header = probe(archive.member_label(index), content)
                decode(archive.member_label(index), Decoding(1, 1, "stretch"), content)
            except BadImage as error:
                first = first or error
                if not self.skip_bad:
                    raise CnnlabError(f"{error}; {_SKIP}") from error
                continue
            width, height = header.size
            self.pattern = f"{archive.member_label(index)} is {width} x {height} pixels"
            if not layout.image_size and width != height:
                raise CnnlabError(f"{self.pattern}, not square; set --image-size to the size for all")
            side = layout.image_size or width
            if side > LARGEST_SIDE:
                raise CnnlabError(f"{self.pattern}; set --image-size to the size for all, {LARGEST_SIDE} at most")
            self.how = Decoding(1 if header.grey else 3, side, layout.fit, background)
            return
        raise CnnlabError(f"no image of {archive.label} could be read; the first: {first}")

    def _measure(self, archive: Archive, order: list[int]) -> None:
        """Set channels, background and range of values of `how` from all training images, as `folder:` does."""
        found = dict(self._each(archive, set(order), survey))
        headers = {index: result[0] for index in order if (result := found[index])}
        extremes = [result[1] for result in found.values() if result and result[1]]
        low, high, warnings = common_range(extremes)
        background = self.parts.layout.background
        transparent = [index for index, header in headers.items() if header.transparent]
        if background == "auto":
            sample = set(background_sample(transparent))
            background = common_background(level for _, level in self._each(archive, sample, ink_level))
        channels = 1 if all(header.grey for header in headers.values()) else 3
        self.how = replace(self.how, channels=channels, background=background, low=low, high=high)
        self.measured = True
        self.notes += warnings
        if extremes:
            self.notes.append(f"the values {low:g} to {high:g} of {len(extremes):,} images become 0 to 255")
        if background == "white" and transparent:
            self.notes.append(
                f"{len(transparent):,} images have transparency, on white now; --background black changes it"
            )

    def _each(self, archive: Archive, wanted: set[int], use: Callable[[str, bytes], T]) -> Iterator[tuple[int, T]]:
        """Yield (index, use(name, content)) for each of the images `wanted`, a few MiB at a time."""
        with ThreadPoolExecutor(self.processes or available_cores()) as pool:
            images = archive.read(wanted)
            done = 0
            while batch := list(_batch(images)):
                names = [archive.member_label(index) for index, _ in batch]
                results = pool.map(use, names, [content for _, content in batch])
                yield from zip([index for index, _ in batch], results, strict=True)
                done += len(batch)
                self.report(f"measuring {self.parts.train}", done, len(wanted))

    def _decode(self, decoders: Decoders, archive: Archive, order: list[int], part: str) -> list[Fault]:
        """Write the archive's images, in the given `order` of indices, to the rows 0, 1, ... of PART.npy.

        Return the faults of damaged images that may be skipped; their rows stay black. An image that needs `_measure`
        first stops the decoding; its fault is among those returned. Raise CnnlabError for other faults.
        """
        path = self.work / f"{part}.npy"
        offset = self._new_file(part, len(order))
        same_size, measured = self.parts.layout.image_size == 0, self.measured or part == "test"
        job = Job(str(path), offset, self.how, same_size, measured)
        row_of = {index: row for row, index in enumerate(order)}
        activity = f"decoding {self.parts.train if part == 'train' else self.parts.test}"
        done, faults = 0, []
        for index, content in archive.read(row_of):
            count, more = decoders.add(job, row_of[index], archive.member_label(index), content)
            faults += more
            done += count
            if count:
                self.report(activity, done, len(order))
            if any(kind != "bad" or not self.skip_bad for _, kind, _ in more):
                break
        count, more = decoders.finish(job)
        faults = sorted(faults + more, key=lambda fault: order[fault[0]])
        if any(kind == "unmeasured" for _, kind, _ in faults):
            return faults
        for _, kind, text in faults:
            if kind == "size":
                raise CnnlabError(f"{self.pattern}, but {text}; set --image-size to the size for all")
            if not self.skip_bad:
                raise CnnlabError(f"{text}; {_SKIP}")
        self.report(activity, done + count, len(order))
        _flush(path)
        return faults

    def _new_file(self, part: str, count: int) -> int:
        """Create a .npy file of black images. Return the offset of the pixels in bytes."""
        need, free = count * self.how.channels * self.how.size**2 + _MIN_FREE, shutil.disk_usage(self.work).free
        if need > free:  # fail now, not after minutes of decoding
            raise CnnlabError(
                f"{part}.npy needs {need >> 20:,} MiB and {self.work.parent} has {free >> 20:,} free; free some space, "
                "or name another folder with --store"
            )
        shape = (count, self.how.channels, self.how.size, self.how.size)
        with (self.work / f"{part}.npy").open("wb") as file:
            head = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
            offset = file.tell()
            file.truncate(offset + int(np.prod(shape)))
        return offset

    def _drop_rows(self, bad: set[int]) -> None:
        """Rewrite train.npy without the rows `bad`."""
        path = self.work / "train.npy"
        images = np.delete(np.load(path, allow_pickle=False), list(bad), axis=0)
        np.save(path, images, allow_pickle=False)
        _flush(path)

    def _note_archive(self, archive: Archive, name: str) -> None:
        if archive.ignored:
            self.notes.append(f"{name}: {archive.ignored} files that are not images were ignored")

    def _note(self, names: list[str], what: str) -> None:
        if names:
            few = ", ".join(map(escape, names[:3])) + (", ..." if len(names) > 3 else "")
            self.notes.append(f"{len(names)} {what}: {few}")
            self.lists[what] = names


def _batch(images: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield the next images, at most a few MiB of them."""
    size = 0
    for index, content in islice(images, _BATCH):
        yield index, content
        size += len(content)
        if size >= _BATCH_BYTES:
            return


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
