"""Ctrl-C, and the system's own wish that we stop, honoured at a place where nothing is half done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from cnnlab.io.errors import TrainingInterrupted


def ending() -> None:
    """From here on the process only says its last line and ends: another Ctrl-C would print a traceback beside it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class CtrlC:
    """While this holds, a first Ctrl-C only asks: `check` raises KeyboardInterrupt at the next safe place.

    SIGTERM (a batch system, a shutdown) and SIGHUP (a terminal that is closed) ask in the same way. A second signal
    raises at once, wherever the program is. Python's own handler would raise in the middle of a save, or in a weak
    reference's callback, where the exception is printed and lost and the training goes on: docs/log.md. Outside the
    main thread, and where a signal is ignored (nohup) or somebody else's, nothing changes.
    """

    def __init__(self) -> None:
        self._asked = 0  # the signal's number
        self.at_once = False  # has a second one raised, wherever the program was?
        self._before: dict[int, Any] = {}

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
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._asked and isinstance(error, TrainingInterrupted):
            error.code = 128 + self._asked

    def _take(self, number: int) -> None:
        self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal module gives both
        if self._asked:
            self.at_once = True
            raise KeyboardInterrupt
        self._asked = number

    @property
    def asked(self) -> bool:
        """Has somebody asked to stop?"""
        return self._asked != 0

    def check(self) -> None:
        """A safe place: stop here if that was asked for."""
        if self._asked:
            raise KeyboardInterrupt
