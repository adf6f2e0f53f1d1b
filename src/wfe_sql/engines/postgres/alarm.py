"""How a provider learns that others have made something due in its store: on a listening connection."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import psycopg

from wfe_sql.engines.alarms import Ring
from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.engines.postgres.errors import text_of
from wfe_sql.engines.postgres.store import PostgresStore
from wfe_sql.errors import StoreError
from wfe_sql.queries import QuerySet

_log = logging.getLogger("wfe_sql")

_FIRST_PAUSE = 0.01
"""Seconds until the next check whether writers from before the alarm was set have ended; they double."""

_LONGEST_RETRY = 60.0
"""The longest time between two attempts to reconnect, in seconds."""


class PostgresAlarm:
    """Asks the server's triggers, with a lock, to notify, and rings when one does.

    A transaction may have tried that lock before it was taken, and commit after the store was read. So until every
    transaction that had begun to write by then has ended, the store must be read again and again.

    Args:
        store: Opens connections.
        queries: The named queries.
        ring: Called when something was made due, and when the connection is lost.
        poll_interval: Seconds between two reads of the store while notifications cannot arrive.
    """

    def __init__(self, store: PostgresStore, queries: QuerySet, ring: Ring, poll_interval: float) -> None:
        self._store = store
        self._queries = queries
        self._ring = ring
        self._poll_interval = poll_interval
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connect_at = 0.0
        self._retry = poll_interval
        self._is_deaf = False
        self._is_asked = False
        self._horizon = ""
        self._pause = _FIRST_PAUSE

    async def ask(self) -> float | None:
        """Ask the triggers to notify from now on."""
        connection = self._connection
        if connection is None:
            self._connect_later()
            return self._poll_interval
        self._loop.remove_reader(connection.fileno())
        try:
            if not self._is_asked:
                _, self._horizon = await self._run(connection, "ask_for_wake")
                self._is_asked = True
            have_ended = await self._run(connection, "have_writers_ended", horizon=self._horizon)
        except psycopg.Error as error:
            self._lose(connection, text_of(error))
            return self._poll_interval
        self._hear(connection)
        self._pause = _FIRST_PAUSE if have_ended else min(2 * self._pause, self._poll_interval)
        return None if have_ended else self._pause

    async def rest(self) -> None:
        """Ask the triggers to stop notifying."""
        connection = self._connection
        if connection is None or not self._is_asked:
            return
        self._loop.remove_reader(connection.fileno())
        self._is_asked = False
        try:
            await self._run(connection, "end_wake")
        except psycopg.Error as error:
            self._lose(connection, text_of(error))
        else:
            self._hear(connection)

    async def close(self) -> None:
        """Stop listening; after this, nothing runs any more."""
        connecting = self._connecting
        self._stop()
        if connecting is not None:
            await asyncio.wait([connecting])

    def abandon(self) -> None:
        """Stop listening; called on any thread, even after the event loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._stop)
        except RuntimeError:
            if self._connection is not None:
                self._connection.pgconn.finish()

    def _stop(self) -> None:
        self._is_deaf = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._drop(self._connection)

    async def _run(self, connection: Connection, query: str, **params: Any) -> Any:
        return await self._queries.run(connection, query, params)

    def _connect_later(self) -> None:
        if self._connecting is None and not self._is_deaf and self._loop.time() >= self._connect_at:
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._store.open_connection()
            try:
                reason = await self._listen(connection)
            except BaseException:
                connection.pgconn.finish()
                raise
        except (StoreError, psycopg.Error) as error:
            self._retry_later()
            _log.warning(
                "%s is polled for work every %g s, because there is no connection to listen on: %s",
                *(self._store, self._poll_interval, error if isinstance(error, StoreError) else text_of(error)),
            )
        else:
            if reason is None:
                self._connection, self._retry = connection, self._poll_interval
                connection.add_notify_handler(self._notified)
                self._hear(connection)
                self._ring()  # for what was stored meanwhile
            else:
                self._is_deaf = True
                connection.pgconn.finish()
                _log.warning("%s is polled for work every %g s: %s", self._store, self._poll_interval, reason)
        finally:
            self._connecting = None

    async def _listen(self, connection: Connection) -> str | None:
        """Listen, or return why that is impossible."""
        if connection.run_shared is not None:
            return "a pooler lends its connections for single transactions, where LISTEN does not work"
        reason: str | None = await self._run(connection, "get_reason_not_to_listen")
        if reason is None:
            await self._run(connection, "listen")
        return reason

    def _hear(self, connection: Connection) -> None:
        """Handle notifications that arrive while the connection is idle, and those that came with its last answer."""
        line = connection.fileno()
        self._loop.add_reader(line, self._read, connection, line)
        self._tell_notified(connection)

    def _read(self, connection: Connection, line: int) -> None:
        try:
            connection.pgconn.consume_input()
        except psycopg.Error as error:
            self._loop.remove_reader(line)  # it is closed, and the next connection may get its number
            self._lose(connection, text_of(error))
        else:
            self._tell_notified(connection)

    def _tell_notified(self, connection: Connection) -> None:
        while notification := connection.pgconn.notifies():
            if notification.extra.decode() == self._store.schema:
                self._ring(is_due=True)

    def _notified(self, notification: psycopg.Notify) -> None:
        """Handle a notification that came while a statement ran."""
        if notification.payload == self._store.schema:
            self._ring(is_due=True)

    def _lose(self, connection: Connection, reason: str) -> None:
        self._drop(connection)
        self._retry_later()
        _log.warning(
            "%s is polled for work every %g s until there is a connection to listen on again: %s",
            *(self._store, self._poll_interval, connection.cut_because or reason),
        )
        self._ring()

    def _retry_later(self) -> None:
        self._connect_at = self._loop.time() + self._retry
        self._retry = min(2 * self._retry, _LONGEST_RETRY)

    def _drop(self, connection: Connection) -> None:
        self._connection, self._is_asked = None, False
        with suppress(psycopg.Error):
            self._loop.remove_reader(connection.fileno())
        connection.pgconn.finish()
