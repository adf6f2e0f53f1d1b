"""A query's plan, and whether it agrees with the query's header."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wfe_sql.queries import Query

_WORTH_KNOWING = 1_000
"""Rows below which any plan is fast."""

_STALE = 10
"""By what factor the rows of a table may differ from its statistics."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A query's plan.

    Attributes:
        lines: The plan in the words of the database, indented by depth.
        indexes: The indexes that it uses, without those that the database builds for it.
        scans: Its lines that read a whole table or sort.
    """

    lines: tuple[str, ...]
    indexes: frozenset[str]
    scans: tuple[str, ...]

    def complaints(self, query: Query) -> list[str]:
        """Return where the plan differs from the query's header, a line for each difference."""
        if query.scan is not None:
            return [] if self.scans else ["'scan:' in the header, but nothing is scanned or sorted"]
        wrong = [f"{line.strip()}, without 'scan:' in the header" for line in self.scans]
        if self.indexes != set(query.index):
            found = ", ".join(sorted(self.indexes)) or "none"
            wrong.append(f"'index: {', '.join(query.index) or 'none'}' in the header, but it is {found}")
        return wrong


@dataclass(frozen=True, slots=True)
class Contents:
    """What plans depend on in a store.

    Attributes:
        indexes: The names of its indexes.
        rows: How many rows each table has.
        statistics: How many rows the planner thinks each table has.
    """

    indexes: frozenset[str]
    rows: Mapping[str, int]
    statistics: Mapping[str, int]


class Planner(Protocol):
    """A read-only connection to a store."""

    def explain(self, query: Query) -> Plan:
        """Return the plan of a query, without running it.

        Raises:
            StoreError: The database cannot plan it.
        """
        ...

    def survey(self) -> Contents:
        """Return the indexes, row counts and statistics of the store; every row is counted."""
        ...


def judge(
    complaints: list[str], plan: Plan, query: Query, contents: Contents, *, is_tuned: bool
) -> tuple[list[str], list[str]]:
    """Split the complaints about a plan into problems, and choices of the planner that are only worth knowing.

    A planner with good statistics that scans, although it could use the indexes of the header, is right: scanning a
    small table is faster. Who tuned a query also wrote its header, so there every difference is a problem.
    """
    missing = [name for name in query.index if name.startswith("idx_") and name not in contents.indexes]
    if missing:
        return [*complaints, f"index {', '.join(missing)} is missing; run wfe-sql init to build it"], []
    if is_tuned:
        return complaints, []
    stale = [
        f"{table} has {count:,} rows, but the planner has no or old statistics; run wfe-sql init"
        for table, count in contents.rows.items()
        if re.search(rf"\b{table}\b", query.sql)
        and count >= _WORTH_KNOWING
        and not is_about(count, contents.statistics.get(table))
    ]
    return ([*complaints, *stale], []) if stale else ([], complaints)


def is_about(count: int, known: int | None) -> bool:
    """Tell whether statistics are close enough to the number of rows in a table."""
    return known is not None and count <= known * _STALE and known <= count * _STALE
