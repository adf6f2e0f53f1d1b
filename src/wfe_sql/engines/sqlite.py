"""Units of work on SQLite: one writer that commits what waits together, and readers beside it.

Each connection lives on the worker thread of an aiosqlite connection. A unit crosses to it once, whole, and while it is
there others queue up; they cross together next. Writes that cross together share one commit, each in a savepoint of
its own. SQLite allows one writer at a time in any case (https://sqlite.org/wal.html), so nothing is lost by that.
"""

import asyncio
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiosqlite
from aiosql.adapters.sqlite3 import SQLite3Adapter

from wfe_sql.engines import Results, Statement, UniqueViolationError, Unit
from wfe_sql.errors import (
    ProviderClosedError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from wfe_sql.queries import QuerySet
from wfe_sql.urls import SqliteTarget

Durability = Literal["full", "normal"]
Outcome = Results | Exception

_T = TypeVar("_T")

_MAX_BATCH = 512
"""Units that share a commit; more would make the first of them wait for the last."""


class InTransactionAdapter(SQLite3Adapter):
    """aiosql's adapter for sqlite3, with rows as a list, and scripts that stay inside the open transaction."""

    def __init__(self) -> None:
        """Take no options."""
        super().__init__()  # type: ignore[no-untyped-call]

    def select(self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None) -> Any:
        """Return all rows at once: the generator of aiosql's adapter runs nothing until it is exhausted."""
        return conn.execute(sql, parameters).fetchall()

    def execute_script(self, conn: Any, sql: str) -> str:
        """Run a script statement by statement: `executescript` would commit first."""
        for statement in split_script(sql):
            conn.execute(statement)
        return "DONE"


def split_script(sql: str) -> Iterator[str]:
    """Cut a script into its statements."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""


class _Connection(aiosqlite.Connection):
    """A connection of aiosqlite whose worker thread takes whole functions."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connect, iter_chunk_size=64)
        # A host that dies of an exception without closing the provider must not hang at exit; a thread that is cut
        # off is what a crash would be, and a crash loses nothing that was acknowledged.
        self._thread.daemon = True

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run a function on the worker thread, in one hop."""
        result: _T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result


class _Lane:
    """Connections that share a queue: what waits when one of them is free crosses to its thread together."""

    def __init__(
        self, connections: Sequence[_Connection], run: Callable[[Sequence[Unit], sqlite3.Connection], list[Outcome]]
    ) -> None:
        self.connections = connections
        self._run = run
        self._free = list(connections)
        self._waiting: deque[tuple[Unit, asyncio.Future[Results]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, unit: Unit) -> Results:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Results] = loop.create_future()
        self._waiting.append((unit, future))
        if self._free:
            # The task starts after everything that is ready to run now, so callers that were woken together still
            # share a hop, and a caller that is alone waits for nobody.
            task = loop.create_task(self._drain(self._free.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def finish(self) -> None:
        """Wait until nothing is pending."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _drain(self, connection: _Connection) -> None:
        batch: list[tuple[Unit, asyncio.Future[Results]]] = []
        try:
            while batch := self._take():
                outcomes = await self._cross(connection, [unit for unit, _ in batch])
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if future.done():
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            for _, future in batch:
                future.cancel()
            self._free.append(connection)

    async def _cross(self, connection: _Connection, units: Sequence[Unit]) -> Sequence[Outcome]:
        try:
            return await connection.run(partial(self._run, units))
        except Exception as error:  # whatever it is, those who wait must hear of it
            return [error for _ in units]

    def _take(self) -> list[tuple[Unit, asyncio.Future[Results]]]:
        """Take this connection's share of what waits, leaving out callers that were cancelled meanwhile."""
        while self._waiting:
            share = min(ceil(len(self._waiting) / len(self.connections)), _MAX_BATCH)
            taken = [self._waiting.popleft() for _ in range(share)]
            if batch := [(unit, future) for unit, future in taken if not future.done()]:
                return batch
        return []


class SqliteEngine:
    """Runs units of named queries on one SQLite database; made for and used on one event loop."""

    def __init__(
        self,
        target: SqliteTarget,
        queries: QuerySet,
        *,
        durability: Durability = "full",
        busy_timeout: timedelta = timedelta(seconds=5),
        max_connections: int = 4,
    ) -> None:
        """Set up without connecting; see `SqlitePersistenceProvider` for the options."""
        if durability not in ("full", "normal"):
            raise StoreError(f"durability must be 'full' or 'normal', not {durability!r}")
        if busy_timeout < timedelta(0):
            raise StoreError(f"busy_timeout must not be negative: {busy_timeout}")
        if max_connections < 1:
            raise StoreError(f"max_connections must be at least 1, not {max_connections}")
        self._target = target
        self._queries = queries
        self._durability = durability
        self._busy_timeout = busy_timeout.total_seconds()
        self._max_connections = 1 if target.path is None else max_connections
        self._writers: _Lane | None = None
        self._readers: _Lane | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and make the store where it does not exist."""
        if self._loop is not None:
            raise ProviderClosedError(f"the store {self._target} was opened before; make a new provider")
        self._loop = asyncio.get_running_loop()
        _check_path(self._target)
        connections: list[_Connection] = []
        try:
            if self._target.mode != "ro":
                connections.append(await self._connect(self._prepare_writer))
            while len(connections) < self._max_connections:
                connections.append(await self._connect(self._prepare_reader))
        except BaseException as error:
            for connection in connections:
                await connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._store_error(error) from error
            raise
        if self._target.mode == "ro":
            self._readers = _Lane(connections, self.run_reads)
        else:
            self._writers = _Lane(connections[:1], self.run_writes)
            self._readers = _Lane(connections[1:], self.run_reads) if connections[1:] else self._writers

    async def close(self) -> None:
        """Finish what is pending and disconnect."""
        if self._loop is None or self._readers is None:
            self._loop = self._loop or asyncio.get_running_loop()
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def ensure_store_exists(self) -> None:
        """Make the tables, columns and indexes that are missing."""
        writers = self._open_lane(self._writers)
        try:
            await writers.connections[0].run(self._ensure_store_exists)
        except sqlite3.Error as error:
            raise self._store_error(error) from error

    async def write(self, unit: Unit) -> Results:
        """Run a unit that changes something; it is durable when this returns."""
        return await self._open_lane(self._writers).submit(unit)

    async def read(self, unit: Unit) -> Results:
        """Run a unit that changes nothing, on one snapshot."""
        return await self._open_lane(self._readers).submit(unit)

    def run_writes(self, units: Sequence[Unit], connection: sqlite3.Connection) -> list[Outcome]:
        """Run units in one transaction, each in its own savepoint; called on the writer's thread."""
        run = partial(self._queries.run, connection, params={})
        outcomes: list[Outcome] = []
        try:
            run("begin_write")
            for unit in units:
                outcomes.append(self._run_in_savepoint(unit, connection))
                if not connection.in_transaction:
                    return self._run_one_by_one(units, outcomes, connection)
            run("commit")
        except sqlite3.Error as error:
            if connection.in_transaction:
                run("rollback")
            return [self._store_error(error) for _ in units]
        return outcomes

    def run_reads(self, units: Sequence[Unit], connection: sqlite3.Connection) -> list[Outcome]:
        """Run units on one snapshot; called on a reader's thread."""
        run = partial(self._queries.run, connection, params={})
        try:
            run("begin_read")
            outcomes = [self._try_unit(unit, connection) for unit in units]
            run("commit")
        except sqlite3.Error as error:
            if connection.in_transaction:
                run("rollback")
            return [self._store_error(error) for _ in units]
        return outcomes

    def _run_in_savepoint(self, unit: Unit, connection: sqlite3.Connection) -> Outcome:
        run = partial(self._queries.run, connection, params={})
        run("begin_unit")
        outcome = self._try_unit(unit, connection)
        if not connection.in_transaction:
            return outcome
        if isinstance(outcome, Exception):
            run("rollback_unit")
        run("commit_unit")
        return outcome

    def _run_one_by_one(
        self, units: Sequence[Unit], outcomes: list[Outcome], connection: sqlite3.Connection
    ) -> list[Outcome]:
        """Go on after an error, such as a full disk, for which SQLite rolled back the whole transaction.

        Each unit then has a transaction of its own, so that the guilty one fails alone.
        https://sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction
        """
        if len(units) == 1:
            return outcomes
        return [outcome for unit in units for outcome in self.run_writes([unit], connection)]

    def _try_unit(self, unit: Unit, connection: sqlite3.Connection) -> Outcome:
        try:
            return [self._run_statement(statement, connection) for statement in unit]
        except sqlite3.Error as error:
            return self._store_error(error)
        except Exception as error:  # it belongs to the one who asked for this unit
            return error

    def _run_statement(self, statement: Statement, connection: sqlite3.Connection) -> Any:
        try:
            result = self._queries.run(connection, statement.query, statement.params)
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
                raise
            column = str(error).removeprefix("UNIQUE constraint failed: ")
            raise statement.conflicts.get(column, UniqueViolationError(column)) from error
        except sqlite3.OperationalError as error:
            if not str(error).startswith("Could not decode to UTF-8"):
                raise
            result = self._run_with_undecodable_text(statement, connection)
        if statement.otherwise is not None and not result:
            raise statement.otherwise
        return result

    def _run_with_undecodable_text(self, statement: Statement, connection: sqlite3.Connection) -> Any:
        """Run a query again with bytes where text is not UTF-8, so that the row's reader can say which column it is."""
        connection.text_factory = _text_or_bytes
        try:
            return self._queries.run(connection, statement.query, statement.params)
        finally:
            connection.text_factory = str

    async def _connect(self, prepare: Callable[[sqlite3.Connection], None]) -> _Connection:
        path = self._target.path
        connection = _Connection(
            partial(
                sqlite3.connect,
                ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={self._target.mode}",
                uri=path is not None,
                timeout=self._busy_timeout,
                isolation_level=None,
                cached_statements=len(self._queries),
            )
        )
        await connection
        try:
            await connection.run(prepare)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _prepare_writer(self, connection: sqlite3.Connection) -> None:
        run = partial(self._queries.run, connection, params={})
        if self._target.path is not None:
            mode = self._when_free(partial(run, "use_wal"))
            if mode != "wal":
                raise StoreUnavailableError(f"{self._target} cannot have a write-ahead log; its mode stays {mode}")
        run("use_full_durability" if self._durability == "full" else "use_normal_durability")
        run("enforce_foreign_keys")
        self._ensure_store_exists(connection)

    def _prepare_reader(self, connection: sqlite3.Connection) -> None:
        run = partial(self._queries.run, connection, params={})
        run("enforce_foreign_keys")
        run("refuse_writes")

    def _ensure_store_exists(self, connection: sqlite3.Connection) -> None:
        run = partial(self._queries.run, connection, params={})
        run("begin_write")
        try:
            for table in (
                "create_workflows_table",
                "create_execution_pointers_table",
                "create_definition_sequences_table",
                "create_events_table",
                "create_event_subscriptions_table",
                "create_scheduled_commands_table",
                "create_execution_errors_table",
            ):
                run(table)
            if ("scheduled_commands", "claim_token") not in run("list_columns"):
                run("add_scheduled_commands_claim")
            run("commit")
        except BaseException:
            if connection.in_transaction:
                run("rollback")
            raise

    def _when_free(self, work: Callable[[], _T]) -> _T:
        """Try until the busy timeout: SQLite does not wait by itself for the change to a write-ahead log."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def _open_lane(self, lane: _Lane | None) -> _Lane:
        if self._closing is not None or self._loop is None or self._readers is None:
            what = "is not open; await open() first, or use 'async with'" if self._loop is None else "is closed"
            raise ProviderClosedError(f"the provider of {self._target} {what}")
        if asyncio.get_running_loop() is not self._loop:
            raise StoreError(f"the provider of {self._target} belongs to another event loop; open one for this loop")
        if lane is None:
            raise StoreReadOnlyError(f"{self._target} is open for reading only (mode=ro)")
        return lane

    async def _close(self) -> None:
        lanes = {lane for lane in (self._readers, self._writers) if lane is not None}
        for lane in sorted(lanes, key=lambda lane: lane is self._writers):
            await lane.finish()
            for connection in lane.connections:
                await connection.close()

    def _store_error(self, error: sqlite3.Error) -> StoreError:
        kind, what = _ERRORS.get(_primary_code(error), (StoreError, "cannot be worked with"))
        mapped = kind(f"{self._target} {what}: {error}")
        mapped.__cause__ = error
        return mapped


_ERRORS: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "is busy: another connection held it for longer than the busy timeout"),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "is locked by another statement"),
    sqlite3.SQLITE_CORRUPT: (StoreCorruptError, "is damaged"),
    sqlite3.SQLITE_NOTADB: (StoreCorruptError, "is no SQLite database"),
    sqlite3.SQLITE_FULL: (StoreFullError, "has no room left"),
    sqlite3.SQLITE_READONLY: (StoreReadOnlyError, "may not be written"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailableError, "cannot be opened"),
    sqlite3.SQLITE_PERM: (StoreUnavailableError, "may not be accessed"),
    sqlite3.SQLITE_AUTH: (StoreUnavailableError, "may not be accessed"),
    sqlite3.SQLITE_IOERR: (StoreUnavailableError, "cannot be read or written"),
}
"""SQLite's primary result codes. https://sqlite.org/rescode.html"""


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _check_path(target: SqliteTarget) -> None:
    """Say in plain words what SQLite would only call "unable to open database file"."""
    path = target.path
    if path is None:
        return
    folder = path.absolute().parent
    try:
        if not folder.is_dir():
            raise StoreUnavailableError(f"{path} cannot be opened: the folder {folder} does not exist; make it first")
        if path.is_dir():
            raise StoreUnavailableError(f"{path} cannot be opened: it is a folder; name a file in it")
        if target.mode != "rwc" and not path.exists():
            raise StoreUnavailableError(f"{path} cannot be opened: it does not exist (mode={target.mode})")
    except PermissionError as error:
        raise StoreUnavailableError(f"{path} cannot be opened: this user may not look into {folder}") from error
    if target.mode != "ro" and not _may(folder, os.W_OK | os.X_OK):
        raise StoreUnavailableError(f"{path} cannot be opened: this user may not write in {folder}, where its log lies")
    wanted = os.R_OK if target.mode == "ro" else os.R_OK | os.W_OK
    if path.exists() and not _may(path, wanted):
        verb = "read" if target.mode == "ro" else "read and write"
        raise StoreUnavailableError(f"{path} cannot be opened: this user may not {verb} it")


def _may(path: Path, mode: int) -> bool:
    """Ask without opening: to close a file drops the locks that this process has on it (https://sqlite.org/howtocorrupt.html)."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
