"""Processes that decode images while this one unpacks them.

Processes are faster than threads here, because unpacking 7z holds the interpreter's lock: preparing Kaggle's train.7z
and test.7z on two cores takes 16.1, 16.4 and 16.9 s instead of 20.9, 20.8 and 24.7 s (docs/log.md).
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from types import TracebackType
from typing import Any, Self

from cnnlab.io.decode_jobs import Fault, Job, decode_into, write_batch
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.processes import start_module

_BATCH, _BATCH_BYTES = 256, 4 << 20  # images, or bytes, sent to a process at a time


class Decoders:
    """A pool of decoding processes. If it is empty, this process decodes.

    While all are busy, the caller decodes a batch itself, so memory stays bounded.
    """

    def __init__(self, processes: int) -> None:
        self._batch: tuple[list[int], list[str], list[bytes]] = ([], [], [])
        self._bytes = 0
        self._waiting: queue.Queue[Any] = queue.Queue(max(1, processes))
        self._answers: queue.Queue[tuple[int, list[Fault] | CnnlabError]] = queue.Queue()
        self._open = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        with contextlib.suppress(OSError):  # with fewer processes, this one does more of the work
            for _ in range(processes):
                self._processes.append(start_module("cnnlab.io.decode_jobs"))
        self._threads = [threading.Thread(target=self._feed, args=(p,), daemon=True) for p in self._processes]
        for thread in self._threads:
            thread.start()

    def add(self, job: Job, row: int, name: str, content: bytes) -> tuple[int, list[Fault]]:
        """Decode an image, now or later. Return the number of images done since the last call, and their faults."""
        rows, names, contents = self._batch
        rows.append(row)
        names.append(name)
        contents.append(content)
        self._bytes += len(content)
        if len(rows) < _BATCH and self._bytes < _BATCH_BYTES:
            return 0, []
        return self._send(job)

    def finish(self, job: Job) -> tuple[int, list[Fault]]:
        """Wait for all images added so far. Return the same as `add`."""
        done, faults = self._send(job) if self._batch[0] else (0, [])
        return self._collect(done, faults, wait=True)

    def _send(self, job: Job) -> tuple[int, list[Fault]]:
        batch, self._batch, self._bytes = self._batch, ([], [], []), 0
        done, faults = 0, []
        try:
            if not self._processes:
                raise queue.Full
            self._waiting.put_nowait((job, *batch))
            self._open += 1
        except queue.Full:
            try:
                done, faults = len(batch[0]), decode_into(job, *batch)
            except OSError as error:
                raise _not_written(job, reason(error)) from error
        return self._collect(done, faults, wait=False)

    def _collect(self, done: int, faults: list[Fault], *, wait: bool) -> tuple[int, list[Fault]]:
        """Add the answers received so far to `done` and `faults`; with `wait`, wait for the rest too."""
        while self._open if wait else not self._answers.empty():
            count, answer = self._answers.get()
            self._open -= 1
            if isinstance(answer, CnnlabError):
                raise answer
            done, faults = done + count, faults + answer
        return done, faults

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Send batches to a process and wait for its answers. Runs in a thread."""
        assert process.stdin is not None
        assert process.stdout is not None
        while (batch := self._waiting.get()) is not None:
            job, rows, names, contents = batch
            answer: list[Fault] | CnnlabError
            try:
                write_batch(process.stdin, job, rows, names, contents)
                reply = json.loads(process.stdout.readline())
                if "failed" in reply:
                    answer = _not_written(job, reply["failed"])
                else:
                    answer = [(row, kind, text) for row, kind, text in reply["faults"]]
            except (OSError, ValueError):  # the process has died
                answer = CnnlabError(
                    f"a decoding process ended unexpectedly (exit code {process.wait()}); try again with --workers 1"
                )
            self._answers.put((len(rows), answer))

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
            with contextlib.suppress(OSError):  # the pipe still holds bytes for a dead process
                process.stdin.close()
            process.stdout.close()
            process.wait()


def _not_written(job: Job, why: str) -> CnnlabError:
    return CnnlabError(f"cannot write {job.file}: {why}; free some space or name another folder with --store")
