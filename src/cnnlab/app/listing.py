"""The runs of a folder as rows. Only runs with changed files are read again: 200 runs take as long as a few."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnlab.io.errors import CnnlabError
from cnnlab.training.locks import lock_pid
from cnnlab.training.runs import Run, folders_of_runs, open_run
from cnnlab.training.series import is_series, open_series

_WATCHED = ("run.json", "metrics.jsonl", "summary.json", "threshold.json", "evaluations.jsonl", ".lock")
Signature = tuple[int, ...]


def signature(folder: Path) -> Signature:
    """Return a tuple that changes whenever the page has something new to show about a run."""
    found = []
    for name in _WATCHED:
        try:
            found.append((folder / name).stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return (*found, lock_pid(folder) or 0)


class Runs:
    """The runs of a folder, including those of its series. Names are paths relative to the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, tuple[Signature, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def folders(self) -> dict[str, Path]:
        """Return the run folders by name."""
        if not self.folder.is_dir():
            return {}
        parts = sorted(p for p in self.folder.iterdir() if p.is_dir() and not p.is_symlink())
        found: list[Path] = []
        for part in parts:
            with suppress(OSError, CnnlabError):  # a series whose file is damaged
                found += folders_of_runs(part)
        return {path.relative_to(self.folder).as_posix(): path for path in found}

    def open(self, name: str) -> Run:
        """Return a run by its name in `folders`; no other path is opened. Raise CnnlabError."""
        if name not in (folders := self.folders()):
            raise CnnlabError(f"{self.folder} has no run {name!r}; it may have been removed")
        return open_run(folders[name])

    def place(self, name: str) -> Path:
        """Return the folder of a run, or of a series, by its name; see `open`."""
        self.members(name)  # raises for an unknown name
        return self.folder / name

    def members(self, name: str) -> dict[str, Path]:
        """Return the folder of a run, or those of the runs in a series, by name; see `open`."""
        folders = self.folders()
        found = {name: folders[name]} if name in folders else {}
        found = found or {one: path for one, path in folders.items() if one.rpartition("/")[0] == name and name}
        if not found:
            raise CnnlabError(f"{self.folder} has no run {name!r}; it may have been removed")
        return found

    def series(self) -> dict[str, str]:
        """Return the kind of each series that has runs, by name: seeds or folds."""
        found = {}
        for name in dict.fromkeys(name.rpartition("/")[0] for name in self.folders()):
            with suppress(CnnlabError):
                if name and is_series(self.folder / name):
                    found[name] = open_series(self.folder / name).kind
        return found

    def signatures(self) -> dict[str, Signature]:
        """Return the signature of each run."""
        return {name: signature(path) for name, path in self.folders().items()}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each run, the most recently changed first."""
        with self._lock:
            rows = {}
            for name, path in self.folders().items():
                now = signature(path)
                before = self._rows.get(name)
                rows[name] = before if before is not None and before[0] == now else (now, _row(name, path))
            self._rows = rows
            return sorted((row for _, row in rows.values()), key=lambda row: -row["changed"])


def _row(name: str, path: Path) -> dict[str, Any]:
    """Return what the list shows of a run, or the error if it cannot be read."""
    changed = 0.0
    for file in ("run.json", "metrics.jsonl"):
        with suppress(OSError):  # not there yet, or the run is being deleted
            changed = max(changed, (path / file).stat().st_mtime)
    try:
        run = open_run(path)
        rows, summary = run.metrics(), run.summary()
    except CnnlabError as error:
        return {"name": name, "state": "damaged", "error": str(error), "changed": changed}
    recipe = run.recipe
    last = rows[-1] if rows else {}
    figures = (summary or {}).get("figures") or {}
    state = "finished" if summary else "running" if lock_pid(path) else "interrupted"
    return {
        "name": name,
        "state": state,
        "model": recipe.model,
        "data": recipe.data,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "epochs": len(rows),
        "of": recipe.epochs,
        "split": recipe.eval_split,
        "acc": figures.get("accuracy", last.get(f"{recipe.key}_acc")),
        "weights": figures.get("weights", "last"),
        "loss": last.get("loss"),
        "curve": [row[f"{recipe.key}_acc"] for row in rows],
        "seconds": sum(row["seconds"] for row in rows),
        "own": bool(run.builder) or recipe.data.startswith("memory:"),
        "changed": changed,
    }
