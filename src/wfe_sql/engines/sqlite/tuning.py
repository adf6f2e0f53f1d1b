"""Compares tuned queries for SQLite to the ones they replace, on stores in memory.

Whether SQLite accepts a query, and which columns it returns, shows only when it runs. So a tuned query and its original
each run once, on an empty store, with 1 for every parameter: a value that every column and function accepts.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from wfe_sql.engines.sqlite.driver import split_script
from wfe_sql.engines.sqlite.store import SqliteStore, new_store_scripts
from wfe_sql.engines.stores import Scripts, read_parts
from wfe_sql.errors import QueryFileError
from wfe_sql.queries import Query, QuerySet, check_columns
from wfe_sql.urls import SqliteTarget


def check_tuned_sqlite(queries: QuerySet, own: QuerySet) -> None:
    """Check that SQLite accepts each tuned query, and that each returns, or makes, the columns of its original.

    Raises:
        QueryFileError: One does not; the message names file, line and query.
    """
    scripts = [name for name in queries if name in queries.tuned and queries[name].operation == "#"]
    others = [name for name in queries if name in queries.tuned and queries[name].operation != "#"]
    with closing(SqliteStore(SqliteTarget(None), own, "normal", timedelta(0)).open_writer()) as scratch:
        for name in scripts:
            _check_script(queries[name], own, scratch)
    # A tuned query may need something that a tuned script makes, such as an index.
    with closing(_make_store(queries)) as scratch:
        for name in others:
            _check_query(queries[name], own, scratch)


def _make_store(queries: QuerySet) -> sqlite3.Connection:
    """Make a store by the scripts; each tuned one must make what its original makes."""
    scratch = sqlite3.connect(":memory:", isolation_level=None)
    for name in new_store_scripts():
        for error in _run_script(scratch, queries[name]):
            raise QueryFileError(f"{queries[name].place}: SQLite refuses it: {error}") from error
    parts = read_parts(queries.run(scratch, "list_parts", {}))
    for name, missing in Scripts(new_store_scripts(), queries).missing(parts).items():
        if lacking := sorted(part for part in missing if "." in part):
            raise QueryFileError(
                f"{queries[name].place}: must make the columns that its original makes; {lacking[0]} is missing"
            )
    return scratch


@dataclass(frozen=True, slots=True)
class _Outcome:
    columns: tuple[str, ...] = ()
    error: sqlite3.Error | None = None


def _check_query(tuned: Query, own: QuerySet, scratch: sqlite3.Connection) -> None:
    found, expected = _try_query(tuned, own, scratch), _try_query(own[tuned.name], own, scratch)
    _check_errors(tuned, filter(None, [found.error]), filter(None, [expected.error]))
    if found.error is None and expected.error is None:
        check_columns(tuned, expected=expected.columns, found=found.columns)


def _try_query(query: Query, own: QuerySet, scratch: sqlite3.Connection) -> _Outcome:
    # A query without a plan acts on the connection or on files, so it is only prepared, by EXPLAIN.
    sql = query.sql if query.has_plan else own["explain_query"].filled_in("query", query.sql.rstrip("; \n"))
    with _copy(scratch) as copy:
        try:
            cursor = copy.execute(sql, dict.fromkeys(query.params, 1))
        except sqlite3.Error as error:
            return _Outcome(error=error)
        return _Outcome(columns=tuple(column[0] for column in cursor.description or ()))


def _check_script(tuned: Query, own: QuerySet, scratch: sqlite3.Connection) -> None:
    original = own[tuned.name]
    with _copy(scratch) as copy, _copy(scratch) as other_copy:
        _check_errors(tuned, _run_script(copy, tuned), _run_script(other_copy, original))


def _run_script(connection: sqlite3.Connection, script: Query) -> list[sqlite3.Error]:
    """Run all statements of a script, and return the errors of those that fail."""
    errors = []
    for statement in split_script(script.sql):
        try:
            connection.execute(statement)
        except sqlite3.Error as error:
            errors.append(error)
    return errors


def _check_errors(tuned: Query, found: Iterable[sqlite3.Error], expected: Iterable[sqlite3.Error]) -> None:
    """Refuse a tuned query that SQLite refuses, unless it refuses the original too (which may need other data)."""
    known = {str(error) for error in expected}
    for error in found:
        if str(error) not in known:
            raise QueryFileError(f"{tuned.place}: SQLite refuses it: {error}") from error


@contextmanager
def _copy(scratch: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        scratch.backup(copy)
        yield copy
