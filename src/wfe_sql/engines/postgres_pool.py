"""Connections to one PostgreSQL database, and the pool of them."""

import asyncio
import re
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict

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
            raise _unreadable() from None  # the driver's message quotes the URL, and with it the password
        self._connect_timeout = connect_timeout
        host, port, database = (str(self._parameters.get(key) or "") for key in ("host", "port", "dbname"))
        if "@" in f"{host}{database}" or not re.fullmatch(r"[0-9,]*", port):
            raise _unreadable()  # libpq takes a part of the password for one of these
        self._name = f"postgresql://{host}{':' if port else ''}{port}/{database}"

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
            raise store_error(self, error) from error


def _unreadable() -> StoreError:
    return StoreError(
        "the URL is not one that PostgreSQL reads: postgresql://user:password@host:port/database, "
        "with percent-encoding for other characters than letters and digits (%40 for @, %2F for /)"
    )


class ConnectionPool:
    """psycopg's pool, for callers who want to hear at once, and why, that the server is not there.

    It connects in the background and tells those who wait only that their time is over; here the first attempt that
    fails is raised to them. The connection used last is used next.

    Args:
        open_connection: Makes one that is ready for use.
        size: How many there are at most.
        timeout: How long to wait for a free one.
    """

    def __init__(self, open_connection: Callable[[], Awaitable[Connection]], size: int, timeout: timedelta) -> None:
        failures = self._failures = set[asyncio.Future[None]]()

        class OpenedConnection(psycopg.AsyncConnection[Any]):
            """How the pool connects."""

            @classmethod
            async def connect(cls, *args: Any, **options: Any) -> Any:
                try:
                    return await open_connection()
                except Exception as error:
                    for failure in failures:
                        if not failure.done():
                            failure.set_exception(error)
                    raise

        self._size = size
        self._timeout = timeout
        opened: type[Connection] = OpenedConnection
        self._pool = psycopg_pool.AsyncConnectionPool(
            connection_class=opened,
            min_size=0,
            max_size=size,
            timeout=timeout.total_seconds(),
            reconnect_timeout=0,
            open=False,
        )

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection; one that comes back broken, or inside a transaction, is not lent again.

        Raises:
            StoreBusyError: None was free for too long.
            StoreUnavailableError: A new one could not be made.
        """
        connection = await self._take()
        try:
            yield connection
        finally:
            await self._pool.putconn(connection)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def _take(self) -> Connection:
        await self._pool.open()
        try:
            while True:
                connection = await self._get()
                if _is_alive(connection):
                    return connection
                await connection.close()
                await self._pool.putconn(connection)
        except psycopg_pool.PoolTimeout as error:
            raise StoreBusyError(f"all {self._size} connections were in use for {self._timeout}") from error

    async def _get(self) -> Connection:
        """Get a connection, or what the attempt to make one failed with."""
        if self._pool.get_stats()["pool_available"]:
            return await self._pool.getconn()
        failure = asyncio.get_running_loop().create_future()
        getting = asyncio.create_task(self._pool.getconn())
        self._failures.add(failure)
        try:
            await asyncio.wait({getting, failure}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                failure.result()
            return getting.result()
        except BaseException:
            await self._give_back(getting)
            raise
        finally:
            self._failures.discard(failure)
            failure.cancel()

    async def _give_back(self, getting: "asyncio.Task[Connection]") -> None:
        """See that a connection which comes after its caller has gone is lent to others."""
        getting.cancel()
        await asyncio.wait({getting})
        if not getting.cancelled() and getting.exception() is None:
            await self._pool.putconn(getting.result())


def _is_alive(connection: Connection) -> bool:
    """Tell, without a round trip, whether the server ended an idle connection: it then said so, or closed it.

    Either can be read, and nothing else can, for a server that was asked nothing says nothing.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
