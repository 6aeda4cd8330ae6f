"""A file of lines that takes long to write: the lines go into NAME.part, and a new process continues after the last.

    NAME.part        the lines so far; a process that was killed may leave part of a line, which is cut off
    NAME.part.json   what the lines depend on, so that they are never continued with other settings
    NAME.part.lock   held while a process writes; the system releases it
    NAME.part.new    the complete file, just before it is renamed to NAME

NAME appears when it is complete, and replaces nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from filelock import FileLock, Timeout

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import check_new, read_checked, sync_folder, write_checked
from cnnlab.io.text import truncate


class PartFile:
    """A writer of the new file `path`, which continues where another process stopped. Use it as a context manager.

    key: plain values that the lines depend on. complete: an earlier process had done all but the last step. Raise
    CnnlabError if `path` exists, if its part belongs to another key, or if another process writes it. `key` must not
    have the name `finished`, which marks that all lines are written.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self.key = path, dict(key)
        self.part = path.with_name(f"{path.name}.part")
        self.state = path.with_name(f"{path.name}.part.json")
        self.new = path.with_name(f"{path.name}.part.new")
        self._lock = FileLock(path.with_name(f"{path.name}.part.lock"))
        self._file: IO[bytes] | None = None
        self.complete = False

    def __enter__(self) -> Self:
        try:
            # Before the lock, which would wait where no file can be created.
            Path(self._lock.lock_file).touch()
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CnnlabError(
                f"another process is writing {self.path}; wait for its end, or name another file"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise CnnlabError(f"cannot write {self.path}: {reason(error)}; name another file") from error
        try:
            self._open()
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                raise self._not_written(error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, which `write` has reported
                self._file.close()
        self._release()

    def _open(self) -> None:
        if self.state.exists():
            finished = self._check_key()
            # An earlier process was killed in the last steps of `finish`.
            if finished and not self.part.exists() and (self.new.exists() or self.path.exists()):
                self.complete = True
                self._publish()
                return
        check_new(self.path)
        if not self.state.exists():
            if self.part.exists() and self.part.stat().st_size:
                raise CnnlabError(f"{self.part} exists, without {self.state.name}; name another file, or remove it")
            write_checked(self.state, self.key)
        self.part.touch()
        self._file = self.part.open("r+b")

    def _check_key(self) -> bool:
        """Return whether all lines had been written. Raise CnnlabError if the part belongs to another key."""
        before = read_checked(self.state)
        finished = bool(before.pop("finished", False))
        for name in {**self.key, **before}:
            one, other = before.get(name), self.key.get(name)
            if one != other:
                raise CnnlabError(
                    f"{self.part} belongs to another command ({name}: {truncate(str(one), 50)}, "
                    f"now {truncate(str(other), 50)}); name another file, or remove {self.part} and {self.state}"
                )
        return finished

    def resume(self, starts: Iterable[bytes], on_line: Callable[[bytes], object] = len) -> int:
        """Cut off an incomplete last line; return the number of lines that stay.

        starts: how each line must begin; on_line: called with each line. Raise CnnlabError for a line that begins
        otherwise.
        """
        assert self._file is not None
        size = count = 0
        expected = iter(starts)
        with self.part.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if not line.startswith(next(expected, b"\n\n")):
                    raise CnnlabError(f"{self.part} is damaged in line {count + 1:,}; remove it and {self.state}")
                on_line(line)
                size, count = size + len(line), count + 1
        self._file.truncate(size)
        self._file.seek(size)
        return count

    def write(self, lines: bytes) -> None:
        """Append whole lines. Raise CnnlabError if that fails; the same command, run again, continues."""
        assert self._file is not None
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            raise self._not_written(error) from error

    def finish(self, convert: Callable[[Path, Path], None] | None = None) -> None:
        """Give the file its name. convert(lines, new): writes `new` from the file of lines. Raise CnnlabError."""
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            write_checked(self.state, {**self.key, "finished": True})
            if convert is None:
                os.replace(self.part, self.new)  # noqa: PTH105 - through `os`, where the tests put faults
            else:
                convert(self.part, self.new)
                self.part.unlink()
            self._publish()
        except OSError as error:
            raise self._not_written(error) from error

    def _publish(self) -> None:
        """Rename `new` to `path`, but not over a file that has appeared meanwhile."""
        if self.new.exists() and not (self.path.exists() and self.path.samefile(self.new)):
            try:
                os.link(self.new, self.path)
            except FileExistsError:
                check_new(self.path)
                raise
            except OSError:  # a file system without hard links
                check_new(self.path)
                os.rename(self.new, self.path)  # noqa: PTH104
            sync_folder(self.path.parent)
        self.new.unlink(missing_ok=True)
        self.state.unlink()

    def _release(self) -> None:
        if not self.state.exists():  # nothing is left to continue
            with suppress(OSError):  # Windows cannot delete an open file
                Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _not_written(self, error: OSError) -> CnnlabError:
        return CnnlabError(
            f"cannot write {self.path}: {reason(error)}; make room or correct the path, then run the same command "
            "again: it continues"
        )
