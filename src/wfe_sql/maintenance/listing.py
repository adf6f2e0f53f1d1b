"""Pages for people: what is in the store, newest first."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from wfe_sql import tables
from wfe_sql.arguments import Row, encode_argument, encode_count, encode_key
from wfe_sql.codecs import ID, INTEGER, TIME
from wfe_sql.engines import Engine, Statement
from wfe_sql.errors import SerializationError
from wfe_sql.maintenance.models import CommandSummary, Page, SubscriptionSummary, WorkflowSummary
from wfe_sql.maintenance.repository import MaintenanceRepository
from wfe_sql.models import Event, EventSubscription, ExecutionError, WorkflowStatus
from wfe_sql.tables import Column, Table

_T = TypeVar("_T")

_LONGEST_PAGE = 10_000


def _part(table: Table, columns: Sequence[str], *, id_column: str | None = "id") -> Table:
    """Return the table as a query has it that selects some of its columns."""
    by_name = {column.name: column for column in table.columns}
    return Table(table.name, [by_name.get(name) or Column(name, INTEGER) for name in columns], id_column=id_column)


_WORKFLOWS = _part(
    tables.WORKFLOWS,
    [
        *("id", "name", "definition_id", "version", "status", "next_execution", "create_time", "complete_time"),
        *("claim_worker_id", "claim_expires_at"),
    ],
)
_EVENTS = _part(tables.EVENTS, ["id", "event_name", "event_key", "event_data", "event_time", "is_processed"])
_COMMANDS = _part(
    tables.SCHEDULED_COMMANDS,
    ["id", "command_name", "data", "execute_time", "claim_worker_id", "claim_expires_at", "rescheduled_time"],
)
_ERRORS = _part(tables.EXECUTION_ERRORS, ["id", "error_time", "workflow_id", "execution_pointer_id", "message"])


class Listing(MaintenanceRepository):
    """What of `MaintenanceRepository` lists."""

    _engine: Engine

    async def list_workflows(
        self,
        *,
        status: WorkflowStatus | None = None,
        definition_id: str | None = None,
        since: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[WorkflowSummary]:
        if status is not None and status not in list(WorkflowStatus):
            raise SerializationError(f"status must be one of {', '.join(WorkflowStatus)}, not {status!r}")
        after_time, after_id = _after(after, _time, _id)
        params = {
            "status": None if status is None else str(status),
            "definition_id": None if definition_id is None else encode_key("definition_id", definition_id),
            "since": None if since is None else encode_argument("since", TIME, since),
            "after_time": after_time,
            "after_id": after_id,
            "row_limit": encode_count("limit", limit, at_most=_LONGEST_PAGE),
        }
        (rows,) = await self._engine.read([Statement("list_workflows", params)])
        workflows = []
        for document in map(_WORKFLOWS.plain, rows):
            document["workflow_definition_id"] = document.pop("definition_id")
            workflows.append(_build(WorkflowSummary, document))
        return Page(workflows, f"{rows[-1][6]},{rows[-1][0]}" if len(rows) == limit else None)

    async def list_events(
        self, *, is_processed: bool | None = None, after: str | None = None, limit: int = 100
    ) -> Page[Event]:
        after_time, after_id = _after(after, _time, _id)
        params = {
            "is_processed": None if is_processed is None else int(is_processed),
            "after_time": after_time,
            "after_id": after_id,
            "row_limit": encode_count("limit", limit, at_most=_LONGEST_PAGE),
        }
        (rows,) = await self._engine.read([Statement("list_events", params)])
        events = [_build(Event, document) for document in map(_EVENTS.plain, rows)]
        return Page(events, f"{rows[-1][4]},{rows[-1][0]}" if len(rows) == limit else None)

    async def list_scheduled_commands(self, *, after: str | None = None, limit: int = 100) -> Page[CommandSummary]:
        after_time, after_id = _after(after, _number, _number)
        params = {
            "after_time": after_time,
            "after_id": after_id,
            "row_limit": encode_count("limit", limit, at_most=_LONGEST_PAGE),
        }
        (rows,) = await self._engine.read([Statement("list_scheduled_commands", params)])
        commands = [_build(CommandSummary, document) for document in map(_COMMANDS.plain, rows)]
        return Page(commands, f"{rows[-1][3]},{rows[-1][0]}" if len(rows) == limit else None)

    async def list_execution_errors(
        self, *, workflow_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> Page[ExecutionError]:
        (after_id,) = _after(after, _number)
        params = {
            "workflow_id": None if workflow_id is None else encode_key("workflow_id", workflow_id),
            "after_id": after_id,
            "row_limit": encode_count("limit", limit, at_most=_LONGEST_PAGE),
        }
        (rows,) = await self._engine.read([Statement("list_execution_errors", params)])
        errors = [_build(ExecutionError, document) for document in map(_ERRORS.plain, rows)]
        return Page(errors, str(rows[-1][0]) if len(rows) == limit else None)

    async def list_event_subscriptions(self, workflow_id: str, *, limit: int = 100) -> list[SubscriptionSummary]:
        params = {
            "workflow_id": encode_key("workflow_id", workflow_id),
            "row_limit": encode_count("limit", limit, at_most=_LONGEST_PAGE),
        }
        (rows,) = await self._engine.read([Statement("list_event_subscriptions", params)])
        return [
            SubscriptionSummary(terminated=document.pop("terminated"), subscription=_build(EventSubscription, document))
            for document in map(tables.EVENT_SUBSCRIPTIONS.plain, rows)
        ]


def _build(kind: type[_T], document: Row) -> _T:
    return msgspec.convert(document, kind)


def _after(after: str | None, *read: Callable[[str], _T]) -> Sequence[_T | None]:
    """Return the parts of what a page gave to go on after, each as it is read; of the first page, nulls.

    Raises:
        SerializationError: No page gave this.
    """
    if after is None:
        return [None for _ in read]
    try:
        parts = str(encode_key("after", after)).split(",", len(read) - 1)
        return [read_part(part) for read_part, part in zip(read, parts, strict=True)]
    except ValueError as error:
        raise SerializationError(f"after must be what the page before gave, not {after!r}") from error


def _time(text: str) -> str:
    TIME.read(text)
    return text


def _id(text: str) -> str:
    return str(encode_argument("after", ID, text))


def _number(text: str) -> int:
    return int(encode_argument("after", INTEGER, int(text)))
