"""Connections to one PostgreSQL database, and a pool of them.

psycopg's own pool connects in the background, less and less often while it fails, and tells those who wait only that
their time is over. This one connects for the caller, who thus hears at once, and why, that the server is not there, and
is served at once when it is there again.
"""

import asyncio
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from wfe_sql.engines.postgres_errors import store_error
from wfe_sql.errors import StoreBusyError, StoreError, StoreUnavailableError

Connection = psycopg.AsyncConnection[Any]


class PostgresTarget:
    """Which database, and how it is connected to; shows no password.

    Args:
        url: `postgresql://user:password@host:port/database?options`, as libpq reads it.
        connect_timeout: How long connecting may take.
    """

    def __init__(self, url: str, connect_timeout: timedelta) -> None:
        try:
            self._parameters: dict[str, Any] = dict(conninfo_to_dict(url))
        except psycopg.Error:
            # The driver's message quotes the URL, and with it the password.
            raise StoreError(
                "the URL is not one that PostgreSQL reads: postgresql://user:password@host:port/database, with "
                "percent-encoding for other characters than letters and digits"
            ) from None
        self._connect_timeout = connect_timeout
        found = self._parameters
        place = ":".join(str(found[key]) for key in ("host", "port") if found.get(key))
        self._name = f"postgresql://{place}/{found.get('dbname') or ''}"

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"PostgresTarget({self._name!r})"

    async def connect(self) -> Connection:
        """Return a new connection, each of whose statements is a transaction unless one is begun.

        Raises:
            StoreUnavailableError: There is none to be had; the message says why.
        """
        try:
            async with asyncio.timeout(self._connect_timeout.total_seconds()):
                return await psycopg.AsyncConnection.connect(
                    autocommit=True, prepare_threshold=0, cursor_factory=psycopg.AsyncRawCursor, **self._parameters
                )
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"{self} cannot be reached: no connection within {self._connect_timeout}"
            ) from error
        except psycopg.Error as error:
            mapped = store_error(self, error)
            if self._shows_password(str(error)):
                raise type(mapped)(f"{self} cannot be reached") from None
            raise mapped from error

    def _shows_password(self, text: str) -> bool:
        password = str(self._parameters.get("password") or "")
        return bool(password) and (password in text or quote(password, safe="") in text)


class ConnectionPool:
    """Connections that are made when they are needed and kept; the one used last is used next.

    Args:
        open_connection: Makes one that is ready for use.
        size: How many there are at most.
        timeout: How long to wait for a free one.
    """

    def __init__(self, open_connection: Callable[[], Awaitable[Connection]], size: int, timeout: timedelta) -> None:
        self._open_connection = open_connection
        self._size = size
        self._timeout = timeout
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection; one that comes back broken, or inside a transaction, is closed.

        Raises:
            StoreBusyError: None was free for too long.
            StoreUnavailableError: A new one could not be made.
        """
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                await self._free.acquire()
        except TimeoutError as error:
            raise StoreBusyError(f"all {self._size} connections were in use for {self._timeout}") from error
        connection: Connection | None = None
        try:
            connection = await self._take_idle() or await self._open_connection()
            yield connection
        finally:
            try:
                if connection is not None:
                    await self._take_back(connection)
            finally:
                self._free.release()

    async def close(self) -> None:
        """Close the connections that are not lent."""
        while self._idle:
            await self._idle.pop().close()

    async def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if _is_alive(connection):
                return connection
            await connection.close()
        return None

    async def _take_back(self, connection: Connection) -> None:
        if not connection.closed and connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            await connection.close()


def _is_alive(connection: Connection) -> bool:
    """Tell, without a round trip, whether the server ended an idle connection: it then said so, or closed it.

    Either can be read, and nothing else can, for a server that was asked nothing says nothing.
    """
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
