"""Ctrl-C, honoured at a place where nothing is half done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class CtrlC:
    """While this holds, a first Ctrl-C only asks: `check` raises KeyboardInterrupt at the next safe place.

    A second one raises at once, wherever the program is. Python's own handler would raise in the middle of a save, or
    in a weak reference's callback, where the exception is printed and lost and the training goes on: docs/log.md.
    Outside the main thread, and where the signal is ignored (nohup), nothing changes.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal module gives both
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def check(self) -> None:
        """A safe place: stop here if that was asked for."""
        if self._asked:
            raise KeyboardInterrupt
