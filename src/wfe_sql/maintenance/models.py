"""The dataclasses that maintenance returns.

Times are aware, in UTC; `next_execution` and the times of commands are epoch milliseconds.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

from wfe_sql.models import CommandName, EventSubscription, WorkflowStatus

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """Some rows of a list.

    Attributes:
        items: The rows, in the list's order.
        after: The argument `after` for the next page; None if this is the last.
    """

    items: list[_T]
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowSummary:
    """A workflow in a list: without its data and pointers."""

    id: str
    name: str
    workflow_definition_id: str
    version: int
    status: WorkflowStatus
    next_execution: int | None
    create_time: datetime
    complete_time: datetime | None
    claim_worker_id: str | None
    claim_expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSummary:
    """A scheduled command, and the worker that handles it."""

    command_name: CommandName
    data: str
    execute_time: int
    claim_worker_id: str | None
    claim_expires_at: datetime | None
    rescheduled_time: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSummary:
    """An error of a step, with the names of the workflow and the step.

    The names and `step_id` are None once the workflow or the step is deleted; `step_name` also for a step without one.
    """

    error_time: datetime
    workflow_id: str
    workflow_name: str | None
    execution_pointer_id: str
    step_id: int | None
    step_name: str | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSummary:
    """A subscription, and whether it was terminated."""

    subscription: EventSubscription
    terminated: bool


class FindingKind(StrEnum):
    """The kinds of problems that `check` finds."""

    Integrity = "integrity"
    ForeignKey = "foreign key"
    Orphan = "orphan"
    Unreadable = "unreadable"
    Unsorted = "unsorted"
    Overdue = "overdue"
    ExpiredClaim = "expired claim"
    MissingIndex = "missing index"
    Statistics = "statistics"
    Numbers = "numbers"
    OldSnapshot = "old snapshot"
    LongLog = "long log"
    UnfinishedCopy = "unfinished copy"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem in a store."""

    kind: FindingKind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowCount:
    """How many workflows of one definition have one status, and when the first and the last were created.

    A time is None if it cannot be read; `check` says where.
    """

    workflow_definition_id: str
    status: str
    workflows: int
    oldest: datetime | None
    newest: datetime | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much is due, and since when the oldest of it.

    `since` is None if nothing is due, or if the time cannot be read or is outside of the years 1 to 9999.
    """

    due: int
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What is in a store.

    Attributes:
        taken_at: When this was read, by the provider's clock.
        size_bytes: The size of the database.
        free_bytes: How much of that is free for new rows; None if the database does not tell (PostgreSQL).
        log_bytes: The size of the write-ahead log; None if there is none (in memory, PostgreSQL).
        workflows: By definition and status.
        rows: How many rows each table has, by table.
        due_workflows: Runnable workflows.
        due_events: Events that are not processed.
        due_commands: Scheduled commands.
    """

    taken_at: datetime
    size_bytes: int
    free_bytes: int | None
    log_bytes: int | None
    workflows: list[WorkflowCount]
    rows: dict[str, int]
    due_workflows: Backlog
    due_events: Backlog
    due_commands: Backlog


@dataclass(frozen=True, slots=True)
class QueryStats:
    """What the database measured for one named query.

    Attributes:
        name: The query's name in the `.sql` files.
        calls: How often it ran.
        mean_ms: The mean time of a run, in milliseconds.
        rows: How many rows all runs returned or changed.
        buffers: How many pages all runs read, from memory or disk.
    """

    name: str
    calls: int
    mean_ms: float
    rows: int
    buffers: int


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was copied and verified.

    Attributes:
        rows: How many rows each table has.
        digest: The SHA-256 of the `dump` of either store, in hexadecimal digits.
    """

    rows: dict[str, int]
    digest: str
