"""The code shared by sources of shards, files of many samples: tar shards and Parquet files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnlab.data.files import Listing, Part
from cnnlab.data.imageset import SourceOptions
from cnnlab.data.scan import split_of
from cnnlab.data.table import check_spread, check_weight, class_names
from cnnlab.io.csv import first, quoted
from cnnlab.io.decode import Item
from cnnlab.io.errors import CnnlabError, SourceMissing, expand

_SPLITS = ("train", "validation", "test")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 1_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """An image in a shard. split: from the shard's name or a column. Missing values are ""."""

    item: Item
    label: str
    split: str = ""
    group: str = ""
    weight: str = ""


def shard_files(source: str, pattern: str, ending: str) -> list[Path]:
    """Return the shards that a file, a folder, or a pattern such as `train-{000..146}.tar` or `*.tar` names, sorted.

    Raise CnnlabError if there are none, or if one of a range is missing.
    """
    if match := _RANGE.search(pattern):
        low, high = match[1], match[2]
        if not int(low) <= int(high) < int(low) + _MOST_FILES:
            raise CnnlabError(f"{source}: {match[0]} is not a range from a lower to a higher number; correct it")
        names = [f"{number:0{len(low)}}" for number in range(int(low), int(high) + 1)]
        return [
            file
            for name in names
            for file in shard_files(source, f"{pattern[: match.start()]}{name}{pattern[match.end() :]}", ending)
        ]
    path = expand(pattern)
    if path.is_dir():
        found = sorted(file for file in path.rglob(f"*{ending}") if file.is_file() and not file.name.startswith("."))
        if not found:
            raise CnnlabError(f"{source}: {path} holds no {ending} files; correct the folder")
        return found
    if path.is_file():
        return [path]
    if any(sign in pattern for sign in "*?["):
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob raises ValueError for `**.tar`
        if found := sorted(file for file in map(Path, names) if file.is_file()):
            return found
    raise SourceMissing(f"{source}: {path} does not exist; correct the path")


def shard_names(files: Sequence[Path]) -> list[str]:
    """Return a name of each shard for the ids of its images: the file's name, with its folders if names repeat."""
    names = [file.stem for file in files]
    if len(set(names)) == len(names):
        return names
    root = os.path.commonpath([file.parent for file in files])
    return [file.relative_to(root).with_suffix("").as_posix() for file in files]


def split_of_file(file: Path) -> str:
    """Return the split that a shard's name means; if it means none or several, its folder's; "" if neither."""
    words = [word for word in re.split(r"[\W\d_]+", file.stem) if word and word != "of"]
    named = {split for word in words if (split := split_of(word))}
    return named.pop() if len(named) == 1 else split_of(file.parent.name) or ""


def listing_of(
    source: str, root: Path, samples: Sequence[Sample], options: SourceOptions, names: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Listing:  # fmt: skip
    """Return the samples by split, in their order.

    names: class names, if the source has them. Samples without a label are left out, with a warning. Raise CnnlabError
    for samples that cannot be trained on.
    """
    if not samples:
        raise CnnlabError(f"{source} holds no images; check the path")
    complete = options.decoding is None
    some = {sample.split for sample in samples} - {""}
    parts: dict[str, list[Sample]] = {split: [] for split in _SPLITS}
    for sample in samples:
        parts[sample.split or "train"].append(sample)
    if complete and not parts["train"]:
        raise CnnlabError(
            f"{source} has no training split, only {', '.join(sorted(some))}; put 'train' in the names of the training "
            "shards"
        )
    labelled = {split: [s for s in part if s.label] for split, part in parts.items()}
    seen = {s.label for s in labelled["train"]} if complete else {s.label for part in labelled.values() for s in part}
    if complete and len(seen) < 2:
        what = f"one class ({''.join(seen)})" if seen else "no labels"
        raise CnnlabError(f"{source} has {what}; at least two classes are needed")
    classes = list(names) or class_names(seen)
    number = {name: k for k, name in enumerate(classes)}
    made, warnings, weights = {}, [], []
    for split, part in labelled.items():
        if lost := len(parts[split]) - len(part):
            warnings.append(f"{lost:,} {split} images of {source} have no label and are left out")
        if strangers := {s.label for s in part} - (seen if complete else set(classes)):
            raise CnnlabError(
                f"{source}: class {first(sorted(strangers))} of the {split} images has no training images"
            )
        if not part:
            continue
        for kind in ("group", "weight"):
            filled = [bool(getattr(s, kind)) for s in part]
            if any(filled) and not all(filled):
                raise CnnlabError(
                    f"{source}: {quoted(part[filled.index(False)].item.name)} has no {kind}, and others have one; "
                    f"fill it in, or set columns={kind}= to do without"
                )
        own = [check_weight(f"{source}, {s.item.name}", s.weight) for s in part] if part[0].weight else None
        weights += own or []
        groups = [s.group for s in part] if part[0].group else None
        made[split] = Part([s.item for s in part], [number[s.label] for s in part], groups, own)
    check_spread(source, weights, options.columns)
    return Listing(root, source, classes, made, notes=tuple(notes), warnings=tuple(warnings))
