"""The runs of a folder as rows, read again only where files have changed: 200 runs in the time of a few."""

from __future__ import annotations

import os
import platform
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cnnlab.io.errors import CnnlabError
from cnnlab.training.runs import Run, folders_of_runs, open_run

_WATCHED = ("run.json", "metrics.jsonl", "summary.json", "threshold.json", "evaluations.jsonl", ".lock")
Signature = tuple[int, ...]


def signature(folder: Path) -> Signature:
    """Return what changes whenever the page has something new to show of a run."""
    found = []
    for name in _WATCHED:
        try:
            found.append((folder / name).stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return (*found, _holder(folder) or 0)


def _holder(folder: Path) -> int | None:
    """Return the process of this machine that trains in `folder`, as its lock's file says, if there is such a process.

    Its number may have been given to another process since: `is_locked` is sure.
    """
    with suppress(OSError, ValueError):
        found = re.fullmatch(r"process (\d{1,10}) on (.*)\n", (folder / ".lock").read_text(encoding="utf-8"))
        if found and found[2] == platform.node():
            if os.name == "posix":
                os.kill(int(found[1]), 0)  # raises OSError if there is none
            elif not is_locked(folder):  # elsewhere, this signal would stop it
                return None
            return int(found[1])
    return None


def is_locked(folder: Path) -> bool:
    """Return whether a process trains in `folder`."""
    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def trainer(folder: Path) -> int | None:
    """Return the process of this machine that trains in `folder`, or None."""
    return _holder(folder) if is_locked(folder) else None


class Runs:
    """The runs of a folder, with each run of a series. Names are paths relative to the folder."""

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
        """Return a run by the name that `folders` gives it; no other path is opened. Raise CnnlabError."""
        folders = self.folders()
        if name not in folders:
            raise CnnlabError(f"{self.folder} has no run {name!r}; it may have been removed")
        return open_run(folders[name])

    def signatures(self) -> dict[str, Signature]:
        """Return the signature of each run."""
        return {name: signature(path) for name, path in self.folders().items()}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each run, the newest first."""
        with self._lock:
            rows = {}
            for name, path in self.folders().items():
                now = signature(path)
                before = self._rows.get(name)
                rows[name] = before if before is not None and before[0] == now else (now, _row(name, path))
            self._rows = rows
            return sorted((row for _, row in rows.values()), key=lambda row: -row["changed"])


def _row(name: str, path: Path) -> dict[str, Any]:
    """Return what the list shows of a run; of one that cannot be read, why."""
    changed = max((path / file).stat().st_mtime for file in ("run.json", "metrics.jsonl") if (path / file).exists())
    try:
        run = open_run(path)
        rows, summary = run.metrics(), run.summary()
    except CnnlabError as error:
        return {"name": name, "state": "damaged", "error": str(error), "changed": changed}
    recipe = run.recipe
    last = rows[-1] if rows else {}
    figures = (summary or {}).get("figures") or {}
    state = "finished" if summary else "running" if _holder(path) else "interrupted"
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
