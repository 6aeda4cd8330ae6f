"""Decode small image files in other processes: `python -m cnnlab.io.decode_process`.

Decoding a small image spends half of its time in Python code, where threads wait for the GIL.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from cnnlab.io.decode import BadImage, Decoding, bombs_refused, decode
from cnnlab.io.errors import CnnlabError
from cnnlab.io.processes import answer_stream, start_module

_SMALL = 1 << 18  # bytes


def decode_all(files: Sequence[Path], how: Decoding, invert: bool) -> list[np.ndarray | BadImage]:
    """Return each image as `decode` does, or the BadImage that it raises. Use it within `bombs_refused`."""
    found: list[np.ndarray | BadImage] = []
    for file in files:
        try:
            found.append(decode(file, how, invert=invert))
        except BadImage as error:
            found.append(error)
    return found


class DecodeProcess:
    """A process that runs `serve`, for one thread at a time. Raise OSError if it cannot be started."""

    def __init__(self) -> None:
        self.process = start_module(__name__)

    def decode_all(self, files: Sequence[Path], how: Decoding, invert: bool) -> list[np.ndarray | BadImage]:
        """Do what the function `decode_all` does, in that process. Raise CnnlabError if the process has ended."""
        p = self.process
        assert p.stdin is not None
        assert p.stdout is not None
        task = {"files": [str(file) for file in files], "how": asdict(how), "invert": invert}
        try:
            p.stdin.write(json.dumps(task).encode() + b"\n")
            p.stdin.flush()
            found: list[np.ndarray | BadImage] = []
            for answer in json.loads(p.stdout.readline()):
                if isinstance(answer, str):
                    found.append(BadImage(answer))
                    continue
                image = np.empty(answer, np.uint8)
                if p.stdout.readinto(image.reshape(-1).data) < image.size:  # type: ignore[attr-defined]
                    raise EOFError
                found.append(image)
        except (OSError, EOFError, ValueError) as error:
            raise CnnlabError(
                f"a decoding process ended unexpectedly (exit code {p.wait()}); free some memory, or use one thread"
            ) from error
        return found

    def close(self) -> None:
        """End the process."""
        p = self.process
        assert p.stdin is not None
        assert p.stdout is not None
        with suppress(OSError):  # a dead process has left bytes in the pipe
            p.stdin.close()
        p.stdout.close()
        p.wait()


class FileDecoder:
    """A decoder of image files, for several threads. processes: decode small files in one process per thread.

    Large files stay in their thread: little of their time is spent in Python code, and threads take turns with the
    largest images, which saves memory. Processes do not.
    """

    def __init__(self, how: Decoding, invert: bool, processes: bool) -> None:
        self._how, self._invert, self._processes = how, invert, processes
        self._mine = threading.local()
        self._all: list[DecodeProcess] = []

    def decode(self, files: Sequence[Path]) -> list[np.ndarray | BadImage]:
        """Return each image, or the BadImage that says why not. Raise CnnlabError if a process has ended."""
        process = self._process() if self._processes and all(map(_is_small, files)) else None
        return (process.decode_all if process else decode_all)(files, self._how, self._invert)

    def _process(self) -> DecodeProcess | None:
        """Return this thread's process; None if it cannot be started."""
        if not hasattr(self._mine, "process"):
            self._mine.process = None
            with suppress(OSError):
                self._mine.process = DecodeProcess()
                self._all.append(self._mine.process)
        found: DecodeProcess | None = self._mine.process
        return found

    def close(self) -> None:
        """End the processes. No thread may be decoding."""
        for process in self._all:
            process.close()


def _is_small(file: Path) -> bool:
    try:
        return file.stat().st_size < _SMALL
    except OSError:
        return False


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Decode until the source ends. Answer each line of JSON with a line of shapes and errors, then the pixels."""
    with bombs_refused():
        while line := source.readline():
            task: dict[str, Any] = json.loads(line)
            found = decode_all([Path(file) for file in task["files"]], Decoding(**task["how"]), task["invert"])
            answers = [str(image) if isinstance(image, BadImage) else image.shape for image in found]
            sink.write(json.dumps(answers).encode() + b"\n")
            for image in found:
                if isinstance(image, np.ndarray):
                    sink.write(np.ascontiguousarray(image).data)
            sink.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt), answer_stream() as sink:
        serve(sys.stdin.buffer, sink)
