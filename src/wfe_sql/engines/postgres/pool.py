"""Connections to one PostgreSQL database, and the pool of them."""

import asyncio
import logging
import re
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict

from wfe_sql.engines.postgres.errors import store_error
from wfe_sql.errors import StoreBusyError, StoreError, StoreUnavailableError

Connection = psycopg.AsyncConnection[Any]

_NO_URL = (
    "the URL is not one that PostgreSQL reads: postgresql://user:password@host:port/database, with percent-encoding "
    "for other characters than letters and digits"
)
_PORTS = re.compile(r"[0-9,]*")

_pool_log = logging.getLogger("psycopg.pool")


class PostgresTarget:
    """Which database, and how it is connected to; shows no password.

    Args:
        url: `postgresql://user:password@host:port/database?options`, as libpq reads it.
        connect_timeout: How long connecting may take.
    """

    def __init__(self, url: str, connect_timeout: timedelta) -> None:
        # The driver's message quotes the URL, and with it the password; so does ours, where a password that is not
        # encoded was taken for something else.
        try:
            self._parameters: dict[str, Any] = dict(conninfo_to_dict(url))
        except psycopg.Error:
            raise StoreError(_NO_URL) from None
        if _is_torn(url) or not _PORTS.fullmatch(str(self._parameters.get("port") or "")):
            raise StoreError(_NO_URL)
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

    def server(self, connection: Connection) -> str:
        """Return what a server is told by, of one of its connections: the same whichever of several hosts answered."""
        hosts = str(self._parameters.get("host") or self._parameters.get("hostaddr") or "")
        info = connection.info
        return f"{hosts}:{self._parameters.get('port')}" if "," in hosts else f"{info.host}:{info.port}"

    def _shows_password(self, text: str) -> bool:
        password = str(self._parameters.get("password") or "")
        return bool(password) and (password in text or quote(password, safe="") in text)


class ConnectionPool:
    """psycopg's pool, for callers who want to hear at once, and why, that the server is not there.

    It connects in the background and tells those who wait only that their time is over; here the first attempt that
    fails after they came is raised to them, unless there are connections that they can have later: the server may
    take no more than those. The connection used last is used next.

    Args:
        target: What it connects to, for people.
        open_connection: Makes one that is ready for use.
        size: How many there are at most.
        timeout: How long to wait for a free one.
    """

    def __init__(
        self, target: object, open_connection: Callable[[], Awaitable[Connection]], size: int, timeout: timedelta
    ) -> None:
        failures = self._failures = set[asyncio.Future[None]]()
        outage = self._outage = _Outage()
        opened = self._opened = WeakSet[Connection]()

        class OpenedConnection(psycopg.AsyncConnection[Any]):
            """How the pool connects."""

            @classmethod
            async def connect(cls, *args: Any, **options: Any) -> Any:
                came_before = set(failures)
                try:
                    connection = await open_connection()
                except Exception as error:
                    outage.begin()
                    some_come_back = self._has_connections()
                    for failure in failures:
                        if failure.done() or some_come_back:
                            continue
                        if failure in came_before:
                            failure.set_exception(error)
                        else:
                            failure.set_result(None)
                    raise
                outage.end()
                opened.add(connection)
                return connection

        self._target = target
        self._size = size
        self._timeout = timeout
        connection_class: type[Connection] = OpenedConnection
        self._pool = psycopg_pool.AsyncConnectionPool(
            connection_class=connection_class,
            min_size=0,
            max_size=size,
            timeout=timeout.total_seconds(),
            reconnect_timeout=0,
            open=False,
        )
        outage.pool_name = self._pool.name

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
        self._outage.end()

    async def _take(self) -> Connection:
        await self._pool.open()
        try:
            while True:
                connection = await self._get()
                if connection is None:
                    continue
                if _is_alive(connection):
                    return connection
                await connection.close()
                await self._pool.putconn(connection)
        except psycopg_pool.PoolTimeout as error:
            if not self._has_connections():
                raise StoreUnavailableError(
                    f"{self._target} cannot be reached: no connection within {self._timeout}"
                ) from error
            raise StoreBusyError(
                f"{self._target} is busy: all connections (at most {self._size}) were in use for {self._timeout}"
            ) from error

    def _has_connections(self) -> bool:
        return any(not connection.closed for connection in self._opened)

    async def _get(self) -> Connection | None:
        """Get a connection, or what the attempt to make one failed with; None where that began too early to tell."""
        if self._pool.get_stats()["pool_available"]:
            return await self._pool.getconn()
        failure = asyncio.get_running_loop().create_future()
        getting = asyncio.create_task(self._pool.getconn())
        self._failures.add(failure)
        came = False
        try:
            await asyncio.wait({getting, failure}, return_when=asyncio.FIRST_COMPLETED)
            came = getting.done()
            if not came:
                failure.result()
        finally:
            self._failures.discard(failure)
            if not failure.cancel():
                failure.exception()  # or asyncio would log that nobody asked for it
            if not came:
                await self._give_back(getting)
        return getting.result() if came else None

    async def _give_back(self, getting: "asyncio.Task[Connection]") -> None:
        """See that a connection which comes after its caller has gone is lent to others."""
        getting.cancel()
        await asyncio.wait({getting})
        if not getting.cancelled() and getting.exception() is None:
            await self._pool.putconn(getting.result())


class _Outage(logging.Filter):
    """While the pool cannot connect, lets it log so once: it tries for each caller, and callers hear of it anyway.

    Attributes:
        pool_name: What the pool calls itself in its log.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool_name = ""
        self._is_logged = False

    def begin(self) -> None:
        """Note that an attempt to connect failed."""
        _pool_log.addFilter(self)

    def end(self) -> None:
        """Note that one succeeded, or that there will be no more."""
        _pool_log.removeFilter(self)
        self._is_logged = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Refuse the pool's warnings about itself, but for the first one."""
        is_of_pool = isinstance(record.args, tuple) and record.args[:1] == (self.pool_name,)
        if not is_of_pool or record.levelno < logging.WARNING:
            return True
        was_logged, self._is_logged = self._is_logged, True
        return not was_logged


def _is_torn(url: str) -> bool:
    """Tell whether a URL has an @ besides the one before its host; what is left of the first one may be a password."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("?")[0].partition("/")
    return scheme in ("postgresql", "postgres") and (authority.count("@") > 1 or "@" in path)


def _is_alive(connection: Connection) -> bool:
    """Tell, without a round trip, whether the server ended an idle connection: it then said so, or closed it.

    Either can be read, and nothing else can, for a server that was asked nothing says nothing.
    """
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
