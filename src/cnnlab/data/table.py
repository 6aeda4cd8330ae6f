"""`csv:FILE`: your own images, with their labels in a table; paths are relative to the table's folder.

A row names an image and its label, and may name its split, its group (a patient, a video) and its weight in the loss.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from cnnlab.data.files import Listing, Part
from cnnlab.data.scan import split_of
from cnnlab.io.csv import FORBIDDEN, column_index, first, plain_header, quoted, table_rows
from cnnlab.io.decode import ENDINGS
from cnnlab.io.errors import CnnlabError, SourceMissing, reason, unknown
from cnnlab.io.kinds import file_kind
from cnnlab.io.text import plural
from cnnlab.io.walk import image_files

# Usual names of each column, the surer ones first. Spaces, underscores and letter case make no difference.
USUAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("path", "file", "filename", "file name", "filepath", "file path", "image path", "img path", "image file",
         "imagepath", "image filename", "文件", "文件名", "路径", "图片路径"),
        ("image", "images", "img", "image name", "imagename", "img name", "picture", "photo", "图片", "图像"),
        ("image id", "imageid", "img id", "id", "name"),
    ),
    "label": (
        ("label", "labels", "标签"),
        ("class", "classes", "class name", "classname", "target", "targets", "category", "label name", "类别", "种类"),
        ("class id", "category id", "label id", "y"),
    ),
    "split": (("split", "splits", "subset", "partition", "usage", "数据集", "划分"),),
    "group": (
        ("group", "groups", "group id", "分组"),
        ("patient", "patient id", "subject", "subject id", "video", "video id", "患者"),
    ),
    "weight": (("weight", "weights", "sample weight", "image weight", "权重"),),
}  # fmt: skip
_NEEDED = ("path", "label")
_LONGEST_NAME = 255  # bytes of a file's name
_SPREAD = 100.0  # if the largest weight is over this many times the smallest, the column may hold grams


def listing(path: Path, columns: str = "", *, complete: bool = True) -> Listing:
    """Return the image files that a table names.

    columns: names of its columns, see `Recipe`. complete: whether to train on it. If not, a model is evaluated on it,
    so one class is enough, and no training rows are needed. Raise CnnlabError, naming the file, the line and the
    remedy.
    """
    table = _open(path, columns)
    notes = [table.note] if table.note else []
    files, found = _find_files(path, [row.path for row in table.rows])
    notes += [found] if found else []
    repeats: dict[Path, int] = {}
    for row, file in zip(table.rows, files, strict=True):
        if (line := repeats.setdefault(file, row.line)) != row.line:
            raise CnnlabError(f"{path}, line {row.line}: {quoted(row.path)} is also on line {line}; remove one of them")
    unlabelled = [row for row in table.rows if not row.label]
    for row in unlabelled:
        if row.split != "test":
            raise CnnlabError(f"{path}, line {row.line}: the label is empty; fill it in or remove the line")
    warnings = (
        f"{len(unlabelled):,} test images of {path} have no label, so nothing can be measured on them; cnnlab predict "
        "classifies them",
    ) * bool(unlabelled)
    classes = _classes(path, table.rows, complete)
    number = {name: k for k, name in enumerate(classes)}
    parts = {}
    for split in ("train", "validation", "test"):
        pairs = [pair for pair in zip(table.rows, files, strict=True) if pair[0].split == split and pair[0].label]
        if pairs:
            rows = [row for row, _ in pairs]
            parts[split] = Part(
                [file for _, file in pairs],
                [number[row.label] for row in rows],
                [row.group for row in rows] if "group" in table.columns else None,
                [row.weight for row in rows] if "weight" in table.columns else None,
            )
    if "weight" in table.columns:
        check_spread(str(path), [row.weight for row in table.rows], columns)
    if complete and "weight" in table.columns and not any(parts["train"].weights or ()):
        raise CnnlabError(f"{path}: all training images have the weight 0; correct the column, or set columns=weight=")
    return Listing(path.parent, str(path), classes, parts, notes=tuple(notes), warnings=warnings)


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    split: str
    group: str
    weight: float


@dataclass(frozen=True)
class _Table:
    """The rows of a table. columns: kind -> name of the column. note: which were chosen by their usual names."""

    rows: list[_Row]
    columns: dict[str, str]
    note: str


def parse_columns(text: str) -> dict[str, str]:
    """Parse a text such as `path=file,label=species` into {kind: column}. Raise CnnlabError if it is malformed."""
    named: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        kind, equals, column = part.partition("=")
        kind = kind.strip()
        if not equals:
            raise CnnlabError(f"columns={text}: {part!r} is not kind=name; write columns=path=file,label=species")
        if kind not in USUAL:
            raise unknown("kind of column", kind, USUAL)
        if kind in named:
            raise CnnlabError(f"columns={text}: {kind} is named twice; leave one out")
        named[kind] = column.strip()
    return named


def choose_columns(name: str, header: Sequence[str], columns: str | dict[str, str]) -> tuple[dict[str, int], str]:
    """Return {kind: index in the header}, and a remark on those chosen by usual names.

    columns: kind -> name, or a text as for `parse_columns`. A kind without a name, as in `group=`, has no column. The
    remark is "" if only columns called path and label were chosen, or none. Raise CnnlabError, naming the columns.
    """
    header = list(header)
    named = parse_columns(columns) if isinstance(columns, str) else columns
    places = {kind: column_index(name, header, column) for kind, column in named.items() if column}
    plain = [plain_header(text) for text in header]
    chosen = []
    for kind, tiers in USUAL.items():
        if kind in named:
            continue
        for tier in tiers:
            found = [i for i, text in enumerate(plain) if text in tier and i not in places.values()]
            if len(found) > 1:
                raise CnnlabError(
                    f"{name}: {first([header[i].strip() for i in found])} could each be the {kind}; "
                    f"set columns={kind}={header[found[0]].strip()}"
                )
            if found:
                places[kind] = found[0]
                chosen.append(kind)
                break
    if len(header) == 2 and (missing := [kind for kind in _NEEDED if kind not in places]) and len(missing) == 1:
        places[missing[0]] = 1 - places[next(kind for kind in _NEEDED if kind in places)]
        chosen.append(missing[0])
    for kind in _NEEDED:
        if kind in places:
            continue
        if any(Path(text.strip()).suffix.lower() in ENDINGS for text in header):
            raise CnnlabError(f"{name}: its first line names an image; put a header above it, such as path,label")
        raise CnnlabError(
            f"{name}: which column is the {kind}? Set columns={kind}=NAME; its columns: "
            f"{first([text.strip() for text in header], 20)}"
        )
    for kind, place in places.items():
        if (other := next(k for k, p in places.items() if p == place)) != kind:
            raise CnnlabError(f"{name}: column {quoted(header[place])} is named as {other} and as {kind}; correct one")
    remarks = [f"{kind} from {quoted(header[places[kind]].strip())}" for kind in USUAL if kind in chosen]
    same = all(plain[places[kind]] == kind for kind in chosen) and not set(chosen) - set(_NEEDED)
    return places, "" if same else f"columns: {', '.join(remarks)}; --set columns=... names others"


def _open(path: Path, columns: str) -> _Table:
    """Read the table. Raise CnnlabError."""
    if path.is_dir():
        raise CnnlabError(f"csv:{path} is a folder, not a table; for a folder of images write folder:{path}")
    try:
        if path.exists() and (kind := file_kind(path)):
            raise CnnlabError(f"{path} {kind.in_place_of_table()}")
        rows = table_rows(path.open("rb"), str(path))
        _, header = next(rows)
        places, note = choose_columns(str(path), header, columns)
        found = list(_rows(path, rows, places))
    except FileNotFoundError as error:
        raise SourceMissing(f"csv:{path} does not exist; give a CSV file of images and labels") from error
    except OSError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}; correct its permissions") from error
    if not found:
        raise CnnlabError(f"{path} has a header, but no rows; add a line per image")
    if all(re.fullmatch(r"-?\d+\.0+", row.label) for row in found if row.label):  # pandas: a column with gaps
        found = [_Row(**{**vars(row), "label": row.label.partition(".")[0]}) for row in found]
    return _Table(found, {kind: header[place].strip() for kind, place in places.items()}, note)


def _rows(path: Path, rows: Iterator[tuple[int, list[str]]], places: dict[str, int]) -> Iterator[_Row]:
    """Yield the rows with checked values. Labels may be empty; `listing` allows that for test rows only."""
    for line, row in rows:
        cells = {kind: row[place].strip() for kind, place in places.items()}
        fault, weight = "", 1.0
        for kind, text in cells.items():
            if not text and kind != "label":
                fault = f"the {kind} is empty; fill it in or remove the line"
            elif FORBIDDEN.search(text):
                fault = f"{quoted(text)} has a control character or a line end; remove it"
            if fault and kind in ("split", "group", "weight"):
                fault += f", or set columns={kind}= to do without that column"
            if fault:
                raise CnnlabError(f"{path}, line {line}: {fault}")
        split = split_of(cells["split"]) if "split" in cells else "train"
        if split is None:
            fault = f"the split is {quoted(cells['split'])}; write train, validation or test"
        if any(len(part.encode()) > _LONGEST_NAME for part in re.split(r"[/\\]", cells["path"])):
            fault = f"the path {quoted(cells['path'][:40])}... is longer than a file's name can be; correct it"
        if re.match(r"\w{2,}://", cells["path"]):
            fault = f"{quoted(cells['path'])} is an address, not a file; download the images"
        if "weight" in cells:
            weight = check_weight(f"{path}, line {line}", cells["weight"])
        if fault:
            raise CnnlabError(f"{path}, line {line}: {fault}")
        yield _Row(line, cells["path"], cells["label"], split or "", cells.get("group", ""), weight)


def check_weight(where: str, value: object) -> float:
    """Return the weight of an image in the loss. Raise CnnlabError unless it is a number of at least 0."""
    try:
        weight = float(str(value).replace(",", "."))  # Excel's decimal comma
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise CnnlabError(f"{where}: the weight is {quoted(str(value))}; write a number of at least 0")
    return weight


def check_spread(source: str, weights: Collection[float], columns: str) -> None:
    """Raise CnnlabError if weights of a column chosen by its name differ so much that they may be measurements."""
    positive = [weight for weight in weights if weight > 0]
    if positive and max(positive) > _SPREAD * min(positive) and "weight" not in parse_columns(columns):
        raise CnnlabError(
            f"{source}: its column of weights goes from {min(positive):g} to {max(positive):g}; if these are weights "
            "in the loss, set columns=weight=NAME; if not, columns=weight= to do without that column"
        )


def class_names(names: Collection[str]) -> list[str]:
    """Return the class names, sorted; numbers numerically, 2 before 10."""
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _classes(path: Path, rows: Sequence[_Row], complete: bool) -> list[str]:
    """Return the sorted names of the classes. Raise CnnlabError for fewer than two, or one without training rows."""
    labelled = [row for row in rows if row.label]
    train = {row.label for row in labelled if row.split == "train"}
    if complete and not train:
        raise CnnlabError(f"{path}: no row belongs to the training split; write train in the split column")
    for row in labelled if complete else ():
        if row.label not in train:
            same = next((name for name in train if name.casefold() == row.label.casefold()), None)
            remedy = f"rename it to {same}" if same else "add some there, or remove it"
            raise CnnlabError(
                f"{path}, line {row.line}: class {quoted(row.label)} of the {row.split} split has no training images; "
                f"{remedy}"
            )
    names = train if complete else {row.label for row in labelled}
    if complete and len(names) == 1:
        raise CnnlabError(f"{path} has one class ({next(iter(names))}); name the label's column, or add a second class")
    return class_names(names)


def _find_files(table: Path, names: Sequence[str]) -> tuple[list[Path], str]:
    """Return the file of each name, and a remark on files that lie elsewhere or whose names lack the extension.

    A file that is not found keeps its name, so that decoding reports it. Raise CnnlabError if a name fits several
    files, or if no file is found.
    """
    root = table.parent
    index = _Index(root)
    files, elsewhere, missing = [], [], []
    for name in names:
        file = root / name
        if not os.path.isfile(file) and "\\" in name:  # noqa: PTH113 - a Path's raises for a name that is too long
            file = root / name.replace("\\", "/")
        if not os.path.isfile(file):  # noqa: PTH113
            near = index.find(name)
            if len(near) > 1:
                raise CnnlabError(
                    f"{table}: {quoted(name)} could be {near[0]} or {near[1]}; write its path relative to {root}"
                )
            if near:
                elsewhere.append(near[0])
            else:
                missing.append(name)
            file = near[0] if near else root / name
        files.append(file)
    if len(missing) == len(names):
        raise SourceMissing(
            f"{table}: none of its {len(names):,} images is there: {root / missing[0]} does not exist; paths are "
            "relative to the folder of the table"
        )
    if not elsewhere:
        return files, ""
    return files, f"{plural(len(elsewhere), 'image')} found by name below {root}, such as {elsewhere[0]}"


class _Index:
    """The images below a folder by name, regardless of Unicode normalization and letter case."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, name: str) -> list[Path]:
        """Return the images whose path ends in `name`, which may lack the extension."""
        wanted = PurePosixPath(_plain(name.replace("\\", "/")))
        found = self._by_name.get(wanted.name, [])
        if not found and wanted.suffix not in ENDINGS:
            found = self._by_stem.get(wanted.name, [])
        folders = [part for part in wanted.parts[:-1] if part not in ("/", ".", "..")]
        return [path for path in found if [*map(_plain, path.parts[:-1])][-len(folders) :] == folders or not folders]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return self._collect(lambda path: path.name)

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return self._collect(lambda path: path.stem)

    @cached_property
    def _images(self) -> list[Path]:
        return sorted(image_files(self._root))

    def _collect(self, key: Callable[[Path], str]) -> dict[str, list[Path]]:
        found = defaultdict(list)
        for path in self._images:
            found[_plain(key(path))].append(path)
        return found


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
