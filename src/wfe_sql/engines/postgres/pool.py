"""The connections of one provider to a PostgreSQL database."""

import asyncio
import logging
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from math import inf

from psycopg.pq import TransactionStatus

from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.errors import StoreBusyError, StoreError, StoreUnavailableError

_log = logging.getLogger("wfe_sql")

_MAX_IDLE = 10 * 60.0
"""Seconds after which an unused connection is closed."""

_MAX_AGE = 60 * 60.0
"""Seconds after which a connection is replaced when it comes back: the server's memory for it grows, and the host name
may now mean another server."""

_REFUSED_FOR = 1.0
"""Seconds for which callers wait for the existing connections after the server refused more."""


class ConnectionPool:
    """Lends connections, the most recently used first, to callers in the order in which they came.

    A caller that finds none connects, and fails at once if that fails; but if connections exist, it waits for one,
    because the server may accept no more.

    Args:
        target: The database, for messages.
        open_connection: Returns a new connection, ready for use.
        size: The most connections.
        timeout: How long a caller waits for a free one; `open_connection` has its own limit.
        slow: How many seconds of such waiting are logged.
    """

    def __init__(
        self,
        target: object,
        open_connection: Callable[[], Awaitable[Connection]],
        size: int,
        timeout: timedelta,
        slow: float = inf,
    ) -> None:
        self._target = target
        self._open_connection = open_connection
        self._size = size
        self._timeout = timeout
        self._slow = slow
        self._places = asyncio.Semaphore(size)
        self._opened: dict[Connection, float] = {}
        self._idle: dict[Connection, float] = {}
        self._closing_unused: asyncio.TimerHandle | None = None
        self._refusal: StoreError | None = None
        self._refused_until = 0.0
        self._checking: asyncio.Task[None] | None = None
        self._is_closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection; one that comes back broken, in a transaction, or cancelled, is not lent again.

        Raises:
            StoreBusyError: None was free for too long.
            StoreUnavailableError: A new one could not be opened.
        """
        connection = await self._take()
        try:
            yield connection
        except asyncio.CancelledError:
            connection.is_given_up = True
            raise
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close the connections; lent ones are closed when they come back."""
        self._is_closed = True
        self.replace_all()

    def cut(self) -> None:
        """Close all connections, lent ones too: work on them fails, and so do callers that wait for one."""
        self.close()
        for connection in self._opened:
            connection.cut("no answer before it was closed")

    def replace_all(self) -> None:
        """Lend no existing connection again; lent ones are closed when they come back."""
        for connection in list(self._opened):
            connection.is_given_up = True
            if connection in self._idle:
                self._discard(connection)

    async def _take(self) -> Connection:
        until = _now() + self._timeout.total_seconds()
        while True:
            await self._wait_for_place(until)
            try:
                if (connection := await self._find()) is not None:
                    return connection
            except StoreError as refusal:
                if self._is_closed or not self._opened:
                    self._places.release()
                    raise
                self._refusal, self._refused_until = refusal, _now() + _REFUSED_FOR
            except BaseException:
                self._places.release()
                raise
            asyncio.get_running_loop().call_at(self._refused_until, self._places.release)

    async def _wait_for_place(self, until: float) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        began = _now()
        try:
            async with asyncio.timeout_at(until):
                await self._places.acquire()
        except TimeoutError as error:
            if self._refusal is not None:
                raise StoreUnavailableError(str(self._refusal)) from self._refusal
            await self._check_server()
            raise StoreBusyError(
                f"{self._target} is busy: all connections (at most {self._size}) were in use for {self._timeout}",
                timeout=self._timeout,
            ) from error
        if (waited := _now() - began) >= self._slow:
            _log.warning("a call waited %.2f s for one of the %d connections to %s", waited, self._size, self._target)

    async def _check_server(self) -> None:
        """Raise an error if the server does not even refuse a connection; all callers that wait share one attempt."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._open_another())
        checking = self._checking
        await asyncio.wait([checking])
        if isinstance(failure := checking.exception(), StoreUnavailableError):
            raise failure

    async def _open_another(self) -> None:
        connection = await self._open_connection()
        connection.pgconn.finish()

    async def _find(self) -> Connection | None:
        """Return an idle connection or a new one, or None if the server has just refused more."""
        if self._is_closed:
            raise StoreUnavailableError(f"{self._target} was closed before the server answered; nothing was written")
        while self._idle:
            connection, _ = self._idle.popitem()
            if _is_alive(connection):
                return connection
            self._discard(connection)
        if self._opened and _now() < self._refused_until:
            return None
        connection = await self._open_connection()
        self._opened[connection] = _now()
        self._refusal = None
        return connection

    def _give_back(self, connection: Connection) -> None:
        now = _now()
        is_sound = connection.pgconn.transaction_status == TransactionStatus.IDLE and not connection.is_given_up
        if is_sound and not self._is_closed and now - self._opened[connection] < _MAX_AGE:
            self._idle[connection] = now
            if self._closing_unused is None:
                self._close_unused()
        else:
            self._discard(connection)
        self._places.release()

    def _close_unused(self) -> None:
        self._closing_unused = None
        for connection, since in list(self._idle.items()):  # the one that has been idle longest comes first
            if _now() - since < _MAX_IDLE:
                loop = asyncio.get_running_loop()
                self._closing_unused = loop.call_at(since + _MAX_IDLE, self._close_unused)
                break
            self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        del self._opened[connection]
        connection.pgconn.finish()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _is_alive(connection: Connection) -> bool:
    """Tell, without a round trip, whether an idle connection is still open.

    If the server ended it, its message or the end of the stream can be read; a server says nothing else unasked.
    """
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
