"""Ctrl-C and signals like it, handled at a place where nothing is half done."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from cnnlab.io.errors import TrainingInterrupted


def ignore_ctrl_c() -> None:
    """Ignore Ctrl-C while the process prints its last line and ends. It would add a traceback."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class CtrlC:
    """A context in which a first Ctrl-C is only noted: `check` raises KeyboardInterrupt at the next safe place.

    SIGTERM (a batch system, a shutdown) and SIGHUP (a closed terminal) are treated alike. A second signal raises
    immediately. A signal that no `check` saw raises TrainingInterrupted at the end of the context, so that nothing else
    is started. Python's own handler would raise in the middle of a save, or in a weak reference's callback, where the
    exception is printed and lost (docs/log.md). Outside the main thread, and for signals that are ignored (nohup) or
    handled by others, nothing changes.
    """

    def __init__(self) -> None:
        self._signal = 0  # the number of the first signal
        self.forced = False  # a second signal has raised, wherever the program was
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread():
            if callable(signal.getsignal(signal.SIGINT)):
                self._take(signal.SIGINT)
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                    self._take(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        if self._signal and error is None:
            error = TrainingInterrupted("interrupted; the current work was finished and saved")
            error.code = 128 + self._signal
            raise error
        if self._signal and isinstance(error, TrainingInterrupted):
            error.code = 128 + self._signal

    def _take(self, number: int) -> None:
        self._handlers[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal module passes both
        if self._signal and "TORCHELASTIC_RUN_ID" in os.environ:
            return  # torchrun repeats the terminal's Ctrl-C, and kills a process that does not end
        if self._signal:
            self.forced = True
            raise KeyboardInterrupt
        self._signal = number

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal != 0

    def request(self) -> None:
        """Act as if a signal had come, because one has come to another process of the training."""
        self._signal = self._signal or signal.SIGINT

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come. Call it where nothing is half done."""
        if self._signal:
            raise KeyboardInterrupt
