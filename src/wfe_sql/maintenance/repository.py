"""The Protocol of maintenance; errors and times are those of `wfe_sql.repositories`."""

from collections.abc import AsyncGenerator, Callable
from datetime import datetime, timedelta
from os import PathLike
from typing import Protocol

from wfe_sql.maintenance.models import (
    CommandSummary,
    ErrorSummary,
    Finding,
    Page,
    QueryStats,
    StoreStats,
    SubscriptionSummary,
    WorkflowSummary,
)
from wfe_sql.models import Event, ExecutionError, WorkflowStatus


class MaintenanceRepository(Protocol):
    """What a DBA or operator does with a store: list, purge, check, back up. Hosts may keep working.

    Example:
        findings = await provider.check()
        page = await provider.list_workflows(status=WorkflowStatus.Suspended)
        deleted = await provider.purge_workflows(WorkflowStatus.Complete, timedelta(days=30))
        await provider.backup("orders-backup.db")
    """

    async def delete_workflow(self, id: str) -> None:
        """Delete a workflow, whatever its status, with its pointers, subscriptions, errors and scheduled commands.

        A host that holds it gets a `ClaimLostError` or `WorkflowNotFoundError` at its next write.

        Raises:
            WorkflowNotFoundError: No workflow has this id.
        """
        ...

    async def purge_workflows(
        self,
        status: WorkflowStatus,
        older_than: datetime | timedelta,
        *,
        batch_size: int = 500,
        dry_run: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> int:
        """Delete finished workflows, as `delete_workflow` does, in batches, each its own commit; return how many.

        If it is stopped half way, what was deleted stays deleted.

        Args:
            status: `Complete` or `Terminated`.
            older_than: Those that ended before this time, or this long ago by the provider's clock. A workflow ended at
                its `complete_time`; if it has none, its `create_time` counts.
            batch_size: How many are deleted per commit.
            dry_run: Delete nothing, and return how many would be.
            on_batch: Called after each commit with how many were deleted so far.

        Raises:
            SerializationError: The status is another one, `older_than` naive or negative, or `batch_size` below 1.
            StoreError: The database did not delete the rows, for example because of a trigger, twice in a row.
        """
        ...

    async def purge_events(
        self,
        older_than: datetime | timedelta,
        *,
        batch_size: int = 500,
        dry_run: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> int:
        """Delete processed events with their scheduled commands, in batches, each its own commit; return how many.

        Args:
            older_than: Those with an `event_time` before this time, or this long ago by the provider's clock.
            batch_size: How many are deleted per commit.
            dry_run: Delete nothing, and return how many would be.
            on_batch: Called after each commit with how many were deleted so far.

        Raises:
            SerializationError: `older_than` is naive or negative, or `batch_size` is below 1.
            StoreError: The database did not delete the rows, for example because of a trigger, twice in a row.
        """
        ...

    async def purge_orphaned_errors(
        self,
        older_than: datetime | timedelta,
        *,
        batch_size: int = 500,
        dry_run: bool = False,
        on_batch: Callable[[int], None] | None = None,
    ) -> int:
        """Delete errors whose workflow no longer exists, in batches, each its own commit; return how many.

        `check` reports them as orphans. The reference leaves them, because it deletes only the workflow, and so do
        hosts that store an error after its workflow was purged.

        Args:
            older_than: Those with an `error_time` before this time, or this long ago by the provider's clock.
            batch_size: How many are deleted per commit.
            dry_run: Delete nothing, and return how many would be.
            on_batch: Called after each commit with how many were deleted so far.

        Raises:
            SerializationError: `older_than` is naive or negative, or `batch_size` is below 1.
            StoreError: The database did not delete the rows, for example because of a trigger, twice in a row.
        """
        ...

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
        """Return a page of workflows by (create_time, id), the newest first.

        Args:
            status: Only those of this status.
            definition_id: Only those of this definition.
            since: Only those with a `create_time` at or after this.
            root_workflow_id: Only those with this `root_workflow_id`, that is, the children of that workflow.
            after: The `after` of the previous page.
            limit: How many, at most 10,000.

        Raises:
            SerializationError: `since` is naive, `after` is not from a page, or `limit` is out of its range.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def list_events(
        self, *, is_processed: bool | None = None, after: str | None = None, limit: int = 100
    ) -> Page[Event]:
        """Return a page of events by (event_time, id), the newest first; all, or only (un)processed ones.

        Raises:
            SerializationError: `after` is not from a page, or `limit` is out of its range.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def list_scheduled_commands(self, *, after: str | None = None, limit: int = 100) -> Page[CommandSummary]:
        """Return a page of commands in the order they are due.

        Raises:
            SerializationError: `after` is not from a page, or `limit` is out of its range.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def list_execution_errors(
        self, *, workflow_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> Page[ExecutionError]:
        """Return a page of errors, of one workflow or of all, the last stored first.

        Raises:
            SerializationError: `after` is not from a page, or `limit` is out of its range.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def list_error_summaries(
        self, *, workflow_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> Page[ErrorSummary]:
        """Return the page of `list_execution_errors` with the names of the workflows and steps.

        Raises:
            SerializationError: `after` is not from a page, or `limit` is out of its range.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def list_event_subscriptions(self, workflow_id: str, *, limit: int = 100) -> list[SubscriptionSummary]:
        """Return the subscriptions of a workflow, terminated or not, by (subscribe_as_of, id).

        Raises:
            SerializationError: `limit` is out of its range.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def stats(self) -> StoreStats:
        """Count what is in the store, at one moment. It reads the whole store, which takes a while if it is large.

        Values that cannot be read are None; `check` reports them.
        """
        ...

    async def query_stats(self) -> list[QueryStats]:
        """Return what the database measured for each named query, for all stores in it, the most expensive first.

        Raises:
            StoreError: It does not measure; the message says whether it could. PostgreSQL needs pg_stat_statements.
        """
        ...

    async def check(self, *, overdue_after: timedelta = timedelta(minutes=5)) -> list[Finding]:
        """Read the whole store and return what is wrong with it, at most 100 findings of a kind; [] when all is well.

        Args:
            overdue_after: Work is a finding if it was created, became due, and lost its claim, if it had one, at least
                this long ago by the provider's clock.

        Raises:
            SerializationError: `overdue_after` is negative, or too far in the past.
        """
        ...

    async def update_statistics(self) -> None:
        """Update the statistics that the database plans queries with."""
        ...

    def dump(self) -> AsyncGenerator[str, None]:
        """Yield every row of the store as one line of JSON, `{"row": {column: value}, "table": name}`.

        Tables and rows are in a stable order (by id, or as stored if there is none), keys are sorted, times have the
        form in which the library stores them, and row numbers are left out: equal stores give equal text. All lines are
        of one moment.

        Raises:
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def backup(self, path: str | PathLike[str]) -> None:
        """Copy the store, as of one moment, into a new file, which appears only once it is complete.

        The file can be read from a read-only disk (`?mode=ro`). A backup that was killed leaves `.NAME.*.part` behind,
        which the next backup to the same name removes.

        Raises:
            StoreError: The file exists, the store has lost its tables, or the database has its own tools for this,
                which the message names.
            StoreCorruptError: The store is damaged.
            StoreFullError: The disk is full.
            StoreUnavailableError: The file cannot be created.
        """
        ...
