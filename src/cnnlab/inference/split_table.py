"""The split of a run as a table for `csv:`: which images were trained on, and which were held out."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from cnnlab.data import CSV, FOLDER, ImageSet, SourceOptions, data_folder
from cnnlab.data.grouping import group_names
from cnnlab.data.splits import Pool, divide, fold_of, load_pool
from cnnlab.inference.classifier import preprocessing_of
from cnnlab.io.errors import CnnlabError, expand
from cnnlab.io.files import save_new_csv
from cnnlab.io.text import cell
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.own import check_own, resume_command
from cnnlab.training.series import is_series, open_series
from cnnlab.training.start import started_members


class _Row(NamedTuple):
    id: str
    label: str
    part: str
    group: str
    weight: str


@dataclass(frozen=True)
class SplitTable:
    """A table with a row per image: id, label, part, group and weight. A missing group or weight is "".

    column: the kind of the parts: split (train, validation or test), or fold (1, 2, ...) for a cross-validation. root:
    the folder that ids are relative to; None if they are not files.
    """

    column: str
    rows: list[_Row]
    root: Path | None

    def to_csv(self, folder: Path) -> str:
        """Return the table as CSV, with paths relative to `folder`."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        grouped, weighted = any(row.group for row in self.rows), any(row.weight for row in self.rows)
        writer.writerow(["path", "label", self.column, *["group"] * grouped, *["weight"] * weighted])
        for row in self.rows:
            path = cell(row.id) if self.root is None else _relative(self.root / row.id, folder)
            group, weight = [cell(row.group)] * grouped, [row.weight] * weighted
            writer.writerow([path, cell(row.label), row.part, *group, *weight])
        return out.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the table to a new CSV file in UTF-8. Raise CnnlabError if that fails."""
        save_new_csv(path, self.to_csv(Path(path).parent))


def _relative(path: Path, folder: Path) -> str:
    try:
        text = Path(os.path.relpath(path, folder.absolute())).as_posix()
    except ValueError:  # on another drive
        text = path.as_posix()
    return text if cell(text) == text else f"./{text}"  # no formula for a spreadsheet, and still the file's path


def split_table(
    name: str | Path,
    *,
    data: str | None = None,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
) -> SplitTable:
    """Return the split of a run; for a series of folds, the fold of each image.

    data: where the run's images are now. Raise CnnlabError if those are other images, or if the run's were only in
    memory.
    """
    path = runs.find_folder(name, runs_dir)
    series = open_series(path) if is_series(path) else None
    run = next(iter(started_members(path)), None) if series is not None else runs.open_run(path)
    if run is None:
        raise CnnlabError(f"{path} has no run yet; continue it first: {resume_command(path)}")
    check_own(run.path, run.recipe, data=None)
    recipe = run.recipe if data is None else replace(run.recipe, data=data)
    options = SourceOptions(
        data_dir=data_folder(data_dir or runs.data_dir(run)),
        columns=recipe.columns,
        decoding=preprocessing_of(run).decoding,
        skip_bad=skip_bad or bool(run.info["data"].get("skip_bad")),
    )
    pool = load_pool(recipe, options)
    splits = divide(pool, recipe)
    if splits.train.fingerprint() != run.info["data"]["fingerprint"]:
        raise CnnlabError(
            f"the images of {recipe.data} are not those that {run.path} was trained on, so its split is unknown"
        )
    cross = series is not None and series.kind == "folds"
    rows: list[_Row] = []
    if cross:
        rows += _rows(pool.train, map(str, fold_of(pool, recipe).tolist()), pool, recipe)
    else:
        rows += _rows(splits.train, repeat("train"), pool, recipe)
    if not cross and recipe.eval_split != "train":
        rows += _rows(splits.evaluated, repeat(recipe.eval_split), pool, recipe, held_out=pool.evaluated is not None)
    return SplitTable("fold" if cross else "split", rows, image_root(recipe.data))


def _rows(
    images: ImageSet, parts: Iterable[str], pool: Pool, recipe: Recipe, *, held_out: bool = False
) -> Iterator[_Row]:
    """Yield a row for each image. Images that were kept together, also as near-duplicates, share a group.

    held_out: whether the images are from `pool.evaluated`, which has its own groups.
    """
    groups: dict[str, str] = {}
    if held_out:
        groups = dict(zip(images.ids, (group_names(images, recipe.group) or ([],))[0], strict=False))
    elif pool.grouping is not None:
        units, first = pool.grouping.units.tolist(), dict[int, str]()
        for unit, name in zip(units, pool.grouping.names, strict=True):
            first.setdefault(unit, name or str(unit))
        groups = {id_: first[unit] for id_, unit in zip(pool.train.ids, units, strict=True)}
    weights = repeat("") if images.weights is None else map(str, images.weights.numpy())  # the shortest exact text
    for id_, label, part, weight in zip(images.ids, images.labels.tolist(), parts, weights, strict=False):
        yield _Row(id_, images.classes[label], part, groups.get(id_, ""), weight)


def image_root(source: str) -> Path | None:
    """Return the folder that the ids of a source's images are relative to; None if they are not files."""
    if source.startswith(FOLDER):
        return expand(source.removeprefix(FOLDER)).absolute()
    return expand(source.removeprefix(CSV)).absolute().parent if source.startswith(CSV) else None
