"""Every operation of the repositories, written once, as units of named queries.

How a call runs: a method encodes its arguments through `arguments` and `tables`, hands a unit to the engine, and
decodes what comes back. It never names a dialect; a query's name is the words of the method that runs it.
"""

import os
import socket
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self

from wfe_sql.arguments import encode_id, encode_limit, to_utc
from wfe_sql.engines import Engine, Statement
from wfe_sql.errors import StoreError
from wfe_sql.maintenance import Maintenance
from wfe_sql.models import ExecutionError
from wfe_sql.operations.commands import Commands
from wfe_sql.operations.events import Events
from wfe_sql.operations.hosting import Hosting
from wfe_sql.operations.subscriptions import Subscriptions
from wfe_sql.operations.units import Units, persist_errors
from wfe_sql.operations.waiting import Waiting, Watch
from wfe_sql.operations.workflows import Workflows
from wfe_sql.repositories import PersistenceProvider
from wfe_sql.tables import EXECUTION_ERRORS

OnConflict = Literal["overwrite", "raise"]


class SqlPersistenceProvider(
    Workflows, Subscriptions, Events, Commands, Units, Hosting, Waiting, Maintenance, PersistenceProvider
):
    """A `PersistenceProvider` and `MaintenanceRepository` on an engine; what each method does is documented there.

    Use it as an async context manager, or call `await open()` and `await close()`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], datetime],
        on_conflict: OnConflict,
        poll_interval: timedelta,
        fallback_interval: timedelta,
    ) -> None:
        """Set up on an engine that is not open yet; see `SqlitePersistenceProvider` for the options."""
        if on_conflict not in ("overwrite", "raise"):
            raise StoreError(f"on_conflict must be 'overwrite' or 'raise', not {on_conflict!r}")
        if not callable(clock):
            kind = type(clock).__name__
            raise StoreError(f"clock must be a function that returns the time, such as wfe_sql.utc_now, not {kind}")
        self._engine = engine
        self._clock: Callable[[], datetime] = lambda: to_utc("the clock's time", clock())
        self._watch = Watch(engine, self._clock, poll_interval=poll_interval, fallback_interval=fallback_interval)
        self._raises_on_conflict = on_conflict == "raise"
        self._worker_id = f"{socket.gethostname()}:{os.getpid()}"

    def __del__(self) -> None:
        engine: Engine | None = getattr(self, "_engine", None)  # None when an option was refused
        if engine is not None and engine.is_open:
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, source=self, stacklevel=1)
            self._watch.abandon()
            engine.abandon()

    async def open(self) -> Self:
        """Connect, create the store if it does not exist, and return this provider.

        Raises:
            StoreError: The store cannot be opened or created; the message says why.
            ProviderClosedError: It was already opened.
        """
        await self._engine.open()
        return self

    async def close(self) -> None:
        """Finish what is pending and disconnect; calls from now on raise `ProviderClosedError`. Twice is fine.

        Calls that wait for work end at once with the same error.
        """
        if self._engine.is_open:
            self._engine.check_open()
            await self._watch.close()
        await self._engine.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def ensure_store_exists(self) -> None:
        await self._engine.ensure_store_exists()

    async def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        if unit := persist_errors(errors):
            await self._engine.write(unit)

    async def get_execution_errors(
        self, workflow_id: str | None = None, *, limit: int | None = None
    ) -> list[ExecutionError]:
        params: dict[str, Any] = {"row_limit": encode_limit(limit)}
        if workflow_id is None:
            statement = Statement("get_execution_errors", params)
        else:
            params["workflow_id"] = encode_id("workflow_id", workflow_id)
            statement = Statement("get_execution_errors_of_workflow", params)
        (rows,) = await self._engine.read([statement])
        return EXECUTION_ERRORS.decode_all([row[0] for row in rows], [row[1] for row in rows])
