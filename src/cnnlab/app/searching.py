"""Searches started from the page. Each is a process, which requests poll but never wait for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnlab.io.errors import CnnlabError, reason

_MOST = 3  # searches whose results are kept
_KINDS = {"exact": ["data", "duplicates", "--exact"], "near": ["data", "duplicates"], "suspects": ["data", "suspects"]}


class Search:
    """A search: a process, and a thread that reads its output."""

    def __init__(self, kind: str, process: subprocess.Popen[bytes]) -> None:
        self.kind, self.process = kind, process
        self.started = time.monotonic()
        self.result: dict[str, Any] | None = None
        self._printed = (b"", b"")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._printed = self.process.communicate()

    def found(self) -> dict[str, Any] | None:
        """Return the command's result, or None while it runs. Raise CnnlabError with its error message."""
        if self.result is None and not self._reader.is_alive():
            output, errors = self._printed
            if self.process.returncode != 0:
                lines = errors.decode("utf-8", "replace").strip().splitlines()
                ended = lines and self.process.returncode > 0  # else it was killed, and the last line is its progress
                raise CnnlabError(lines[-1].removeprefix("error: ") if ended else "the search was stopped")
            self.result = dict(json.loads(output))
        return self.result

    def end(self) -> None:
        """Stop the search if it is still running."""
        self.process.kill()
        self._reader.join()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


class Searches:
    """The searches of a server, by number. Only one runs at a time, since each uses all cores."""

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir
        self._started: dict[int, Search] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, what: str) -> int:
        """Start a search and return its number. Stop any other that is still running. Raise CnnlabError.

        kind: exact, near or suspects; what: a source, or for suspects the folder of a run or series.
        """
        if kind not in _KINDS:
            raise CnnlabError(f"no search {kind[:40]!r}; choose {', '.join(_KINDS)}")
        if not what or what.startswith("-"):
            raise CnnlabError(f"{what[:40]!r} is not a source")
        words = [*_KINDS[kind], what, "--json"]
        if self.data_dir is not None and kind != "suspects":
            words += ["--data-dir", str(self.data_dir)]
        with self._lock:
            self._end_all()
            while len(self._started) >= _MOST:
                self._started.pop(next(iter(self._started)))
            number = max(self._started, default=0) + 1
            self._started[number] = _run(kind, words)
        return number

    def get(self, number: int) -> Search:
        """Return a search. Raise CnnlabError if there is none, for example after a restart of the server."""
        with self._lock:
            if number not in self._started:
                raise CnnlabError("this search is no longer available; start it again")
            return self._started[number]

    def end(self) -> None:
        """Stop the running search: it is of no use without its page."""
        with self._lock:
            self._end_all()

    def _end_all(self) -> None:
        for search in self._started.values():
            search.end()


def _run(kind: str, words: Sequence[str]) -> Search:
    try:
        process = subprocess.Popen(  # noqa: S603 the words are options of our own command
            [sys.executable, "-m", "cnnlab", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise CnnlabError(f"cannot start the search: {reason(error)}") from error
    return Search(kind, process)
