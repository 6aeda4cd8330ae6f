"""A run's folder: its files, opening one, listing and comparing many.

    recipe.json              what was asked for
    run.json                 what it met: network, classes, split sizes, a hash of the data, preprocessing
    environment.json         versions and hardware of each session
    metrics.jsonl            one line an epoch
    tensorboard/             the same as TensorBoard events
    checkpoint.safetensors   all that the next epoch depends on
    last.safetensors         weights after the last epoch
    best.safetensors         weights of the best epoch
    curves.png, summary.json written at the end
    evaluations.jsonl        each explicit evaluation, so that looks at the test set are on record

Several seeds of one recipe are a folder with seeds.json, holding one run's folder per seed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cnnlab.errors import CnnlabError, reason
from cnnlab.files import read_json, write_atomic, write_json
from cnnlab.recipe import Recipe, recipe_json

_FORMAT = "cnnlab run 1"
_SEEDS_FORMAT = "cnnlab seeds 1"
WEIGHTS = ("best", "last")


@dataclass(frozen=True)
class Run:
    """One run's folder on the disk."""

    path: Path
    recipe: Recipe
    info: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The state to resume from."""
        return self.path / "checkpoint.safetensors"

    @property
    def metrics_file(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def classes(self) -> list[str]:
        """Names of the K classes."""
        return list(self.info["data"]["classes"])

    def weights(self, which: str | None = None) -> Path:
        """The file of the `best` or `last` weights.

        Unsaid: the best, where the best epoch was chosen on validation images; else the last.
        """
        default = "best" if self.recipe.watch == "validation" else "last"
        return self.path / f"{which or default}.safetensors"

    def metrics(self) -> list[dict[str, Any]]:
        """A row for each epoch that is finished."""
        rows = _read_lines(self.metrics_file)
        for row in rows:
            missing = {"epoch", "loss", "train_acc", "images", "train_seconds", "seconds"} - row.keys()
            if missing:
                raise CnnlabError(f"{self.metrics_file} is damaged: a line lacks {', '.join(sorted(missing))}")
        return rows

    def summary(self) -> dict[str, Any] | None:
        """What was written when the run finished; None before that."""
        return read_json(self.path / "summary.json") if (self.path / "summary.json").exists() else None

    def evaluations(self) -> list[dict[str, Any]]:
        """Each explicit evaluation so far."""
        return _read_lines(self.path / "evaluations.jsonl")


def create_run(path: Path, recipe: Recipe, info: dict[str, Any]) -> Run:
    """Begin a run in the new, empty folder `path`. Raises: CnnlabError where that cannot be written to."""
    try:
        write_atomic(path / "recipe.json", recipe_json(recipe))
        write_json(path / "run.json", {"format": _FORMAT, **info})
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)  # it held nothing yet
        raise CnnlabError(f"cannot write into {path}: {reason(error)}; name another folder with --runs-dir") from error
    return Run(path, recipe, info)


def make_folder(path: Path) -> Path:
    """Make the new folder `path` and its parents; returns it. Raises: CnnlabError where it exists or cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError as error:
        where = path if path.exists() else path.parent
        if where.is_dir():
            remedy = f"choose another --name, or go on with it: cnnlab train --resume {path}"
        else:
            remedy = "it is a file; name another folder with --runs-dir"
        raise CnnlabError(f"{where} exists; {remedy}") from error
    except OSError as error:
        raise CnnlabError(f"cannot make {path}: {reason(error)}; name another folder with --runs-dir") from error
    return path


def new_folder(runs_dir: Path, name: str | None, recipe: Recipe) -> Path:
    """Make the folder of a new run: `runs_dir`/`name`, or a free name made of data, network and a number.

    Raises: CnnlabError for a name that is taken or no plain name.
    """
    if name is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise CnnlabError(f"run name {name!r}: use letters, digits, '.', '_' and '-', at most 100, not first '.'")
        return make_folder(runs_dir / name)
    is_folder = recipe.data.startswith("folder:")
    source = f"folder-{Path(recipe.data.removeprefix('folder:')).name}" if is_folder else recipe.data
    stem = re.sub(r"[^A-Za-z0-9]+", "-", f"{source}-{recipe.model}").strip("-")[:80]
    number = 1
    while True:
        path = runs_dir / f"{stem}-{number:03d}"
        try:
            return make_folder(path)
        except CnnlabError:  # taken, perhaps a moment ago by another process
            if not path.exists():
                raise
        number += 1


def open_run(name: str | Path, runs_dir: Path = Path("runs")) -> Run:
    """The run in the folder `name`, or in `runs_dir`/`name`. Raises: CnnlabError where that is no run's folder."""
    path = find_folder(name, runs_dir)
    if (path / "seeds.json").exists():
        inside = ", ".join(str(p) for p in seed_folders(path))
        raise CnnlabError(f"{path} holds several seeds; name one of its runs: {inside or 'none has begun'}")
    for name in ("run.json", "recipe.json"):
        if not (path / name).is_file():
            raise CnnlabError(f"{path} is not a run's folder (no {name}); `cnnlab runs` lists those there are")
    info = read_json(path / "run.json")
    if info.get("format") != _FORMAT:
        raise CnnlabError(f"{path / 'run.json'} has format {info.get('format')!r}; this cnnlab reads {_FORMAT!r}")
    missing = {"model", "data", "preprocessing"} - info.keys()
    if missing:
        raise CnnlabError(f"{path / 'run.json'} is damaged: it lacks {', '.join(sorted(missing))}")
    try:
        recipe = Recipe.from_dict(read_json(path / "recipe.json"))
    except (CnnlabError, TypeError) as error:
        raise CnnlabError(f"{path / 'recipe.json'} is damaged: {error}") from error
    return Run(path, recipe, info)


def find_folder(name: str | Path, runs_dir: Path = Path("runs")) -> Path:
    """`name` as a folder, else `runs_dir`/`name`. Raises: CnnlabError where there is neither."""
    for path in (Path(name), runs_dir / name):
        if path.is_dir():
            return path
    what = "is a file, not a run's folder" if Path(name).exists() else "does not exist"
    raise CnnlabError(f"{name} {what}; `cnnlab runs` lists the runs there are")


def list_runs(runs_dir: Path) -> list[Run]:
    """All runs under `runs_dir`, by name; those of several seeds one by one. Folders that are no runs are left out."""
    if not runs_dir.is_dir():
        return []
    runs = []
    for path in sorted(p for p in runs_dir.iterdir() if p.is_dir()):
        for folder in seed_folders(path) if (path / "seeds.json").exists() else [path]:
            if (folder / "run.json").exists():
                runs.append(open_run(folder))
    return runs


# Several seeds of one recipe


def create_seeds(path: Path, recipe: Recipe, seeds: Sequence[int]) -> None:
    """Make the new, empty folder `path` one of several seeds of a recipe."""
    write_json(path / "seeds.json", {"format": _SEEDS_FORMAT, "recipe": recipe.to_dict(), "seeds": list(seeds)})


def open_seeds(path: Path) -> tuple[Recipe, list[int]]:
    """The recipe and the seeds of such a folder."""
    content = read_json(path / "seeds.json")
    if content.get("format") != _SEEDS_FORMAT:
        raise CnnlabError(f"{path / 'seeds.json'} has format {content.get('format')!r}, not {_SEEDS_FORMAT!r}")
    return Recipe.from_dict(content["recipe"]), [int(s) for s in content["seeds"]]


def seed_folders(path: Path) -> list[Path]:
    """The runs' folders inside, in the order of their seeds."""
    return sorted(path.glob("seed-*"), key=lambda p: (len(p.name), p.name))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """n, mean and standard deviation (n - 1; None for a single value)."""
    return {"n": len(values), "mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


# Rows


def write_metrics(run: Run, rows: list[dict[str, Any]]) -> None:
    """Replace the metrics file as a whole: a line is there once, whatever happened before."""
    write_atomic(run.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))


def record_evaluation(run: Run, row: dict[str, Any]) -> bool:
    """Add a line to the run's record of evaluations; False where its folder cannot be written to."""
    try:
        with (run.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"date": datetime.now(UTC).isoformat(timespec="seconds"), **row}) + "\n")
    except OSError:
        return False
    return True


def add_session(run: Run, environment: dict[str, Any]) -> None:
    """Note versions and hardware of this session beside those before it."""
    path = run.path / "environment.json"
    sessions = read_json(path).get("sessions", []) if path.exists() else []
    write_json(path, {"sessions": [*sessions, environment]})


def first_session(run: Run) -> dict[str, Any]:
    """Versions and hardware that the run began with; empty where that is not known."""
    path = run.path / "environment.json"
    sessions = read_json(path).get("sessions") if path.exists() else None
    return dict(sessions[0]) if sessions else {}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CnnlabError(f"{path} is damaged: {reason(error)}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise CnnlabError(f"{path} is damaged: each line should hold a JSON object")
    return rows


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which `runs` differ: {setting: value in each run}."""
    recipes = [run.recipe.to_dict() for run in runs]
    return {key: [r[key] for r in recipes] for key in recipes[0] if len({str(r[key]) for r in recipes}) > 1}
