"""The storage of a sweep's trials, and the locks with which its workers share them.

Optuna's storages keep trials, but a journal does not notice that a worker has died, and a database notices only when
its heartbeat has been missing for a while. Here a worker holds a lock while it trains a trial: a lock file beside the
journal, or an advisory lock of PostgreSQL. The system releases either when the process ends, however that happens. A
running trial that is not locked has lost its worker, and another worker takes it over.
"""

from __future__ import annotations

import glob
import json
import logging
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from cnnlab.io.errors import CnnlabError, needs_extra, reason

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage

_CREATING = zlib.crc32(b"cnnlab sweep")  # key of the lock held while the database's tables are created
# A host that vanished keeps its locks until the server notices: after half a minute, not after two hours.
_KEEPALIVE = "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"

_AGAIN = "run the same command again when it is back: it continues"


class StorageLost(CnnlabError):
    """The error that the database can no longer be reached. Trials in progress can be continued later."""


class Locks(ABC):
    """One worker's locks, and Optuna's storage. Write only within `claiming`, or to a trial that was taken."""

    storage: BaseStorage

    @abstractmethod
    def claiming(self) -> Any:
        """Return a context manager that only one worker at a time can enter."""

    @abstractmethod
    def take(self, trial: int) -> bool:
        """Lock a trial. Return False if a living worker holds it. Call it within `claiming`."""

    @abstractmethod
    def release(self, trial: int) -> None:
        """Unlock a trial that was taken. Call it within `claiming`."""

    @abstractmethod
    def check(self) -> None:
        """Raise StorageLost if the locks were lost."""

    @abstractmethod
    def close(self) -> None:
        """Unlock everything, and close the storage."""


class JournalLocks(Locks):
    """Lock files beside a journal, for workers on one machine or on a shared file system with file locks.

    Sweeps of several names may share the journal: a trial's lock carries a key of the name.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._lock = path, FileLock(path.with_name(f"{path.name}.lock"))
        self._key = f"{zlib.crc32(name.encode()):08x}"
        self._taken: dict[int, FileLock] = {}
        with self.claiming():
            self.storage = journal(path, self._lock)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Return a context manager that only one worker at a time can enter."""
        try:
            self._lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise CnnlabError(f"cannot lock {self._lock.lock_file}: {reason(error)}") from error
        try:
            yield
        finally:
            self._lock.release()

    def take(self, trial: int) -> bool:
        """Lock a trial. Return False if a living worker holds it."""
        lock = FileLock(self._path.with_name(f"{self._path.name}.{self._key}.{trial}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._taken[trial] = lock
        return True

    def release(self, trial: int) -> None:
        """Unlock a trial that was taken, and remove its file: no other worker opens it within `claiming`."""
        lock = self._taken.pop(trial)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)

    def check(self) -> None:
        """Do nothing: lock files are not lost."""

    def close(self) -> None:
        """Unlock everything, and remove lock files that nobody holds, which killed workers left."""
        with self.claiming():
            for lock in self._taken.values():
                lock.release()
            for file in self._path.parent.glob(f"{glob.escape(self._path.name)}.*.lock"):
                with suppress(Timeout, OSError), FileLock(file, timeout=0):
                    file.unlink()


class DatabaseLocks(Locks):
    """Advisory locks of a PostgreSQL database, held as long as the connection lives."""

    storage: RDBStorage

    def __init__(self, url: str, name: str) -> None:
        with needs_extra("sweep", "psycopg"):
            import psycopg
        self._where = without_password(url)
        self._key = zlib.crc32(name.encode()) - 2**31  # signed, like the server's integers
        try:
            self._connection = psycopg.connect(
                url, autocommit=True, connect_timeout=10, application_name="cnnlab sweep"
            )
            self._connection.execute(_KEEPALIVE)
            self._connection.execute(f"SELECT pg_advisory_lock({_CREATING})")
            try:
                self.storage = _database(url)
                self._connection.execute(f"SELECT pg_advisory_unlock({_CREATING})")
            except BaseException:
                self._connection.close()
                raise
        except psycopg.Error as error:
            raise CnnlabError(f"storage {self._where}: {reason(error, 200)}") from error

    def _call(self, function: str, trial: int = -1) -> bool:
        return self._select(f"{function}({self._key}, {trial + 1})")  # number 0 is the lock of `claiming`

    def _select(self, what: str) -> bool:
        import psycopg

        try:
            row = self._connection.execute(f"SELECT {what}").fetchone()
        except psycopg.Error as error:
            raise StorageLost(f"storage {self._where}: {reason(error, 200)}; {_AGAIN}") from error
        return bool(row and row[0] is True)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Return a context manager that only one worker at a time can enter."""
        self._call("pg_advisory_lock")
        try:
            yield
        finally:
            with suppress(StorageLost):  # its locks are lost with the connection
                self._call("pg_advisory_unlock")

    def take(self, trial: int) -> bool:
        """Lock a trial. Return False if a living worker holds it."""
        return self._call("pg_try_advisory_lock", trial)

    def release(self, trial: int) -> None:
        """Unlock a trial that was taken."""
        self._call("pg_advisory_unlock", trial)

    def check(self) -> None:
        """Raise StorageLost if the connection was lost, and with it the locks: another worker may have the trial."""
        self._select("true")

    def close(self) -> None:
        """Close the connections, which unlocks everything."""
        self.storage.engine.dispose()
        self._connection.close()


def open_locks(storage: Path | str, name: str) -> Locks:
    """Open the storage and the locks of the sweep `name`. Raise CnnlabError if it cannot be reached or written."""
    quiet()
    if isinstance(storage, str):
        return DatabaseLocks(storage, name)
    try:
        return JournalLocks(storage, name)
    except OSError as error:
        raise CnnlabError(f"cannot write {storage}: {reason(error)}") from error


@contextmanager
def reading(storage: Path | str) -> Iterator[BaseStorage | None]:
    """Yield the storage without locking anything; None if it does not exist. Raise CnnlabError."""
    quiet()
    if isinstance(storage, Path):
        yield journal(storage, FileLock(storage.with_name(f"{storage.name}.lock"))) if storage.exists() else None
        return
    database = _database(storage)
    try:
        yield database
    finally:
        database.engine.dispose()


def journal(path: Path, lock: FileLock) -> BaseStorage:
    """Return Optuna's journal in the file `path`. Raise CnnlabError if it is damaged."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    class Journal(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with lock:
                remove_torn_line(path)  # a worker died while writing it; new text would be appended to it
                super().append_logs(logs)

    try:
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():  # Optuna would miss a bad last line
            json.loads(line)["op_code"]
        return JournalStorage(Journal(str(path), lock_obj=lock))  # type: ignore[arg-type]  # acquire, release
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise CnnlabError(f"{path} is damaged, or no journal of Optuna: {reason(error, 100)}; name another") from error


def remove_torn_line(path: Path) -> None:
    """Truncate the file after its last newline."""
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        start = max(0, end - 1)
        file.seek(start)
        if end == 0 or file.read() == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _database(url: str) -> RDBStorage:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return RDBStorage(
            url.replace("postgresql://", "postgresql+psycopg://", 1), engine_kwargs={"pool_pre_ping": True}
        )
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        raise CnnlabError(f"storage {without_password(url)}: {reason(error.__cause__ or error, 200)}") from error
    except ImportError as error:
        raise CnnlabError(f"{error.name or 'psycopg'} is not installed; pip install 'cnnlab[sweep]'") from error


def without_password(url: str) -> str:
    """Return a database's URL without its password."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}"


@contextmanager
def explained_storage_errors(storage: Path | str) -> Iterator[None]:
    """Raise StorageLost, with a message of one line, for the errors of Optuna's storages."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    where = storage if isinstance(storage, Path) else without_password(storage)
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise StorageLost(f"storage {where}: {reason(error.__cause__ or error, 200)}; {_AGAIN}") from error


def quiet() -> None:
    """Silence Optuna's messages, and its warnings about experimental features, which are used on purpose."""
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
