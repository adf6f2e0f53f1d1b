"""Reads every row of every table, a page at a time, so that only one page is in memory."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from wfe_sql import tables
from wfe_sql.engines import Read, Statement
from wfe_sql.tables import Table

Rows = Sequence[Sequence[Any]]

_PAGE = 500
"""Rows of a page."""

BEFORE_ALL = -(2**63)
"""A row number before all others."""

_Start = dict[str, Any]
"""The parameters of the first page."""
_Next = Callable[[Sequence[Any]], dict[str, Any]]
"""Returns the parameters of the page after a row."""


class Paging:
    """Reads whole tables."""

    async def _pages(self, read: Read) -> AsyncGenerator[tuple[Table, Rows], None]:
        """Yield every row of every table in a stable order: by id, or as stored if rows have none."""
        for table, query, start, next_ in _tables():
            params: dict[str, Any] | None = start
            while params is not None:
                (rows,) = await read([Statement(query, {**params, "row_limit": _PAGE})])
                if rows:
                    yield table, rows
                params = next_(rows[-1]) if len(rows) == _PAGE else None


def _tables() -> list[tuple[Table, str, _Start, _Next]]:
    """Return the tables, parents first, and how to get from page to page."""
    by_place: tuple[_Start, _Next] = {"after_place": BEFORE_ALL}, lambda row: {"after_place": row[-1]}
    return [
        (tables.DEFINITION_SEQUENCES, "export_definition_sequences", *_page_by("definition_id")),
        (tables.WORKFLOWS, "export_workflows", *_page_by("id")),
        (
            tables.EXECUTION_POINTERS,
            "export_execution_pointers",
            {"after_workflow_id": "", "after_place": BEFORE_ALL},
            lambda row: {"after_workflow_id": row[0], "after_place": row[-1]},
        ),
        (tables.EVENTS, "export_events", *_page_by("id")),
        (tables.EVENT_SUBSCRIPTIONS, "export_event_subscriptions", *_page_by("id")),
        (tables.SCHEDULED_COMMANDS, "export_scheduled_commands", *by_place),
        (tables.EXECUTION_ERRORS, "export_execution_errors", *by_place),
    ]


def _page_by(column: str) -> tuple[_Start, _Next]:
    """Return the parameters of pages in the order of their first column."""
    return {f"after_{column}": ""}, lambda row: {f"after_{column}": row[0]}
