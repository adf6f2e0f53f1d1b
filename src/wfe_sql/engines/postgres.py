"""Units of work on PostgreSQL: what waits together goes as one set-based statement.

A round trip and a commit cost far more than what a statement does, so units of one kind that wait at the same time are
one statement over a JSON array (see `grouping`); other units run as they are. Each statement is its own transaction.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psycopg

from wfe_sql.engines import Results, Statement, Unit
from wfe_sql.engines.grouping import GROUPS, Group, encode_units, group_of, rows_by_unit
from wfe_sql.engines.postgres_errors import RETRIED, is_missing_right, store_error, unit_error
from wfe_sql.engines.postgres_pool import Connection, ConnectionPool
from wfe_sql.engines.postgres_store import PostgresStore
from wfe_sql.engines.queues import Outcome, UnitQueue
from wfe_sql.errors import ProviderClosedError, StoreBusyError, StoreError, StoreUnavailableError
from wfe_sql.queries import QuerySet

_UNITS_TOGETHER = 256
_GROUPS_AT_ONCE = 2
"""Statements of one group that are under way at the same time: two keep the server busy while one waits for the disk."""

_TRIES = 10
"""How often a unit is run that others undo, by a deadlock, a serialization failure, or a change while it waited."""

_LONGEST_PAUSE = 0.5
"""Seconds between two attempts to reach a server that is not there."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _Attempt:
    """What is known of work that may be cut off: whether it had begun to commit when it was."""

    may_have_committed: bool = False


class PostgresEngine:
    """Runs units of named queries in one schema; made for and used on one event loop."""

    def __init__(
        self,
        store: PostgresStore,
        queries: QuerySet,
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
        self._store = store
        self._queries = queries
        self._wait_for_server = wait_for_server.total_seconds()
        self._pool = ConnectionPool(store.open_connection, max_connections, connect_timeout)
        self._groups = {lead: _GroupQueue(group, self) for lead, group in GROUPS.items()}
        self._alone = {writes: _AloneQueue(self, max_connections, writes=writes) for writes in (True, False)}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and make the store where it does not exist."""
        if self._loop is not None:
            raise ProviderClosedError(f"the store {self._store} was opened before; make a new provider")
        self._loop = asyncio.get_running_loop()
        try:
            await self._make_store()
        except BaseException:
            await self._pool.close()
            raise
        self._is_open = True

    async def close(self) -> None:
        """Finish what is pending and disconnect."""
        if not self._is_open or self._loop is None:
            self._loop = self._loop or asyncio.get_running_loop()
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def ensure_store_exists(self) -> None:
        """Make the schema, tables, columns and indexes that are missing."""
        self._check_open()
        await self._make_store()

    async def write(self, unit: Unit) -> Results:
        """Run a unit that changes something; it is durable when this returns."""
        return await self._run(unit, writes=True)

    async def read(self, unit: Unit) -> Results:
        """Run a unit that changes nothing, on one snapshot."""
        return await self._run(unit, writes=False)

    async def _run(self, unit: Unit, *, writes: bool) -> Results:
        self._check_open()
        group = group_of(unit)
        queue = self._alone[writes] if group is None else self._groups[group.lead]
        return await queue.submit(unit)

    async def run_group(self, group: Group, units: Sequence[Unit]) -> list[Outcome]:
        """Run units as one statement; where it fails, its halves are tried, so that a bad unit fails alone."""

        async def work(connection: Connection, attempt: _Attempt) -> Any:
            attempt.may_have_committed = group.writes
            return await self._queries.run(connection, group.query, {"units": encode_units(units)})

        outcomes: list[Outcome] = []
        for _ in range(_TRIES):
            try:
                rows = await self.with_connection(work)
            except psycopg.Error as error:
                if len(units) == 1:
                    return [unit_error(self._store, error, units[0])]
                half = len(units) // 2
                return [*await self.run_group(group, units[:half]), *await self.run_group(group, units[half:])]
            results = [group.results(rows) for rows in rows_by_unit(len(units), rows)]
        return outcomes

    def _check_open(self) -> None:
        if self._closing is not None or not self._is_open:
            what = "is closed" if self._loop is not None else "is not open; await open() first, or use 'async with'"
            raise ProviderClosedError(f"the provider of {self._store} {what}")
        if asyncio.get_running_loop() is not self._loop:
            raise StoreError(f"the provider of {self._store} belongs to another event loop; open one for this loop")
