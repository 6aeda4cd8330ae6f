"""`wds:PATTERN`: tar shards with files named as in WebDataset: KEY.jpg with KEY.cls or KEY.json.

The headers of all shards are read once; an image is then read from its place in the shard. WebDataset itself is not
needed: it reads shards in sequence, so it cannot give the order of images that seed and epoch determine.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cnnlab.data.files import Listing
from cnnlab.data.imageset import SourceOptions
from cnnlab.data.scan import split_of
from cnnlab.data.shards import Sample, listing_of, shard_files, shard_names, split_of_file
from cnnlab.data.table import choose_columns, parse_columns
from cnnlab.io.csv import quoted
from cnnlab.io.decode import ENDINGS, LARGEST_FILE, Item
from cnnlab.io.errors import CnnlabError, reason

_LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json file
_LABELS = ("cls", "cls.txt", "label", "txt")
_IMAGE, _CLASS = "the image", "the class file"  # in place of a column's name


def listing(pattern: str, options: SourceOptions) -> Listing:
    """Return the images of tar shards: a file, a folder, or a pattern such as `train-{000..146}.tar`.

    The label is the text of KEY.cls, or a field of KEY.json. `options.columns` names this field, and those of splits,
    groups and weights; without it, KEY.json is read only where there is no KEY.cls. Without a field for the split, it
    comes from the name of the shard or its folder. Raise CnnlabError for unusable shards.
    """
    source = f"wds:{pattern}"
    if "://" in pattern or pattern.startswith("pipe:"):
        raise CnnlabError(f"{source}: shards are read from files; download them first")
    if "path" in parse_columns(options.columns):
        raise CnnlabError(f"columns={options.columns}: the shards hold the images themselves; leave path out")
    files = shard_files(source, pattern, ".tar")
    samples: list[Sample] = []
    note = ""
    for done, (file, name) in enumerate(zip(files, shard_names(files), strict=True)):
        options.report(f"reading the shards of {Path(pattern).name}", done, len(files))
        for key, members in _grouped(file):
            sample, remark = _sample(file, name, key, members, options.columns)
            samples += [sample] if sample else []
            note = note or remark
    if not samples:
        raise CnnlabError(f"{source}: the shards hold no images named as KEY.jpg, KEY.png or their like")
    return listing_of(source, files[0].parent, samples, options, notes=[note] if note else [])


def _grouped(file: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield the key of each sample and its members by extension. Members with one key lie side by side."""
    key, members, earlier = "", dict[str, tarfile.TarInfo](), set[str]()
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                vars(shard)["members"] = []  # otherwise it would keep all headers
                if not member.isreg() or Path(member.name).name.startswith("."):
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if members and folder + slash + stem != key:
                    yield key, members
                    earlier.add(key)
                    members = {}
                key = folder + slash + stem
                if key in earlier or ending.lower() in members:
                    raise CnnlabError(f"{file}: {key}.{ending} occurs twice; keys must differ")
                members[ending.lower()] = member
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        with file.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        why = "is compressed; unpack it with gunzip" if packed else f"is damaged: {reason(error)}; get it again"
        raise CnnlabError(f"{file} {why}") from error
    if members:
        yield key, members


def _sample(
    file: Path, name: str, key: str, members: dict[str, tarfile.TarInfo], columns: str
) -> tuple[Sample | None, str]:
    """Return the sample of one key, None without an image, and a remark on the chosen fields.

    name: name of the shard `file`, for the image's id.
    """
    images = [ending for ending in members if f".{ending}" in ENDINGS and ending != "npy"]
    if not images:
        return None, ""
    if len(images) > 1:
        raise CnnlabError(f"{file}: {key} has two images, .{images[0]} and .{images[1]}; one is needed")
    found = members[images[0]]
    item = Item(f"{name}/{key}.{images[0]}", partial(_read, file, found.offset_data, found.size))
    values, note = {"split": split_of_file(file)}, ""
    label = next((_text(file, members[ending]).strip() for ending in _LABELS if ending in members), None)
    if label is not None and not columns:
        values["label"] = label
    elif label is not None or "json" in members:
        named = {**parse_columns(columns), "path": _IMAGE}  # no field names the image
        fields = _fields(file, members["json"]) if "json" in members else {}
        if label is not None and "label" not in named:
            fields[_CLASS] = label
            named["label"] = _CLASS
        where = f"{file}: {members['json'].name if 'json' in members else key}"
        places, note = choose_columns(where, [_IMAGE, *fields], named)
        for kind in ("label", "group", "weight"):
            value = [None, *fields.values()][places.get(kind, 0)]
            values[kind] = "" if value is None else str(value).strip()
        if "split" in places:
            text = str([None, *fields.values()][places["split"]] or "").strip()
            split = split_of(text)
            if split is None:
                raise CnnlabError(
                    f"{where}: the split is {quoted(text)}; write train, validation or test, or set columns=split= to "
                    "do without that field"
                )
            values["split"] = split
    return Sample(item, **{"label": "", **values}), note


def _fields(file: Path, member: tarfile.TarInfo) -> dict[str, Any]:
    """Return the plain values of a JSON object. Raise CnnlabError."""
    try:
        found = json.loads(_text(file, member))
        return {key: value for key, value in found.items() if isinstance(value, str | int | float | None)}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CnnlabError(f"{file}: {member.name} is not a JSON object; correct it") from error


def _text(file: Path, member: tarfile.TarInfo) -> str:
    if member.size > _LARGEST_LABEL:
        raise CnnlabError(f"{file}: {member.name} is {member.size:,} bytes; a label has at most {_LARGEST_LABEL:,}")
    return _read(file, member.offset_data, member.size).decode("utf-8", "replace")


def _read(file: Path, start: int, size: int) -> bytes:
    if size > LARGEST_FILE:
        raise CnnlabError(f"it is {size:,} bytes; the limit for an image is {LARGEST_FILE:,}")
    with file.open("rb") as stream:
        stream.seek(start)
        content = stream.read(size)
    if len(content) < size:
        raise CnnlabError("its shard ends before it")
    return content
