"""Units of work on PostgreSQL: units that wait together run as one set-based statement.

A round trip and a commit cost far more than the work of a statement, so waiting units of one kind become one statement
over a JSON array (see `grouping`); other units run by themselves. A unit of one statement is its own transaction.
Waiting units of work with several operations become one transaction of such statements.
"""

import asyncio
import logging
import os
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import psycopg
from psycopg.pq import TransactionStatus

from wfe_sql.arguments import encode_ids
from wfe_sql.engines import Home, Read, Results, Script, Statement, Unit, check_usable, not_open
from wfe_sql.engines.alarms import Alarm, Ring, WakesOn, ring
from wfe_sql.engines.joining import Entrance, play, run_at_once
from wfe_sql.engines.postgres.alarm import PostgresAlarm
from wfe_sql.engines.postgres.connection import Attempt, Connection
from wfe_sql.engines.postgres.errors import (
    is_about_all,
    is_about_values,
    is_lost,
    is_missing_right,
    is_of_replica,
    is_retried,
    text_of,
    unit_error,
)
from wfe_sql.engines.postgres.grouping import (
    GROUPS,
    Group,
    encode_units,
    go_together,
    group_of,
    needed_of,
    param_of,
    row_of,
    rows_by_unit,
    run_by_parts,
    steps_of,
)
from wfe_sql.engines.postgres.joining import ASYNC_DRIVERS, SYNC_DRIVERS, PostgresJoined, Types, guest
from wfe_sql.engines.postgres.pool import ConnectionPool
from wfe_sql.engines.postgres.queues import GroupQueue, Turns
from wfe_sql.engines.postgres.store import EVERY, PostgresStore
from wfe_sql.engines.queues import Outcome, report_end
from wfe_sql.engines.reporting import Reporter
from wfe_sql.errors import (
    ProviderClosedError,
    StoreBusyError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
    WfeError,
)
from wfe_sql.queries import QuerySet

_log = logging.getLogger("wfe_sql")

_STATEMENTS_AT_ONCE = 3
"""The most concurrent statements of groups. With more, each statement has fewer units; with fewer, the server idles
while it flushes. On 2 cores, 3 gave the highest throughput."""

_OF_ONE_GROUP = 2
"""The most concurrent statements of one group."""

_TRIES = 10
"""How often work runs that a deadlock or a serialization failure undoes."""

_PAUSE = 0.05
"""Seconds between two attempts to reach a server that does not answer."""

_LONGEST_CLOSE = 35.0
"""Seconds that closing waits for calls without a time limit; with one, it waits as long as a statement may take."""

_T = TypeVar("_T")


Work = Callable[[Connection, Attempt], Awaitable[_T]]


class PostgresEngine:
    """Runs units of named queries in one schema; used on one event loop."""

    has_times_as_text = False

    def __init__(
        self,
        store: PostgresStore,
        queries: QuerySet,
        reporter: Reporter,
        *,
        max_connections: int,
        connect_timeout: timedelta,
        wait_for_server: timedelta,
    ) -> None:
        """Set up without connecting; see `PostgresPersistenceProvider` for the options."""
        if max_connections < 1:
            raise StoreError(f"max_connections must be at least 1, not {max_connections}")
        if connect_timeout <= timedelta(0):
            raise StoreError(f"connect_timeout must be above zero, not {connect_timeout}")
        if wait_for_server < timedelta(0):
            raise StoreError(f"wait_for_server must not be negative: {wait_for_server}")
        self._store = store
        self._queries = queries
        self._reporter = reporter
        self._wait_for_server = wait_for_server.total_seconds()
        self._pool = ConnectionPool(store, store.open_connection, max_connections, connect_timeout, reporter.slow)
        turns = Turns(min(_STATEMENTS_AT_ONCE, max_connections))
        self._groups = {
            lead: GroupQueue(
                group, partial(self.run_group, group), partial(self.run_held, group), _OF_ONE_GROUP, turns, reporter
            )
            for lead, group in GROUPS.items()
        }
        self._units = GroupQueue(None, self.run_units, self.run_held_units, _OF_ONE_GROUP, turns, reporter)
        self._alone: set[asyncio.Task[Results]] = set()
        alone_at_once = max(max_connections - _STATEMENTS_AT_ONCE, (max_connections + 1) // 2)
        self._alone_at_once = asyncio.Semaphore(alone_at_once)
        self._of_rows_at_once = asyncio.Semaphore(alone_at_once - alone_at_once // 4)
        self._held_at_once = asyncio.Semaphore((alone_at_once + 1) // 2)
        self._rows: WeakValueDictionary[Any, asyncio.Lock] = WeakValueDictionary()
        self._alarm: PostgresAlarm | None = None
        self._home: Home | None = None
        self._types_of_parameters: Types = {}
        self._is_connected = False
        self._gives_up = False
        self.commits = 0
        self._closing: asyncio.Task[None] | None = None

    @property
    def store_id(self) -> str:
        """Identifies the open store: its server, database and schema."""
        return self._store.id

    @property
    def queries(self) -> QuerySet:
        """The named queries that it runs."""
        return self._queries

    async def open(self) -> None:
        """Connect, and create the store if it does not exist."""
        if self._home is not None:
            raise ProviderClosedError(f"the store {self._store} was already opened; create a new provider")
        self._home = Home.here(self._store)
        try:
            await self._make_store()
        except BaseException:
            self._pool.close()
            raise
        self._is_connected = True
        _log.info("opened %s", self._store)

    async def close(self) -> None:
        """Finish what is pending and disconnect."""
        if self._home is None or not self._is_connected:
            self._home = self._home or Home.here(self._store)
            return
        check_usable(self._store, self._home, is_open=True)
        if self._closing is None:
            self._closing = self._home.loop.create_task(self._close())
        await asyncio.shield(self._closing)

    @property
    def is_open(self) -> bool:
        """Whether it is open, and nobody has begun to close it."""
        return self._is_connected and self._closing is None

    def abandon(self) -> None:
        """Close the connections of a provider that was dropped; in a fork, leave them alone."""
        if self._home is not None and self._home.process == os.getpid():
            if self._alarm is not None:
                self._alarm.abandon()
            self._pool.close()

    wakes_on: WakesOn = "store"

    async def open_alarm(self, ring: Ring, poll_interval: float) -> Alarm:
        """Return an alarm that rings when the server notifies of a change, on its own connection."""
        self.check_open()
        self._alarm = PostgresAlarm(self._store, self._queries, ring, poll_interval)
        return self._alarm

    log_size = None
    """The log is the server's, not the store's."""

    async def is_log_held(self) -> bool | None:
        """Return None, because it is unknown."""
        return None

    async def ensure_store_exists(self) -> None:
        """Create missing schema, tables, columns and indexes, and let sequences continue after the stored numbers."""
        self.check_open()
        await self._make_store()
        connection = await self._store.open_connection()
        try:
            await self._store.build_indexes(connection)
            await self._store.mend_numbers(connection, EVERY)
        finally:
            await connection.close()

    async def write(self, unit: Unit) -> Results:
        """Run a unit that changes something; it is durable when this returns."""
        return await self._run(unit, writes=True)

    def submit(self, unit: Unit) -> "asyncio.Future[Results]":
        """Run a unit that changes something, even if the caller is cancelled."""
        self.check_open()
        self._reporter.begin(unit, writes=True)
        queue = self._queue_of(unit)
        return self._begin_alone(unit, Attempt(), writes=True) if queue is None else queue.submit(unit)

    def _queue_of(self, unit: Unit) -> GroupQueue | None:
        """Return the queue in which a unit waits to be grouped, or None if it runs alone."""
        is_of_several = unit[0].operation and any(statement.operation != unit[0].operation for statement in unit)
        if is_of_several or unit[0].query == "persist_errors":
            return self._units if go_together(unit) else None
        group = group_of(unit)
        return None if group is None else self._groups[group.lead]

    async def read(self, unit: Unit) -> Results:
        """Run a unit that changes nothing, on one snapshot."""
        return await self._run(unit, writes=False)

    async def may_find(self, look: Statement) -> bool:
        """Return True without a query: a statement that finds nothing locks no row here, and gets no transaction id."""
        self.check_open()
        return True

    async def run_in(self, connection: object, script: Script) -> None:
        """Run a script as one unit in somebody else's transaction, on an asynchronous connection."""
        entrance = self._entrance()
        joined = self._join(await entrance.find_async(connection))
        with self._reporter.watch_script(script) as watched:
            await play(joined, watched)

    def run_in_sync(self, connection: object, script: Script) -> None:
        """Run a script as one unit in somebody else's transaction, on a synchronous connection."""
        entrance = self._entrance()
        joined = self._join(entrance.find(connection))
        with self._reporter.watch_script(script) as watched:
            run_at_once(play(joined, watched))

    def _entrance(self) -> Entrance:
        if not self.is_open:
            raise not_open(self._store, self._home)
        if self._store.mode == "ro":
            raise StoreReadOnlyError(f"{self._store} is open for reading only (mode=ro)")
        return Entrance(self._store, SYNC_DRIVERS, ASYNC_DRIVERS, self._queries["get_server_process"].sql)

    def _join(self, connection: Any) -> PostgresJoined:
        return PostgresJoined(self._store, self._queries, guest(connection, self._types_of_parameters))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Read]:
        """Run all reads of the block on one snapshot, on its own connection, which blocks nobody."""
        self.check_open()
        connection = await self._store.open_connection()

        async def read(unit: Unit) -> Results:
            async def work(connection: Connection, _: Attempt) -> Results:
                return [await self._run_statement(statement, connection) for statement in unit]

            try:
                return await self._try(work, connection, Attempt())
            except psycopg.Error as error:
                # After an error the transaction accepts no more statements; later reads see a later snapshot.
                await self._queries.run(connection, "rollback", {})
                await self._store.begin(connection, "begin_read")
                raise self._unit_error(error, unit) from error

        async def begin(connection: Connection, _: Attempt) -> None:
            await self._store.begin(connection, "begin_read")

        try:
            await self._try(begin, connection, Attempt())
            yield self._reporter.watch_read(read)
        finally:
            await connection.close()

    async def backup(self, path: Path) -> None:
        """Refuse: PostgreSQL has its own backup tools, which this library does not replace."""
        self.check_open()
        command = f"pg_dump --format=custom --schema={self._store.schema} --file={shlex.quote(str(path))}"
        raise StoreError(
            f"no backup was made; use PostgreSQL's own tools, which work while hosts run: {command} "
            "--dbname=URL, the URL without schema= and mode="
        )

    async def _run(self, unit: Unit, *, writes: bool) -> Results:
        """Run a unit. If the caller is cancelled, the server stops it, unless others wait for it too."""
        self.check_open()
        self._reporter.begin(unit, writes=writes)
        queue = self._queue_of(unit)
        if queue is not None:
            return await queue.submit(unit)
        attempt = Attempt()
        task = self._begin_alone(unit, attempt, writes=writes)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            attempt.give_up()
            raise

    def _begin_alone(self, unit: Unit, attempt: Attempt, *, writes: bool) -> asyncio.Task[Results]:
        task = asyncio.create_task(self._run_watched(unit, attempt, writes=writes))
        self._alone.add(task)
        task.add_done_callback(self._end_alone)
        return task

    def _end_alone(self, task: asyncio.Task[Results]) -> None:
        self._alone.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio would log an exception that nobody retrieved, because the caller was cancelled

    async def _run_watched(self, unit: Unit, attempt: Attempt, *, writes: bool) -> Results:
        asked = time.monotonic()
        outcome: Outcome | None = None
        try:
            outcome = await self.run_alone(unit, attempt, writes=writes)
        except Exception as error:
            outcome = error
            raise
        finally:
            if outcome is not None:
                self._reporter.ended([(unit, asked)], [outcome], attempt.began, together=1)
        return outcome

    async def run_units(self, units: Sequence[Unit], attempt: Attempt) -> Sequence[Outcome | None]:
        """Run units of work in one transaction and one round trip; None for those that must run by themselves.

        `hold_rows` ensures that all of them succeed, or fails; then they run in halves, until one fails alone.
        """
        needed = needed_of(units)
        if needed is None:
            return [None] * len(units)

        async def work(connection: Connection, attempt: Attempt) -> list[Outcome]:
            steps = steps_of(units)
            async with self._transaction(connection, attempt) as commit, connection.piped():
                await self._store.begin(connection, "begin_write")
                await self._queries.run(connection, "hold_rows", {"wanted": needed})
                statements = [step.statement for step in steps]
                answers = [await self._queries.run(connection, sent.query, sent.params) for sent in statements]
                await commit()
            results: list[Results] = [[None] * len(unit) for unit in units]
            for step, answer in zip(steps, answers, strict=True):
                for number, place, _, result in step.results(await answer()):
                    results[number][place] = result and result[0]
            return list(results)

        try:
            outcomes = await self._with_connection(work, attempt)
        except psycopg.Error as error:
            if is_about_all(error):
                return [unit_error(self._store, error, unit, self._store.statement_timeout) for unit in units]
        else:
            self._note_commit()
            return outcomes
        if len(units) == 1:
            return [None]
        half = len(units) // 2
        return [*await self.run_units(units[:half], attempt), *await self.run_units(units[half:], attempt)]

    async def run_held_units(self, units: Sequence[Unit], attempt: Attempt) -> list[Outcome]:
        """Run units of work one after the other, each once the rows that it changes are free."""
        async with self._held_at_once, self._of_rows_at_once, self._alone_at_once:
            return [await self._run_by_itself(unit, attempt) for unit in units]

    async def _run_by_itself(self, unit: Unit, attempt: Attempt) -> Outcome:
        """Run a unit of work statement by statement; it waits for the rows that it changes, in a fixed order."""
        results: Results = []
        part = unit

        async def work(connection: Connection, attempt: Attempt) -> bool:
            async def run(statement: Statement, of: Unit) -> Any:
                nonlocal part
                part = of
                return await self._queries.run(connection, statement.query, statement.params)

            async with self._transaction(connection, attempt) as commit:
                await self._store.begin(connection, "begin_write")
                ran = await run_by_parts(unit, run)
                if ran is None:
                    return False
                await commit()
            results[:] = ran
            return True

        try:
            while not await self._with_connection(work, attempt):
                pass
        except psycopg.Error as error:
            return self._unit_error(error, part)
        except Exception as error:
            part[0].name_in(error)
            return error
        self._note_commit()
        return results

    def _note_commit(self) -> None:
        self.commits += 1
        ring(self._store.id)

    @asynccontextmanager
    async def _transaction(
        self, connection: Connection, attempt: Attempt, *, writes: bool = True
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Roll back what the block does not commit with the function that it gets."""
        run = partial(self._queries.run, connection, params={})

        async def commit() -> None:
            attempt.may_have_committed = writes
            await run("commit")

        try:
            yield commit
        finally:
            if connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                await run("rollback")

    async def run_group(
        self, group: Group, units: Sequence[Unit], attempt: Attempt, *locks: Statement
    ) -> list[Outcome | None]:
        """Run units as one statement, or as few as their size allows; None for those whose row somebody else holds."""
        if group.alone is not None and len(units) == 1 and not locks:
            return await self._run_together(group, units, [Statement(group.alone, units[0][0].params)], attempt)
        outcomes: list[Outcome | None] = []
        for count, encoded in encode_units(units):
            some = units[len(outcomes) : len(outcomes) + count]
            statements = [*locks, Statement(group.query, {"units": encoded})]
            outcomes += await self._run_together(group, some, statements, attempt)
        return outcomes

    async def run_held(self, group: Group, units: Sequence[Unit], attempt: Attempt) -> list[Outcome]:
        """Run units of one key once the row that somebody else holds is free.

        Each wait occupies a connection, so only few wait at the same time if there are enough connections for others.
        """
        lock = Statement(group.lock, {"ids": encode_ids([param_of(units[0], group.key)])})
        async with self._held_at_once, self._of_rows_at_once, self._alone_at_once:
            while True:
                outcomes = await self.run_group(group, units, attempt, lock)
                # A row that did not exist to be locked may be created, and locked, before the second statement.
                if None not in outcomes:
                    return outcomes  # type: ignore[return-value]

    async def _run_together(
        self, group: Group, units: Sequence[Unit], statements: Sequence[Statement], attempt: Attempt
    ) -> list[Outcome | None]:
        """Run the statements of several units. If they fail, try each unit once by itself, so that it fails alone."""
        try:
            rows = (await self._run_statements(statements, attempt, writes=group.writes))[-1]
        except psycopg.Error as error:
            if len(units) == 1 or not is_about_values(error):
                return [self._unit_error(error, unit) for unit in units]
            return [outcome for unit in units for outcome in await self.run_group(group, [unit], attempt)]
        results = (
            [group.results_alone(rows)]
            if statements[-1].query == group.alone
            else [group.results_of(found) for found in rows_by_unit(len(units), rows)]
        )
        return [None if result is None else _outcome(unit, result) for unit, result in zip(units, results, strict=True)]

    def _unit_error(self, error: psycopg.Error, unit: Unit) -> WfeError:
        """Return the meaning of an error for a unit of one operation."""
        meaning = unit_error(self._store, error, unit, self._store.statement_timeout)
        unit[0].name_in(meaning)
        return meaning

    async def run_alone(self, unit: Unit, attempt: Attempt, *, writes: bool) -> Results:
        """Run a unit that is not grouped."""
        if unit[0].operation:
            return await self._run_unit_of_work(unit, attempt)
        async with self._place(row_of(unit) if writes else None):
            try:
                return await self._run_statements(unit, attempt, writes=writes)
            except psycopg.Error as error:
                raise self._unit_error(error, unit) from error

    async def _run_unit_of_work(self, unit: Unit, attempt: Attempt) -> Results:
        outcome: Outcome | None = None
        try:
            async with self._of_rows_at_once, self._alone_at_once:
                (outcome,) = await self.run_units([unit], attempt)
            if outcome is None:
                (outcome,) = await self.run_held_units([unit], attempt)
        except Exception as error:
            outcome = error
        finally:
            report_end(unit, outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @asynccontextmanager
    async def _place(self, row: object) -> AsyncIterator[None]:
        """Wait until a unit may run alone, and let no other unit change the same row meanwhile.

        If there are enough connections, some are reserved for groups: one of their statements serves many units, and
        would wait behind every unit that runs alone. A row that somebody else holds occupies only one connection, and
        many such rows leave one to calls that want none.

        Raises:
            StoreBusyError: Others who wanted the row took longer than a statement may take.
        """
        turn = asyncio.Lock() if row is None else self._rows.setdefault(row, asyncio.Lock())
        try:
            async with asyncio.timeout(self._store.patience):
                await turn.acquire()
        except TimeoutError as error:
            raise StoreBusyError(
                f"{self._store} is busy: a row was held for too long; nothing was written",
                timeout=timedelta(seconds=self._store.patience or 0),
            ) from error
        try:
            async with nullcontext() if row is None else self._of_rows_at_once, self._alone_at_once:
                yield
        finally:
            turn.release()

    async def _run_statements(self, unit: Unit, attempt: Attempt, *, writes: bool) -> Results:
        """Run statements together or not at all; several of them run in a transaction."""

        async def work(connection: Connection, attempt: Attempt) -> Results:
            if len(unit) == 1 and self._is_one_statement(unit[0]):
                attempt.may_have_committed = writes
                return [await self._run_statement(unit[0], connection)]
            return await self._run_in_transaction(unit, connection, attempt, writes=writes)

        results = await self._with_connection(work, attempt)
        if writes and any(results):
            self._note_commit()
        return results

    def _is_one_statement(self, statement: Statement) -> bool:
        if isinstance(statement.params, Sequence) or statement.query in self._queries.application:
            return False
        return self._queries[statement.query].operation != "#"

    async def _run_in_transaction(
        self, unit: Unit, connection: Connection, attempt: Attempt, *, writes: bool
    ) -> Results:
        async with self._transaction(connection, attempt, writes=writes) as commit:
            await self._store.begin(connection, "begin_write" if writes else "begin_read")
            results = [await self._run_statement(statement, connection) for statement in unit]
            await commit()
        return results

    async def _run_statement(self, statement: Statement, connection: Connection) -> Any:
        result = await self._queries.run(connection, statement.query, statement.params)
        if (failure := statement.failure(result)) is not None:
            raise failure
        return result

    async def _with_connection(self, work: Work[_T], attempt: Attempt) -> _T:
        """Do work on a connection; repeat it if others undid it, or while it may wait for the server.

        Work whose connection was lost while it may have been committing is not repeated.

        Raises:
            psycopg.Error: The server rejected the work.
            StoreError: There is no connection, it was lost, or the role lacks privileges.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + self._wait_for_server
        tries = _TRIES
        waits = False
        while True:
            attempt.may_have_committed = False
            try:
                async with self._pool.connection() as connection:
                    return await self._try(work, connection, attempt)
            except StoreUnavailableError:
                if attempt.may_have_committed or now() > deadline or self._gives_up or attempt.is_given_up:
                    raise
                if not waits:
                    waits = True
                    _log.debug("%s cannot be reached; a call waits %g s for it", self._store, self._wait_for_server)
                await asyncio.sleep(_PAUSE)
            except psycopg.Error as error:
                tries -= 1
                if not is_retried(error) or not tries:
                    raise
                _log.debug("%s: work that others undid runs again: %s", self._store, type(error).__name__)

    async def _try(self, work: Work[_T], connection: Connection, attempt: Attempt) -> _T:
        if attempt.is_given_up:
            raise StoreUnavailableError(f"nothing was sent to {self._store}: the call was cancelled")
        attempt.connection = connection
        attempt.began = attempt.began or time.monotonic()
        try:
            done = await work(connection, attempt)
        except psycopg.Error as error:
            if is_missing_right(error):
                raise self._store.missing_right(error, connection) from error
            if is_of_replica(error):
                self._pool.replace_all()  # after a failover, new connections lead to the server that takes writes
            if not is_lost(error, connection):
                raise
            known = (
                "it is not known whether the write was committed"
                if attempt.may_have_committed
                else "nothing was written"
            )
            raise StoreUnavailableError(
                f"{self._store} cannot be reached: the connection was lost; {known}: "
                f"{connection.cut_because or text_of(error)}"
            ) from error
        finally:
            attempt.connection = None
            await connection.stopped()
        return done

    async def _make_store(self) -> None:
        async def make(connection: Connection, _: Attempt) -> None:
            await self._store.ensure_store_exists(connection)
            await self._store.find_database(connection)

        await self._with_connection(make, Attempt())

    def check_open(self) -> None:
        """Check that calls can be made now."""
        check_usable(self._store, self._home, is_open=self.is_open)

    async def _close(self) -> None:
        """Wait for pending work as long as calls may take, then give up, because the server is silent."""
        if self._alarm is not None:
            await self._alarm.close()
        giving_up = asyncio.get_running_loop().call_later(
            (self._store.patience or _LONGEST_CLOSE) + self._wait_for_server, self._give_up
        )
        for queue in (*self._groups.values(), self._units):
            await queue.finish()
        while self._alone:
            await asyncio.wait(self._alone)
        giving_up.cancel()
        self._pool.close()

    def _give_up(self) -> None:
        self._gives_up = True
        self._pool.cut()


def _outcome(unit: Unit, results: Results) -> Outcome:
    """Return a unit's results, or its error if its first query found nothing."""
    failure = unit[0].failure(results[0])
    if failure is None:
        return results
    unit[0].name_in(failure)
    return failure
