"""What a database plans to do for a query, and whether it keeps to the query's header."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from wfe_sql.queries import Query


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


Explain = Callable[[Query], Plan]
"""Takes the plan of a query, without running it. Raises `StoreError` when the database cannot plan it."""

Planner = AbstractContextManager[Explain]
"""A connection to a store that only explains; the store is opened on entry, for reading only."""
