"""`parquet:PATH`: images and labels in Parquet files, as Hugging Face writes them. Needs pyarrow (extra `parquet`).

A column holds the images' bytes, directly or as `{"bytes": ..., "path": ...}`. Class names come from the metadata that
the datasets library writes. The split comes from a file's name (train-00000-of-00009.parquet) or from a column.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from cnnlab.data.files import Listing
from cnnlab.data.imageset import SourceOptions
from cnnlab.data.scan import split_of
from cnnlab.data.shards import Sample, listing_of, shard_files, shard_names, split_of_file
from cnnlab.data.table import choose_columns, parse_columns
from cnnlab.io.csv import first, quoted
from cnnlab.io.decode import LARGEST_FILE, Item
from cnnlab.io.errors import CnnlabError, needs_extra, reason

_ROWS = 32  # read at a time
_KEPT = 8  # such batches of a file in memory
_OPEN = 16  # files kept open, with batches in memory


def listing(pattern: str, options: SourceOptions) -> Listing:
    """Return the images of Parquet files: a file, a folder, or a pattern. `options.columns` names their columns.

    Raise CnnlabError if pyarrow is missing, a file is damaged, or columns are unclear.
    """
    source = f"parquet:{pattern}"
    with needs_extra("parquet", "pyarrow"):
        import pyarrow as pa
        from pyarrow import parquet as pq
    files = shard_files(source, pattern, ".parquet")
    samples: list[Sample] = []
    names, named = list[str](), Path()  # class names, and the file that gave them
    note = ""
    for done, (file, name) in enumerate(zip(files, shard_names(files), strict=True)):
        options.report(f"reading the tables of {Path(pattern).name}", done, len(files))
        try:
            schema = pq.read_schema(file)
            places, remark = _columns(str(file), schema, options.columns)
            columns = {kind: schema.names[place] for kind, place in places.items()}
            own_names = _class_names(schema, columns["label"])
            wanted = [column for kind, column in columns.items() if kind != "path"]
            table = pq.read_table(file, columns=wanted).to_pydict()
        except (pa.ArrowException, OSError) as error:
            raise CnnlabError(f"{file} is damaged: {reason(error, 200)}; get it again") from error
        if names and own_names and names != own_names:
            raise CnnlabError(
                f"{file} names its classes {first(own_names)}, and {named} {first(names)}; write all files with the "
                "same ClassLabel names"
            )
        if not names:
            names, named = own_names, file
        note = note or remark
        rows = _Rows(file, columns["path"])
        split = split_of_file(file)
        kinds = {kind: table[column] for kind, column in columns.items() if kind != "path"}
        for i in range(len(kinds["label"])):
            values = {kind: _text(file, kind, column[i], names) for kind, column in kinds.items()}
            own = split if "split" not in values else split_of(values["split"])
            if own is None:
                raise CnnlabError(
                    f"{file}, row {i}: the split is {quoted(values['split'])}; write train, validation or test"
                )
            item = Item(f"{name}/{i}", partial(rows.read, i))
            samples.append(Sample(item, values["label"], own, values.get("group", ""), values.get("weight", "")))
    return listing_of(source, files[0].parent, samples, options, names, [note] if note else [])


def _columns(name: str, schema: Any, columns: str) -> tuple[dict[str, int], str]:
    """Return the index of each column, and a remark on those that were chosen. Images are found by their type."""
    import pyarrow.types as kinds

    named = parse_columns(columns)
    if "path" not in named:
        held = [
            field.name
            for field in schema
            if kinds.is_binary(field.type)
            or kinds.is_large_binary(field.type)
            or (kinds.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        ]
        if len(held) != 1:
            found = f"columns {first(held)} hold bytes" if held else f"no column of {first(schema.names)} holds bytes"
            raise CnnlabError(f"{name}: which column holds the images? {found}; set columns=path=NAME")
        named["path"] = held[0]
    return choose_columns(name, schema.names, named)


def _class_names(schema: Any, column: str) -> list[str]:
    """Return the class names that the datasets library stored for a column of numbers; [] for other files."""
    try:
        about = json.loads(schema.metadata[b"huggingface"])
        return [str(name) for name in about["info"]["features"][column]["names"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


def _text(file: Path, kind: str, value: object, names: Sequence[str]) -> str:
    if value is None or value != value or (kind == "label" and value == -1):  # NaN differs from itself
        return ""
    if kind == "label" and names and isinstance(value, int):
        if not 0 <= value < len(names):
            raise CnnlabError(f"{file}: label {value} is out of range for {len(names)} classes; correct the file")
        return names[value]
    if kind == "label" and not isinstance(value, int | str):
        raise CnnlabError(
            f"{file}: the label {str(value)[:60]!r} is neither a whole number nor a text; name another column"
        )
    return str(value).strip()


class _Rows:
    """The images of one file. A few rows stay in memory, since most are read in order. Only a few files stay open."""

    _recent: ClassVar[WeakKeyDictionary[_Rows, None]] = WeakKeyDictionary()  # the open files, the last used at the end
    _recent_lock: ClassVar = threading.Lock()

    def __init__(self, file: Path, column: str) -> None:
        self.file, self.column = file, column
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, list[Any]] = OrderedDict()  # number of the first row -> values
        self._table: Any = None
        self._starts: list[int] = []  # first row of each row group
        self._batches: Iterator[Any] = iter(())
        self._next = -1  # first row of the next batch

    def read(self, row: int) -> bytes:
        """Return the bytes of an image. Raise CnnlabError if there are none."""
        with self._lock:
            while (found := self._found(row)) is None:
                self._advance(row)
        self._close_others()
        value = found[0]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise CnnlabError("it holds no image")
        if len(content) > LARGEST_FILE:
            raise CnnlabError(f"it is {len(content):,} bytes; the limit for an image is {LARGEST_FILE:,}")
        return content

    def _close_others(self) -> None:
        """Close the least recently used files, except for those that another thread is reading."""
        with self._recent_lock:
            self._recent.pop(self, None)
            self._recent[self] = None
            for rows in list(self._recent)[:-_OPEN]:
                del self._recent[rows]
                rows._close()

    def _close(self) -> None:
        if self._table is None or not self._lock.acquire(blocking=False):
            return
        try:
            self._table.close()
            self._table, self._batches, self._next = None, iter(()), -1
            self._kept.clear()
        finally:
            self._lock.release()

    def _found(self, row: int) -> tuple[Any] | None:
        for start, values in self._kept.items():
            if start <= row < start + len(values):
                return (values[row - start],)
        return None

    def _advance(self, row: int) -> None:
        """Read the next rows. Go to the row group of `row` first if the row lies behind or in a later group."""
        from pyarrow import parquet as pq

        if self._table is None:
            self._table = pq.ParquetFile(self.file, buffer_size=1 << 20, pre_buffer=False)
            about = self._table.metadata
            counts = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
            self._starts = list(accumulate(counts, initial=0))[:-1]
        group = bisect_right(self._starts, row) - 1
        if row < self._next or group > bisect_right(self._starts, self._next) - 1:
            groups = list(range(group, len(self._starts)))
            self._batches = self._table.iter_batches(_ROWS, groups, [self.column])
            self._next = self._starts[group]
        values = next(self._batches).column(0).to_pylist()
        self._kept[self._next] = values
        self._next += len(values)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
