"""Copies a whole SQLite database while others write to it; the copy is complete, or it does not exist."""

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
from wfe_sql.engines.sqlite.store import DRIVER_ERRORS, SqliteStore, code_of
from wfe_sql.errors import StoreCorruptError, StoreError, StoreFullError, StoreUnavailableError
from wfe_sql.queries import QuerySet
from wfe_sql.urls import SqliteTarget, check_name

_PAGES = 1_000
"""How many pages are copied before it checks again whether the caller has cancelled."""

_ABOUT_THE_COPY = {
    sqlite3.SQLITE_FULL: StoreFullError,
    sqlite3.SQLITE_READONLY: StoreUnavailableError,
    sqlite3.SQLITE_CANTOPEN: StoreUnavailableError,
    sqlite3.SQLITE_IOERR_WRITE: StoreUnavailableError,
    sqlite3.SQLITE_IOERR_FSYNC: StoreUnavailableError,
}
"""Errors that only the copy can cause; all others are about the store. https://sqlite.org/rescode.html"""


class Backup:
    """Copies the database of one store into new files."""

    def __init__(self, store: SqliteStore, queries: QuerySet) -> None:
        """Take the store to copy, and its queries."""
        self._store = store
        self._queries = queries

    async def backup(self, worker: WorkerConnection, path: Path) -> None:
        """Copy the database of a connection, as of one moment, into a new file.

        The file appears under its name only once it is complete, verified and on disk. It has no write-ahead log, so
        that it can be read from a read-only disk.

        Raises:
            StoreError: The file already exists or cannot have that name, or the database does not have the tables of
                a store.
            StoreCorruptError: The database is damaged.
            StoreFullError: The disk is full.
            StoreUnavailableError: The file cannot be created.
        """
        check_name(path)
        cancelled = threading.Event()
        try:
            await worker.run(partial(self._copy_database, path=path, cancelled=cancelled))
        finally:
            cancelled.set()

    def _copy_database(self, source: sqlite3.Connection, path: Path, cancelled: threading.Event) -> None:
        try:
            with _unfinished(path) as part:
                rows = self._copy(source, part, cancelled)
                self._verify(part, rows)
                _sync(part)
                path.hardlink_to(part)
                _sync(path.parent)
        except FileExistsError as error:
            raise StoreError(f"{path} already exists; name a file that does not") from error
        except OSError as error:
            raise StoreUnavailableError(f"{path} cannot be created: {error.strerror}") from error
        except DRIVER_ERRORS as error:
            kind = _ABOUT_THE_COPY.get(code_of(error))
            raise (kind(f"{path} cannot be created: {error}") if kind else self._store.error(error)) from error

    def _copy(self, source: sqlite3.Connection, part: Path, cancelled: threading.Event) -> dict[str, int]:
        """Copy all pages, and return how many rows each table has; https://sqlite.org/backup.html."""

        def check_cancelled(*progress: int) -> None:
            if cancelled.is_set():
                raise StoreError(f"the backup of {self._store.target} was cancelled")

        run = partial(self._queries.run, params={})
        with closing(sqlite3.connect(part, isolation_level=None)) as copy:
            run(source, "begin_read")
            try:
                rows = self._count_rows(source)
                source.backup(copy, pages=_PAGES, progress=check_cancelled)
            finally:
                run(source, "rollback")
            run(copy, "use_rollback_journal")
        return rows

    def _count_rows(self, connection: sqlite3.Connection) -> dict[str, int]:
        try:
            return dict(self._queries.run(connection, "count_rows", {}))
        except sqlite3.OperationalError as error:
            if code_of(error) != sqlite3.SQLITE_ERROR:
                raise
            raise StoreError(f"{self._store.target} does not have the tables of a store: {error}") from error

    def _verify(self, part: Path, rows: dict[str, int]) -> None:
        """Open the copy read-only, check it, and compare its row counts with the store."""
        store = SqliteStore(SqliteTarget(part.absolute(), "ro"), self._queries, "full", timedelta(0))
        with closing(store.open_reader()) as copy:
            problems = self._queries.run(copy, "check_copy", {})
            copied = self._count_rows(copy)
        if problems:
            raise StoreCorruptError(f"{self._store.target} is damaged and was not backed up: {problems[0][0]}")
        if copied != rows:
            raise StoreError(f"the backup of {self._store.target} has {copied} rows, but the store has {rows}")


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Make a temporary file next to `path`, and remove it at the end.

    It is locked while it is in use. An unlocked one was left by a process that died, and the next backup removes it.
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
                continue  # another backup removed it as stale before it was locked
            try:
                yield Path(name)
            finally:
                _remove(Path(name))
            return


def _remove(part: Path) -> None:
    for suffix in ("-journal", "-wal", "-shm", ""):
        Path(f"{part}{suffix}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
