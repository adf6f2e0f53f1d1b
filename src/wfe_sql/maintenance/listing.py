"""Pages of what is in the store, for people, the newest first."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from wfe_sql import tables
from wfe_sql.arguments import Row, encode_argument, encode_count, encode_id, encode_key
from wfe_sql.codecs import ID, INTEGER, TEXT, TIME
from wfe_sql.engines import Engine, Statement
from wfe_sql.errors import SerializationError
from wfe_sql.maintenance.models import CommandSummary, ErrorSummary, Page, SubscriptionSummary, WorkflowSummary
from wfe_sql.maintenance.repository import MaintenanceRepository
from wfe_sql.models import Event, EventSubscription, ExecutionError, WorkflowStatus
from wfe_sql.tables import Column, Table

_T = TypeVar("_T")

_LONGEST_PAGE = 10_000


def _select(table: Table, columns: Sequence[str], *, id_column: str | None = "id") -> Table:
    """Return the table with only the columns that a query selects."""
    by_name = {column.name: column for column in table.columns}
    return Table(table.name, [by_name.get(name) or Column(name, INTEGER) for name in columns], id_column=id_column)


_WORKFLOWS = _select(
    tables.WORKFLOWS,
    [
        *("id", "name", "definition_id", "version", "status", "next_execution", "create_time", "complete_time"),
        *("claim_worker_id", "claim_expires_at"),
    ],
)
_EVENTS = _select(tables.EVENTS, ["id", "event_name", "event_key", "event_data", "event_time", "is_processed"])
_COMMANDS = _select(
    tables.SCHEDULED_COMMANDS,
    ["id", "command_name", "data", "execute_time", "claim_worker_id", "claim_expires_at", "rescheduled_time"],
)
_ERRORS = Table(
    "execution_errors",
    [
        Column("id", INTEGER),
        *tables.EXECUTION_ERRORS.columns,
        Column("workflow_name", TEXT, optional=True),
        Column("step_id", INTEGER, optional=True),
        Column("step_name", TEXT, optional=True),
    ],
)


class Listing(MaintenanceRepository):
    """The listing methods of `MaintenanceRepository`."""

    _engine: Engine

    async def list_workflows(
        self,
        *,
        status: WorkflowStatus | None = None,
        definition_id: str | None = None,
        since: datetime | None = None,
        root_workflow_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[WorkflowSummary]:
        if status is not None and status not in list(WorkflowStatus):
            raise SerializationError(
                f"status must be one of {', '.join(WorkflowStatus)}, not {status!r}", field="status"
            )
        after_time, after_id = _parse_after(after, _read_time, _read_id)
        params = {
            "status": None if status is None else str(status),
            "definition_id": None if definition_id is None else encode_id("definition_id", definition_id),
            "since": None if since is None else encode_argument("since", TIME, since),
            "after_time": after_time,
            "after_id": after_id,
            "row_limit": encode_count("limit", limit, at_most=_LONGEST_PAGE),
        }
        query = "list_workflows"
        if root_workflow_id is not None:
            query = "list_workflows_of_root"
            params["root_workflow_id"] = encode_id("root_workflow_id", root_workflow_id)
        (rows,) = await self._engine.read([Statement(query, params)])
        workflows = []
        for document in map(_WORKFLOWS.plain, rows):
            document["workflow_definition_id"] = document.pop("definition_id")
            workflows.append(_build(WorkflowSummary, document))
        return Page(workflows, f"{rows[-1][6]},{rows[-1][0]}" if len(rows) == limit else None)

    async def list_events(
        self, *, is_processed: bool | None = None, after: str | None = None, limit: int = 100
    ) -> Page[Event]:
        after_time, after_id = _parse_after(after, _read_time, _read_id)
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
        after_time, after_id = _parse_after(after, _read_number, _read_number)
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
        return await self._list_errors(ExecutionError, workflow_id, after, limit)

    async def list_error_summaries(
        self, *, workflow_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> Page[ErrorSummary]:
        return await self._list_errors(ErrorSummary, workflow_id, after, limit)

    async def _list_errors(self, kind: type[_T], workflow_id: str | None, after: str | None, limit: int) -> Page[_T]:
        (after_id,) = _parse_after(after, _read_number)
        params = {
            "workflow_id": None if workflow_id is None else encode_id("workflow_id", workflow_id),
            "after_id": after_id,
            "row_limit": encode_count("limit", limit, at_most=_LONGEST_PAGE),
        }
        (rows,) = await self._engine.read([Statement("list_execution_errors", params)])
        errors = [_build(kind, document) for document in map(_ERRORS.plain, rows)]
        return Page(errors, str(rows[-1][0]) if len(rows) == limit else None)

    async def list_event_subscriptions(self, workflow_id: str, *, limit: int = 100) -> list[SubscriptionSummary]:
        params = {
            "workflow_id": encode_id("workflow_id", workflow_id),
            "row_limit": encode_count("limit", limit, at_most=_LONGEST_PAGE),
        }
        (rows,) = await self._engine.read([Statement("list_event_subscriptions", params)])
        return [
            SubscriptionSummary(terminated=document.pop("terminated"), subscription=_build(EventSubscription, document))
            for document in map(tables.EVENT_SUBSCRIPTIONS.plain, rows)
        ]


def _build(kind: type[_T], document: Row) -> _T:
    return msgspec.convert(document, kind)


def _parse_after(after: str | None, *read: Callable[[str], _T]) -> Sequence[_T | None]:
    """Parse the `after` of a page into its parts; for the first page they are None.

    Raises:
        SerializationError: It is not the `after` of a page.
    """
    if after is None:
        return [None for _ in read]
    try:
        parts = str(encode_key("after", after)).split(",", len(read) - 1)
        return [read_part(part) for read_part, part in zip(read, parts, strict=True)]
    except ValueError as error:
        raise SerializationError(
            f"after must be the `after` of a previous page, not {after!r}", field="after"
        ) from error


def _read_time(text: str) -> str:
    TIME.read(text)
    return text


def _read_id(text: str) -> str:
    return str(encode_argument("after", ID, text))


def _read_number(text: str) -> int:
    return int(encode_argument("after", INTEGER, int(text)))
