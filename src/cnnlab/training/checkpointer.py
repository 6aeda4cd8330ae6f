"""Checkpoints during a training: when to save, the writer thread, and what is on the disk."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.recipe import Recipe
from cnnlab.training import checkpoint
from cnnlab.training.average import Average
from cnnlab.training.own import resume_command
from cnnlab.training.progress import Progress
from cnnlab.training.runs import Run

# Error numbers of a disk without room. Not every system has quotas.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextlib.contextmanager
def explained_write_errors(run: Run | Path, saved: str = "what was saved remains") -> Iterator[None]:
    """Turn an OSError (disk full, read-only, ...) into a CnnlabError that says what is saved and how to continue.

    run: the run, or the folder of a series. saved: what is saved, in words.
    """
    try:
        yield
    except OSError as error:
        remedy = "Free some space" if error.errno in _FULL else "Fix that"
        path, call = (run.path, run.resume_call) if isinstance(run, Run) else (run, resume_command(run))
        raise CnnlabError(
            f"cannot save into {path}: {reason(error)}; {saved}. {remedy}, then continue: {call}"
        ) from error


class Checkpointer:
    """The writer of a run's checkpoint. `saved` is the progress that is on the disk. writes: False saves nothing.

    Training waits only until the tensors are copied; a thread writes the copy during the next steps.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        device: torch.device,
        saved: Progress,
        *,
        writes: bool = True,
    ) -> None:
        self.saved = saved
        self._writes = writes
        self._run, self._model, self._optimizer, self._average = run, model, optimizer, average
        self._device = device
        self._schedule = SaveSchedule(run.recipe)
        self._writer = BackgroundWriter()

    def due(self, step: int) -> bool:
        """Return whether to save after update number `step` (from 1). True after a failed write: `save` will raise."""
        return self._writes and (self._schedule(step) or self._writer.failed)

    def save(self, progress: Progress, *, wait: bool = False) -> None:
        """Copy the state of the training and write it with `progress`. wait: return only when it is on the disk.

        Raise CnnlabError if the previous write failed, or, with `wait`, this one.
        """
        if not self._writes:
            self.saved = progress
            return
        started = time.perf_counter()

        def finish() -> None:
            self.saved = progress

        with self.write_errors():
            checkpoint.save_checkpoint(
                self._run.checkpoint, self._model, self._optimizer, self._device, progress.to_dict(), self._average,
                lambda write: self._writer.start(write, finish),
            )  # fmt: skip
            self._schedule.saved(time.perf_counter() - started)
            if wait:
                self._writer.wait()

    def write_errors(self) -> contextlib.AbstractContextManager[None]:
        """Return `explained_write_errors` for this run."""
        return explained_write_errors(self._run, str(self.saved))

    def close(self) -> None:
        """Wait for the thread. Raise KeyboardInterrupt if another Ctrl-C comes meanwhile."""
        self._writer.close()


class SaveSchedule:
    """When to save within an epoch: every `save_steps` steps or `save_seconds` seconds, as the recipe says.

    Timed saves take at most a twentieth of the time, however slow the disk is.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._steps, self._seconds = recipe.save_steps, recipe.save_seconds
        self._next = time.monotonic() + self._seconds  # monotonic: unaffected by changes to the system clock

    def __call__(self, step: int) -> bool:
        """Return whether to save after update number `step` (from 1)."""
        return (self._steps > 0 and step % self._steps == 0) or (self._seconds > 0 and time.monotonic() >= self._next)

    def saved(self, seconds: float) -> None:
        """Record that a save blocked training for `seconds`."""
        self._next = time.monotonic() + max(self._seconds, 20 * seconds)


class BackgroundWriter:
    """A background thread that runs jobs: writing a file is mostly waiting."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, *jobs: Callable[[], None]) -> None:
        """Wait for the previous jobs, then run these in order in a new thread. Raise what `wait` raises."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=jobs, name="cnnlab-writer")
        self._thread.start()

    def _run(self, *jobs: Callable[[], None]) -> None:
        try:
            for job in jobs:
                job()
        except BaseException as error:  # raised again by `wait`
            self._error = error

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise."""
        return self._error is not None

    def wait(self) -> None:
        """Wait for all jobs. Raise what a job raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for all jobs and drop their OSErrors: another error is already on its way.

        A second Ctrl-C does not cut this short, because the run's lock must outlive the write; KeyboardInterrupt is
        raised afterwards.
        """
        interrupted = False
        while self._thread is not None and self._thread.is_alive():
            try:
                self._thread.join()
            except KeyboardInterrupt:
                interrupted = True
        with contextlib.suppress(OSError):
            self.wait()
        if interrupted:
            raise KeyboardInterrupt
