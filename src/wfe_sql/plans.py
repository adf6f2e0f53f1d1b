"""What a database plans to do for a query, and whether it keeps to the query's header."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wfe_sql.queries import Query

_WORTH_KNOWING = 1_000
"""Rows below which it matters little how a table is read."""

_STALE = 10
"""How many times as many rows a table may have as its statistics say, or as few."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A query's plan.

    Attributes:
        lines: The plan as the database words it, indented as it is nested.
        indexes: The indexes that it uses, without those that it makes for itself.
        scans: Its lines that read a whole table or sort.
    """

    lines: tuple[str, ...]
    indexes: frozenset[str]
    scans: tuple[str, ...]

    def complaints(self, query: Query) -> list[str]:
        """Return what the plan does otherwise than the query's header says, a line for each; none is good."""
        if query.scan is not None:
            return [] if self.scans else ["'scan:' in the header, but nothing is scanned or sorted"]
        wrong = [f"{line.strip()}, without 'scan:' in the header" for line in self.scans]
        if self.indexes != set(query.index):
            found = ", ".join(sorted(self.indexes)) or "none"
            wrong.append(f"'index: {', '.join(query.index) or 'none'}' in the header, but it is {found}")
        return wrong


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store has that its plans depend on.

    Attributes:
        indexes: The names of its indexes.
        rows: How many rows each table has.
        statistics: How many the planner thinks that it has.
    """

    indexes: frozenset[str]
    rows: Mapping[str, int]
    statistics: Mapping[str, int]


class Planner(Protocol):
    """A connection to a store that is open for reading only."""

    def explain(self, query: Query) -> Plan:
        """Take the plan of a query, without running it.

        Raises:
            StoreError: The database cannot plan it.
        """
        ...

    def survey(self) -> Contents:
        """Look what the store has; every row is counted."""
        ...


def judge(
    complaints: list[str], plan: Plan, query: Query, contents: Contents, *, is_tuned: bool
) -> tuple[list[str], list[str]]:
    """Return which complaints about a plan a person should see to, and which are only to be known.

    A planner that knows what is stored and scans, though it could use the indexes of the header, chooses well: a small
    table is read faster as a whole. Whoever tuned a query wrote its header, too, and is told of every difference.
    """
    missing = [name for name in query.index if name.startswith("idx_") and name not in contents.indexes]
    if missing:
        return [*complaints, f"index {', '.join(missing)} is missing; wfe-sql init makes it again"], []
    if is_tuned:
        return complaints, []
    stale = [
        f"{table} has {count:,} rows, which the planner does not know; wfe-sql init tells it"
        for table, count in contents.rows.items()
        if re.search(rf"\b{table}\b", query.sql)
        and count >= _WORTH_KNOWING
        and not fits(count, contents.statistics.get(table))
    ]
    return ([*complaints, *stale], []) if stale else ([], complaints)


def fits(count: int, known: int | None) -> bool:
    """Tell whether statistics are near enough to how many rows a table has."""
    return known is not None and count <= known * _STALE and known <= count * _STALE
