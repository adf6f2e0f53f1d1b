"""Connections to one PostgreSQL database, and the pool of them."""

import asyncio
import logging
import random
import re
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from math import inf
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.engines.postgres.errors import store_error
from wfe_sql.errors import StoreBusyError, StoreError, StoreUnavailableError

_log = logging.getLogger("wfe_sql")

_NO_URL = (
    "not a PostgreSQL URL: write postgresql://user:password@host:port/database, and percent-encode all characters "
    "other than letters and digits"
)
_PORTS = re.compile(r"[0-9,]*")

APPLICATION_NAME = "wfe-sql"

_ENCODING = {"client_encoding": "UTF8"}
"""Overrides the environment, the role and the database, because texts here may be any Unicode text."""

_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""Seconds after which a lost network is noticed while a statement waits for its answer."""

_MAX_IDLE = 10 * 60.0
"""Seconds after which an unused connection is closed."""

_MAX_AGE = 60 * 60.0
"""Seconds after which a connection is replaced when it comes back: the server's memory for it grows, and the host name
may now mean another server."""

_LONG_AGO = float("-inf")

_REFUSED_FOR = 1.0
"""Seconds for which callers wait for the existing connections after the server refused more."""


class PostgresTarget:
    """A database, and how to connect to it; never shows the password.

    Args:
        url: `postgresql://user:password@host:port/database?options`, as libpq reads it.
        connect_timeout: How long connecting to each host may take.
        application_name: The name of the connections on the server, unless the URL has one.
    """

    def __init__(self, url: str, connect_timeout: timedelta, application_name: str = APPLICATION_NAME) -> None:
        # The driver's message quotes the URL, and with it the password; ours would too, if an unencoded password
        # was parsed as something else.
        try:
            found: dict[str, Any] = dict(conninfo_to_dict(url))
        except (psycopg.Error, UnicodeEncodeError):
            raise StoreError(_NO_URL) from None
        if "\0" in application_name:  # libpq would ignore what comes after it, which may be the host
            raise StoreError(f"application_name contains a NUL character: {application_name!r}")
        if "\0" in url or _is_torn(url) or not _PORTS.fullmatch(str(found.get("port") or "")):
            raise StoreError(_NO_URL)
        self.connect_timeout = connect_timeout
        silence = {"tcp_user_timeout": max(1, connect_timeout // timedelta(milliseconds=1))}
        self._parameters = {"application_name": application_name, **_KEEPALIVES, **silence, **found} | _ENCODING
        place = ":".join(str(found[key]) for key in ("host", "port") if found.get(key))
        self._name = f"postgresql://{place}/{found.get('dbname') or ''}"

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"PostgresTarget({self._name!r})"

    async def connect(self) -> Connection:
        """Return a new connection in autocommit mode, without prepared statements.

        Raises:
            StoreUnavailableError: No connection can be made; the message says why.
        """
        failures: list[tuple[str, StoreError]] = []
        for attempt in self._attempts():
            try:
                return await self._connect(attempt)
            except StoreError as error:
                failures.append((f"{attempt.get('hostaddr') or attempt.get('host')}", error))
        if len(failures) == 1:
            raise failures[0][1]
        reasons = "; ".join(f"{host}: {error.args[0].removeprefix(f'{self} ')}" for host, error in failures)
        last = failures[-1][1]
        raise type(last)(f"{self} cannot be reached: {reasons}") from last.__cause__

    def _attempts(self) -> list[dict[str, Any]]:
        """Return the parameters of each attempt to connect, in the order of libpq.

        https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
        """
        given = self._parameters
        lists = {key: str(given[key]).split(",") for key in ("host", "hostaddr", "port") if given.get(key)}
        hosts = max((len(values) for key, values in lists.items() if key != "port"), default=1)
        if hosts == 1:
            return [given]
        attempts = [
            given | {key: values[number if len(values) > 1 else 0] for key, values in lists.items()}
            for number in range(hosts)
        ]
        if given.get("load_balance_hosts") == "random":
            random.shuffle(attempts)
        if given.get("target_session_attrs") == "prefer-standby":
            attempts = [
                attempt | {"target_session_attrs": wanted} for wanted in ("standby", "any") for attempt in attempts
            ]
        return attempts

    async def _connect(self, parameters: dict[str, Any]) -> Connection:
        seconds = self.connect_timeout.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                connection: Connection = await Connection.connect(
                    autocommit=True, prepare_threshold=None, cursor_factory=psycopg.AsyncRawCursor, **parameters
                )
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"{self} cannot be reached: no connection within {self.connect_timeout}"
            ) from error
        except psycopg.Error as error:
            mapped = store_error(self, error)
            if self._shows_password(str(error)):
                raise type(mapped)(f"{self} cannot be reached") from None
            raise mapped from error
        connection.patience = seconds
        return connection

    def server(self, connection: Connection) -> str:
        """Return a name for a connection's server, the same whichever of several hosts answered."""
        hosts = str(self._parameters.get("host") or self._parameters.get("hostaddr") or "")
        info = connection.info
        return f"{hosts}:{self._parameters.get('port')}" if "," in hosts else f"{info.host}:{info.port}"

    def _shows_password(self, text: str) -> bool:
        password = str(self._parameters.get("password") or "")
        return bool(password) and (password in text or quote(password, safe="") in text)


class ConnectionPool:
    """Lends connections, the most recently used first.

    A caller that finds none connects, and fails at once if that fails; but if connections exist, it waits for one,
    because the server may accept no more.

    Args:
        target: The database, for messages.
        open_connection: Returns a new connection, ready for use.
        size: The most connections.
        timeout: How long a caller waits for a free one; `open_connection` has its own limit.
        slow: Seconds of such waiting from which on it is logged.
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
        self._withheld = 0
        self._refusal: StoreError | None = None
        self._refused_at = 0.0
        self._made: dict[Connection, float] = {}
        self._idle: dict[Connection, float] = {}
        self._closing_unused: asyncio.TimerHandle | None = None
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
        if self._closing_unused is not None:
            self._closing_unused.cancel()
        self.replace_all()

    def cut(self) -> None:
        """Close all connections, lent ones too: work on them fails, and so do callers that wait for one."""
        self.close()
        for connection in self._made:
            connection.cut("no answer before it was closed")

    def replace_all(self) -> None:
        """Lend no existing connection again; lent ones are closed when they come back."""
        self._made = dict.fromkeys(self._made, _LONG_AGO)
        while self._idle:
            self._discard(self._idle.popitem()[0])

    async def _take(self) -> Connection:
        until = _now() + self._timeout.total_seconds()
        while True:
            if self._withheld and _now() - self._refused_at > _REFUSED_FOR:
                self._lend_all_places()
            await self._wait_for_place(until)
            try:
                return self._take_idle() or await self._connect()
            except StoreError as error:
                if not self._made:
                    self._lend_all_places()
                    self._places.release()
                    raise
                self._refusal, self._refused_at = error, _now()
                self._withheld += 1
            except BaseException:
                self._places.release()
                raise

    async def _wait_for_place(self, until: float) -> None:
        try:
            if self._places.locked():
                await self._wait_in_line(until)
            else:
                await self._places.acquire()
        except TimeoutError as error:
            if len(self._made) == self._size:
                await self._check_server()
                raise StoreBusyError(
                    f"{self._target} is busy: all connections (at most {self._size}) were in use for {self._timeout}",
                    timeout=self._timeout,
                ) from error
            refusal = self._refusal or f"{self._target} cannot be reached: no connection within {self._timeout}"
            raise StoreUnavailableError(str(refusal)) from self._refusal or error
        if self._is_closed:
            self._places.release()
            raise StoreUnavailableError(f"{self._target} was closed before the server answered; nothing was written")

    async def _wait_in_line(self, until: float) -> None:
        began = _now()
        async with asyncio.timeout_at(until):
            await self._places.acquire()
        if (waited := _now() - began) >= self._slow:
            _log.warning("a call waited %.2f s for one of the %d connections to %s", waited, self._size, self._target)

    async def _check_server(self) -> None:
        """Check, once for all callers that wait, whether the server answers, even if only to refuse.

        Raises:
            StoreUnavailableError: It does not answer, so the connections in use wait for a lost server.
        """
        if self._checking is None:
            self._checking = asyncio.create_task(self._open_another())
        try:
            await asyncio.shield(self._checking)
        except StoreUnavailableError:
            raise
        except StoreError:
            pass
        finally:
            if self._checking is not None and self._checking.done():
                self._checking = None

    async def _open_another(self) -> None:
        connection = await self._open_connection()
        connection.pgconn.finish()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if _is_alive(connection):
                return connection
            self._discard(connection)
        return None

    async def _connect(self) -> Connection:
        connection = await self._open_connection()
        self._made[connection] = _now()
        self._lend_all_places()
        return connection

    def _lend_all_places(self) -> None:
        """Lend again the places for which the server had no connections."""
        self._refusal = None
        for _ in range(self._withheld):
            self._places.release()
        self._withheld = 0

    def _give_back(self, connection: Connection) -> None:
        now = _now()
        is_sound = connection.pgconn.transaction_status == TransactionStatus.IDLE and not connection.is_given_up
        if is_sound and not self._is_closed and now - self._made[connection] < _MAX_AGE:
            self._idle[connection] = now
            if self._closing_unused is None:
                self._close_unused_later(now)
        else:
            self._discard(connection)
        self._places.release()

    def _discard(self, connection: Connection) -> None:
        del self._made[connection]
        connection.pgconn.finish()

    def _close_unused(self) -> None:
        self._closing_unused = None
        for connection, since in list(self._idle.items()):
            if _now() - since < _MAX_IDLE:
                self._close_unused_later(since)
                break
            del self._idle[connection]
            self._discard(connection)

    def _close_unused_later(self, since: float) -> None:
        self._closing_unused = asyncio.get_running_loop().call_at(since + _MAX_IDLE, self._close_unused)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _is_torn(url: str) -> bool:
    """Tell whether a URL has an @ besides the one before its host; a part of the password may be outside its place."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("?")[0].partition("/")
    return scheme in ("postgresql", "postgres") and (authority.count("@") > 1 or "@" in path)


def _is_alive(connection: Connection) -> bool:
    """Tell, without a round trip, whether an idle connection is still open.

    If the server ended it, its message or the end of the stream can be read; a server says nothing else unasked.
    """
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
