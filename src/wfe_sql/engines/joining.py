"""Units of work in the caller's open transaction, on the caller's own connection.

The caller commits or rolls back, and this library never learns which. A unit runs in a savepoint, so that it fails
alone. The engines have what differs by driver; this module runs a unit and finds the driver's connection.
"""

import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from wfe_sql.engines import Results, Script, Unit
from wfe_sql.errors import StoreError, WfeError

_T = TypeVar("_T")


class Joined(Protocol):
    """Somebody else's connection, for the duration of one unit."""

    async def begin_unit(self) -> None:
        """Check that a unit can run here, and begin its savepoint."""
        ...

    async def run(self, unit: Unit) -> Results:
        """Run statements; raise one of our own errors."""
        ...

    async def rollback_unit(self) -> None:
        """Undo what the unit did so far, and stay in it."""
        ...

    async def commit_unit(self) -> None:
        """Keep what the unit did in the transaction, and leave the connection as it was."""
        ...

    async def abandon_unit(self) -> None:
        """Leave the connection and its transaction as they were."""
        ...


async def play(joined: Joined, script: Script) -> None:
    """Run a script as one unit.

    Raises:
        StoreError: The connection, or its database, cannot be used.
        WfeError: Whatever the script raises; everything it did was undone.
    """
    await joined.begin_unit()
    try:
        try:
            unit = next(script)
            while True:
                try:
                    results = await joined.run(unit)
                except Exception as error:
                    await joined.rollback_unit()
                    unit = script.throw(error)
                else:
                    unit = script.send(results)
        except StopIteration:
            await joined.commit_unit()
    except BaseException:
        await joined.abandon_unit()
        raise


def run_at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never suspends, because it only awaits a synchronous driver."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        result: _T = returned.value
        return result
    raise RuntimeError(f"{coroutine} did not finish at once")


class Entrance:
    """Finds the driver's connection in what a caller passes, which may be a SQLAlchemy connection or session.

    Args:
        target: The store, for messages.
        sync_drivers: Classes of synchronous connections, as "module.Class". None needs to be installed.
        async_drivers: Classes of asynchronous connections.
        begin: A statement that changes nothing; it makes SQLAlchemy begin its transaction.
    """

    def __init__(self, target: object, sync_drivers: Sequence[str], async_drivers: Sequence[str], begin: str) -> None:
        self._target = target
        self._sync_drivers = sync_drivers
        self._async_drivers = async_drivers
        self._begin = begin

    def find(self, connection: object) -> Any:
        """Return the driver's synchronous connection.

        Raises:
            StoreError: It is of another kind, or there is none.
        """
        with self._usable():
            if is_a(connection, "sqlalchemy.orm.Session", "sqlalchemy.orm.scoped_session"):
                connection = connection.connection()  # type: ignore[attr-defined]
            if is_a(connection, "sqlalchemy.Connection"):
                return self._find_within(connection, self._check_sync)
        self._check_sync(connection)
        return connection

    async def find_async(self, connection: object) -> Any:
        """Return the driver's asynchronous connection.

        Raises:
            StoreError: It is of another kind, or there is none.
        """
        sqlalchemy = "sqlalchemy.ext.asyncio"
        with self._usable():
            if is_a(connection, f"{sqlalchemy}.AsyncSession", f"{sqlalchemy}.async_scoped_session"):
                connection = await connection.connection()  # type: ignore[attr-defined]
            if is_a(connection, f"{sqlalchemy}.AsyncConnection"):
                return await connection.run_sync(self._find_within, self._check_async)  # type: ignore[attr-defined]
        self._check_async(connection)
        return connection

    def _find_within(self, connection: Any, check: Callable[[object], None]) -> Any:
        """Return the driver's connection within a SQLAlchemy connection, and begin its transaction."""
        within = connection.connection.driver_connection
        check(within)
        connection.exec_driver_sql(self._begin).close()
        return within

    def _check_sync(self, connection: object) -> None:
        if not is_a(connection, *self._sync_drivers):
            raise self._wrong_kind("run_in_sync", connection)

    def _check_async(self, connection: object) -> None:
        if not is_a(connection, *self._async_drivers):
            raise self._wrong_kind("run_in", connection)

    def _wrong_kind(self, method: str, connection: object) -> StoreError:
        kind = type(connection)
        return StoreError(
            f"{method} cannot add a unit of {self._target} to a transaction of {kind.__module__}.{kind.__qualname__}: "
            f"await unit.run_in() takes {_listed(self._async_drivers)}, and SQLAlchemy's AsyncConnection and "
            f"AsyncSession over these; unit.run_in_sync() takes {_listed(self._sync_drivers)}, and SQLAlchemy's "
            "Connection and Session over these. Nothing was written"
        )

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except WfeError:
            raise
        except Exception as error:  # SQLAlchemy's, the driver's, or an application hook's
            raise unusable(self._target, str(error)) from error


def is_a(connection: object, *names: str) -> bool:
    """Tell whether an object is an instance of one of the classes "module.Class", without importing the module."""
    classes = (getattr(sys.modules.get(module), name, None) for module, _, name in (n.rpartition(".") for n in names))
    return any(isinstance(connection, found) for found in classes if isinstance(found, type))


def unusable(target: object, why: str) -> StoreError:
    """Return the error for a connection on which no unit can run."""
    reason = " ".join(why.split()).removesuffix(".")
    return StoreError(f"the connection cannot take a unit of {target}: {reason}. Nothing was written")


NO_TRANSACTION = "it is not in a transaction, so nobody would commit the unit; begin one"
"""Why a unit cannot run on a connection in autocommit mode."""

OTHER_DATABASE = "it is connected to another database"


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names)
