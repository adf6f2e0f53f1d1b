"""Units of work on somebody else's connection to the store's database, of psycopg or asyncpg.

Each driver's connection is wrapped so that `PostgresAdapter` can run queries on it: it takes numbered parameters as
text, whose types the server knows, and returns tuples, whatever the caller has set up. Nothing set here remains on it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg.pq import DiagnosticField, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.string import StrDumperUnknown

from wfe_sql.engines import Params, Results, Statement, Unit
from wfe_sql.engines.joining import NO_TRANSACTION, OTHER_DATABASE, unusable
from wfe_sql.engines.postgres.errors import unit_error
from wfe_sql.engines.postgres.grouping import run_by_parts
from wfe_sql.engines.postgres.store import PostgresStore
from wfe_sql.errors import StoreError
from wfe_sql.queries import QuerySet

SYNC_DRIVERS = ("psycopg.Connection",)
ASYNC_DRIVERS = ("psycopg.AsyncConnection", "asyncpg.Connection", "asyncpg.pool.PoolConnectionProxy")

_CLOSED = "it is closed"
_FAILED = "its transaction has failed; roll it back"
_IN_PIPELINE = "it is in a pipeline; end that first"
_FAILED_TRANSACTION = "25P02"

Types = dict[str, Sequence[str]]
"""The parameter types of each query, as the server inferred them."""


class Guest(Protocol):
    """Somebody else's connection, as `PostgresAdapter` uses it; its errors are psycopg's."""

    @property
    def why_unusable(self) -> str | None:
        """Why no unit can run on it; None if one can."""
        ...

    async def execute(self, sql: str, params: Sequence[Any] | None = None, **options: Any) -> Any:
        """Return a cursor with the results."""
        ...

    def cursor(self) -> Any:
        """Return a cursor."""
        ...


def guest(connection: Any, types: Types) -> Guest:
    """Wrap a driver's connection so that queries can run on it."""
    if isinstance(connection, psycopg.Connection):
        return _Psycopg(connection)
    if isinstance(connection, psycopg.AsyncConnection):
        return _AsyncPsycopg(connection)
    return _Asyncpg(connection, types)


class PostgresJoined:
    """Somebody else's connection, for the duration of one unit."""

    def __init__(self, store: PostgresStore, queries: QuerySet, connection: Guest) -> None:
        self._store = store
        self._queries = queries
        self._connection = connection
        self._settings: str | None = None
        self._is_set_up = False

    async def begin_unit(self) -> None:
        """Check for a transaction, and begin a savepoint, which makes psycopg begin its transaction if it has not."""
        if why := self._connection.why_unusable:
            raise unusable(self._store, why)
        await self._run("begin_unit")

    async def run(self, unit: Unit) -> Results:
        """Run statements on the store's tables, once the rows that they change are free."""
        if not self._is_set_up:
            await self._set_up()
        results = await run_by_parts(unit, self._run_part)
        if results is not None:
            return results
        await self.rollback_unit()
        return await self.run(unit)

    async def rollback_unit(self) -> None:
        """Undo what the unit did, and restore the caller's settings."""
        await self._run("rollback_unit")
        self._is_set_up = False

    async def commit_unit(self) -> None:
        """Keep what the unit did in the transaction, and restore its settings."""
        if self._is_set_up:
            await self._run("restore_settings", {"settings": self._settings})
        await self._run("commit_unit")

    async def abandon_unit(self) -> None:
        """Undo the unit; if the connection was lost, so is the transaction."""
        with suppress(StoreError):
            await self._run("rollback_unit")
            await self._run("commit_unit")

    async def _set_up(self) -> None:
        """Make names refer to the store's tables, after a check that this is its database."""
        if self._settings is None:
            if self._store.database and await self._run("get_database") != self._store.database:
                raise unusable(self._store, OTHER_DATABASE)
            self._settings = await self._run("get_settings")
        await self._run("set_up_connection", self._store.settings_within(self._settings))
        self._is_set_up = True

    async def _run_part(self, statement: Statement, part: Unit) -> Any:
        return await self._run(statement.query, statement.params, part)

    async def _run(self, query: str, params: Params | None = None, part: Unit = ()) -> Any:
        """Run a query; an error names the part of the unit that raised it."""
        try:
            return await self._queries.run(self._connection, query, {} if params is None else params)
        except psycopg.Error as error:
            if error.sqlstate == _FAILED_TRANSACTION:
                raise unusable(self._store, _FAILED) from error.__cause__ or error
            meaning = unit_error(self._store, error, part)
            if part:
                part[0].name_in(meaning)
            raise meaning from error.__cause__ or error


class _AnsweredAtOnce:
    """What `PostgresAdapter` reads to see whether a connection is in a pipeline; a guest never is."""

    pipeline_status = PipelineStatus.OFF


class _AsyncPsycopg:
    pgconn = _AnsweredAtOnce

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    @property
    def why_unusable(self) -> str | None:
        return _why_unusable(self._connection)

    async def execute(self, sql: str, params: Sequence[Any] | None = None, **options: Any) -> Any:
        return await self.cursor().execute(sql.encode(), params, prepare=False)

    def cursor(self) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        cursor = psycopg.AsyncRawCursor(self._connection, row_factory=tuple_row)
        cursor.adapters.register_dumper(str, StrDumperUnknown)
        return cursor


class _Psycopg:
    pgconn = _AnsweredAtOnce

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    @property
    def why_unusable(self) -> str | None:
        return _why_unusable(self._connection)

    async def execute(self, sql: str, params: Sequence[Any] | None = None, **options: Any) -> "_Fetched":
        cursor = self._new_cursor()
        cursor.execute(sql.encode(), params, prepare=False)
        return _Fetched(cursor.rowcount, cursor.description, cursor.fetchall() if cursor.description else [])

    def cursor(self) -> "_ManySync":
        return _ManySync(self._new_cursor())

    def _new_cursor(self) -> psycopg.Cursor[tuple[Any, ...]]:
        cursor = psycopg.RawCursor(self._connection, row_factory=tuple_row)
        cursor.adapters.register_dumper(str, StrDumperUnknown)
        return cursor


@dataclass(frozen=True, slots=True)
class _Fetched:
    """The result of a statement, with the interface of an asynchronous cursor."""

    rowcount: int
    description: Sequence[Any] | None
    rows: Sequence[tuple[Any, ...]]

    async def fetchall(self) -> Sequence[tuple[Any, ...]]:
        return self.rows

    async def fetchone(self) -> tuple[Any, ...] | None:
        return self.rows[0] if self.rows else None


class _ManySync:
    def __init__(self, cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
        self._cursor = cursor

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    async def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self._cursor.executemany(sql.encode(), rows)


class _Asyncpg:
    """An asyncpg connection, which is also its own cursor.

    asyncpg requires values of the server's parameter types, which a codec of the caller's may change. So text is sent
    as text and cast by the server, as it is with psycopg.
    """

    pgconn = _AnsweredAtOnce

    def __init__(self, connection: Any, types: Types) -> None:
        self._connection = connection
        self._types = types
        self.rowcount = 0

    @property
    def why_unusable(self) -> str | None:
        if self._connection.is_closed():
            return _CLOSED
        return None if self._connection.is_in_transaction() else NO_TRANSACTION

    def cursor(self) -> "_Asyncpg":
        return self

    async def execute(self, sql: str, params: Sequence[Any] | None = None, **options: Any) -> _Fetched:
        values = [_as_text(value) for value in params or ()]
        with _errors_as_psycopg(self._connection):
            statement = await self._prepare(sql, values)
            rows = [tuple(row) for row in await statement.fetch(*values)]
            changed = _COUNT.search(statement.get_statusmsg())
        return _Fetched(int(changed[0]) if changed else 0, statement.get_attributes(), rows)

    async def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement that changes one row for each set of parameters, because asyncpg does not count rows."""
        values = [[_as_text(value) for value in row] for row in rows]
        with _errors_as_psycopg(self._connection):
            statement = await self._prepare(sql, values[0])
            await statement.executemany(values)
        self.rowcount = len(values)

    async def _prepare(self, sql: str, values: Sequence[Any]) -> Any:
        if not values:
            return await self._connection.prepare(sql)
        if sql not in self._types:
            asked = await self._connection.prepare(sql)
            self._types[sql] = ["" if found.kind == "array" else _name(found) for found in asked.get_parameters()]
        types = self._types[sql]

        def cast(parameter: re.Match[str]) -> str:
            if parameter[1] is None:
                return parameter[0]
            place = int(parameter[1]) - 1
            is_text = isinstance(values[place], str | None) and types[place]
            return f"({parameter[0]}::text::{types[place]})" if is_text else parameter[0]

        return await self._connection.prepare(_PARAMETER.sub(cast, sql))


_COUNT = re.compile(r"\d+$")
"""The number of changed rows in a command tag, such as "INSERT 0 1"."""

_PARAMETER = re.compile(r"'[^']*'|\"[^\"]*\"|--.*|\$(\d+)")


def _as_text(value: Any) -> Any:
    """Return a number as text, for the server to infer its type."""
    return repr(value) if type(value) in (int, float) else value


def _name(found: Any) -> str:
    return f'"{found.schema}"."{found.name}"'


@contextmanager
def _errors_as_psycopg(connection: Any) -> Iterator[None]:
    """Turn asyncpg's errors into psycopg's, with the original as cause, so that `unit_error` treats both alike."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "sqlstate", None)
        if code is None:
            kind = psycopg.OperationalError if connection.is_closed() else psycopg.InterfaceError
            raise kind(str(error)) from error
        fields = {field: getattr(error, name, None) for field, name in _FIELDS.items()}
        info: dict[int, bytes | None] = {field: value.encode() for field, value in fields.items() if value is not None}
        raise _kind_of(code)(str(error), info=info) from error


_FIELDS = {
    DiagnosticField.SQLSTATE: "sqlstate",
    DiagnosticField.MESSAGE_PRIMARY: "message",
    DiagnosticField.MESSAGE_DETAIL: "detail",
    DiagnosticField.TABLE_NAME: "table_name",
    DiagnosticField.COLUMN_NAME: "column_name",
    DiagnosticField.CONSTRAINT_NAME: "constraint_name",
}
"""The names of an error's fields in asyncpg."""


def _kind_of(code: str) -> type[psycopg.Error]:
    try:
        return psycopg.errors.lookup(code)
    except KeyError:
        return psycopg.DatabaseError


def _why_unusable(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> str | None:
    if connection.closed:
        return _CLOSED
    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        return _IN_PIPELINE
    is_idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
    return NO_TRANSACTION if is_idle and connection.autocommit else None
