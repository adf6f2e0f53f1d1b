"""A connection to PostgreSQL, or to a pooler in front of it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

Run = Callable[[str], Awaitable[Any]]
"""Runs a named query without parameters."""


_STOPS_WITHIN = 5.0
"""Seconds that the server has to stop a cancelled statement before the connection is cut."""


class Connection(psycopg.AsyncConnection[Any]):
    """A connection that is cut if the server is silent for too long; a pooler may lend it for single transactions.

    Attributes:
        patience: Seconds that the server may take for an answer; None for no limit.
        cut_because: Why it was cut, if it was.
        is_given_up: Whether it must not be lent again: it is to be replaced, or a request to cancel may hit the next
            statement.
        run_shared: Set if a pooler lends a server's connection for one transaction at a time, so that settings may be
            gone. Each transaction then begins with the settings (`set_up_connection`), and a single statement is its
            own transaction, in one round trip.
    """

    patience: float | None = None
    cut_because: str | None = None
    is_given_up = False
    _stopping: asyncio.Task[None] | None = None
    run_shared: Run | None = None

    async def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """Execute a query and return a cursor to read its results."""
        run = self.run_shared
        if (
            run is None
            or self.pgconn.pipeline_status != PipelineStatus.OFF
            or self.pgconn.transaction_status != TransactionStatus.IDLE
        ):
            return await super().execute(query, params, **options)
        try:
            async with self.pipeline():
                await run("begin_write")
                await run("set_up_connection")
                cursor = await super().execute(query, params, **options)
                await run("commit")
        except psycopg.Error:
            if self.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                await run("rollback")
            raise
        return cursor

    @asynccontextmanager
    async def piped(self) -> AsyncIterator[None]:
        """Send everything executed in the block before reading any answer; the first error ends the block.

        Use this instead of `pipeline()`, which logs a warning if an expected error comes before the end of the block.
        """
        failed: psycopg.Error | None = None
        try:
            async with self.pipeline():
                try:
                    yield
                except psycopg.Error as error:
                    failed = error
        except psycopg.Error as error:
            raise (failed or error) from None
        if failed is not None:
            raise failed

    async def wait(self, *args: Any, **options: Any) -> Any:
        """Wait for the server, but no longer than `patience`; everything that talks to the server waits here."""
        if self.patience is None:
            return await super().wait(*args, **options)
        cutting = asyncio.get_running_loop().call_later(
            self.patience, self.cut, f"no answer within {self.patience:g} s"
        )
        try:
            return await super().wait(*args, **options)
        finally:
            cutting.cancel()

    def cut(self, reason: str) -> None:
        """Close the line, so that whoever waits for the server learns that the connection is lost."""
        self.cut_because = self.cut_because or reason
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    def give_up(self) -> None:
        """Cancel the statement that the server runs; its outcome still arrives."""
        self.is_given_up = True
        self._stopping = asyncio.create_task(self._stop())

    async def stopped(self) -> None:
        """Wait until a request to cancel is over: PgBouncer before 1.19.1 ends itself if the client takes it back."""
        if self._stopping is not None:
            await asyncio.wait([self._stopping])

    async def _stop(self) -> None:
        asyncio.get_running_loop().call_later(
            _STOPS_WITHIN, self.cut, "it was cancelled, and the server did not stop it"
        )
        with suppress(psycopg.Error):
            await self.cancel_safe(timeout=_STOPS_WITHIN)


@dataclass(slots=True)
class Attempt:
    """What is known of work that may be cut off, or cancelled by its callers.

    Attributes:
        connection: The connection that it runs on; None if it does not run now.
        may_have_committed: Whether it had begun to commit.
        is_given_up: Whether all callers cancelled it; then it does not begin.
        began: When it first had a connection (`time.monotonic`); 0 before.
    """

    connection: Connection | None = None
    may_have_committed: bool = False
    is_given_up: bool = False
    began: float = 0.0

    def give_up(self) -> None:
        """Prevent it from beginning, or have the server stop it; it still ends with a known outcome."""
        self.is_given_up = True
        if self.connection is not None:
            self.connection.give_up()
