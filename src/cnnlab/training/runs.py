"""A run's folder: create, open, list and compare runs.

    recipe.json              the settings
    run.json                 network, classes, split sizes, a hash of the data, preprocessing
    environment.json         versions and hardware of each session
    metrics.jsonl            one line an epoch, each with a checksum
    tensorboard/             the same as TensorBoard events
    checkpoint.safetensors   all that the next step depends on; until the run is finished, checkpoint.before.safetensors
                             is the previous one
    last.safetensors         weights after the last epoch
    best.safetensors         weights of the best epoch
    curves.png, summary.json written at the end
    threshold.json           from `cnnlab calibrate`: an image whose top probability is lower is none of the classes
    evaluations.jsonl        each explicit evaluation, so that every use of the test set is on record

run.json, environment.json and summary.json hold a checksum of themselves, run.json also one of recipe.json: a file that
was damaged or changed by hand is not used. Several runs of one recipe are a series: series.py.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import (
    digest,
    digest_of_json,
    read_checked,
    read_json,
    write_atomic,
    write_checked,
)
from cnnlab.io.lines import append_line, as_line, read_lines
from cnnlab.io.schema import COUNT, NUMBER, POSITIVE, Number, check
from cnnlab.recipe import LARGEST_SIDE, Recipe, recipe_json
from cnnlab.training.own import resume_call
from cnnlab.training.series import FROM, is_series, member_folders, open_series

_FORMAT = "cnnlab run 1"
WEIGHTS = ("best", "last")
MOST_COUNTED = 1000  # largest number of classes for which rows hold counts per class
_SCORES = ("accuracy", "balanced_accuracy", "macro_f1")
_SIDE = Number(1, LARGEST_SIDE, whole=True)
_CHANNELS = Number(1, 64, whole=True)
_SHARE = Number(0, 1)
EVALUATIONS = "evaluations.jsonl"
THRESHOLD = "threshold.json"
LOWEST, HIGHEST = 0.05, 20.0  # temperatures, see calibration.py
# Schemas of the files: a folder may come from anyone.
_INFO = {
    "model": {"name": str, "num_classes": Number(1, 1e6, whole=True), "in_channels": _CHANNELS, "image_size": _SIDE,
              "parameters": COUNT, "builder?": str, "weights?": {"license": str, "origin": str}},
    "data": {"source": str, "classes": [str], "fingerprint": str, "skipped": [str], "data_dir?": str,
             "skip_bad?": bool, "counts": {"train": [COUNT]}, "passed_over": {"*": COUNT}, "warnings": [str],
             "split?": dict},
    "preprocessing": {"channels": _CHANNELS, "native_size": _SIDE, "image_size": _SIDE,
                      "fit": ("pad", "crop", "stretch"), "mean": [NUMBER], "std": [POSITIVE],
                      "background": ("black", "white"), "low": NUMBER, "high": NUMBER,
                      "interpolation": ("bilinear", "bicubic"), "lows": [NUMBER], "highs": [NUMBER]},
    "recipes": [str],
    "augment?": str,
    "job?": str,
    "from?": FROM,
}  # fmt: skip
_SUMMARY = {
    "seed": COUNT, "eval_split": str, "loss": NUMBER, "train_acc": _SHARE, "best": NUMBER, "best_epoch": COUNT,
    "examples_per_second": NUMBER, "images_per_second": NUMBER, "total_seconds": NUMBER, "device": str,
    "skipped": COUNT, "skipped_updates": COUNT, "images": {"train": COUNT, "*": COUNT},
    "data": str, "shared": {"*": COUNT}, "epochs": COUNT, "stopped": bool,
    "stopped_by": (None, "patience", "overfit", "on_epoch"), "best_by": str,
    "figures": (None, {"weights": str, "epoch": COUNT, **dict.fromkeys(_SCORES, _SHARE),
                       "intervals": {key: [_SHARE] for key in _SCORES}, "classes": [{"support": COUNT}]}),
    "never_predicted": [str],
    "calibration?": {"weights": str, "images": COUNT, "temperature": Number(LOWEST, HIGHEST), "nll_before": NUMBER,
                     "nll": NUMBER, "ece_before": _SHARE, "ece": _SHARE},
    "findings?": [{"name": str, "figure": NUMBER, "text": str, "remedy": str}],
}  # fmt: skip
_SECONDS = Number(1e-9, 1e12)
_ROW = {"epoch": COUNT, "loss": NUMBER, "train_acc": _SHARE, "images": Number(1, 2**53, whole=True),
        "never_predicted": [COUNT],
        "skipped_updates?": COUNT, "learning_rate": NUMBER, "train_seconds": _SECONDS, "compute_seconds": _SECONDS,
        "evaluation_seconds": NUMBER, "seconds": NUMBER, "images_per_second": NUMBER,
        "examples_per_second": NUMBER}  # fmt: skip
_SESSION = {
    "device?": str,
    "device_name?": str,
    "threads?": COUNT,
    "processes?": Number(1, 1e6, whole=True),
    "versions?": dict,
    "memory_format?": str,
}


@dataclass(frozen=True)
class Run:
    """The folder of a run."""

    path: Path
    recipe: Recipe
    info: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The file to resume from."""
        return self.path / "checkpoint.safetensors"

    @property
    def metrics_file(self) -> Path:
        """The file with a JSON line for each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def classes(self) -> list[str]:
        """The names of the K classes."""
        return list(self.info["data"]["classes"])

    @property
    def builder(self) -> str:
        """`FILE.py:BUILDER` of the caller's own network, or an empty string."""
        return str(self.info["model"].get("builder", ""))

    @property
    def augment(self) -> str:
        """The name of the caller's own augmentation, or an empty string."""
        return str(self.info.get("augment", ""))

    @property
    def resume_call(self) -> str:
        """The command, or the call, that resumes the run."""
        return resume_call(self.path, self.recipe, self.builder, self.augment)

    def weights(self, which: str | None = None) -> Path:
        """Return the file of the `best` or `last` weights.

        Default: the best if validation images chose the best epoch, else the last.
        """
        default = "best" if self.recipe.eval_split == "validation" else "last"
        return self.path / f"{which or default}.safetensors"

    def metrics(self) -> list[dict[str, Any]]:
        """Return a row for each finished epoch. Raise CnnlabError if the file is damaged."""
        rows = read_lines(self.metrics_file)
        for row in rows:
            check(self.metrics_file, row, row_schema(self.recipe))
        summary = self.summary()
        incomplete = summary is not None and len(rows) != summary["epochs"]
        if incomplete or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
            raise CnnlabError(f"{self.metrics_file} is damaged: an epoch is missing or repeated")
        return rows

    def summary(self) -> dict[str, Any] | None:
        """Return the final figures, or None before the run is finished. Raise CnnlabError if the file is damaged."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        try:
            summary = read_checked(path)
        except CnnlabError as error:
            raise CnnlabError(f"{error}; or delete it, and write it again with: {self.resume_call}") from error
        key, split = self.recipe.key, self.recipe.eval_split
        figures = {f"{key}_loss": NUMBER, **{f"{key}_{name}": _SHARE for name in ("acc", "balanced_acc", "macro_f1")}}
        check(path, summary, {**_SUMMARY, "eval_split": (split,), **figures})
        return summary

    def temperature(self, weights: Path) -> float:
        """Return the temperature, by which the logits of these weights are divided; 1.0 if they are not calibrated.

        weights: a file of the run. Raise CnnlabError if the summary is damaged.
        """
        if weights.name != self.weights().name:
            return 1.0
        calibration = (self.summary() or {}).get("calibration", {})
        return float(calibration["temperature"]) if calibration.get("weights") == weights.name else 1.0

    def threshold(self, weights: Path) -> float:
        """Return the threshold: an image whose top probability is lower belongs to none of the classes.

        weights: a file of the run; 0.0 if it has no threshold. Raise CnnlabError if the threshold is damaged, or was
        chosen for another temperature.
        """
        path = self.path / THRESHOLD
        if weights.name != self.weights().name or not path.exists():
            return 0.0
        again = f"choose it again: cnnlab calibrate {shlex.quote(str(self.path))}; or delete it"
        try:
            found = read_checked(path)
        except CnnlabError as error:
            raise CnnlabError(f"{error}; {again}") from error
        check(path, found, {"temperature": Number(LOWEST, HIGHEST), "threshold": _SHARE}, again)
        if found["temperature"] != self.temperature(weights):
            raise CnnlabError(f"{path} is for other probabilities than those of {self.path / 'summary.json'}; {again}")
        return float(found["threshold"])

    def evaluations(self) -> list[dict[str, Any]]:
        """Return a row for each explicit evaluation. Damaged lines, such as a crash leaves behind, are ignored."""
        return read_lines(self.path / EVALUATIONS, skip_damaged=True)


def create_run(path: Path, recipe: Recipe, info: dict[str, Any]) -> Run:
    """Create a run in the new, empty folder `path`. Raise CnnlabError if it cannot be written."""
    info = {"format": _FORMAT, **info, "recipes": [digest(recipe.to_dict())]}
    try:
        write_atomic(path / "recipe.json", recipe_json(recipe))
        write_checked(path / "run.json", info)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)  # it was empty
        raise CnnlabError(f"cannot write into {path}: {reason(error)}; name another folder with --runs-dir") from error
    return Run(path, recipe, info)


def change_recipe(run: Run, recipe: Recipe) -> Run:
    """Replace the recipe of the run from here on. The caller must hold its lock. Raise OSError."""
    info = {**run.info, "recipes": [*run.info["recipes"], digest(recipe.to_dict())]}
    # In this order: whenever the process dies, recipe.json is one that run.json knows.
    write_checked(run.path / "run.json", info)
    write_atomic(run.path / "recipe.json", recipe_json(recipe))
    return Run(run.path, recipe, info)


def open_run(name: str | Path, runs_dir: str | Path = "runs") -> Run:
    """Return the run in the folder `name`, or in `runs_dir`/`name`. Raise CnnlabError if there is none."""
    path = find_folder(name, runs_dir)
    if is_series(path):
        inside = ", ".join(str(p) for p in member_folders(path))
        kind = open_series(path).kind
        raise CnnlabError(f"{path} holds several {kind}; name one of its runs: {inside or 'none was started'}")
    for name in ("run.json", "recipe.json"):
        if not (path / name).is_file():
            raise CnnlabError(f"{path} is not a run's folder (no {name}); `cnnlab runs` lists all runs")
    info = read_checked(path / "run.json")
    if info.get("format") != _FORMAT:
        raise CnnlabError(f"{path / 'run.json'} has format {info.get('format')!r}; this cnnlab reads {_FORMAT!r}")
    check(path / "run.json", info, _INFO)
    model, images = info["model"], info["preprocessing"]
    channels, ranges = images["channels"], {len(images["lows"]), len(images["highs"])}
    if (model["num_classes"], model["in_channels"], model["image_size"], len(images["mean"]), len(images["std"])) != (
        len(info["data"]["classes"]), channels, images["image_size"], channels, channels
    ) or ranges not in ({0}, {channels}):  # fmt: skip
        raise CnnlabError(f"{path / 'run.json'} is damaged: its model, classes and preprocessing do not fit together")
    try:
        values = read_json(path / "recipe.json")
        recipe = Recipe.from_dict(values)
    except (CnnlabError, TypeError) as error:
        raise CnnlabError(f"{path / 'recipe.json'} is damaged: {error}") from error
    if digest_of_json(values) not in info["recipes"]:
        raise CnnlabError(
            f"{path / 'recipe.json'} was damaged or changed by hand; restore it from a copy, or train a new run"
        )
    return Run(path, recipe, info)


def find_folder(name: str | Path, runs_dir: str | Path = "runs") -> Path:
    """Return the folder `name`, else `runs_dir`/`name`. Raise CnnlabError if there is neither."""
    places = [path for path in (Path(name), Path(runs_dir) / name) if path.is_dir()]
    # A folder of images may have the name of a run.
    for path in (*(p for p in places if (p / "run.json").exists() or is_series(p)), *places):
        return path
    what = "is a file, not a run's folder" if Path(name).exists() else "does not exist"
    raise CnnlabError(f"{name} {what}; `cnnlab runs` lists all runs")


def list_runs(runs_dir: str | Path = "runs", damaged: Callable[[str], None] = lambda _: None) -> list[Run]:
    """Return all runs under `runs_dir`, sorted by name, including the runs of a series. Other folders are ignored.

    damaged: called with one line for each run that cannot be read; such runs are skipped.
    """
    runs_dir = Path(runs_dir)
    if not runs_dir.is_dir():
        return []
    runs = []
    for path in sorted(p for p in runs_dir.iterdir() if p.is_dir()):
        for folder in folders_of_runs(path):
            try:
                run = open_run(folder)
                run.metrics()
                run.summary()
                run.evaluations()
                runs.append(run)
            except CnnlabError as error:
                damaged(str(error))
    return runs


def folders_of_runs(path: Path) -> list[Path]:
    """Return the run folders of a series, reproduction or competition; else `path` alone, if it is a run's folder."""
    inside: list[Path] = []
    if any((path / f"{kind}.json").exists() for kind in ("reproduction", "competition")):
        # Links are not followed: one to a folder above would be walked again and again.
        parts = sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink())
        inside = [folder for p in parts for folder in folders_of_runs(p)]
    elif is_series(path):
        inside = member_folders(path)
    return [folder for folder in inside or [path] if (folder / "run.json").exists()]


# Rows


def write_metrics(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Replace the whole metrics file, so that no line appears twice. Raise OSError."""
    write_atomic(run.metrics_file, "".join(map(as_line, rows)))


def record_evaluation(run: Run, row: dict[str, Any]) -> bool:
    """Add a line to the run's record of evaluations. Return False if it cannot be written."""
    try:
        append_line(run.path / EVALUATIONS, {"date": datetime.now(UTC).isoformat(timespec="seconds"), **row})
    except (OSError, CnnlabError):
        return False
    return True


def add_session(run: Run, environment: dict[str, Any]) -> None:
    """Append the versions and hardware of a training process to environment.json. Raise OSError."""
    path = run.path / "environment.json"
    write_checked(path, {"sessions": [*_sessions(path), environment]})


def data_dir(run: Run) -> Path | None:
    """Return the data folder that the run started with, or None if it is gone."""
    folder = run.info["data"].get("data_dir")
    return Path(folder) if isinstance(folder, str) and Path(folder).is_dir() else None


def first_session(run: Run) -> dict[str, Any]:
    """Return the environment that the run started in: versions, hardware, plan. Empty if unknown."""
    sessions = _sessions(run.path / "environment.json")
    return sessions[0] if sessions else {}


def _sessions(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        content = read_checked(path)
        check(path, content, {"sessions": [_SESSION]})
    except CnnlabError as error:
        raise CnnlabError(f"{error}; or delete it, and pass the same device and threads as before") from error
    return list(content["sessions"])


def row_schema(recipe: Recipe) -> dict[str, Any]:
    """Return the schema of a row of metrics.jsonl."""
    key = recipe.key
    shares = {f"{key}_{name}": _SHARE for name in ("acc", "balanced_acc", "macro_f1")}
    counts = {f"{key}_correct?": [COUNT], f"{key}_predicted?": [COUNT]}
    return {**_ROW, **shares, **counts, f"{key}_loss": NUMBER}
