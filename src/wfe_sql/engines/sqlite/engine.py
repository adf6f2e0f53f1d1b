"""Units of work on SQLite: one writer that commits what waits together, and readers beside it, one on the event loop.

Writes that cross to the writer's thread together share one commit; if one of them fails half way, they run again, each
in a savepoint. SQLite allows only one writer at a time anyway (https://sqlite.org/wal.html), so this loses nothing.
"""

import asyncio
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from wfe_sql.damaged import UNPARSED
from wfe_sql.engines import Home, Read, Results, Script, Statement, UniqueViolationError, Unit, check_usable, not_open
from wfe_sql.engines.alarms import Alarm, NoAlarm, Ring, WakesOn, ring
from wfe_sql.engines.joining import Entrance, unusable
from wfe_sql.engines.queues import Job, Outcome
from wfe_sql.engines.reporting import Reporter
from wfe_sql.engines.sqlite.alarm import SqliteAlarm
from wfe_sql.engines.sqlite.backup import Backup
from wfe_sql.engines.sqlite.brief_reads import BriefReader
from wfe_sql.engines.sqlite.files import check_path
from wfe_sql.engines.sqlite.joining import ASYNC_DRIVERS, SYNC_DRIVERS, SqliteJoined, play_on
from wfe_sql.engines.sqlite.lanes import Lane, WorkerConnection
from wfe_sql.engines.sqlite.store import DRIVER_ERRORS, SqliteStore, code_of, is_busy, is_undecodable, pause
from wfe_sql.errors import ProviderClosedError, StoreBusyError, StoreError, StoreReadOnlyError, WfeError
from wfe_sql.models import new_id
from wfe_sql.queries import QuerySet

_log = logging.getLogger("wfe_sql")

_WITH_A_BRIEF_READER = 3
"""The fewest connections with which one is set aside for brief reads (one writes, one serves long reads)."""

_FEW_CALLS = 4
"""Above this many concurrent calls, sharing a thread hop is cheaper than a brief read."""

_WRITES_TOGETHER = 512
_READS_TOGETHER = 64

_LONGEST_WRITES, _LONGEST_READS = 0.01, 0.002
"""Seconds after which a transaction accepts no more units, so that a caller does not wait for the whole queue."""

_FEW_PAGES = 1_000
"""Pages of the log that are normal even without a reader: SQLite copies them into the file only above this many."""


class SqliteEngine:
    """Runs units of named queries on one SQLite database, on one event loop."""

    has_times_as_text = True

    def __init__(self, store: SqliteStore, queries: QuerySet, reporter: Reporter, *, max_connections: int) -> None:
        """Set up without connecting; see `SqlitePersistenceProvider` for the options."""
        if max_connections < 1:
            raise StoreError(f"max_connections must be at least 1, not {max_connections}")
        self._store = store
        self._target = store.target
        self._queries = queries
        self._reporter = reporter
        self._max_connections = 1 if store.target.path is None else max_connections
        self._writers: Lane | None = None
        self._readers: Lane | None = None
        self._brief_reader: BriefReader | None = None
        self._alarm: SqliteAlarm | None = None
        self._home: Home | None = None
        self._closing: asyncio.Task[None] | None = None
        self._had_log = True
        self._calls = 0
        self.commits = 0
        self._store_id = f":memory: {new_id()}" if store.target.path is None else os.path.realpath(store.target.path)

    @property
    def store_id(self) -> str:
        """The identity of the store: the real path of its file."""
        return self._store_id

    @property
    def queries(self) -> QuerySet:
        """The named queries that it runs."""
        return self._queries

    async def open(self) -> None:
        """Connect, and create the store if it does not exist."""
        if self._home is not None:
            raise ProviderClosedError(f"the store {self._target} was already opened; create a new provider")
        self._home = Home.here(self._target)
        check_path(self._target)
        read_only = self._target.mode == "ro"
        self._had_log = not read_only or self._store.has_log()
        connections: list[WorkerConnection] = []
        try:
            for open_connection in self._openers(read_only=read_only):
                connection = await self._connect(open_connection)
                connections.append(connection)
        except BaseException:
            await self._disconnect(reversed(connections))
            raise
        if len(connections) >= _WITH_A_BRIEF_READER:
            self._brief_reader = BriefReader(connections.pop(), self.run_reads)
        if read_only:
            self._readers = Lane(connections, self.run_reads_when_free, _READS_TOGETHER, self._reporter)
        else:
            self._writers = Lane(connections[:1], self.run_writes, _WRITES_TOGETHER, self._reporter)
            self._readers = self._writers
            if connections[1:]:
                self._readers = Lane(connections[1:], self.run_reads_when_free, _READS_TOGETHER, self._reporter)
        _log.info("opened %s", self._target)

    def _openers(self, *, read_only: bool) -> list[Callable[[], sqlite3.Connection]]:
        """Return the functions that open the connections: the writer, then the readers."""
        open_reader = partial(self._store.open_reader, in_pool=True)
        return [open_reader if read_only else self._store.open_writer, *[open_reader] * (self._max_connections - 1)]

    async def close(self) -> None:
        """Finish what is pending and disconnect."""
        if self._home is None or self._readers is None:
            self._home = self._home or Home.here(self._target)
            return
        check_usable(self._target, self._home, is_open=True)
        if self._closing is None:
            self._closing = self._home.loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def ensure_store_exists(self) -> None:
        """Make the tables, columns and indexes that are missing."""
        writers = self._open_lane(self._writers)
        try:
            self._store.check_in_place()
            await writers.connections[0].run(partial(self._store.ensure_store_exists, asked_at=time.monotonic()))
        except DRIVER_ERRORS as error:
            raise self._store.error(error) from error

    async def write(self, unit: Unit) -> Results:
        """Run a unit that changes something; it is durable when this returns."""
        writers = self._open_lane(self._writers)
        self._reporter.begin(unit, writes=True)
        self._calls += 1
        try:
            return await writers.submit(unit)
        finally:
            self._calls -= 1

    def submit(self, unit: Unit) -> "asyncio.Future[Results]":
        """Run a unit that changes something, even if the caller is cancelled."""
        writers = self._open_lane(self._writers)
        self._reporter.begin(unit, writes=True)
        return writers.submit(unit)

    async def read(self, unit: Unit) -> Results:
        """Run a unit that changes nothing, on one snapshot; an application's query that writes is refused."""
        readers = self._open_lane(self._readers)
        if readers is self._writers and unit[0].query in self._queries.application:
            async with self.snapshot() as read:
                return await read(unit)
        self._reporter.begin(unit, writes=False)
        self._calls += 1
        try:
            brief_reader = self._brief_reader if self._calls <= _FEW_CALLS else None
            outcome = None if brief_reader is None else brief_reader.read(unit)
            if brief_reader is None or outcome is None:
                return await readers.submit(unit)
            began = brief_reader.started_at
            self._reporter.ended([(unit, began)], [outcome], began, together=1)
            await asyncio.sleep(0)  # a caller that only reads must let others run too
        finally:
            self._calls -= 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def may_find(self, look: Statement) -> bool:
        """Look with a reader first, because a write that finds nothing would still take the only write lock."""
        self._open_lane(self._writers)
        (found,) = await self.read([look])
        return bool(found)

    async def run_in(self, connection: object, script: Script) -> None:
        """Run a script as one unit in somebody else's transaction, on an asynchronous connection."""
        found = await self._entrance().find_async(connection)
        try:
            with self._reporter.watch_script(script) as watched:
                await found._execute(lambda: self._play(found._conn, watched))
        except ValueError as error:  # aiosqlite raises it if the connection is closed
            if isinstance(error, WfeError):
                raise
            raise unusable(self._target, str(error)) from error

    def run_in_sync(self, connection: object, script: Script) -> None:
        """Run a script as one unit in somebody else's transaction, on a synchronous connection."""
        found = self._entrance().find(connection)
        with self._reporter.watch_script(script) as watched:
            self._play(found, watched)

    def _entrance(self) -> Entrance:
        if not self.is_open:
            raise not_open(self._target, self._home)
        if self._target.mode == "ro":
            raise StoreReadOnlyError(f"{self._target} is open for reading only (mode=ro)")
        if self._target.path is None:
            raise StoreError(f"{self._target} is in memory, where no other connection can reach it; use a file")
        return Entrance(self._target, SYNC_DRIVERS, ASYNC_DRIVERS, self._queries["get_file"].sql)

    def _play(self, connection: sqlite3.Connection, script: Script) -> None:
        play_on(SqliteJoined(self._store, self._queries, self._try_unit, connection), connection, script)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Read]:
        """Run all reads of the block on one snapshot, on a separate connection."""
        async with self._connection_aside() as connection:

            async def read(unit: Unit) -> Results:
                outcome = await connection.run(partial(self._try_unit, unit))
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome

            await read([Statement("begin_read", {})])
            yield self._reporter.watch_read(read)

    async def backup(self, path: Path) -> None:
        """Copy the whole database, as of one moment, into a new file."""
        async with self._connection_aside() as connection:
            await Backup(self._store, self._queries).backup(connection, path)

    @property
    def wakes_on(self) -> WakesOn:
        """Whose commits an alarm rings on; in memory there is nobody else."""
        return "process" if self._target.path is None else "store"

    async def open_alarm(self, ring: Ring, poll_interval: float) -> Alarm:
        """Return an alarm that rings when the file was changed, on its own connection."""
        self.check_open()
        if self._target.path is None:
            return NoAlarm()
        connection = await self._connect(partial(self._store.open_reader, in_pool=True))
        self._alarm = SqliteAlarm(connection, self._store, self._queries, ring)
        return self._alarm

    @property
    def log_size(self) -> int | None:
        """The size of the write-ahead log in bytes; None if there is none, as in memory."""
        return None if self._store.file is None else self._store.file.log_size

    async def is_log_held(self) -> bool | None:
        """Copy the log into the file, and tell whether a reader prevents much of that.

        None if it is unknown, because the store is open read-only.
        """
        if self._target.mode == "ro":
            return None
        async with self._connection_aside() as connection:
            outcome = await connection.run(partial(self._try_unit, [Statement("copy_log", {})]))
        if isinstance(outcome, Exception):
            raise outcome
        _, pages, copied = outcome[0]
        return bool(pages - copied > _FEW_PAGES)

    @asynccontextmanager
    async def _connection_aside(self) -> AsyncIterator[WorkerConnection]:
        """Open a separate connection, so that long work blocks nobody; in memory, to a copy of the database."""
        readers = self._open_lane(self._readers)
        self._store.check_in_place()
        connection = await self._connect(partial(self._store.open_reader, in_pool=self._target.path is None))
        try:
            if self._target.path is None:
                await readers.connections[0].run(lambda raw: raw.backup(connection.raw))
            yield connection
        finally:
            await connection.close()

    def run_writes(self, jobs: Sequence[Job], connection: sqlite3.Connection) -> list[Outcome]:
        """Run units in one transaction, as many as there is time for; called on a thread.

        Units rarely fail, so they have no savepoints. If one fails half way, all are rolled back and run again, each in
        its own savepoint.
        """
        try:
            return self._run_in_transaction(jobs, self._run_whole, connection)
        except _HalfDoneError:
            _log.debug("%d units run again, each in a savepoint: one of them failed half done", len(jobs))
            return self._run_in_transaction(jobs, self._run_in_savepoint, connection)

    def _run_in_transaction(
        self,
        jobs: Sequence[Job],
        run_unit: Callable[[Unit, sqlite3.Connection], Outcome],
        connection: sqlite3.Connection,
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        file = self._store.file
        changes = connection.total_changes
        try:
            if file is not None:
                file.check_before_write()
            self._store.begin_write(connection, jobs[0][1])
            changes = connection.total_changes
            deadline = time.monotonic() + _LONGEST_WRITES
            for unit, _ in jobs:
                if outcomes and time.monotonic() > deadline:
                    break
                outcomes.append(run_unit(unit, connection))
                if not connection.in_transaction:
                    return self._run_one_by_one(jobs, outcomes, connection)
            self._queries.run(connection, "commit", {})
            self.commits += connection.total_changes > changes  # reads run here too, if there is only one connection
            if file is not None:  # what is acknowledged must be in the file at the path
                file.check_in_place()
                file.warn_of_long_log()
            if connection.total_changes != changes:
                ring(self._store_id)
        except _HalfDoneError:
            self._queries.run(connection, "rollback", {})
            raise
        except StoreError as error:
            return [error for _ in outcomes or jobs]
        except DRIVER_ERRORS as error:
            if connection.in_transaction:
                self._queries.run(connection, "rollback", {})
            failed = outcomes or (self._timed_out(jobs) if is_busy(error) else jobs)
            return [self._store.error(error) for _ in failed]
        return outcomes

    def run_reads_when_free(self, jobs: Sequence[Job], connection: sqlite3.Connection) -> list[Outcome]:
        """Run units on one snapshot, as soon as no other connection holds the file; called on a thread."""
        while True:
            outcomes = self.run_reads(jobs, connection)
            if not isinstance(outcomes[0], StoreBusyError):
                return outcomes
            if timed_out := self._timed_out(jobs):
                return outcomes[: len(timed_out)]
            pause()

    def run_reads(self, jobs: Sequence[Job], connection: sqlite3.Connection) -> list[Outcome]:
        """Run units on one snapshot, as many as there is time for."""
        outcomes: list[Outcome] = []
        try:
            self._queries.run(connection, "begin_read", {})
            deadline = time.monotonic() + _LONGEST_READS
            for unit, _ in jobs:
                if outcomes and time.monotonic() > deadline:
                    break
                outcomes.append(self._try_unit(unit, connection))
            self._queries.run(connection, "commit", {})
            self._store.check_in_place()
        except StoreError as error:
            return [error for _ in outcomes]
        except DRIVER_ERRORS as error:
            if connection.in_transaction:
                self._queries.run(connection, "rollback", {})
            return [self._store.error(error) for _ in outcomes or jobs]
        return outcomes

    def _timed_out(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that have waited for the busy timeout: the first ones, because the oldest come first."""
        now = time.monotonic()
        return [job for job in jobs if now >= job[1] + self._store.busy_timeout]

    def _run_whole(self, unit: Unit, connection: sqlite3.Connection) -> Outcome:
        """Run a unit without a savepoint; raise `_HalfDoneError` if it fails and may have changed something."""
        results: Results = []
        try:
            for statement in unit:
                results.append(self._run_statement(statement, connection))
        except Exception as error:
            # SQLite itself undoes what one statement did: https://sqlite.org/lang_conflict.html (ABORT)
            nothing_changed = not results and isinstance(statement.params, Mapping)
            if connection.in_transaction and not nothing_changed:
                raise _HalfDoneError from error
            return self._meaning(error, statement)
        return results

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
        self, jobs: Sequence[Job], outcomes: list[Outcome], connection: sqlite3.Connection
    ) -> list[Outcome]:
        """Recover from an error, such as a full disk, for which SQLite rolled back the whole transaction.

        Each unit gets its own transaction, so that only the guilty one fails.
        https://sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction
        """
        if len(jobs) == 1:
            return outcomes
        return [outcome for job in jobs for outcome in self.run_writes([job], connection)]

    def _try_unit(self, unit: Unit, connection: sqlite3.Connection) -> Outcome:
        results: Results = []
        for statement in unit:
            try:
                results.append(self._run_statement(statement, connection))
            except Exception as error:  # it belongs to the caller of this unit
                return self._meaning(error, statement)
        return results

    def _meaning(self, error: Exception, statement: Statement) -> Exception:
        """Return what an error of a statement means for its unit."""
        meaning = self._store.error(error) if isinstance(error, DRIVER_ERRORS) else error
        statement.name_in(meaning)
        return meaning

    def _run_statement(self, statement: Statement, connection: sqlite3.Connection) -> Any:
        try:
            result = self._queries.run(connection, statement.query, statement.params)
        except sqlite3.IntegrityError as error:
            if code_of(error) not in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
                raise
            column = str(error).removeprefix("UNIQUE constraint failed: ")
            raise statement.conflicts.get(column, partial(UniqueViolationError, column))() from error
        except sqlite3.OperationalError as error:
            if is_undecodable(error):
                result = self._run_with_undecodable_text(statement, connection)
            elif str(error) in ("malformed JSON", "JSON cannot hold BLOB values"):
                result = self._run_with_unreadable_columns(statement, connection)
            else:
                raise
        if (failure := statement.failure(result)) is not None:
            raise failure
        return result

    def _run_with_undecodable_text(self, statement: Statement, connection: sqlite3.Connection) -> Any:
        """Run a query again, with documents that are not UTF-8 as bytes, so that the reader can name the column."""
        connection.text_factory = _text_or_bytes
        try:
            return self._queries.run(connection, statement.query, statement.params)
        finally:
            connection.text_factory = str

    def _run_with_unreadable_columns(self, statement: Statement, connection: sqlite3.Connection) -> Any:
        """Run a query again with documents that can hold any value, so that the reader can name the column."""
        connection.create_function("careful_json", 1, _unparsed_json)
        connection.create_function("careful_json_object", -1, _careful_json_object)
        query = self._queries[statement.query]
        sql = query.sql
        for view, definition in self._views.items():
            sql = re.sub(rf"\b(FROM|JOIN) {view}\b", rf"\1 ({definition})", sql)
        rows = connection.execute(_JSON_FUNCTION.sub(r"careful_\g<0>", sql), statement.params).fetchall()
        return rows[0] if query.operation == "^" else rows

    @cached_property
    def _views(self) -> dict[str, str]:
        """The SELECT of each view, by name."""
        return {view: text for query in self._queries.values() for view, text in _VIEW.findall(query.sql)}

    async def _connect(self, connect: Callable[[], sqlite3.Connection]) -> WorkerConnection:
        try:
            connection = WorkerConnection(connect)
            await connection.open()
        except DRIVER_ERRORS as error:
            raise self._store.error(error) from error
        return connection

    def check_open(self) -> None:
        """Check that calls can be made now."""
        check_usable(self._target, self._home, is_open=self.is_open)

    def _open_lane(self, lane: Lane | None) -> Lane:
        self.check_open()
        if lane is None:
            raise StoreReadOnlyError(f"{self._target} is open for reading only (mode=ro)")
        return lane

    @property
    def is_open(self) -> bool:
        """Whether it is open, and nobody has begun to close it."""
        return self._readers is not None and self._closing is None

    def abandon(self) -> None:
        """Close the connections without the event loop, which may be closed; in a fork, leave them alone."""
        if self._home is not None and self._home.process == os.getpid():
            for connection in self._connections():
                connection.abandon()

    async def _close(self) -> None:
        for lane in filter(None, (self._readers, self._writers)):
            await lane.finish()
        await self._disconnect(self._connections())

    def _connections(self) -> list[WorkerConnection]:
        """Return all connections, the writer last, because it removes the log if it is the last to close."""
        lanes = [self._readers] if self._readers is self._writers else [self._readers, self._writers]
        connections = [aside.connection for aside in (self._alarm, self._brief_reader) if aside is not None]
        return connections + [connection for lane in filter(None, lanes) for connection in lane.connections]

    async def _disconnect(self, connections: Iterable[WorkerConnection]) -> None:
        for connection in connections:
            await connection.close()
        if not self._had_log:
            await asyncio.to_thread(self._store.remove_empty_log)


class _HalfDoneError(Exception):
    """A unit without a savepoint failed after it may have changed something."""


_VIEW = re.compile(r"\bCREATE VIEW (\w+) AS\n([^;]+)")
_JSON_FUNCTION = re.compile(r"\bjson(_object)?(?=\()")


def _text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _unparsed_json(value: Any) -> str | None:
    """Replace SQLite's json(): return the column's value, marked, so that the reader finds what is wrong with it."""
    return None if value is None else f"{UNPARSED}{value}"


def _careful_json_object(*names_and_values: Any) -> bytes:
    """Replace SQLite's json_object(): bytes become a list, which is invalid in every text column.

    The document is returned as bytes, like one that is not UTF-8, so that its reader checks every field.
    """
    names, values = names_and_values[::2], names_and_values[1::2]
    readable = [list(value) if isinstance(value, bytes) else value for value in values]
    return json.dumps(dict(zip(names, readable, strict=True))).encode()
