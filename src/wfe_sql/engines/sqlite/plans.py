"""Reads the plans of queries from SQLite.

https://sqlite.org/eqp.html
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

from wfe_sql.engines.sqlite.files import check_path
from wfe_sql.engines.sqlite.store import DRIVER_ERRORS, SqliteStore
from wfe_sql.engines.stores import out_of_date
from wfe_sql.plans import Contents, Plan
from wfe_sql.queries import Query, QuerySet
from wfe_sql.urls import SqliteTarget

_INDEX = re.compile(r"USING .*?(INTEGER PRIMARY KEY|(?<=INDEX )\w+)")
_SCAN = re.compile(r"SCAN (?:TABLE |SUBQUERY )?(?P<table>\S+)|SEARCH (?:TABLE )?(?P<whole>\S+)$")
_READS_NO_TABLE = re.compile(r"VIRTUAL TABLE|CONSTANT ROW")
_SORT = re.compile(r"USE TEMP B-TREE FOR .*ORDER BY")
_MADE_BY_THE_PLAN = re.compile(r"(?:MATERIALIZE|CO-ROUTINE) (\S+)")
_RECURSIVE = re.compile(r"WITH RECURSIVE (\w+)")
"""The plan creates it too; SQLite before 3.37 shows a number instead of its name there."""


class SqlitePlanner:
    """Explains queries on an open connection."""

    def __init__(self, store: SqliteStore, queries: QuerySet, connection: sqlite3.Connection) -> None:
        """Take a connection, which the caller closes."""
        self._store = store
        self._queries = queries
        self._connection = connection

    def explain(self, query: Query) -> Plan:
        """Return the plan of a query, without running it; its parameters have no value.

        Raises:
            StoreError: SQLite cannot plan it, for example because a table is missing.
        """
        sql = self._queries["explain_query"].filled_in("query", query.sql.rstrip("; \n"))
        try:
            rows = self._connection.execute(sql, dict.fromkeys(query.params))
            return _read_plan(rows, _RECURSIVE.findall(query.sql))
        except DRIVER_ERRORS as error:
            if str(error) == "no such table: sqlite_stat1":
                line = "SCAN sqlite_stat1 (once there are statistics)"
                return Plan(lines=(line,), indexes=frozenset(), scans=(line,))
            raise self._store.error(error) from error

    def survey(self) -> Contents:
        """Return the indexes, row counts and statistics of the store; every row is counted."""
        run = partial(self._queries.run, self._connection, params={})
        try:
            indexes, rows = run("list_indexes"), run("count_rows")
            statistics = run("list_statistics") if run("has_statistics") else []
        except DRIVER_ERRORS as error:
            raise self._store.error(error) from error
        return Contents(frozenset(name for (name,) in indexes), dict(rows), dict(statistics))


@contextmanager
def open_sqlite_planner(target: SqliteTarget, queries: QuerySet) -> Iterator[SqlitePlanner]:
    """Open a store read-only, to explain queries on it; in memory, an empty one is created.

    Raises:
        StoreError: It cannot be opened.
        StoreVersionError: It is out of date, so its plans would mean little.
    """
    store = SqliteStore(replace(target, mode="ro"), queries, "normal", timedelta(seconds=5))
    check_path(store.target)
    had_log = store.has_log()
    try:
        connection = store.open_writer() if target.path is None else store.open_reader()
    except DRIVER_ERRORS as error:
        raise store.error(error) from error
    try:
        if "wfe_sql_store.version" not in dict(queries.run(connection, "list_parts", {})):
            raise out_of_date(target)
        yield SqlitePlanner(store, queries, connection)
    finally:
        connection.close()
        if target.path is not None and not had_log:
            store.remove_empty_log()


def _read_plan(rows: Iterable[tuple[int, int, int, str]], recursive: Iterable[str]) -> Plan:
    """Read rows of (id, parent, unused, detail) as a tree."""
    depth = {0: -1}
    lines, details = [], []
    for id_, parent, _, detail in rows:
        depth[id_] = depth[parent] + 1
        lines.append("  " * depth[id_] + detail)
        details.append(detail)
    made = {match[1] for detail in details if (match := _MADE_BY_THE_PLAN.match(detail))} | set(recursive)
    return Plan(
        lines=tuple(lines),
        indexes=frozenset(_INDEX.findall("\n".join(details))),
        scans=tuple(line for line, detail in zip(lines, details, strict=True) if _scans(detail, made)),
    )


def _scans(detail: str, made_by_the_plan: set[str]) -> bool:
    """Tell whether a line of a plan reads a whole table, or sorts."""
    if _SORT.match(detail):
        return True
    scan = _SCAN.match(detail)
    if scan is None or _READS_NO_TABLE.search(detail):
        return False
    return (scan["table"] or scan["whole"]) not in made_by_the_plan
