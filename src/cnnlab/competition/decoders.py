"""Processes that decode images while this one unpacks them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cnnlab.io.decode import Job, Trouble, decode_into, write_batch
from cnnlab.io.errors import CnnlabError, reason

_BATCH = 256
_BATCH_BYTES = 4 << 20


class Decoders:
    """A crew of `processes` decoding processes, which may be none: then images are decoded here.

    They are plain programs with a pipe, not multiprocessing's: those would run the caller's script a second time, and
    import torch with it. Where all have enough to do, the caller decodes a batch itself, so memory stays bounded. They
    end with the pipe, however this process ends.
    """

    def __init__(self, processes: int) -> None:
        self._batch: tuple[list[int], list[str], list[bytes]] = ([], [], [])
        self._bytes = 0
        self._waiting: queue.Queue[Any] = queue.Queue(max(1, processes))
        self._answers: queue.Queue[tuple[int, Any]] = queue.Queue()
        self._open = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        # Where no process can be started, or not as many, the work is done here all the same.
        with contextlib.suppress(OSError):
            for _ in range(processes if sys.executable else 0):
                self._processes.append(_start())
        self._threads = [threading.Thread(target=self._feed, args=(p,), daemon=True) for p in self._processes]
        for thread in self._threads:
            thread.start()

    def add(self, job: Job, row: int, name: str, content: bytes) -> tuple[int, list[Trouble]]:
        """Have an image decoded, now or later; answers as `finish` for what has been done since the last call."""
        rows, names, contents = self._batch
        rows.append(row)
        names.append(name)
        contents.append(content)
        self._bytes += len(content)
        if len(rows) < _BATCH and self._bytes < _BATCH_BYTES:
            return 0, []
        return self._send(job)

    def finish(self, job: Job) -> tuple[int, list[Trouble]]:
        """Wait for all that was added: (images done, those that could not be decoded)."""
        done, troubles = self._send(job) if self._batch[0] else (0, [])
        while self._open:
            more = self._take(self._answers.get())
            done, troubles = done + more[0], troubles + more[1]
        return done, troubles

    def _send(self, job: Job) -> tuple[int, list[Trouble]]:
        batch, self._batch, self._bytes = self._batch, ([], [], []), 0
        done, troubles = 0, []
        try:
            if not self._processes:
                raise queue.Full
            self._waiting.put_nowait((job, *batch))
            self._open += 1
        except queue.Full:
            try:
                done, troubles = len(batch[0]), decode_into(job, *batch)
            except OSError as error:
                raise CnnlabError(_unwritten(job, reason(error))) from error
        while not self._answers.empty():
            more = self._take(self._answers.get())
            done, troubles = done + more[0], troubles + more[1]
        return done, troubles

    def _take(self, answer: tuple[int, Any]) -> tuple[int, list[Trouble]]:
        self._open -= 1
        count, said = answer
        if isinstance(said, str):
            raise CnnlabError(said)
        return count, [(row, kind, text) for row, kind, text in said]

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """A thread for each process: hand it a batch, wait for its answer."""
        assert process.stdin is not None
        assert process.stdout is not None
        while (batch := self._waiting.get()) is not None:
            job, rows, names, contents = batch
            try:
                write_batch(process.stdin, job, rows, names, contents)
                answer = json.loads(process.stdout.readline())
                said = answer.get("troubles", _unwritten(job, answer.get("failed", "")))
            except (OSError, ValueError):  # it has ended
                said = f"a decoding process ended unexpectedly (exit code {process.wait()}); try again with one worker"
            self._answers.put((len(rows), said))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: Any, trace: TracebackType | None) -> None:
        if kind is not None:
            for process in self._processes:
                process.kill()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(OSError):  # what a dead one did not read
                process.stdin.close()
            process.stdout.close()
            process.wait()


def _start() -> subprocess.Popen[bytes]:
    # -P and the path: the working folder may hold modules of any name, and must not be asked.
    home = str(Path(__file__).parents[2])
    paths = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # Ctrl-C is for us, hence a group of their own; the end of the pipe is for them.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "cnnlab.io.decode"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        process_group=0 if os.name == "posix" else None,
        creationflags=0 if os.name == "posix" else 0x200,  # CREATE_NEW_PROCESS_GROUP
    )


def _unwritten(job: Job, why: str) -> str:
    return f"cannot write {job.file}: {why}; free some space or name another folder with --store"
