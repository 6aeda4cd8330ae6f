"""The figures of each epoch as TensorBoard events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from cnnlab.training.checkpointer import explained_write_errors
from cnnlab.training.runs import Run


class Events:
    """Writes rows into the run's folder `tensorboard`. rows: of the epochs that are already finished."""

    def __init__(self, run: Run, rows: Sequence[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._eval_split, self._key = run.recipe.eval_split, run.recipe.key
        folder = run.path / "tensorboard"
        with explained_write_errors(run.path):
            # TensorBoard reads the files in the order of their names, which begin with the clock's seconds. If the
            # clock went back or stood still, a new file may come before the old ones: then write everything again.
            now = f"{int(time.time()):010d}"
            rewrite = any(f.name.split(".")[3:4] >= [now] for f in folder.glob("events.out.tfevents.*"))
            if rewrite:
                for file in folder.glob("events.out.tfevents.*"):
                    file.unlink()
            # TensorBoard drops events that a killed process wrote after its last checkpoint.
            self._writer = SummaryWriter(str(folder), purge_step=len(rows) + 1)
            for row in rows if rewrite else ():
                self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Write the row of a finished epoch."""
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
        with contextlib.suppress(OSError):  # disk full: the error that matters is already on its way
            self._writer.close()
