"""Predictions as lines of CSV or JSON, and as a file that a new process continues if the first was killed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cnnlab.data.imageset import Report, no_report
from cnnlab.inference.stream import Prediction, Stream
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import check_new
from cnnlab.io.part import PartFile
from cnnlab.io.text import cell

_ROW_GROUP = 10_000  # rows of a Parquet file that are in memory at a time


class Csv:
    """Lines of CSV with `columns` classes each. A damaged image has an error in the last column, and no classes."""

    def __init__(self, columns: int) -> None:
        self._columns = columns

    @property
    def head(self) -> str:
        """The header line."""
        classes = (name for i in range(1, self._columns + 1) for name in (f"label_{i}", f"probability_{i}"))
        return _csv("image", *classes, "none_of_these", "error")

    def line(self, p: Prediction) -> str:
        """Return the line of a prediction."""
        if p.error:
            return _csv(cell(str(p.path)), *[""] * (2 * self._columns + 1), cell(p.error))
        top = (field for label, probability in p.top for field in (cell(label), f"{probability:.6f}"))
        return _csv(cell(str(p.path)), *top, str(p.none_of_these).lower(), "")

    def start(self, path: Path) -> str:
        """Return the beginning of the line of an image."""
        return _csv(cell(str(path)), "")[:-1]

    def is_error(self, line: bytes) -> bool:
        """Return whether this is the line of a damaged image."""
        return not line.endswith(b",\n")


class JsonLines:
    """A line of JSON for each prediction, in ASCII."""

    head = ""

    def line(self, p: Prediction) -> str:
        """Return the line of a prediction."""
        return json.dumps({**to_dict(p), "error": p.error or None}) + "\n"

    def start(self, path: Path) -> str:
        """Return the beginning of the line of an image."""
        return json.dumps({"image": str(path)})[:-1] + ","

    def is_error(self, line: bytes) -> bool:
        """Return whether this is the line of a damaged image."""
        return not line.endswith(b'"error": null}\n')


Lines = Csv | JsonLines


def to_dict(p: Prediction) -> dict[str, Any]:
    """Return a prediction as plain values."""
    return {
        "image": str(p.path),
        "top": [{"label": label, "probability": value} for label, value in p.top],
        "none_of_these": None if p.error else p.none_of_these,
    }


def lines_of(format_: str, columns: int) -> Lines:
    """Return the formatter of lines for a format, csv or jsonl, with `columns` classes per line."""
    return Csv(columns) if format_ == "csv" else JsonLines()


@dataclass(frozen=True)
class Saved:
    """A saved file of predictions. images: number of classified images; damaged: number of damaged ones."""

    path: Path
    images: int
    damaged: int


def check_output(path: Path) -> None:
    """Raise CnnlabError unless `save` can write the file `path`."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl", ".parquet"):
        raise CnnlabError(f"{path}: predictions are saved as CSV, JSON lines or Parquet; name a file that ends with "
                          ".csv, .jsonl or .parquet")  # fmt: skip
    if kind == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise CnnlabError(f"{path} needs pyarrow; install it with pip install 'cnnlab[parquet]'") from error
    if not PartFile(path, {}).state.exists():  # else it is continued
        check_new(path)


def save(stream: Stream, path: Path, *, report: Report = no_report, log: Callable[[str], object] = str) -> Saved:
    """Write the predictions to the new file `path` as they are made: CSV, JSON lines or Parquet, by its extension.

    Each image has a row; the column `error` says why a damaged one has no classes. However the process ends, the rows
    written so far are kept, and the next call with the same stream continues after them. log: called with a line if it
    does. Raise CnnlabError.
    """
    check_output(path)
    kind = path.suffix.lower()
    lines = Csv(stream.columns) if kind == ".csv" else JsonLines()
    head = lines.head.encode()
    damaged = 0

    def record(line: bytes) -> None:
        nonlocal damaged
        damaged += line != head and lines.is_error(line)

    with PartFile(path, stream.key()) as file:
        if file.complete:
            damaged = _count_damaged(path, lines)
            return Saved(path, len(stream) - damaged, damaged)
        starts = (lines.start(image).encode() for image in stream.files)
        there = file.resume(chain([head] * bool(head), starts), record)
        if not there:
            file.write(head)
        done = max(0, there - bool(head))
        if damaged and not stream.skip_bad:
            raise CnnlabError(f"{file.part} names damaged images; add --skip-bad, or remove it and {file.state.name}")
        if done:
            log(f"continuing {path} after {done:,} of {len(stream):,} images")
        report("classifying", done, len(stream))
        with closing(stream.batches(done)) as batches:
            for batch in batches:
                file.write("".join(map(lines.line, batch)).encode())
                done, damaged = done + len(batch), damaged + sum(bool(p.error) for p in batch)
                report("classifying", done, len(stream))
        if damaged == len(stream):
            raise stream.none_readable(f"{file.part} says why")
        file.finish((lambda part, new: _parquet(part, new, stream.columns)) if kind == ".parquet" else None)
    return Saved(path, len(stream) - damaged, damaged)


def _count_damaged(path: Path, lines: Lines) -> int:
    """Return the number of damaged images in a complete file."""
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet as pq

        errors = pq.read_table(path, columns=["error"]).column(0)
        return len(errors) - int(errors.null_count)
    with path.open("rb") as file:
        return sum(map(lines.is_error, islice(file, bool(lines.head), None)))


def _parquet(part: Path, new: Path, columns: int) -> None:
    """Convert the JSON lines in `part` to the Parquet file `new`."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    classes = [(f"{kind}_{i}", type_) for i in range(1, columns + 1)
               for kind, type_ in (("label", pa.string()), ("probability", pa.float64()))]  # fmt: skip
    schema = pa.schema([("image", pa.string()), *classes, ("none_of_these", pa.bool_()), ("error", pa.string())])
    with part.open("rb") as file, pq.ParquetWriter(new, schema) as writer:
        rows = map(_flat, map(json.loads, file))
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a prediction read from JSON as a flat row of a table. Names that are not UTF-8 are escaped as in CSV."""
    top = {f"{kind}_{i}": place[kind] for i, place in enumerate(row.pop("top"), 1) for kind in place}
    row = {**row, **top}
    return {k: v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for k, v in row.items()}


def _csv(*fields: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(fields)
    return out.getvalue()
