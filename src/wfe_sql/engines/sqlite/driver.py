"""aiosql on sqlite3's connections."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from aiosql.adapters.sqlite3 import SQLite3Adapter

from wfe_sql.engines.parameters import number_parameters


class InTransactionAdapter(SQLite3Adapter):
    """aiosql's adapter for sqlite3, with rows as a list, and scripts that stay inside the open transaction.

    Its methods let the connection create and close the cursor, which halves their cost. It numbers the parameters,
    because sqlite3 looks up names for each row.
    """

    def __init__(self) -> None:
        """Take no options."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._values: dict[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]] = {}

    def process_sql(self, query_name: str, op_type: Any, sql: str) -> str:
        """Turn `:name` into `?1`."""
        numbered, names = number_parameters(sql, "?")
        self._values[query_name] = _values_getter(names)
        return numbered

    def select(self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None) -> Any:
        """Return all rows at once: the generator of aiosql's adapter runs nothing until it is exhausted."""
        return conn.execute(sql, self._values[query_name](parameters)).fetchall()

    def select_one(self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None) -> Any:
        """Return the first row, or None."""
        return conn.execute(sql, self._values[query_name](parameters)).fetchone()

    def select_value(self, conn: Any, query_name: str, sql: str, parameters: Any) -> Any:
        """Return the first column of the first row, or None."""
        row = conn.execute(sql, self._values[query_name](parameters)).fetchone()
        return None if row is None else row[0]

    def insert_update_delete(self, conn: Any, query_name: str, sql: str, parameters: Any) -> int:
        """Return how many rows were changed."""
        changed: int = conn.execute(sql, self._values[query_name](parameters)).rowcount
        return changed

    def insert_update_delete_many(self, conn: Any, query_name: str, sql: str, parameters: Any) -> int:
        """Return how many rows were changed by all sets of parameters."""
        changed: int = conn.executemany(sql, map(self._values[query_name], parameters)).rowcount
        return changed

    def execute_script(self, conn: Any, sql: str) -> str:
        """Run a script statement by statement: `executescript` would commit first."""
        for statement in split_script(sql):
            conn.execute(statement)
        return "DONE"


class NamedRowsAdapter(InTransactionAdapter):
    """The same with rows as dicts, for the application's queries."""

    def select(self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None) -> Any:
        """Return all rows."""
        cursor = conn.execute(sql, self._values[query_name](parameters))
        rows = cursor.fetchall()
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in rows]

    def select_one(self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None) -> Any:
        """Return the first row, or None."""
        return next(iter(self.select(conn, query_name, sql, parameters)), None)


def _values_getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Return a function that takes these values from a mapping; itemgetter returns a tuple only for two or more."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)


def split_script(sql: str) -> Iterator[str]:
    """Split a script into its statements."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    if statement.strip():
        yield statement.strip()
