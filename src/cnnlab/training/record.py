"""What a training leaves for people: the summary, the curve, TensorBoard events; and what it says where it cannot."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_atomic
from cnnlab.training.runs import Run
from cnnlab.training.session import Session

# What the system says where there is no room. Not everywhere is there a quota.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def kept(state: dict[str, Any]) -> str:
    """What of a run is safe, in words. `state`: its rows, and what is saved of the epoch after."""
    part = f" and {state['part']['steps']} steps of the next" if state["part"] else ""
    return f"{len(state['rows'])} finished epochs{part} are kept"


class Saving:
    """Turns the system's refusal to write (disk full, read-only, ...) into one line that says how to go on.

    state: of what is safe by then, see `kept`; unsaid where that is not known.
    """

    def __init__(self, path: Path, state: dict[str, Any] | None = None) -> None:
        self._path, self._state = path, state

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            safe = kept(self._state) if self._state is not None else "what was saved is kept"
            remedy = "Free some space" if error.errno in _FULL else "Put that right"
            raise CnnlabError(
                f"cannot save into {self._path}: {reason(error)}; {safe}. {remedy}, then go on with: cnnlab train "
                f"--resume {self._path}"
            ) from error


class Events:
    """The rows as TensorBoard events."""

    def __init__(self, run: Run, rows: Sequence[dict[str, Any]]) -> None:
        # Slow to import, so only here.
        from torch.utils.tensorboard import SummaryWriter

        self._eval_split, self._key = run.recipe.eval_split, run.recipe.key
        folder = run.path / "tensorboard"
        with Saving(run.path):
            # TensorBoard reads the files in the order of their names, which begin with the clock's seconds. Where that
            # has gone back, or not on, a new file may come before those there are: then all is written anew.
            now = f"{int(time.time()):010d}"
            later = any(f.name.split(".")[3:4] >= [now] for f in folder.glob("events.out.tfevents.*"))
            if later:
                for file in folder.glob("events.out.tfevents.*"):
                    file.unlink()
            # Events that a killed process wrote beyond its checkpoint are marked as void.
            self._writer = SummaryWriter(str(folder), purge_step=len(rows) + 1)
            for row in rows if later else ():
                self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """A finished epoch."""
        key = self._key
        scalars = {
            "loss/train": row["loss"],
            f"loss/{self._eval_split}": row[f"{key}_loss"],
            "accuracy/train": row["train_acc"],
            f"accuracy/{self._eval_split}": row[f"{key}_acc"],
            "learning_rate": row["learning_rate"],
            "images_per_second": row["images_per_second"],
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        with contextlib.suppress(OSError):  # a full disk: the error that matters is already on its way
            self._writer.close()


def summary(session: Session, run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """A finished run in figures. `state`: its rows, best figure and its epoch."""
    rows, recipe = state["rows"], run.recipe
    images = sum(r["images"] for r in rows)
    by_validation = recipe.eval_split == "validation"
    last, key = rows[-1], recipe.key
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "parameters": run.info["model"]["parameters"],
        "data": recipe.data,
        "images": {"train": len(session.train_set), recipe.eval_split: len(session.eval_set)},
        "skipped": len(run.info["data"]["skipped"]),
        "left_out": sum(r.get("left_out", 0) for r in rows),
        "shared": session.shared(recipe),
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "eval_split": recipe.eval_split,
        "loss": last["loss"],
        "train_acc": last["train_acc"],
        f"{key}_loss": last[f"{key}_loss"],
        f"{key}_acc": last[f"{key}_acc"],
        "best_epoch": state["best_epoch"],
        "best_by": "val_acc" if by_validation else "loss",
        "best": state["best"][0] if by_validation else -state["best"][0],
        "examples_per_second": images / sum(r["compute_seconds"] for r in rows),
        "images_per_second": images / sum(r["train_seconds"] for r in rows),
        "train_seconds": sum(r["train_seconds"] for r in rows),
        "total_seconds": sum(r["seconds"] for r in rows),
        "device": str(session.device),
    }


def save_curves(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Draw loss and accuracy of the epochs into the run's folder."""
    from cnnlab.io import figures as plots  # matplotlib is slow to import, so only here
    from cnnlab.training.curves import curves

    title = f"{run.recipe.model} on {run.recipe.data.split('/')[-1]}, recipe {run.recipe.name}, seed {run.recipe.seed}"
    write_atomic(run.path / "curves.png", plots.png(curves(rows, run.recipe.eval_split, title)))
