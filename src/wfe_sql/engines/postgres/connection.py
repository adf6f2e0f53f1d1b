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
"""Seconds that the server has to stop a statement that was given up, until the connection is cut."""


class Connection(psycopg.AsyncConnection[Any]):
    """One that is cut when the server says nothing for too long, and that a pooler may lend for single transactions.

    Attributes:
        patience: Seconds that the server may take over an answer; None is no end.
        cut_because: Why it was cut, if it was.
        is_given_up: Whether it is not to be lent again: what the server was asked to stop may be the next statement.
        run_shared: Set where a pooler lends a server's connection for one transaction at a time, so that nothing may
            depend on what was set before. Each transaction then begins with the settings (`set_up_connection`), and a
            statement by itself is a transaction of its own, which takes one round trip.
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
        """Send all that is executed within before any of it is answered; the first error that there is ends the block.

        It is `pipeline()`, which logs a warning where an error that is expected comes before the end of the block.
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
        """Wait for the server, as all that talks to it does, and no longer than it may take."""
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
        """Have whoever waits for the server hear that the connection is lost."""
        self.cut_because = self.cut_because or reason
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    def give_up(self) -> None:
        """Have the server stop what it does; whoever waits for it hears how that ended."""
        self.is_given_up = True
        self._stopping = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        asyncio.get_running_loop().call_later(
            _STOPS_WITHIN, self.cut, "it was given up, and the server did not stop it"
        )
        with suppress(psycopg.Error):
            await self.cancel_safe(timeout=_STOPS_WITHIN)


@dataclass(slots=True)
class Attempt:
    """What is known of work that may be cut off, or given up by its callers.

    Attributes:
        connection: What it is under way on, if it is.
        may_have_committed: Whether it had begun to commit.
        is_given_up: Whether nobody wants it any longer; then it does not begin.
        began: When it first had a connection (`time.monotonic`); 0 before.
    """

    connection: Connection | None = None
    may_have_committed: bool = False
    is_given_up: bool = False
    began: float = 0.0

    def give_up(self) -> None:
        """Have it not begin, or have the server stop it; it ends as always, so that it is known how."""
        self.is_given_up = True
        if self.connection is not None:
            self.connection.give_up()
