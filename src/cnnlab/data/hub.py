"""`hf:NAME`: an image set of the Hugging Face hub, or a local folder of one, by the `datasets` library (extra `hf`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cnnlab.data.files import Listing, Part
from cnnlab.data.imageset import SourceOptions
from cnnlab.data.scan import split_of
from cnnlab.data.table import check_weight, choose_columns, class_names, parse_columns
from cnnlab.io.csv import first
from cnnlab.io.decode import Item
from cnnlab.io.errors import CnnlabError, expand, reason


def listing(name: str, options: SourceOptions) -> Listing:
    """Return the images of a data set: `NAME`, `NAME@CONFIGURATION`, or the path of a local one.

    The column of images is found by its type, that of labels by its type or a usual name; `options.columns` names
    others. Raises: CnnlabError without the library, if the set cannot be had, and for unclear columns.
    """
    splits = _load(name, options)
    source = f"hf:{name}"
    train = next(iter(splits.values()))
    places, note = _columns(source, train, options.columns)
    header = list(train.features)
    columns = {kind: header[place] for kind, place in places.items()}
    feature = train.features[columns["label"]]
    texts = {split: _texts(source, data[columns["label"]], feature) for split, data in splits.items()}
    known = getattr(feature, "names", None)
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
            parts[split] = Part(
                _items(data, columns["path"], split, rows),
                [number[texts[split][i]] for i in rows],
                [str(data[columns["group"]][i]) for i in rows] if "group" in columns else None,
                [check_weight(source, data[columns["weight"]][i]) for i in rows] if "weight" in columns else None,
            )
    return Listing(options.data_dir, source, classes, parts, notes=(note,) * bool(note), warnings=tuple(warnings))


def local(name: str) -> Path | None:
    """Return the folder that is meant by `hf:NAME`, or None for a name of the hub."""
    return path if (path := expand(name.partition("@")[0])).exists() else None


def _load(name: str, options: SourceOptions) -> dict[str, Any]:
    """Return split -> dataset, in the order train, validation, test."""
    try:
        import datasets
    except ImportError as error:
        raise CnnlabError(
            f"hf:{name} needs the datasets library; install it with pip install 'cnnlab[hf]', or give folder:PATH"
        ) from error
    path, _, configuration = name.partition("@")
    folder = local(name)
    if folder is None and path.startswith(("/", ".", "~")):
        raise CnnlabError(f"hf:{path} does not exist; give a folder, or the name of a set of the hub")
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
    except Exception as error:  # the library raises anything, also of other libraries
        missing = "config" in str(error).lower()
        remedy = "write hf:NAME@CONFIGURATION" if missing else "check the name and the network"
        raise CnnlabError(f"cannot load hf:{name}: {reason(error, 300)}; {remedy}") from error
    whole: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
    splits = {split_of(str(split)): data for split, data in whole.items()}
    ordered: dict[str, Any] = {split: splits[split] for split in ("train", "validation", "test") if split in splits}
    if not ordered:
        raise CnnlabError(f"hf:{name} has the splits {', '.join(map(str, whole))}; train, validation or test is needed")
    return ordered


def _columns(source: str, data: Any, columns: str) -> tuple[dict[str, int], str]:
    """Return the places of the columns, and a remark on those chosen by name. Images and labels have types."""
    import datasets

    named = parse_columns(columns)
    given = [columns] if columns else []
    images = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if "path" not in named:
        if len(images) != 1:
            found = f"columns {first(images)} hold images" if images else f"no column of {first(data.features)} does"
            raise CnnlabError(f"{source}: which column holds the images? {found}; set columns=path=NAME")
        given.append(f"path={images[0]}")
    labels = [name for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)]
    if "label" not in named and len(labels) == 1:
        given.append(f"label={labels[0]}")
    elif "label" not in named and labels and "label" not in labels:
        raise CnnlabError(f"{source}: {first(labels)} could each be the label; set columns=label={labels[0]}")
    return choose_columns(source, list(data.features), ",".join(given))


def _texts(source: str, column: Sequence[Any], feature: Any) -> list[str]:
    """Return the names of the labels; "" for an image without one."""
    names = getattr(feature, "names", None)
    values = list(column)
    if bad := next((v for v in values if v is not None and not isinstance(v, int | str | bool)), None):
        raise CnnlabError(f"{source}: the label {str(bad)[:60]!r} is neither a number nor a text; name another column")
    if names:
        return ["" if value is None or value < 0 else names[value] for value in values]
    return ["" if value is None or value == -1 else str(value).strip() for value in values]


def _items(data: Any, column: str, split: str, rows: Sequence[int]) -> list[Path | Item]:
    """Return what reads the bytes of each image, so that all are decoded as files are."""
    import datasets

    if isinstance(data.features[column], datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))
    data = data.select_columns([column])

    def read(i: int) -> bytes:
        value = data[i][column]
        content: bytes | None = value["bytes"] if isinstance(value, dict) else None
        return Path(value["path"] if isinstance(value, dict) else value).read_bytes() if content is None else content

    return [Item(f"{split}/{i}", partial(read, i)) for i in rows]
