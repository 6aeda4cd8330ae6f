"""The work behind `prepare_store`: match tables and images, decode, write the arrays and store.json."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cnnlab.competition.decoders import Decoders
from cnnlab.competition.layout import Layout, Place, match, member_ids, natural
from cnnlab.data.archives import Archive, shown
from cnnlab.data.images import BadImage, bombs_refused, decode, probe
from cnnlab.data.imageset import Report
from cnnlab.data.store import FORMAT, fingerprint
from cnnlab.io.csv import Table, read_table
from cnnlab.io.decode import Job, Trouble
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import write_atomic, write_json
from cnnlab.recipe import LARGEST_SIDE

_DECODING = 3  # one more whenever the same files would give another store
_FEW = 2000  # images that are decoded before a second process has started
_SPARE = 64 << 20  # bytes that should stay free on the disk
_SKIP = "repair it, or leave such images out with --skip-bad"


@dataclass(frozen=True)
class Parts:
    """Which of a competition's files there are, by their names in `place`."""

    place: Place
    layout: Layout
    train: str
    test: str | None
    sample: str | None

    @classmethod
    def find(cls, place: Place, layout: Layout) -> Parts:
        """Raises: CnnlabError where the training images or their labels are missing."""
        train = place.find(layout.train)
        if train is None:
            raise place.missing(layout.train, "the training images, as a folder or an archive")
        if not place.has(layout.labels):
            raise place.missing(layout.labels, "the table of labels")
        return cls(place, layout, train, place.find(layout.test), layout.sample if place.has(layout.sample) else None)

    def key(self, skip_bad: bool) -> str:
        """A hash of all that decides what the store will hold."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(json.dumps([FORMAT, _DECODING, asdict(self.layout), skip_bad]).encode())
        self.place.digest([n for n in (self.train, self.test, self.layout.labels, self.sample) if n], digest)
        return digest.hexdigest()


@dataclass
class Preparation:
    """One run. processes: how many there may be; asked: whether somebody chose that number.

    notes: lines that tell what was odd; lists: what each of them is about, in full.
    """

    parts: Parts
    work: Path
    processes: int
    asked: bool
    skip_bad: bool
    report: Report
    notes: list[str] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)  # ids of the sample submission without a test image
    channels: int = 0
    side: int = 0
    pattern: str = ""  # the image whose size the others must have

    def run(self, key: str) -> None:
        """Write the store into the folder `work`. Raises: CnnlabError, OSError."""
        parts, layout = self.parts, self.parts.layout
        labels = self._labels()
        sample = self._sample()
        helpers = self.processes - 1 if self.asked or len(labels) + len(sample or ()) >= _FEW else 0
        with Decoders(helpers) as crew, bombs_refused():
            with parts.place.images(parts.train, self.work) as archive:
                rows = self._rows(archive, labels)
                order = [index for _, _, index in rows]
                self._look(archive, set(order), len(sample or ()))
                troubles = self._decode(crew, archive, order, "train")
                if any(kind == "colour" for _, kind, _ in troubles):  # grey ones came first
                    self.channels = 3
                    troubles = self._decode(crew, archive, order, "train")
            bad = {row: text for row, _, text in troubles}
            test_ids, unreadable = self._test(crew, sample)
        good = [row for i, row in enumerate(rows) if i not in bad]
        classes = sorted({label for _, label, _ in good})
        for _, label, _ in rows:
            if label not in classes:
                raise CnnlabError(f"no image of class {shown(label)} could be read; the first: {min(bad.items())[1]}")
        if bad:
            self._leave_out(set(bad), len(rows))
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
                "channels": self.channels,
                "image_size": self.side,
                "classes": classes,
                "skipped": [bad[row] for row in sorted(bad)],
                "unreadable_test": unreadable,
                "report": self.notes,
                "lists": self.lists,
                "sample_without_image": self.lost,
                "fingerprint": fingerprint(self.work, [train_ids, numbers, classes, test_ids]),
                "train_ids": train_ids,
                "labels": numbers,
                "test_ids": test_ids,
                "sample_ids": sample,
            },
        )

    def _table(self, content: bytes, name: str, *, labelled: bool) -> Table:
        """The ids and labels of a CSV; where it is `labelled`, each row must have a label, and may be there again."""
        layout = self.parts.layout
        table = read_table(
            io.BytesIO(content), name, layout.id_column, layout.label_column, repeats=labelled, blanks=not labelled
        )
        if not table.ids:
            raise CnnlabError(f"{name} has a header but no rows; is it the right file?")
        return table

    def _labels(self) -> dict[str, str]:
        """Each id in the table with its label, in its order."""
        name = self.parts.layout.labels
        labels: dict[str, str] = {}
        again = []
        table = self._table(self.parts.place.table(name), name, labelled=True)
        for text, label in zip(table.ids, table.values, strict=True):
            if text in labels:
                again.append(text)
            if labels.setdefault(text, label) != label:
                raise CnnlabError(
                    f"{name} gives {shown(text)} two labels, {shown(labels[text])} and {shown(label)}; correct it"
                )
        self._note(again, f"rows of {name} repeat an id with the same label")
        if len(set(labels.values())) < 2:
            raise CnnlabError(f"{name} names one class, {shown(label)}; telling classes apart needs at least two")
        return labels

    def _sample(self) -> list[str] | None:
        """The ids of the sample submission, which the store keeps byte by byte."""
        name = self.parts.sample
        if name is None:
            self.notes.append(f"there is no {self.parts.layout.sample}: the test images are in the order of their ids")
            return None
        content = self.parts.place.table(name)
        table = self._table(content, name, labelled=False)
        write_atomic(self.work / "sample.csv", content)
        return table.ids

    def _rows(self, archive: Archive, labels: dict[str, str]) -> list[tuple[str, str, int]]:
        """(id as the table writes it, label, index in the archive) of each training image, in the table's order."""
        table = self.parts.layout.labels
        ids = member_ids(archive)
        self._note_archive(archive, self.parts.train)
        if not ids:
            raise CnnlabError(f"{archive.label} holds no images ({archive.passed_over} other files)")
        rows: list[tuple[str, str, int]] = []
        lost, again = [], []
        by_index: dict[int, tuple[str, str]] = {}
        for text, label in labels.items():
            index = match(text, ids)
            if index is None:
                lost.append(text)
                continue
            other = by_index.setdefault(index, (text, label))
            if other == (text, label):
                rows.append((text, label, index))
            elif other[1] != label:
                raise CnnlabError(
                    f"{table} gives {shown(other[0])} and {shown(text)}, one image, the labels {shown(other[1])} and "
                    f"{shown(label)}; correct it"
                )
            else:
                again.append(text)
        if not rows:
            raise CnnlabError(
                f"no id in {table} matches an image of {archive.label}: the table begins with {lost[0]!r}, the images "
                f"with {archive.members[0].name!r}; is the id column the right one?"
            )
        self._note(again, f"rows of {table} mean an image that has a row already")
        self._note(lost, f"ids in {table} have no image in {self.parts.train}")
        spare = [m.name for i, m in enumerate(archive.members) if i not in by_index]
        self._note(spare, f"images of {self.parts.train} have no label in {table} and are left out")
        if len({label for _, label, _ in rows}) < 2:
            raise CnnlabError(
                f"all images of {archive.label} are of one class, {shown(rows[0][1])}; at least two are needed"
            )
        return rows

    def _test(self, crew: Decoders, sample: list[str] | None) -> tuple[list[str], list[str]]:
        """Write test.npy: (ids of its rows, reports on those that could not be read)."""
        name = self.parts.test
        if name is None:
            self.notes.append(f"there is no {self.parts.layout.test}: the store has no test images")
            self._new_file("test", 0)
            return [], []
        with self.parts.place.images(name, self.work) as archive:
            ids = member_ids(archive)
            self._note_archive(archive, name)
            rows: dict[int, str] = {}
            for text in sample or ():
                index = match(text, ids)
                if index is None:
                    self.lost.append(text)
                elif index in rows:
                    raise CnnlabError(
                        f"{self.parts.sample} means one image by {shown(rows[index])} and {shown(text)}; correct it"
                    )
                else:
                    rows[index] = text
            spare = sorted(((t, i) for t, i in ids.items() if i not in rows), key=lambda pair: natural(pair[0]))
            if sample is not None:
                self._note(self.lost, f"ids in {self.parts.sample} have no image in {name}")
                self._note([t for t, _ in spare], f"images of {name} are not in {self.parts.sample} and come last")
            rows |= {i: text for text, i in spare}
            troubles = self._decode(crew, archive, list(rows), "test")
        return list(rows.values()), [text for _, _, text in troubles]

    def _look(self, archive: Archive, wanted: set[int], tests: int) -> None:
        """Find channels and side from the first image that can be read."""
        size = self.parts.layout.image_size
        first = None
        for index, content in archive.read(wanted):
            try:
                (width, height), grey = probe(archive.called(index), content)
                decode(archive.called(index), 1, 1, "stretch", content)
            except BadImage as error:
                first = first or error
                if not self.skip_bad:
                    raise CnnlabError(f"{error}; {_SKIP}") from error
                continue
            self.channels = 1 if grey else 3
            self.pattern = f"{archive.called(index)} is {width} x {height} pixels"
            if not size and width != height:
                raise CnnlabError(f"{self.pattern}, not square; say with --image-size how large all should become")
            self.side = size or width
            if self.side > LARGEST_SIDE:
                raise CnnlabError(
                    f"{self.pattern}; say with --image-size what all should become: {LARGEST_SIDE} at most"
                )
            break
        if not self.side:
            raise CnnlabError(f"no image of {archive.label} could be read; the first: {first}")
        self._check_space(len(wanted) + tests)

    def _check_space(self, images: int) -> None:
        need, free = images * self.channels * self.side**2 + _SPARE, shutil.disk_usage(self.work).free
        if need > free:
            raise CnnlabError(
                f"the store needs {need >> 20:,} MiB and {self.work.parent} has {free >> 20:,} free; free some space, "
                "or name another folder with --store"
            )

    def _decode(self, crew: Decoders, archive: Archive, order: list[int], part: str) -> list[Trouble]:
        """Write the images `order` of the archive to the rows 0, 1, .. of PART.npy.

        What could not be read comes back, if it may be skipped; so does a colour image where only grey ones were
        expected, at once.
        """
        offset = self._new_file(part, len(order))
        file = str(self.work / f"{part}.npy")
        exact, grey = self.parts.layout.image_size == 0, part == "train" and self.channels == 1
        job = Job(file, offset, self.channels, self.side, self.parts.layout.fit, exact, grey)
        row_of = {index: row for row, index in enumerate(order)}
        done, troubles = 0, []
        what = f"decoding {self.parts.train if part == 'train' else self.parts.test}"
        for index, content in archive.read(row_of):
            count, more = crew.add(job, row_of[index], archive.called(index), content)
            troubles += more
            if count:
                done += count
                self.report(what, done, len(order))
            if any(kind != "bad" or not self.skip_bad for _, kind, _ in more):
                break
        count, more = crew.finish(job)
        troubles = sorted(troubles + more, key=lambda trouble: order[trouble[0]])
        if any(kind == "colour" for _, kind, _ in troubles):
            return troubles
        for row, kind, text in troubles:
            if kind == "size":
                raise CnnlabError(
                    f"{self.pattern}, but {archive.called(order[row])} is {text}; say with --image-size how large all "
                    "should become"
                )
            if not self.skip_bad:
                raise CnnlabError(f"{text}; {_SKIP}")
        self.report(what, done + count, len(order))
        _flush(Path(file))
        return troubles

    def _new_file(self, part: str, count: int) -> int:
        """A .npy of black images; answers where the pixels begin."""
        self._check_space(count)  # of the test part, the sample submission need not have told all
        shape = (count, self.channels, self.side, self.side)
        with (self.work / f"{part}.npy").open("wb") as file:
            head = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
            offset = file.tell()
            file.truncate(offset + int(np.prod(shape)))
        return offset

    def _leave_out(self, bad: set[int], count: int) -> None:
        """Write train.npy again without the rows `bad`."""
        old, new = self.work / "train.npy", self.work / "old.npy"
        old.replace(new)
        offset = self._new_file("train", count - len(bad))
        rows = np.load(new, mmap_mode="r", allow_pickle=False)
        with old.open("r+b") as file:
            file.seek(offset)
            for row in range(count):
                if row not in bad:
                    file.write(rows[row].tobytes())
        del rows  # Windows removes no file that is mapped
        new.unlink()
        _flush(old)

    def _note_archive(self, archive: Archive, name: str) -> None:
        if archive.passed_over:
            self.notes.append(f"{name}: {archive.passed_over} files that are no images were passed over")

    def _note(self, names: list[str], what: str) -> None:
        if names:
            few = ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")
            self.notes.append(f"{len(names)} {what}: {few}")
            self.lists[what] = names


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
