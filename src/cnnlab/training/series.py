"""A series: runs of one recipe in one folder that differ only in their seed or fold.

seeds.json or folds.json holds the recipe and the numbers; each run has a folder, seed-0, seed-1, ... or fold-1, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import read_checked, write_checked
from cnnlab.io.schema import COUNT, check
from cnnlab.recipe import Recipe

MOST_RUNS = 100_000
OUT_OF_FOLD = "out_of_fold.csv"  # the predictions of all images in a series of folds
# The schema of a run's `from`, which describes the run that it starts from.
FROM = (
    {"kind": "continued", "run": str, "epochs": COUNT},
    {"kind": "weights", "run": str, "weights": ("best.safetensors", "last.safetensors")},
)
_KINDS = ("seeds", "folds")


@dataclass(frozen=True)
class Series:
    """A folder of several runs.

    kind: seeds or folds; recipe: shared by all runs, except that each has one of `numbers` as its `seed` or `fold`;
    origin: the run whose weights they start from, as in run.json; augment: the name of the caller's own augmentation.
    """

    path: Path
    kind: str
    recipe: Recipe
    numbers: Sequence[int]
    origin: dict[str, Any] | None = None
    augment: str = ""

    @property
    def setting(self) -> str:
        """`seed` or `fold`."""
        return self.kind.removesuffix("s")

    def recipe_of(self, number: int) -> Recipe:
        """Return the recipe of one run."""
        changes: dict[str, Any] = {self.setting: number}
        return replace(self.recipe, **changes)

    def folder(self, number: int) -> Path:
        """Return the folder of one run."""
        return self.path / f"{self.setting}-{number}"

    def save(self) -> None:
        """Write seeds.json or folds.json. Raise CnnlabError."""
        content = {"format": f"cnnlab {self.kind} 1", "recipe": self.recipe.to_dict(), self.kind: list(self.numbers)}
        content |= {"from": self.origin} if self.origin else {}
        content |= {"augment": self.augment} if self.augment else {}
        try:
            write_checked(self.path / f"{self.kind}.json", content)
        except OSError as error:
            raise CnnlabError(
                f"cannot write into {self.path}: {reason(error)}; name another folder with --runs-dir"
            ) from error


def is_series(path: Path) -> bool:
    """Return whether the folder holds a series."""
    return any((path / f"{kind}.json").exists() for kind in _KINDS)


def open_series(path: Path) -> Series:
    """Return the series in the folder `path`. Raise CnnlabError."""
    kind = next((kind for kind in _KINDS if (path / f"{kind}.json").exists()), _KINDS[0])
    file = path / f"{kind}.json"
    content = read_checked(file)
    if content.get("format") != f"cnnlab {kind} 1":
        raise CnnlabError(f"{file} has format {content.get('format')!r}, not {f'cnnlab {kind} 1'!r}")
    check(file, content, {"recipe": dict, kind: [COUNT], "from?": FROM, "augment?": str})
    if not 0 < len(content[kind]) <= MOST_RUNS:
        raise CnnlabError(f"{file} is damaged: {len(content[kind]):,} {kind}")
    try:
        series = Series(path, kind, Recipe.from_dict(content["recipe"]), content[kind], content.get("from"),
                        content.get("augment", ""))  # fmt: skip
        for number in series.numbers if kind == "folds" else ():
            series.recipe_of(number)
    except CnnlabError as error:
        raise CnnlabError(f"{file} is damaged: {reason(error)}") from error
    return series


def member_folders(path: Path) -> list[Path]:
    """Return the runs' folders in a series, in the order of their seeds or folds."""
    found = [*path.glob("seed-*"), *path.glob("fold-*")]
    return sorted(found, key=lambda p: (len(p.name), p.name))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return n, mean and sample standard deviation (None for a single value)."""
    return {"n": len(values), "mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
