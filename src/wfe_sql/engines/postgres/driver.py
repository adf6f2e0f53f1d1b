"""aiosql on psycopg's asynchronous connections."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from aiosql.types import SQLOperationType
from psycopg.pq import PipelineStatus

from wfe_sql.engines.parameters import number_parameters

_STATEMENT = re.compile(r"(?:\$\$.*?\$\$|'[^']*'|\"[^\"]*\"|--[^\n]*|[^;])+", re.DOTALL)


def split_script(sql: str) -> list[str]:
    """Return the statements of a script, without their final semicolons."""
    return [statement for statement in _STATEMENT.findall(sql) if statement.strip()]


class PostgresAdapter:
    """aiosql's adapter for psycopg, with the server's numbered parameters; each query returns an awaitable.

    With numbers, the driver need not parse each query at each call, and `%` needs no escape. Integers are sent untyped,
    like text, so that a statement is prepared once and not once for each size of integer.
    https://www.psycopg.org/psycopg3/docs/advanced/cursors.html#raw-query-cursors

    In a pipeline there is no answer yet: a query then returns a function that reads it after the pipeline has ended.
    """

    is_aio_driver = False  # aiosql would make a generator of a select, which runs nothing until it is exhausted

    def __init__(self) -> None:
        """Take no options."""
        self._order: dict[str, list[str]] = {}

    def process_sql(self, query_name: str, op_type: SQLOperationType, sql: str) -> str:
        """Turn `:name` into `$1`, and prefix the query's name, so that the server's views and logs show it."""
        numbered, self._order[query_name] = number_parameters(sql, "$")
        return f"/* {query_name} */ {numbered}"

    async def select(
        self, conn: Any, query_name: str, sql: str, parameters: Mapping[str, Any], record_class: Any = None
    ) -> Any:
        """Return all rows."""
        return await _answer(conn, await conn.execute(sql, self._ordered(query_name, parameters)), self._all)

    async def select_one(
        self, conn: Any, query_name: str, sql: str, parameters: Mapping[str, Any], record_class: Any = None
    ) -> Any:
        """Return the first row, or None."""
        return await _answer(conn, await conn.execute(sql, self._ordered(query_name, parameters)), self._first)

    async def select_value(self, conn: Any, query_name: str, sql: str, parameters: Mapping[str, Any]) -> Any:
        """Return the first column of the first row, or None."""
        return await _answer(conn, await conn.execute(sql, self._ordered(query_name, parameters)), _value)

    async def insert_update_delete(self, conn: Any, query_name: str, sql: str, parameters: Mapping[str, Any]) -> Any:
        """Return how many rows were changed."""
        return await _answer(conn, await conn.execute(sql, self._ordered(query_name, parameters)), _changed)

    async def insert_update_delete_many(
        self, conn: Any, query_name: str, sql: str, parameters: Sequence[Mapping[str, Any]]
    ) -> Any:
        """Run once for each set of parameters, and return how many rows were changed."""
        cursor = conn.cursor()
        await cursor.executemany(sql, [self._ordered(query_name, row) for row in parameters])
        return await _answer(conn, cursor, _changed)

    async def execute_script(self, conn: Any, sql: str) -> Any:
        """Run several statements one by one, as Citus requires, inside the open transaction."""
        for statement in split_script(sql):
            await conn.execute(statement, prepare=False)
        return await _answer(conn, None, _done)

    def _ordered(self, query_name: str, parameters: Mapping[str, Any]) -> list[Any]:
        values = (parameters[name] for name in self._order[query_name])
        return [str(value) if type(value) is int else value for value in values]

    async def _all(self, cursor: Any) -> Sequence[Any]:
        rows: Sequence[Any] = await cursor.fetchall()
        return rows

    async def _first(self, cursor: Any) -> Any:
        return await cursor.fetchone()


class NamedRowsAdapter(PostgresAdapter):
    """The same with rows as dicts, for the application's queries."""

    async def _all(self, cursor: Any) -> Sequence[Any]:
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def _first(self, cursor: Any) -> Any:
        return next(iter(await self._all(cursor)), None)


async def _answer(conn: Any, cursor: Any, read: Callable[[Any], Awaitable[Any]]) -> Any:
    return await read(cursor) if conn.pgconn.pipeline_status == PipelineStatus.OFF else partial(read, cursor)


async def _value(cursor: Any) -> Any:
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def _done(cursor: None) -> str:
    return "DONE"


async def _changed(cursor: Any) -> int:
    return int(cursor.rowcount)
