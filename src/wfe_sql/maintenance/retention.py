"""Deletes workflows and events that are finished."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from wfe_sql.arguments import encode_argument, encode_count, encode_id, encode_ids
from wfe_sql.codecs import TIME
from wfe_sql.durations import time_before
from wfe_sql.engines import Engine, Statement, Unit
from wfe_sql.errors import SerializationError, StoreError, WorkflowNotFoundError
from wfe_sql.maintenance.pages import BEFORE_ALL, Rows
from wfe_sql.maintenance.repository import MaintenanceRepository
from wfe_sql.models import WorkflowStatus

_FINISHED = (WorkflowStatus.Complete, WorkflowStatus.Terminated)


class _NothingDeletedError(Exception):
    """None of the rows of a batch was deleted."""


class Retention(MaintenanceRepository):
    """The deleting methods of `MaintenanceRepository`."""

    _engine: Engine
    _clock: Callable[[], datetime]

    async def delete_workflow(self, id: str) -> None:
        params = {"id": encode_id("id", id)}
        gone = WorkflowNotFoundError(f"no workflow has id {id!r}", workflow_id=id)
        await self._engine.write([Statement("delete_workflow", params, otherwise=gone), *_delete_dependents([id])])

    async def purge_workflows(
        self,
        status: WorkflowStatus,
        older_than: datetime | timedelta,
        *,
        batch_size: int = 500,
        dry_run: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> int:
        if status not in _FINISHED:
            raise SerializationError(
                f"only Complete or Terminated workflows can be purged, not {status!r}", field="status"
            )
        age = {"status": str(status), "older_than": self._bound(older_than)}
        batch = {**age, "row_limit": encode_count("batch_size", batch_size)}
        if dry_run:
            (count,) = await self._engine.read([Statement("count_finished_workflows", age)])
            return int(count)
        find = Statement("find_finished_workflows", batch)

        def delete(rows: Rows) -> Unit:
            ids = [row[0] for row in rows]
            kept = _NothingDeletedError()
            params = {**age, "ids": encode_ids(ids)}
            return [Statement("delete_finished_workflows", params, otherwise=kept), *_delete_dependents(ids)]

        return await self._purge("workflows", find, delete, on_batch)

    async def purge_events(
        self,
        older_than: datetime | timedelta,
        *,
        batch_size: int = 500,
        dry_run: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> int:
        age = {"older_than": self._bound(older_than)}
        batch: dict[str, Any] = {**age, "row_limit": encode_count("batch_size", batch_size), "after_time": None}
        if dry_run:
            (count,) = await self._engine.read([Statement("count_processed_events", age)])
            return int(count)
        find = Statement("find_processed_events", batch)

        def delete(rows: Rows) -> Unit:
            batch["after_time"] = rows[-1][1]
            ids = encode_ids(row[0] for row in rows)
            return [
                Statement("delete_processed_events", {"ids": ids}, otherwise=_NothingDeletedError()),
                Statement("delete_scheduled_commands_of_deleted_events", {"event_ids": ids}),
            ]

        return await self._purge("events", find, delete, on_batch)

    async def purge_orphaned_errors(
        self,
        older_than: datetime | timedelta,
        *,
        batch_size: int = 500,
        dry_run: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> int:
        age = {"older_than": self._bound(older_than)}
        batch: dict[str, Any] = {**age, "row_limit": encode_count("batch_size", batch_size), "from_id": BEFORE_ALL}
        if dry_run:
            (count,) = await self._engine.read([Statement("count_orphaned_errors", age)])
            return int(count)
        find = Statement("find_orphaned_errors", batch)

        def delete(rows: Rows) -> Unit:
            batch["from_id"] = rows[-1][0]
            ids = encode_ids(row[0] for row in rows)
            return [Statement("delete_orphaned_errors", {"ids": ids}, otherwise=_NothingDeletedError())]

        return await self._purge("execution errors", find, delete, on_batch)

    async def _purge(
        self, what: str, find: Statement, delete: Callable[[Rows], Unit], on_batch: Callable[[int], None] | None
    ) -> int:
        """Find and delete until nothing is found; return how many were deleted.

        Raises:
            StoreError: The same rows are found again after they were deleted, so that this would never end.
        """
        deleted = 0
        kept: Rows = []
        while True:
            (rows,) = await self._engine.read([find])
            if not rows:
                return deleted
            try:
                count, *_ = await self._engine.write(delete(rows))
            except _NothingDeletedError:  # others may have just deleted or changed them: look once more
                if rows == kept:
                    raise StoreError(
                        f"the database did not delete {len(rows):,} {what} ({rows[0][0]!r}, ...), without an error; "
                        f"is there a trigger that keeps them? {deleted:,} others were deleted"
                    ) from None
                kept = rows
                continue
            deleted += count
            if on_batch is not None:
                on_batch(deleted)

    def _bound(self, older_than: datetime | timedelta) -> Any:
        if not isinstance(older_than, datetime):
            older_than = time_before(self._clock(), "older_than", older_than)
        return encode_argument("older_than", TIME, older_than)


def _delete_dependents(workflow_ids: list[str]) -> Unit:
    """Return the statements that delete what belongs to deleted workflows; their pointers are deleted already."""
    params = {"workflow_ids": encode_ids(workflow_ids)}
    return [
        Statement("delete_event_subscriptions_of_deleted", params),
        Statement("delete_execution_errors_of_deleted", params),
        Statement("delete_scheduled_commands_of_deleted_workflows", params),
    ]
