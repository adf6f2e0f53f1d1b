"""How a unit of work runs. A unit is data, not a callback, so that each engine can group what waits as suits it."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from wfe_sql.engines.alarms import Alarm, WakesOn
from wfe_sql.errors import ProviderClosedError, StoreError
from wfe_sql.queries import QuerySet

Params = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Statement:
    """One named query of a unit, with its parameters.

    Attributes:
        query: The query's name.
        params: Its parameters by name; a list of them for a query that runs many times.
        otherwise: What the unit fails with when the query returns no row or changes none.
        conflicts: What the unit fails with when a unique column, "table.column", has the value already.
        ended: For the first of a unit: what is told how the unit ended, before its caller hears of it and also when the
            caller was cancelled meanwhile: its results, its error, or None where nothing ran.
        refused: What the unit fails with when the row that the query returns begins with 0.
        operation: The operation that it belongs to, for people, in a unit of several; a failed unit names it.
    """

    query: str
    params: Params
    otherwise: Exception | None = None
    conflicts: Mapping[str, Exception] = field(default_factory=dict)
    ended: "Ended | None" = None
    operation: str = ""
    refused: Exception | None = None

    def failure(self, result: Any) -> Exception | None:
        """Return what the unit fails with where the query returned this; None where it goes on."""
        if self.otherwise is not None and not result:
            return self.otherwise
        return self.refused if self.refused is not None and not result[0] else None

    def name_in(self, error: Exception) -> None:
        """Add to an error of this statement which of a unit's operations it is the error of."""
        note = f"the operation of the unit that failed: {self.operation}"
        if self.operation and note not in getattr(error, "__notes__", ()):
            error.add_note(note)


Unit = Sequence[Statement]
"""Statements that happen together or not at all."""

Results = list[Any]
"""What each statement of a unit returned: rows, a row, a value, or how many rows it changed."""

Ended = Callable[[Results | Exception | None], None]
"""Is told how a unit ended."""


Read = Callable[[Unit], Awaitable[Results]]
"""Runs a unit that changes nothing."""


class UniqueViolationError(StoreError):
    """A unique column has the value already, and the statement did not say what that means."""

    def __init__(self, column: str) -> None:
        """Name the column as "table.column"."""
        super().__init__(f"{column} has this value already; nothing was written")


def running_loop(target: object) -> asyncio.AbstractEventLoop:
    """Return the event loop that a provider is used on.

    Raises:
        StoreError: None of asyncio is running.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise StoreError(
            f"the provider of {target} needs a running event loop of asyncio: use asyncio.run(); trio's will not do"
        ) from error


@dataclass(frozen=True, slots=True)
class Home:
    """Where a provider was opened, and so where it may be used."""

    loop: asyncio.AbstractEventLoop
    process: int

    @classmethod
    def here(cls, target: object) -> "Home":
        """Return the running event loop of this process.

        Raises:
            StoreError: None of asyncio is running.
        """
        return cls(running_loop(target), os.getpid())


def check_usable(target: object, home: Home | None, *, is_open: bool) -> None:
    """Check that calls can be made now, on an engine that was opened at `home`, if it was.

    Raises:
        ProviderClosedError: It is not open.
        StoreError: It belongs to another event loop, or to the process that this one was forked from.
    """
    if home is None or not is_open:
        what = "is not open; await open() first, or use 'async with'" if home is None else "is closed"
        raise ProviderClosedError(f"the provider of {target} {what}")
    if os.getpid() != home.process:
        raise StoreError(
            f"the provider of {target} belongs to process {home.process}, which this one was forked from; "
            "open one after the fork"
        )
    if running_loop(target) is not home.loop:
        raise StoreError(f"the provider of {target} belongs to another event loop; use and close it there")


class Engine(Protocol):
    """What a provider needs from a database.

    Attributes:
        commits: How many transactions that may have written something it has committed.
    """

    commits: int

    @property
    def store_id(self) -> str:
        """What tells the open store from all others: two engines of one store have the same."""
        ...

    @property
    def queries(self) -> QuerySet:
        """The named queries that it runs."""
        ...

    @property
    def has_times_as_text(self) -> bool:
        """Whether times are text in the database, which compares them as text."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it has connections that nobody has begun to close."""
        ...

    def check_open(self) -> None:
        """Check that calls can be made now.

        Raises:
            ProviderClosedError: It is not open.
            StoreError: It belongs to another event loop, or to the process that this one was forked from.
        """
        ...

    @property
    def wakes_on(self) -> WakesOn:
        """Whose commits an alarm rings on."""
        ...

    async def open_alarm(self, ring: Callable[[], None], poll_interval: float) -> Alarm:
        """Return what calls `ring`, on the event loop, when others have changed the store; the engine closes it.

        Where it cannot tell, because the store does not let it, it has the store looked at so often, in seconds.
        """
        ...

    @property
    def log_size(self) -> int | None:
        """How many bytes the store's own write-ahead log has; None where it has none."""
        ...

    async def is_log_held(self) -> bool | None:
        """Tell whether a connection that reads keeps much of the log from being reused; None where it is not known."""
        ...

    async def open(self) -> None:
        """Connect, and make the store where it does not exist."""
        ...

    async def close(self) -> None:
        """Finish what is pending and disconnect; further calls raise `ProviderClosedError`."""
        ...

    def abandon(self) -> None:
        """Have the connections closed of a provider that nobody has any more, from any thread, on no event loop."""
        ...

    async def ensure_store_exists(self) -> None:
        """Make the tables, columns and indexes that are missing."""
        ...

    async def write(self, unit: Unit) -> Results:
        """Run a unit that changes something; it is durable when this returns."""
        ...

    def submit(self, unit: Unit) -> "asyncio.Future[Results]":
        """Have a unit run as `write` does, and return at once; for what must not end with its caller."""
        ...

    async def read(self, unit: Unit) -> Results:
        """Run a unit that changes nothing, on one snapshot."""
        ...

    async def may_find(self, look: Statement) -> bool:
        """Tell whether a write is worth it, which finds what the query `look` finds.

        Where a write that finds nothing costs nothing, it is, and nobody looks.
        """
        ...

    def snapshot(self) -> AbstractAsyncContextManager[Read]:
        """Have all units that are read within see the store as it is at the first of them; writers go on meanwhile."""
        ...

    async def backup(self, path: Path) -> None:
        """Copy the whole database, as it is at one moment, into a new file; writers go on meanwhile.

        Raises:
            StoreError: The file exists already, or the database has tools of its own for this; the message names them.
        """
        ...
