"""aiosql on psycopg's asynchronous connections."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiosql.types import SQLOperationType

from wfe_sql.engines.parameters import number_parameters


class PostgresAdapter:
    """aiosql's adapter for psycopg, with parameters by number, as the server has them; each query returns an awaitable.

    Numbers spare the driver's reading of each query at each call, and let `%` be `%`. Integers are sent without a type,
    as text is, so that a statement is prepared once and not once for each size of number.
    https://www.psycopg.org/psycopg3/docs/advanced/cursors.html#raw-query-cursors
    """

    is_aio_driver = False  # aiosql would make a generator of a select, which runs nothing until it is exhausted

    def __init__(self) -> None:
        """Take no options."""
        self._order: dict[str, list[str]] = {}

    def process_sql(self, query_name: str, op_type: SQLOperationType, sql: str) -> str:
        """Turn `:name` into `$1`, and put the query's name before it, for the server's views and logs to show."""
        numbered, self._order[query_name] = number_parameters(sql, "$")
        return f"/* {query_name} */ {numbered}"

    async def select(
        self, conn: Any, query_name: str, sql: str, parameters: Mapping[str, Any], record_class: Any = None
    ) -> Sequence[Any]:
        """Return all rows."""
        cursor = await conn.execute(sql, self._ordered(query_name, parameters))
        rows: Sequence[Any] = await cursor.fetchall()
        return rows

    async def select_one(
        self, conn: Any, query_name: str, sql: str, parameters: Mapping[str, Any], record_class: Any = None
    ) -> Any:
        """Return the first row, or None."""
        cursor = await conn.execute(sql, self._ordered(query_name, parameters))
        return await cursor.fetchone()

    async def select_value(self, conn: Any, query_name: str, sql: str, parameters: Mapping[str, Any]) -> Any:
        """Return the first column of the first row, or None."""
        row = await self.select_one(conn, query_name, sql, parameters)
        return None if row is None else row[0]

    async def insert_update_delete(self, conn: Any, query_name: str, sql: str, parameters: Mapping[str, Any]) -> int:
        """Return how many rows were changed."""
        cursor = await conn.execute(sql, self._ordered(query_name, parameters))
        return int(cursor.rowcount)

    async def insert_update_delete_many(
        self, conn: Any, query_name: str, sql: str, parameters: Sequence[Mapping[str, Any]]
    ) -> int:
        """Run once for each set of parameters, and return how many rows were changed."""
        cursor = conn.cursor()
        await cursor.executemany(sql, [self._ordered(query_name, row) for row in parameters])
        return int(cursor.rowcount)

    async def execute_script(self, conn: Any, sql: str) -> str:
        """Run several statements in one round trip, inside the open transaction."""
        await conn.execute(sql, prepare=False)
        return "DONE"

    def _ordered(self, query_name: str, parameters: Mapping[str, Any]) -> list[Any]:
        values = (parameters[name] for name in self._order[query_name])
        return [str(value) if type(value) is int else value for value in values]
