"""Units of work on somebody else's connection to the store's file.

No unit deletes a workflow, the only case that foreign keys check, so it does not matter whether they are enforced.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wfe_sql.engines import Results, Script, Unit
from wfe_sql.engines.joining import NO_TRANSACTION, OTHER_DATABASE, play, run_at_once, unusable
from wfe_sql.engines.queues import Outcome
from wfe_sql.engines.sqlite.store import DRIVER_ERRORS, SqliteStore
from wfe_sql.errors import StoreBusyError
from wfe_sql.queries import QuerySet

SYNC_DRIVERS = ("sqlite3.Connection",)
ASYNC_DRIVERS = ("aiosqlite.Connection",)


class SqliteJoined:
    """Somebody else's connection, for the duration of one unit; used on the connection's own thread."""

    def __init__(
        self,
        store: SqliteStore,
        queries: QuerySet,
        try_unit: Callable[[Unit, sqlite3.Connection], Outcome],
        connection: sqlite3.Connection,
    ) -> None:
        self._store = store
        self._queries = queries
        self._try_unit = try_unit
        self._connection = connection
        self._has_begun = False

    async def begin_unit(self) -> None:
        """Check that it is a connection to the store's file, in a transaction or one that the driver would begin."""
        try:
            is_in_transaction = self._connection.in_transaction
        except sqlite3.ProgrammingError as error:
            raise unusable(self._store.target, str(error)) from error
        if not self._is_of_this_file(self._run("get_file")):
            raise unusable(self._store.target, OTHER_DATABASE)
        if not is_in_transaction:
            if _commits_by_itself(self._connection):
                raise unusable(self._store.target, NO_TRANSACTION)
            self._run("begin_write")
            self._has_begun = True
        self._run("begin_unit")

    async def run(self, unit: Unit) -> Results:
        """Run statements."""
        outcome = self._try_unit(unit, self._connection)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def rollback_unit(self) -> None:
        """Undo what the unit did; after some errors, such as a full disk, the transaction is already gone."""
        if self._connection.in_transaction:
            self._run("rollback_unit")

    async def commit_unit(self) -> None:
        """Keep what the unit did in the transaction."""
        self._run("commit_unit")

    async def abandon_unit(self) -> None:
        """Undo the unit, and the transaction if it began one, which would keep the write lock."""
        if not self._connection.in_transaction:
            return
        if self._has_begun:
            self._run("rollback")
            return
        self._run("rollback_unit")
        self._run("commit_unit")

    def _run(self, query: str) -> Any:
        try:
            return self._queries.run(self._connection, query, {})
        except DRIVER_ERRORS as error:
            raise self._store.error(error) from error

    def _is_of_this_file(self, path: str) -> bool:
        file = self._store.file
        found = Path(path)
        return file is not None and found.exists() and found.samefile(file.path)


def play_on(joined: SqliteJoined, connection: sqlite3.Connection, script: Script) -> None:
    """Run a script on the connection, with plain tuples and str, whatever factories the caller has set."""
    with _rows_as_they_come(connection):
        try:
            run_at_once(play(joined, script))
        except StoreBusyError as error:
            error.timeout = None  # the caller's connection waited, as long as its own timeout says
            raise


def _commits_by_itself(connection: sqlite3.Connection) -> bool:
    """Tell whether each statement is its own transaction, because the driver begins none.

    https://docs.python.org/3/library/sqlite3.html#transaction-control
    """
    return connection.isolation_level is None or getattr(connection, "autocommit", None) is True


@contextmanager
def _rows_as_they_come(connection: sqlite3.Connection) -> Iterator[None]:
    row_factory, text_factory = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, str
    try:
        yield
    finally:
        connection.row_factory, connection.text_factory = row_factory, text_factory
