"""How a unit of work runs. A unit is data, not a callback, so that each engine can group waiting units as it likes."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from wfe_sql.engines.alarms import Alarm, Ring, WakesOn
from wfe_sql.errors import ProviderClosedError, StoreError
from wfe_sql.queries import QuerySet

Params = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Statement:
    """One named query of a unit, with its parameters.

    Attributes:
        query: The query's name.
        params: Its parameters by name; a list of them for a query that runs many times.
        otherwise: The error of the unit if the query returns or changes no row.
        conflicts: Makes the error of the unit if a unique column, "table.column", already has the value.
        ended: For the first statement of a unit: called when the unit ended, before its caller knows, and even if the
            caller was cancelled, with the results, the error, or None if nothing ran.
        refused: The error of the unit if the row that the query returns begins with 0.
        operation: The operation that it belongs to, for people, in a unit of several; a failed unit names it.
        asked: For the first of a unit, with `on_unit`: the context of the call, and whether it is a write.
    """

    query: str
    params: Params
    otherwise: Exception | None = None
    conflicts: Mapping[str, Callable[[], Exception]] = field(default_factory=dict)
    ended: "Ended | None" = None
    operation: str = ""
    refused: Exception | None = None
    asked: tuple[Context, bool] | None = None

    def failure(self, result: Any) -> Exception | None:
        """Return the error of the unit if the query returned this; None if the unit goes on."""
        if self.otherwise is not None and not result:
            return self.otherwise
        return self.refused if self.refused is not None and not result[0] else None

    def name_in(self, error: Exception) -> None:
        """Add a note to an error of this statement that says which operation of the unit failed."""
        note = f"the operation of the unit that failed: {self.operation}"
        if self.operation and note not in getattr(error, "__notes__", ()):
            error.add_note(note)


Unit = Sequence[Statement]
"""Statements that happen together or not at all."""

Results = list[Any]
"""What each statement of a unit returned: rows, a row, a value, or how many rows it changed."""

Script = Generator[Unit, Results, None]
"""Yields the statements to run next; it is sent their results, or thrown their error once they were undone. All of them
together are one unit."""

Ended = Callable[[Results | Exception | None], None]
"""Called with the outcome of a unit."""


Read = Callable[[Unit], Awaitable[Results]]
"""Runs a unit that changes nothing."""


class UniqueViolationError(StoreError):
    """A unique column already has the value, and the statement does not say which error that is."""

    def __init__(self, column: str) -> None:
        """Name the column as "table.column"."""
        super().__init__(f"duplicate value for {column}; nothing was written")


_process = os.getpid()


def _note_fork() -> None:
    """Note, in a child, which process this is: asking the system at each call would take longer."""
    global _process
    _process = os.getpid()


os.register_at_fork(after_in_child=_note_fork)


def running_loop(target: object) -> asyncio.AbstractEventLoop:
    """Return the event loop that a provider is used on.

    Raises:
        StoreError: No asyncio event loop is running.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise StoreError(
            f"the provider of {target} needs a running asyncio event loop: use asyncio.run(); trio is not supported"
        ) from error


@dataclass(frozen=True, slots=True)
class Home:
    """The event loop and process in which a provider was opened, and where it may be used."""

    loop: asyncio.AbstractEventLoop
    process: int

    @classmethod
    def here(cls, target: object) -> "Home":
        """Return the running event loop of this process.

        Raises:
            StoreError: No asyncio event loop is running.
        """
        return cls(running_loop(target), _process)


def check_usable(target: object, home: Home | None, *, is_open: bool) -> None:
    """Check that calls can be made now, on an engine that was opened at `home`, if it was.

    Raises:
        ProviderClosedError: It is not open.
        StoreError: It belongs to another event loop, or to the process that this one was forked from.
    """
    if home is None or not is_open:
        raise not_open(target, home)
    if _process != home.process:
        raise StoreError(
            f"the provider of {target} belongs to process {home.process}, which this one was forked from; "
            "open one after the fork"
        )
    if running_loop(target) is not home.loop:
        raise StoreError(f"the provider of {target} belongs to another event loop; use and close it there")


def not_open(target: object, home: Home | None) -> ProviderClosedError:
    """Return the error of a provider that was never opened, or is closed."""
    what = "is not open; await open() first, or use 'async with'" if home is None else "is closed"
    return ProviderClosedError(f"the provider of {target} {what}")


class Engine(Protocol):
    """What a provider needs from a database.

    Attributes:
        commits: How many transactions that may have written something it has committed.
    """

    commits: int

    @property
    def store_id(self) -> str:
        """The identity of the open store: two engines of one store have the same."""
        ...

    @property
    def queries(self) -> QuerySet:
        """The named queries that it runs."""
        ...

    @property
    def has_times_as_text(self) -> bool:
        """Whether the database stores and compares times as text."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it is open, and nobody has begun to close it."""
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

    async def open_alarm(self, ring: Ring, poll_interval: float) -> Alarm:
        """Return an alarm that calls `ring`, on the event loop, when others changed the store; the engine closes it.

        If the store cannot notify it, waiting tasks look at the store every `poll_interval` seconds.
        """
        ...

    @property
    def log_size(self) -> int | None:
        """The size of the store's own write-ahead log in bytes; None if it has none."""
        ...

    async def is_log_held(self) -> bool | None:
        """Tell whether a reader keeps much of the log from being reused; None if it is unknown."""
        ...

    async def open(self) -> None:
        """Connect, and create the store if it does not exist."""
        ...

    async def close(self) -> None:
        """Finish what is pending and disconnect; further calls raise `ProviderClosedError`."""
        ...

    def abandon(self) -> None:
        """Close the connections of a provider that nobody uses any longer, from any thread, without an event loop."""
        ...

    async def ensure_store_exists(self) -> None:
        """Make the tables, columns and indexes that are missing."""
        ...

    async def write(self, unit: Unit) -> Results:
        """Run a unit that changes something; it is durable when this returns."""
        ...

    def submit(self, unit: Unit) -> "asyncio.Future[Results]":
        """Run a unit as `write` does, and return at once; for work that must outlive its caller."""
        ...

    async def read(self, unit: Unit) -> Results:
        """Run a unit that changes nothing, on one snapshot."""
        ...

    async def run_in(self, connection: object, script: Script) -> None:
        """Run what a script yields as one unit, on somebody else's connection, in its transaction.

        The script is told the results of what it yields, or the error once that was undone. When this raises, nothing
        of the unit is left.

        Args:
            connection: An asynchronous connection, of a driver or SQLAlchemy.
            script: What to run.
        """
        ...

    def run_in_sync(self, connection: object, script: Script) -> None:
        """Like `run_in`, on a synchronous connection and any thread."""
        ...

    async def may_find(self, look: Statement) -> bool:
        """Tell whether a write, which looks for the same rows as the query `look`, may find any.

        If a write that finds nothing costs nothing, this is always True, without a query.
        """
        ...

    def snapshot(self) -> AbstractAsyncContextManager[Read]:
        """Run all reads of the block on one snapshot, taken at the first of them; writers are not blocked."""
        ...

    async def backup(self, path: Path) -> None:
        """Copy the whole database, as of one moment, into a new file; writers are not blocked.

        Raises:
            StoreError: The file already exists, or the database has its own tools for this, which the message names.
        """
        ...
