"""A copy of a whole SQLite database, taken while others write to it: it is whole, or it is not there."""

import fcntl
import glob
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from wfe_sql.engines.sqlite.lanes import WorkerConnection
from wfe_sql.engines.sqlite.store import DRIVER_ERRORS, SqliteStore
from wfe_sql.errors import StoreCorruptError, StoreError, StoreFullError, StoreUnavailableError
from wfe_sql.queries import QuerySet
from wfe_sql.urls import SqliteTarget

_PAGES = 1_000
"""Pages that are copied between two looks at whether the caller still wants them."""

_ABOUT_THE_COPY = {
    sqlite3.SQLITE_FULL: StoreFullError,
    sqlite3.SQLITE_READONLY: StoreUnavailableError,
    sqlite3.SQLITE_CANTOPEN: StoreUnavailableError,
    sqlite3.SQLITE_IOERR_WRITE: StoreUnavailableError,
    sqlite3.SQLITE_IOERR_FSYNC: StoreUnavailableError,
}
"""Errors that only what is written can cause; any other is about the store. https://sqlite.org/rescode.html"""


class Backup:
    """Copies the database of one store into new files."""

    def __init__(self, store: SqliteStore, queries: QuerySet) -> None:
        """Take the store that connections are of, and its queries."""
        self._store = store
        self._queries = queries

    async def backup(self, worker: WorkerConnection, path: Path) -> None:
        """Copy the database of a connection, as it is at one moment, into a new file.

        The file appears under its name only when it is whole, compared and on the disk. It has no log, so that it can
        be read where nothing may be written.

        Raises:
            StoreError: The file already exists, or the database does not have the tables of a store.
            StoreCorruptError: The database is damaged.
            StoreFullError: There is no room for the copy.
            StoreUnavailableError: It cannot be made there.
        """
        unwanted = threading.Event()
        try:
            await worker.run(partial(self._copy_database, path=path, unwanted=unwanted))
        finally:
            unwanted.set()

    def _copy_database(self, source: sqlite3.Connection, path: Path, unwanted: threading.Event) -> None:
        try:
            with _unfinished(path) as part:
                rows = self._copy(source, part, unwanted)
                self._verify(part, rows)
                _sync(part)
                path.hardlink_to(part)
                _sync(path.parent)
        except FileExistsError as error:
            raise StoreError(f"{path} already exists; name a file that does not") from error
        except OSError as error:
            raise StoreUnavailableError(f"{path} cannot be made: {error.strerror}") from error
        except DRIVER_ERRORS as error:
            kind = _ABOUT_THE_COPY.get(getattr(error, "sqlite_errorcode", 0))
            raise (kind(f"{path} cannot be made: {error}") if kind else self._store.error(error)) from error

    def _copy(self, source: sqlite3.Connection, part: Path, unwanted: threading.Event) -> dict[str, int]:
        """Copy all pages, and return how many rows each table has; https://sqlite.org/backup.html."""

        def stop_if_unwanted(*progress: int) -> None:
            if unwanted.is_set():
                raise StoreError(f"the backup of {self._store.target} was cancelled")

        run = partial(self._queries.run, params={})
        with closing(sqlite3.connect(part, isolation_level=None)) as copy:
            run(source, "begin_read")
            try:
                rows = self._count_rows(source)
                source.backup(copy, pages=_PAGES, progress=stop_if_unwanted)
            finally:
                run(source, "rollback")
            run(copy, "use_rollback_journal")
        return rows

    def _count_rows(self, connection: sqlite3.Connection) -> dict[str, int]:
        try:
            return dict(self._queries.run(connection, "count_rows", {}))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            raise StoreError(f"{self._store.target} does not have the tables of a store: {error}") from error

    def _verify(self, part: Path, rows: dict[str, int]) -> None:
        """Open the copy as a store that is only read, and compare it with what was copied."""
        store = SqliteStore(SqliteTarget(part.absolute(), "ro"), self._queries, "full", timedelta(0))
        with closing(store.open_reader()) as copy:
            problems = self._queries.run(copy, "check_copy", {})
            copied = self._count_rows(copy)
        if problems:
            raise StoreCorruptError(f"{self._store.target} is damaged, and was not backed up: {problems[0][0]}")
        if copied != rows:
            raise StoreError(f"the backup of {self._store.target} has {copied}, and the store has {rows}")


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Make a file beside another, to write that one into; at the end it is gone.

    As long as it is worked on it is locked. One that is not locked is of a process that died: the next one removes it.
    """
    for stale in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        with suppress(OSError), stale.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(stale)
    while True:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(number, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.fstat(number).st_nlink:
                continue  # somebody else took it for stale before it was locked
            try:
                yield Path(name)
            finally:
                _remove(Path(name))
            return


def _remove(part: Path) -> None:
    for suffix in ("-journal", "-wal", "-shm", ""):
        Path(f"{part}{suffix}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file, or what a folder says of its files, on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
