"""A log of one line per request on standard error. A thread writes it, so a slow reader cannot stall the service."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any, TextIO

from cnnlab.io.errors import unknown
from cnnlab.io.text import escape

FORMATS = ("json", "text")
_PLAIN = ("time", "method", "path", "status", "client", "error")
"""Fields that the text format shows without their names."""


class Log:
    """The log of the service. format_: json or text; stream: stderr if None. Raise CnnlabError."""

    def __init__(self, format_: str, stream: TextIO | None = None) -> None:
        if format_ not in FORMATS:
            raise unknown("log format", format_, FORMATS)
        self.format, self._stream = format_, stream or sys.stderr
        self.dropped = 0
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(10_000)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def __call__(self, **entry: Any) -> None:
        """Log an entry, or drop it if 10,000 are already waiting."""
        try:
            self._lines.put_nowait({"time": datetime.now(UTC), **entry})
        except queue.Full:
            self.dropped += 1

    def close(self, seconds: float = 1.0) -> None:
        """Write the waiting lines, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            self._lines.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _write(self) -> None:
        while True:
            entries = [self._lines.get()]
            while not self._lines.empty():
                entries.append(self._lines.get_nowait())
            text = "".join(self._line(entry) for entry in entries if entry is not None)
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # closed
                self.dropped += len(entries)
            if None in entries:
                return

    def _line(self, entry: dict[str, Any]) -> str:
        entry["time"] = entry["time"].isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
        if self.format == "json":
            return json.dumps(entry) + "\n"
        named = {key: "" if key in _PLAIN else f"{key}=" for key in entry}
        return " ".join(f"{named[key]}{escape(str(value))}" for key, value in entry.items()) + "\n"
