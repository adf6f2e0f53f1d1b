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
        """Return all tables and rows, a line for each, in a stable order."""
        ...

    def undone(self) -> AbstractContextManager[None]:
        """Undo the block's changes at its end."""
        ...

    def list_indexes(self) -> set[str]:
        """Return the names of all indexes."""
        ...

    def drop_index(self, name: str) -> None:
        """Remove an index."""
        ...

    def update_statistics(self) -> None:
        """Update the planner's statistics."""
        ...


class Case(Protocol):
    """One dialect."""

    name: str
    queries: QuerySet
    planned_by: str
    """The version whose plans are the snapshots; others use other words."""
    works_without_statistics: bool
    """Whether plans must keep to the headers in a store without statistics too."""
    large: int
    """How many workflows the store for plans has: enough for the planner to prefer one index to another."""
    reference_indexes: frozenset[str]
    """Indexes that may exist only for the reference."""
    indexes_of_keys: frozenset[str]
    """Indexes that keep a key unique, whether or not a query uses them."""
    own_part: Mapping[str, Params]
    """Parameters for queries that only this dialect has, or that cannot use those of `results.params_of`."""
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
        """Get further fixtures by name, before anything below is called."""
        ...

    def stop(self) -> None:
        """Remove everything outside of folders."""
        ...

    def provider(self, folder: Path, clock: ManualClock) -> SqlPersistenceProvider:
        """Return a provider of a new, empty store, which `open` then opens again."""
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
