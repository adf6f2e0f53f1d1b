"""What the tests of `.sql` files need from a dialect."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from wfe_sql.plans import Plan
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.queries import Query, QuerySet
from wfe_sql.testing.clock import ManualClock

Row = Mapping[str, Any]
Params = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def row_line(table: str, row: Row) -> str:
    """Return a row as one line of a dump."""
    return f"{table} {json.dumps(row, ensure_ascii=False)}"


def read_row_line(line: str) -> tuple[str, Row] | None:
    """Return the table and the row of a line of a dump; None for a line that defines something."""
    table, _, row = line.partition(" ")
    return (table, json.loads(row)) if row.startswith("{") else None


class Store(Protocol):
    """A connection to a filled store."""

    def explain(self, query: Query) -> Plan:
        """Return the plan of a query."""
        ...

    def run(self, name: str, params: Params) -> Any:
        """Run a named query."""
        ...

    def dump(self) -> list[str]:
        """Return all tables and rows, a line for each, in an order that is always the same."""
        ...

    def undone(self) -> AbstractContextManager[None]:
        """Undo at the end what was done within."""
        ...

    def list_indexes(self) -> set[str]:
        """Return the names of all indexes."""
        ...

    def drop_index(self, name: str) -> None:
        """Remove an index."""
        ...

    def update_statistics(self) -> None:
        """Have the planner know what the tables hold."""
        ...


class Case(Protocol):
    """One dialect."""

    name: str
    queries: QuerySet
    planned_by: str
    """The version whose plans are the snapshots; others word them otherwise."""
    works_without_statistics: bool
    """Whether plans must keep to the headers in a store without statistics too."""
    large: int
    """How many workflows the store for plans has; its planner must have reason to take an index rather than another."""
    reference_indexes: frozenset[str]
    """Indexes of the reference, which may be there for it alone."""
    indexes_of_keys: frozenset[str]
    """Indexes that are there to keep a key unique, whether or not a query uses them."""
    own_part: Mapping[str, Params]
    """Parameters for queries that only this dialect has, or that need others than `results.params_of` gives."""
    session: Sequence[str]
    """Queries that work on the connection, not on tables, in an order in which they can run."""
    scripts: Mapping[str, tuple[str, tuple[str, ...]]]
    """For each script, the file to run it on ("" is an empty one), and the scripts to run before it."""
    probes: Sequence[tuple[str, set[str], int]]
    """Queries with the indexes that their plan uses, and how often the plan scans or sorts."""

    @property
    def version(self) -> str:
        """The version that runs."""
        ...

    def start(self, fixture: Callable[[str], Any]) -> None:
        """Take what else it needs from the fixtures, by their names, before anything below is called."""
        ...

    def stop(self) -> None:
        """Remove what is not in a folder."""
        ...

    def provider(self, folder: Path, clock: ManualClock) -> SqlPersistenceProvider:
        """Return a provider of a store that is new and empty, which `open` then opens again."""
        ...

    def open(self, folder: Path) -> AbstractContextManager[Store]:
        """Connect to the store that `provider` made."""
        ...

    def run_script(self, folder: Path, name: str) -> tuple[list[str], list[str]]:
        """Run a script on its file, and return the dumps before and after."""
        ...

    def run_session(self, folder: Path) -> list[tuple[str, Any, bool]]:
        """Run the queries of `session`; return each one's name, its result, and whether a transaction is open then."""
        ...
