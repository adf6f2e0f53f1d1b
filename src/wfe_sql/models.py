"""What a workflow engine stores, as plain dataclasses.

Field names, their order and their defaults are those of the Rust crate `wfe-core`. All are built with keywords, are
mutable, and compare by their fields. Times are aware `datetime`s; what is read back is in UTC, to the
microsecond. A field of type `Any` holds JSON: None, bool, int, float, str, list, and dict with string keys.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from threading import RLock
from time import time_ns
from typing import Any, NamedTuple


class WorkflowStatus(StrEnum):
    """The status of a workflow. Only a `Runnable` one is polled.

    `Suspended` pauses it until somebody sets it to `Runnable` again; `Complete` and `Terminated` are final, and may be
    purged. The engine or an operator changes the status; the store only uses it for polls.
    """

    Runnable = "Runnable"
    Suspended = "Suspended"
    Complete = "Complete"
    Terminated = "Terminated"


class PointerStatus(StrEnum):
    """The status of a step. The engine sets it; the store only keeps it.

    Attributes:
        Pending: Not started.
        Running: Started, and not done: it has iterations or children in progress.
        Complete: Done.
        Skipped: Skipped, because its condition was not met.
        Sleeping: Waits until `sleep_until`.
        WaitingForEvent: Waits for an event with `event_name` and `event_key`.
        Failed: Ended with an error, and is not retried.
        Compensated: Was done, and then undone.
        Cancelled: Cancelled before it was done.
        PendingPredecessor: Starts once the pointer `predecessor_id` is done.
    """

    Pending = "Pending"
    Running = "Running"
    Complete = "Complete"
    Skipped = "Skipped"
    Sleeping = "Sleeping"
    WaitingForEvent = "WaitingForEvent"
    Failed = "Failed"
    Compensated = "Compensated"
    Cancelled = "Cancelled"
    PendingPredecessor = "PendingPredecessor"


class CommandName(StrEnum):
    """What a scheduled command does: process the workflow, or the event, whose id is its `data`."""

    ProcessWorkflow = "ProcessWorkflow"
    ProcessEvent = "ProcessEvent"


_ids_lock = RLock()  # reentrant: a signal may come while an id is made, and its handler may make one too
_ids_ms: int  # wfe_sql.testing sets this and the next two, so that ids are the same in every run
_ids_begin: str
_ids_count: int


def _begin_ids(ms: int) -> None:
    """Draw what the ids of a millisecond begin with, 26 random bits, and where their count of 48 bits begins, 47."""
    global _ids_ms, _ids_begin, _ids_count
    random = int.from_bytes(os.urandom(10)) >> 7
    _ids_begin = f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-{0x7000 | random >> 61:04x}-{0x8000 | random >> 47 & 0x3FFF:04x}-"
    _ids_count = random & (1 << 47) - 1
    _ids_ms = ms


def _begin_ids_in_child() -> None:
    """Start over in a forked process, after its parent's ids; the thread that held the lock may be gone."""
    global _ids_lock
    _ids_lock = RLock()
    _begin_ids(_ids_ms + 1)


_begin_ids(0)
os.register_at_fork(after_in_child=_begin_ids_in_child)


def new_id() -> str:
    """Return a new UUIDv7 as text (RFC 9562, section 5.7): the system's time in milliseconds, and 73 random bits.

    Ids that a process makes later sort later, also as text and across its threads: within a millisecond, and while the
    system's clock is behind its latest time, the next id is the last one plus one (section 6.2, method 1). So new rows
    are adjacent in each index, while random ids would touch a page each.

    This is not `uuid.uuid7` of Python 3.14: that one has no lock, so it keeps no order across threads, and it asks the
    system for random bytes each time, which takes longer than all of this.
    """
    global _ids_count
    with _ids_lock:
        ms = time_ns() // 1_000_000
        if ms > _ids_ms:
            _begin_ids(ms)
        _ids_count += 1
        return f"{_ids_begin}{_ids_count:012x}"


_now: Callable[[tzinfo], datetime] = datetime.now  # wfe_sql.testing replaces it with its clock


def utc_now() -> datetime:
    """Return the current time, aware and in UTC."""
    return _now(UTC)


@dataclass(slots=True, kw_only=True)
class ExecutionPointer:
    """One execution of a step of a workflow: what it waits for, what it stored, how it ended.

    A step that runs again, for example in a loop, gets another pointer. The store keeps the pointers in the order of
    `WorkflowInstance.execution_pointers`, and does not interpret any other field.

    Attributes:
        id: Unique among the pointers of all workflows.
        step_id: The step of the definition.
        active: Whether the engine still has something to do here.
        status: Its status.
        sleep_until: When the engine looks at it again.
        persistence_data: What the step keeps for its next run, any JSON.
        start_time: When it first ran.
        end_time: When it ended.
        event_name: The event that it waits for, with `event_key`.
        event_key: Which of the events of that name, such as an order's number.
        event_published: Whether that event has arrived.
        event_data: The data of that event, any JSON.
        step_name: The step's name, for people.
        retry_count: How often it was retried after an error.
        children: Ids of the pointers that it started, such as the iterations of a loop.
        context_item: What it runs for, such as an item of a loop, any JSON.
        predecessor_id: The pointer that led to it.
        outcome: The branch that the workflow takes from here, any JSON.
        scope: Ids of the pointers that enclose it, the outermost first.
        extension_attributes: Data of extensions of the engine by name, any JSON.
    """

    id: str = field(default_factory=new_id)
    step_id: int
    active: bool = True
    status: PointerStatus = PointerStatus.Pending
    sleep_until: datetime | None = None
    persistence_data: Any = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    event_name: str | None = None
    event_key: str | None = None
    event_published: bool = False
    event_data: Any = None
    step_name: str | None = None
    retry_count: int = 0
    children: list[str] = field(default_factory=list)
    context_item: Any = None
    predecessor_id: str | None = None
    outcome: Any = None
    scope: list[str] = field(default_factory=list)
    extension_attributes: dict[str, Any] = field(default_factory=dict)


class Stored(NamedTuple):
    """What an instance remembers of its rows in one store, so that persisting it writes only what changed.

    Attributes:
        id: The id that it was loaded or stored with.
        create_time: The stored column; it distinguishes the workflow from a later one with the same id.
        revision: The workflow's revision.
        pointers: A fingerprint of each of its pointers by id, in their order; None where a pointer has none.
        has_documents: Whether `pointers` has the documents that were read instead: a reader needs no fingerprints, so
            they are made only when the instance is persisted.
    """

    id: str
    create_time: str
    revision: int
    pointers: Mapping[str, Any]
    has_documents: bool = False


class _Remembers:
    """Lets an instance remember its state in each store; this is replaced, never changed, so copies can share it."""

    __slots__ = ("_stored",)
    _stored: Mapping[str, Stored]

    def _remember(self, store: str, stored: Stored) -> None:
        self._stored = {**self._stored, store: stored}


@dataclass(slots=True, kw_only=True)
class WorkflowInstance(_Remembers):
    """One run of a workflow definition, with its execution pointers in order.

    `name` is unique among all workflows; "" means "the id" when the workflow is created and "as stored" when it is
    persisted. `next_execution` is epoch milliseconds, None for never; `epoch_ms` converts a time.

    An instance that was loaded or stored remembers its state of the workflow, and so do copies made with `copy`,
    `pickle` or `dataclasses.replace`: persisting it raises `WorkflowConflictError` if somebody else changed the
    workflow since. The memory is not a field, and `==`, `repr` and `asdict` ignore it.
    """

    id: str = field(default_factory=new_id)
    name: str = ""
    root_workflow_id: str | None = None
    workflow_definition_id: str
    version: int
    description: str | None = None
    reference: str | None = None
    execution_pointers: list[ExecutionPointer] = field(default_factory=list)
    next_execution: int | None = 0
    status: WorkflowStatus = WorkflowStatus.Runnable
    data: Any
    create_time: datetime = field(default_factory=utc_now)
    complete_time: datetime | None = None
    _stored: InitVar[Mapping[str, Stored] | None] = None  # how dataclasses.replace passes it on

    def __post_init__(self, _stored: Mapping[str, Stored] | None) -> None:
        """Start without a memory, or with that of the instance that this one replaces."""
        self._stored = {} if _stored is None else _stored


delattr(WorkflowInstance, "_stored")  # the default, which hides the slot of this name


@dataclass(slots=True, kw_only=True)
class Event:
    """An external event, for workflows that wait for its name and key."""

    id: str = field(default_factory=new_id)
    event_name: str
    event_key: str
    event_data: Any
    event_time: datetime = field(default_factory=utc_now)
    is_processed: bool = False


@dataclass(slots=True, kw_only=True)
class EventSubscription:
    """A step's wait for an event.

    Attributes:
        id: Any unique text.
        workflow_id: The workflow that waits.
        step_id: Its step.
        execution_pointer_id: The pointer that waits.
        event_name: The event that it waits for.
        event_key: Which of the events of that name.
        subscribe_as_of: Events with an earlier `event_time` are not for it; a subscription that is stored late can
            still get the events since its wait began.
        subscription_data: Data of the step, any JSON.
        external_token: The token of the external worker that holds it; see `set_subscription_token`.
        external_worker_id: The name of that worker, for people.
        external_token_expiry: When the token expires; after that, any worker may take it.
    """

    id: str = field(default_factory=new_id)
    workflow_id: str
    step_id: int
    execution_pointer_id: str
    event_name: str
    event_key: str
    subscribe_as_of: datetime
    subscription_data: Any = None
    external_token: str | None = None
    external_worker_id: str | None = None
    external_token_expiry: datetime | None = None


@dataclass(slots=True, kw_only=True)
class ScheduledCommand:
    """A command to run at a given time. There is at most one for each (command_name, data).

    `WorkflowInstance.next_execution` says when the engine looks at a workflow next. A command is for anyone who does
    not hold the workflow: it makes the engine process the workflow, or an event, at another time as well.

    Attributes:
        command_name: What to do.
        data: The id of the workflow or event.
        execute_time: When, in epoch milliseconds; `epoch_ms` converts a time.
    """

    command_name: CommandName
    data: str
    execute_time: int

    @classmethod
    def process_workflow(cls, workflow_id: str, execute_time: int) -> "ScheduledCommand":
        """Return a command that processes a workflow at `execute_time` (epoch milliseconds)."""
        return cls(command_name=CommandName.ProcessWorkflow, data=workflow_id, execute_time=execute_time)

    @classmethod
    def process_event(cls, event_id: str, execute_time: int) -> "ScheduledCommand":
        """Return a command that processes an event at `execute_time` (epoch milliseconds)."""
        return cls(command_name=CommandName.ProcessEvent, data=event_id, execute_time=execute_time)


class ClaimKind(StrEnum):
    """What a claim holds."""

    Workflow = "Workflow"
    Event = "Event"


@dataclass(slots=True, kw_only=True, frozen=True)
class Claim:
    """A worker's hold on one workflow or event, until it expires and somebody else takes it.

    The token is fresh for each claim (a fencing token): a write with a claim checks that its token still holds the
    row, so that a slow worker cannot overwrite what another one has done since.
    """

    kind: ClaimKind
    id: str
    token: str
    worker_id: str
    expires_at: datetime


@dataclass(slots=True)
class Held:
    """A claim that is renewed while a block runs; `HostingRepository.hold` makes it.

    Attributes:
        claim: The claim, as last renewed.
        is_released: Whether the block has released it, so that it is no longer renewed.
    """

    claim: Claim
    is_released: bool = False


@dataclass(slots=True, kw_only=True)
class ExecutionError:
    """An error of a step, kept for people to read."""

    error_time: datetime = field(default_factory=utc_now)
    workflow_id: str
    execution_pointer_id: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStats:
    """How a unit of work went, passed to `on_unit`: names, counts and times, no stored data.

    Attributes:
        database: "sqlite" or "postgresql".
        queries: The names of its queries, in their order.
        writes: Whether it was meant to change something.
        rows: How many rows its queries returned or changed, as far as the database reports it; 0 if it failed.
        units_together: How many units were sent to the database together, this one included.
        waited: Seconds from the call until it was sent: waiting for earlier units, and for a connection.
        worked: Seconds from then until its answer, including waits for locks in the database.
        outcome: "ok", or the name of the class of its error. "NothingChangedError" is a guarded write that did not
            find the expected state: the read that follows determines whether the call raises `ClaimLostError`,
            `WorkflowConflictError` or `WorkflowNotFoundError`.
    """

    database: str
    queries: tuple[str, ...]
    writes: bool
    rows: int
    units_together: int
    waited: float
    worked: float
    outcome: str


@dataclass(slots=True)
class Subscribed:
    """A subscription of a unit of work, and the events stored before it.

    Attributes:
        event_ids: The ids of the events for this subscription: those of its name and key with `event_time` at or
            after its `subscribe_as_of`, processed or not, by (event_time, id), at most the oldest 100. Empty until the
            unit is stored.
    """

    event_ids: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Ran:
    """A query of the application in a unit of work, and what it returned.

    Attributes:
        value: Its rows as dicts; with `^` one row as a dict or None; with `$` a value; with `!` how many rows it
            changed; with `#` the word DONE. None until the unit is stored.
    """

    value: Any = None
