"""The `used by:` in a query's header is true: the methods exist and run the query."""

from collections.abc import Callable, Sequence
from inspect import isfunction, unwrap
from types import CodeType
from typing import Any

import pytest

from wfe_sql.backends import load_postgres_queries, load_sqlite_queries
from wfe_sql.engines.postgres.alarm import PostgresAlarm
from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.engines.postgres.engine import PostgresEngine
from wfe_sql.engines.postgres.grouping import GROUPS
from wfe_sql.engines.postgres.joining import PostgresJoined
from wfe_sql.engines.postgres.plans import PostgresPlanner
from wfe_sql.engines.postgres.store import PostgresStore
from wfe_sql.engines.sqlite.alarm import SqliteAlarm
from wfe_sql.engines.sqlite.backup import Backup
from wfe_sql.engines.sqlite.engine import SqliteEngine
from wfe_sql.engines.sqlite.joining import SqliteJoined
from wfe_sql.engines.sqlite.plans import SqlitePlanner
from wfe_sql.engines.sqlite.store import SqliteStore
from wfe_sql.operations.units import SqlUnitOfWork
from wfe_sql.operations.waiting import Watch
from wfe_sql.provider import SqlPersistenceProvider

SQLITE_USERS = (
    *(SqlPersistenceProvider, SqlUnitOfWork, Watch, SqliteEngine, SqliteStore, SqliteJoined),
    *(SqliteAlarm, Backup, SqlitePlanner),
)
POSTGRES_USERS = (
    *(SqlPersistenceProvider, SqlUnitOfWork, Watch, PostgresEngine, PostgresStore, PostgresJoined),
    *(PostgresAlarm, PostgresPlanner),
    Connection,
)
QUERIES = [
    *((query, SQLITE_USERS) for query in load_sqlite_queries().values()),
    *((query, POSTGRES_USERS) for query in load_postgres_queries().values()),
]


def _complaints(query: str, used_by: Sequence[str], users: Sequence[type]) -> list[str]:
    """Return what is wrong with the methods named in a query's header, a line for each."""
    complaints = []
    for user in used_by:
        methods = [method for owner in users if isfunction(method := getattr(owner, user, None))]
        if not methods:
            complaints.append(f"no class has a method {user}")
        elif not any(_leads(query) & _strings(method, users) for method in methods):
            complaints.append(f"{user} does not run it")
    return complaints


def _leads(query: str) -> set[str]:
    """Return the queries of a unit for which this one runs: itself, or those that it groups or locks for."""
    lead = query.removesuffix("_group").removesuffix("_alone")
    return {lead, *(group.lead for group in GROUPS.values() if group.lock == query)}


def _strings(method: Callable[..., Any], users: Sequence[type]) -> set[str]:
    """Return every string in the code of a method and of what it uses: private methods, functions,
    constants, and what runs at the end of the block of a class."""
    found: set[str] = set()
    seen: set[Any] = set()
    pending: list[Any] = [method]
    while pending:
        function = unwrap(pending.pop())
        names, strings = _names_and_strings(function.__code__)
        found |= strings
        helpers = [function.__globals__.get(name) for name in names]
        found.update(*(helper for helper in helpers if isinstance(helper, tuple)))
        helpers += [getattr(owner, name, None) for owner in users for name in names if name.startswith("_")]
        helpers += [getattr(helper, "__aexit__", None) for helper in helpers if helper in users]
        called = {helper for helper in helpers if hasattr(helper, "__code__")}
        pending.extend(called - seen)
        seen |= called
    return found


def _names_and_strings(code: CodeType) -> tuple[set[str], set[str]]:
    names, strings = set(code.co_names), set[str]()
    pending = list(code.co_consts)
    while pending:
        constant = pending.pop()
        if isinstance(constant, str):
            strings.add(constant)
        elif isinstance(constant, tuple):
            pending.extend(constant)
        elif isinstance(constant, CodeType):
            names.update(constant.co_names)
            pending.extend(constant.co_consts)
    return names, strings


def test_the_methods_in_a_header_run_the_query() -> None:
    complaints = {query.place: _complaints(query.name, query.used_by, users) for query, users in QUERIES}
    assert {place: found for place, found in complaints.items() if found} == {}


class Host:
    """A class whose methods run queries in each way that the code uses."""

    text = "second"

    def run(self) -> tuple[str, ...]:
        return ("first", "second")

    def run_something_else(self) -> str:
        return "third"

    def run_in_a_closure(self) -> list[str]:
        return [name.strip() for name in (lambda: ["second"])()]

    def run_through_a_method(self) -> str:
        return self._run()

    def run_through_a_function(self) -> str:
        return _run()

    def _run(self) -> str:
        return "second"


def _run() -> str:
    return "second"


@pytest.mark.parametrize(
    "user", ["run", "run_in_a_closure", "run_through_a_method", "run_through_a_function", "run, run_in_a_closure"]
)
def test_a_method_may_run_the_query_itself_or_in_what_it_calls(user: str) -> None:
    assert _complaints("second", user.split(", "), (Host,)) == []


@pytest.mark.parametrize("user", ["no_method", "text", "__doc__", "__init__", "run, no_method"])
def test_a_name_that_is_not_a_method_is_found(user: str) -> None:
    assert _complaints("second", user.split(", "), (Host,)) == [f"no class has a method {user.removeprefix('run, ')}"]


@pytest.mark.parametrize("user", ["run_something_else", "run, run_something_else"])
def test_a_method_that_does_not_run_the_query_is_found(user: str) -> None:
    assert _complaints("second", user.split(", "), (Host,)) == ["run_something_else does not run it"]
