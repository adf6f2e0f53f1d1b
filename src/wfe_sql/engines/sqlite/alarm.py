"""How a provider learns that another process, or another provider, has changed its SQLite file."""

import asyncio
import sqlite3

from wfe_sql.engines.alarms import Ring
from wfe_sql.engines.sqlite.lanes import WorkerConnection
from wfe_sql.engines.sqlite.store import SqliteStore
from wfe_sql.errors import StoreError
from wfe_sql.queries import QuerySet

_SHORTEST, _LONGEST = 0.005, 0.25
"""Seconds between two looks: while there are changes, and after a long time without any."""

_SHARE = 200
"""The time since the last change divided by the pause before the next look: the pause is 5 ms after a second, and the
longest after 50 seconds. A look takes 20 to 30 microseconds."""


class SqliteAlarm:
    """Checks, on the event loop, whether the version of the file has changed; that writes and locks nothing.

    Args:
        connection: Opened for this alarm, and usable on the event loop.
        store: The file.
        queries: The named queries.
        ring: Called when the file was changed or cannot be checked, once for each `ask`.
    """

    def __init__(self, connection: WorkerConnection, store: SqliteStore, queries: QuerySet, ring: Ring) -> None:
        self.connection = connection
        self._store = store
        self._queries = queries
        self._ring = ring
        self._version = 0
        self._changed_at = 0.0
        self._next_look: asyncio.TimerHandle | None = None

    async def ask(self) -> float | None:
        """Note the version of the file, and check from time to time whether it has changed."""
        await self.rest()
        self._look()
        return None

    async def rest(self) -> None:
        """Stop checking."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _look(self) -> None:
        """Ring if the version has changed; otherwise check again later."""
        loop = asyncio.get_running_loop()
        asked = self._next_look is not None
        try:
            self._store.check_in_place()
            version = self._queries.run(self.connection.raw, "get_data_version", {})
        except (StoreError, sqlite3.Error):
            self._ring()  # reading the store then raises the error
            return
        if version != self._version:
            self._version, self._changed_at = version, loop.time()
            if asked:
                self._ring()
                return
        pause = (loop.time() - self._changed_at) / _SHARE
        self._next_look = loop.call_later(min(max(pause, _SHORTEST), _LONGEST), self._look)
