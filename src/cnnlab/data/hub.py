"""`hf:NAME`: an image set of the Hugging Face hub, or a local folder of one. Needs `datasets` (extra `hf`)."""

from __future__ import annotations

import logging
import os
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from cnnlab.data.files import Listing, Part
from cnnlab.data.imageset import SourceOptions
from cnnlab.data.scan import split_of
from cnnlab.data.table import check_spread, check_weight, choose_columns, class_names, parse_columns
from cnnlab.io.csv import first, quoted
from cnnlab.io.decode import LARGEST_FILE, Item
from cnnlab.io.errors import CnnlabError, SourceMissing, expand, needs_extra, reason


def listing(name: str, options: SourceOptions) -> Listing:
    """Return the images of a data set: `NAME`, `NAME@CONFIGURATION`, or the path of a local one.

    The image column is found by its type, the label column by its type or a usual name; `options.columns` names
    others. Raise CnnlabError if the library is missing, the set cannot be loaded, or its columns are unclear.
    """
    splits, notes = _load(name, options)
    source = f"hf:{name}"
    train = next(iter(splits.values()))
    places, note = _columns(source, train, options.columns)
    header = list(train.features)
    columns = {kind: header[place] for kind, place in places.items()}
    notes += [note] * bool(note)
    if column := columns.pop("split", None):
        if len(splits) == 1:
            splits = _divided(source, train, column)
        elif parse_columns(options.columns).get("split"):
            raise CnnlabError(f"{source} has the splits {', '.join(splits)}; leave out columns=split={column}")
        else:
            notes.append(f"column {quoted(column)} is not used: the set has the splits {', '.join(splits)}")
    feature = train.features[columns["label"]]
    known = getattr(feature, "names", None)
    for split, data in splits.items():
        if absent := [column for column in columns.values() if column not in data.features]:
            raise CnnlabError(
                f"{source}: the {split} split has no column {quoted(absent[0])}; save all splits with the same columns"
            )
        own = getattr(data.features[columns["label"]], "names", None)
        if known and own and own != known:
            raise CnnlabError(
                f"{source}: the {split} split names its classes {first(own)}, the first split {first(known)}; save all "
                "splits with the same ClassLabel names"
            )
    texts = {split: _texts(source, data[columns["label"]], feature) for split, data in splits.items()}
    complete = options.decoding is None
    if complete and "train" not in splits:
        raise CnnlabError(f"{source} has no training split, only {', '.join(splits)}")
    named = set(texts["train"] if complete else [text for column in texts.values() for text in column]) - {""}
    classes = list(known) if known else class_names(named)
    if complete and len(named) < 2:
        raise CnnlabError(f"{source} has one class ({''.join(named)}); name the label's column with columns=label=NAME")
    number = {text: k for k, text in enumerate(classes)}
    parts, warnings = {}, []
    for split, data in splits.items():
        rows = [i for i, text in enumerate(texts[split]) if text]
        if strangers := {texts[split][i] for i in rows} - named if complete else set():
            raise CnnlabError(f"{source}: class {sorted(strangers)[0]!r} of the {split} split has no training images")
        if len(rows) < len(data):
            warnings.append(f"{len(data) - len(rows):,} {split} images of {source} have no label and are left out")
        if rows:
            groups = _filled(source, data, columns["group"], "group", split, rows) if "group" in columns else None
            weights = None
            if "weight" in columns:
                cells = _filled(source, data, columns["weight"], "weight", split, rows)
                weights = [check_weight(_row(source, split, i), c) for i, c in zip(rows, cells, strict=True)]
            items = _items(data, columns["path"], split, rows, _roots(name, options))
            parts[split] = Part(items, [number[texts[split][i]] for i in rows], groups, weights)
    check_spread(source, [weight for part in parts.values() for weight in part.weights or ()], options.columns)
    return Listing(options.data_dir, source, classes, parts, notes=tuple(notes), warnings=tuple(warnings))


def local(name: str) -> Path | None:
    """Return the local folder that `hf:NAME` names, or None for a name on the hub."""
    return path if (path := expand(_parted(name)[0])).exists() else None


def _parted(name: str) -> tuple[str, str]:
    """Return the path or the name on the hub, and the configuration, which may be ""; a path may contain `@`."""
    if expand(name).exists():
        return name, ""
    head, at, configuration = name.rpartition("@")
    return (head, configuration) if at else (name, "")


def _load(name: str, options: SourceOptions) -> tuple[dict[str, Any], list[str]]:
    """Return split -> dataset, in the order train, validation, test, and notes on unused splits."""
    with needs_extra("hf", "datasets"):
        import datasets
    path, configuration = _parted(name)
    folder = local(name)
    if folder is None and path.startswith(("/", ".", "~")):
        raise SourceMissing(f"hf:{name} does not exist; give a folder, or the name of a set of the hub")
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or it prints every attempt to connect
    options.report(f"loading {name}", 0, 0)
    try:
        if folder is not None and any((folder / file).exists() for file in ("dataset_dict.json", "state.json")):
            found: Any = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(
                str(folder or path), configuration or None, cache_dir=str(options.data_dir / "huggingface")
            )
    except Exception as error:  # the library raises errors of all kinds, also of other libraries
        missing = "config" in str(error).lower()
        remedy = "correct the files" if folder else "check the name and the network"
        remedy = "write hf:NAME@CONFIGURATION" if missing else remedy
        why = reason(error.__cause__ or error, 300)  # the library's own error may say only that there was one
        raise CnnlabError(f"cannot load hf:{name}: {why}; {remedy}") from error
    whole: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
    names: dict[str | None, list[str]] = {}
    for title in map(str, whole):
        names.setdefault(split_of(title), []).append(title)
    unused = names.pop(None, [])
    if not names:
        raise CnnlabError(f"hf:{name} has the splits {first(unused)}; train, validation or test is needed")
    for split, several in names.items():
        if len(several) > 1:
            raise CnnlabError(
                f"hf:{name}: {first(several)} could each be the {split} split; "
                "save only the splits to use, with save_to_disk of the datasets library, and give that folder"
            )
    order = [split for split in ("train", "validation", "test") if split in names]
    notes = [f"splits that are not used: {first(unused)}"] * bool(unused)
    return {split: whole[names[split][0]].with_format(None) for split in order}, notes


def _divided(source: str, data: Any, column: str) -> dict[str, Any]:
    """Divide a dataset by a column of split names, as in a table; return split -> dataset."""
    rows: dict[str, list[int]] = {}
    for i, text in enumerate(_texts(source, data[column], data.features[column])):
        if (split := split_of(text) if text else None) is None:
            fault = f"the split is {quoted(text)}; write train, validation or test" if text else "the split is empty"
            raise CnnlabError(f"{source}, row {i}: {fault}, or set columns=split= to do without that column")
        rows.setdefault(split, []).append(i)
    return {split: data.select(rows[split]) for split in ("train", "validation", "test") if split in rows}


def _row(source: str, split: str, i: int) -> str:
    return f"{source}, row {i} of the {split} split"


def _filled(source: str, data: Any, column: str, kind: str, split: str, rows: Sequence[int]) -> list[str]:
    """Return a column's texts in these rows. Raise CnnlabError for an empty cell."""
    values, names = list(data[column]), getattr(data.features[column], "names", None)
    cells = []
    for i in rows:
        value = values[i]
        absent = value is None or value != value  # NaN
        if names and not absent:
            value = names[value] if 0 <= value < len(names) else ""
        cells.append("" if absent else str(value).strip())
        if not cells[-1]:
            raise CnnlabError(
                f"{_row(source, split, i)}: the {kind} is empty; fill it in, or set columns={kind}= to do without that "
                "column"
            )
    return cells


def _columns(source: str, data: Any, columns: str) -> tuple[dict[str, int], str]:
    """Return the index of each column, and a remark on those chosen by name.

    Columns of images and labels are found by their type first.
    """
    import datasets

    named = parse_columns(columns)
    images = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if "path" not in named:
        if len(images) != 1:
            found = f"columns {first(images)} hold images" if images else f"no column of {first(data.features)} does"
            raise CnnlabError(f"{source}: which column holds the images? {found}; set columns=path=NAME")
        named["path"] = images[0]
    labels = [name for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)]
    if "label" not in named and len(labels) == 1:
        named["label"] = labels[0]
    elif "label" not in named and labels and "label" not in labels:
        raise CnnlabError(f"{source}: {first(labels)} could each be the label; set columns=label={labels[0]}")
    return choose_columns(source, list(data.features), named)


def _texts(source: str, column: Sequence[Any], feature: Any) -> list[str]:
    """Return the names of the labels; "" for an image without one."""
    names = getattr(feature, "names", None)
    values = list(column)
    if bad := [v for v in values if v is not None and not isinstance(v, int if names else int | str)]:
        kind = "a whole number, as in the first split" if names else "a whole number or a text"
        raise CnnlabError(f"{source}: the label {str(bad[0])[:60]!r} is not {kind}; name another column")
    if names:
        if bad := [v for v in values if v is not None and v >= len(names)]:
            raise CnnlabError(
                f"{source}: label {bad[0]} is out of range for {len(names)} classes; correct the data set"
            )
        return ["" if value is None or value < 0 else names[value] for value in values]
    return ["" if value is None or value == -1 else str(value).strip() for value in values]


def _roots(name: str, options: SourceOptions) -> list[Path]:
    """Return the folders in which image files of a set may lie: its own, and the download caches."""
    import datasets
    from huggingface_hub import constants

    caches = [options.data_dir / "huggingface", Path(datasets.config.HF_CACHE_HOME), Path(constants.HF_HUB_CACHE)]
    return [folder, *caches] if (folder := local(name)) is not None else caches


def _items(data: Any, column: str, split: str, rows: Sequence[int], roots: Sequence[Path]) -> list[Path | Item]:
    """Return an item for each image that reads its bytes, so that it is decoded like a file."""
    import datasets

    if isinstance(data.features[column], datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))
    data = data.select_columns([column])

    def read(i: int) -> bytes:
        value = data[i][column]
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        path = value.get("path") if isinstance(value, dict) else value
        if not isinstance(path, str) or not path:
            raise CnnlabError("it holds no image")
        if packed := re.fullmatch(r"zip://(.+?)::(.+)", path, re.DOTALL):  # the library does not unpack these
            archive = archives(_inside(packed[2], roots))
            member = archive.getinfo(packed[1])
            _check_size(path, member.file_size)
            with archive.open(member) as stream:
                return stream.read(LARGEST_FILE)
        file = _inside(path, roots)
        _check_size(path, file.stat().st_size)
        return file.read_bytes()

    archives = lru_cache(4)(zipfile.ZipFile)
    return [Item(f"{split}/{i}", partial(read, i)) for i in rows]


def _inside(name: str, roots: Sequence[Path]) -> Path:
    """Return the path of a file below one of the folders: a downloaded table must not name files elsewhere.

    Raise CnnlabError for a file elsewhere and for anything but a regular file. The message does not name the table.
    """
    path = Path(os.path.normpath(Path(roots[0]).absolute() / name))  # without "..", but links inside are followed
    if not any(path.is_relative_to(folder) for root in roots for folder in (root.absolute(), root.resolve())):
        raise CnnlabError(f"it names {name}, which is not below {roots[0]}; copy the image there")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CnnlabError(f"{path} is not a regular file")
    return path


def _check_size(name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise CnnlabError(f"{name} is {size:,} bytes; the limit for an image is {LARGEST_FILE:,}")
