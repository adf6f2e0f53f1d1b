"""How a provider hears that another process, or another provider, has changed its SQLite file."""

import asyncio
import sqlite3
from collections.abc import Callable

from wfe_sql.engines.sqlite.lanes import WorkerConnection
from wfe_sql.engines.sqlite.store import SqliteStore
from wfe_sql.errors import StoreError
from wfe_sql.queries import QuerySet

_SHORTEST, _LONGEST = 0.005, 0.25
"""Seconds between two looks: beside work, and when nothing has changed for long."""

_SHARE = 200
"""How many times as long as the pause to the next look nothing has changed: after a second it is 5 ms, after 50 it is
the longest. A look takes 20 to 30 microseconds."""


class SqliteAlarm:
    """Looks, on the event loop, whether the file has another version than it had; that writes and locks nothing.

    Args:
        connection: One that was opened for it, and may be used on the event loop.
        store: The file.
        queries: The named queries.
        ring: Called when the file was changed, or cannot be looked at, once for each time that it was asked to.
    """

    def __init__(
        self, connection: WorkerConnection, store: SqliteStore, queries: QuerySet, ring: Callable[[], None]
    ) -> None:
        self.connection = connection
        self._store = store
        self._queries = queries
        self._ring = ring
        self._version = 0
        self._changed_at = 0.0
        self._next_look: asyncio.TimerHandle | None = None

    async def ask(self) -> float | None:
        """Note which version the file has now, and look from time to time whether it has another one."""
        await self.rest()
        self._look()
        return None

    async def rest(self) -> None:
        """Look no more."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _look(self) -> None:
        """Ring if the version is another one; else look again later."""
        loop = asyncio.get_running_loop()
        asked = self._next_look is not None
        try:
            self._store.check_in_place()
            version = self._queries.run(self.connection.raw, "get_data_version", {})
        except (StoreError, sqlite3.Error):
            self._ring()  # whoever looks at the store then hears what it is
            return
        if version != self._version:
            self._version, self._changed_at = version, loop.time()
            if asked:
                self._ring()
                return
        pause = (loop.time() - self._changed_at) / _SHARE
        self._next_look = loop.call_later(min(max(pause, _SHORTEST), _LONGEST), self._look)
