"""The figures of each epoch as TensorBoard events."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

from cnnlab.training.checkpointer import explained_write_errors
from cnnlab.training.runs import Run


class Events:
    """A writer of rows into the run's folder `tensorboard`. rows: one per finished epoch.

    Records are written synchronously: SummaryWriter writes in a thread, which prints a traceback if the disk is full.
    """

    def __init__(self, run: Run, rows: Sequence[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._eval_split, self._key = run.recipe.eval_split, run.recipe.key
        folder = run.path / "tensorboard"
        with explained_write_errors(run):
            folder.mkdir(exist_ok=True)
            # TensorBoard reads the files in the order of their names, which begin with the clock's seconds. If the
            # clock went back or stood still, a new file may come before the old ones: then write everything again.
            now = f"{int(time.time()):010d}"
            files = list(folder.glob("events.out.tfevents.*"))
            rewrite = any(f.name.split(".")[3:4] >= [now] for f in files) or not files
            if rewrite:
                for file in files:
                    file.unlink()
            self._file = (folder / f"events.out.tfevents.{now}.{os.getpid()}").open("wb")
            self._records = RecordWriter(self._file)
            try:
                self._write(file_version="brain.Event:2")
                # TensorBoard drops events that a killed process wrote after its last checkpoint.
                self._write(session_log=SessionLog(status=SessionLog.START), step=len(rows) + 1)
                for row in rows if rewrite else ():
                    self.add(row)
            except OSError:
                self.close()
                raise

    def add(self, row: dict[str, Any]) -> None:
        """Write the row of a finished epoch."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        key = self._key
        scalars = {
            "loss/train": row["loss"],
            f"loss/{self._eval_split}": row[f"{key}_loss"],
            "accuracy/train": row["train_acc"],
            f"accuracy/{self._eval_split}": row[f"{key}_acc"],
            f"balanced_accuracy/{self._eval_split}": row[f"{key}_balanced_acc"],
            f"macro_f1/{self._eval_split}": row[f"{key}_macro_f1"],
            "learning_rate": row["learning_rate"],
            "images_per_second": row["images_per_second"],
        }
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(summary=Summary(value=values), step=row["epoch"])

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # disk full: the error that matters is already on its way
            self._file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()
